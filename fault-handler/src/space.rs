//! [`AddressSpace`]: an [`Mm`] with real page faults.

use crate::mmu::UffdMmu;
use crate::queue::QueueThreads;
use crate::region::{Notify, RegionError};
use crate::registry::{Registration, TableFull};
use crate::sigbus;
use crate::uffd::{Origin, Privilege};
use nix::errno::Errno;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use vmalab::lock::LockScheme;
use vmalab::mm::Mm;
use vmalab::pager::{AnyPager, Pager};

/// How a fault reaches us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// SIGBUS on the faulting thread.
    Sigbus,
    /// Messages to handler threads.
    Queue {
        /// How many threads, at least 1.
        handlers: usize,
        /// They spin instead of sleeping: faster, a CPU each.
        polling: bool,
    },
}

/// Why an address space could not be made; the text says what would help.
#[derive(Debug)]
pub enum Error {
    /// No userfaultfd, no memory.
    Region(RegionError),
    /// Too many address spaces.
    TableFull(TableFull),
    /// The signal handlers could not be installed.
    Handlers(Errno),
    /// The handler threads could not be started.
    Threads(std::io::Error),
    /// The mappings could not be inherited.
    Fork(Errno),
    /// Ready pages could not be had.
    Ready(Errno),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Region(error) => error.fmt(f),
            Error::TableFull(error) => error.fmt(f),
            Error::Handlers(errno) => write!(f, "cannot install the SIGBUS handler: {errno}"),
            Error::Fork(errno) => write!(f, "cannot fork the address space: {errno}"),
            Error::Ready(errno) => write!(
                f,
                "cannot keep pages ready ({errno}): ask for fewer; Linux 6.8 is needed (UFFDIO_MOVE), and a thread"
            ),
            Error::Threads(error) => {
                write!(
                    f,
                    "cannot start the handler threads ({error}): raise the limits (ulimit -u, ulimit -n) or ask for fewer"
                )
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Region(error) => Some(error),
            Error::TableFull(error) => Some(error),
            Error::Handlers(errno) | Error::Fork(errno) | Error::Ready(errno) => Some(errno),
            Error::Threads(error) => Some(error),
        }
    }
}

impl From<RegionError> for Error {
    fn from(error: RegionError) -> Error {
        Error::Region(error)
    }
}

/// An address space whose faults are real. Dereferences to its [`Mm`].
///
/// When it is dropped, faults in progress are finished, later ones find
/// nothing mapped (SIGSEGV, SEGV_MAPERR), and the memory is given back.
///
/// A system call that meets a page which is not present fails with EFAULT,
/// except in queue delivery with [`Builder::kernel_faults`]: populate what a
/// system call is to use. A thread that blocks SIGBUS must not touch the
/// region: its process dies.
pub struct AddressSpace<S: LockScheme, P: Pager = AnyPager> {
    // In the order of dropping; `Drop` has ended the service before.
    mm: Arc<Mm<S, UffdMmu, P>>,
    registration: Registration,
    queue: Option<QueueThreads>,
    recipe: Recipe,
}

/// How to make another one like it.
#[derive(Clone, Debug)]
struct Recipe {
    bytes: usize,
    delivery: Delivery,
    kernel_faults: bool,
    ready_pages: usize,
}

/// What an [`AddressSpace`] is made from.
#[derive(Clone, Debug)]
pub struct Builder<S, P = AnyPager> {
    bytes: usize,
    delivery: Delivery,
    kernel_faults: bool,
    ready_pages: usize,
    pager: P,
    _scheme: PhantomData<fn() -> S>,
}

impl<S: LockScheme> AddressSpace<S> {
    /// A builder: 1 GiB, SIGBUS delivery, zero pages.
    pub fn builder() -> Builder<S> {
        Builder {
            bytes: 1 << 30,
            delivery: Delivery::Sigbus,
            kernel_faults: false,
            ready_pages: 0,
            pager: AnyPager::Zero,
            _scheme: PhantomData,
        }
    }
}

impl<S: LockScheme, P: Pager> Builder<S, P> {
    /// Bytes of the region, rounded up to whole pages. Only address space is
    /// reserved, twice as much.
    pub fn region(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    /// How faults reach us.
    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    /// Queue delivery: serve faults inside system calls too. Needs rights
    /// ([`Privilege::Kernel`]).
    pub fn kernel_faults(mut self, yes: bool) -> Self {
        self.kernel_faults = yes;
        self
    }

    /// Keeps so many zeroed pages ready, and a thread that makes new ones: stores
    /// under fault-around ([`Mm::set_fault_around`]) then need not wait for pages
    /// to be cleared. 0, as at first: none.
    pub fn ready_pages(mut self, pages: usize) -> Self {
        self.ready_pages = pages;
        self
    }

    /// Where pages come from.
    pub fn pager<Q: Pager>(self, pager: Q) -> Builder<S, Q> {
        let Builder { bytes, delivery, kernel_faults, ready_pages, pager: _, _scheme } = self;
        Builder { bytes, delivery, kernel_faults, ready_pages, pager, _scheme }
    }

    /// Makes the address space.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind.
    pub fn build(self) -> Result<AddressSpace<S, P>, Error> {
        vmalab::stats::set_clock(monotonic_ns);
        sigbus::install().map_err(Error::Handlers)?;
        let Builder { bytes, delivery, kernel_faults, ready_pages, pager, .. } = self;
        let recipe = Recipe { bytes, delivery, kernel_faults, ready_pages };
        let mmu = recipe.mmu()?;
        AddressSpace::around(Mm::new(mmu, pager), recipe)
    }
}

impl Recipe {
    /// An empty region.
    fn mmu(&self) -> Result<UffdMmu, Error> {
        let (notify, privilege) = match self.delivery {
            // The kernel never sends SIGBUS for its own faults: rights are no use.
            Delivery::Sigbus => (Notify::Signal, Privilege::User),
            Delivery::Queue { .. } if self.kernel_faults => (Notify::Queue, Privilege::Kernel),
            Delivery::Queue { .. } => (Notify::Queue, Privilege::User),
        };
        let mut mmu = UffdMmu::new(self.bytes, notify, privilege)?;
        if self.ready_pages > 0 {
            mmu.keep_ready(self.ready_pages).map_err(Error::Ready)?;
        }
        Ok(mmu)
    }
}

impl<S: LockScheme, P: Pager> AddressSpace<S, P> {
    /// Begins to serve the faults of `mm`, whose `Mmu` is from `recipe`.
    fn around(mm: Mm<S, UffdMmu, P>, recipe: Recipe) -> Result<AddressSpace<S, P>, Error> {
        let mm = Arc::new(mm);
        let region = mm.mmu().region().clone();
        let registration =
            Registration::new(region.range(), region.reservation(), mm.clone()).map_err(Error::TableFull)?;
        let queue = match recipe.delivery {
            Delivery::Sigbus => None,
            Delivery::Queue { handlers, polling } => {
                Some(QueueThreads::start(&region, handlers, polling).map_err(Error::Threads)?)
            }
        };
        Ok(AddressSpace { mm, registration, queue, recipe })
    }

    /// `fork(2)` inside the process: a second address space of the same size,
    /// delivery and rights, which inherits what the kernel's would ([`Mm::fork`]).
    /// Its mappings have the same distance from the start of its own region.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind.
    pub fn fork(&self) -> Result<AddressSpace<S, P>, Error>
    where
        P: Clone,
    {
        let mm = self.mm.fork(self.recipe.mmu()?).map_err(Error::Fork)?;
        AddressSpace::around(mm, self.recipe.clone())
    }

    /// The address space's state and operations.
    pub fn mm(&self) -> &Mm<S, UffdMmu, P> {
        &self.mm
    }

    /// How its userfaultfd was created.
    pub fn origin(&self) -> Origin {
        self.mm.mmu().region().uffd().origin()
    }
}

impl<S: LockScheme, P: Pager> Deref for AddressSpace<S, P> {
    type Target = Mm<S, UffdMmu, P>;

    fn deref(&self) -> &Self::Target {
        &self.mm
    }
}

impl<S: LockScheme, P: Pager> Drop for AddressSpace<S, P> {
    fn drop(&mut self) {
        // No fault is being served any more when this returns.
        self.registration.retire();
        if let Some(queue) = self.queue.take() {
            queue.stop();
        }
        // Then the fields: the mm, with it the region (which is unmapped, then
        // closed, which wakes threads whose messages nobody answered), and last
        // the place in the table, which until then says that nothing is mapped.
    }
}

/// CLOCK_MONOTONIC, through the vDSO: async-signal-safe.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills `now`; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
