//! [`Region`]: the memory below one address space.
//!
//! One reservation holds, in ascending order, the **region** (the addresses
//! that the program uses), a guard, its **twin** (same size, where the
//! contents of PROT_NONE mappings wait out of sight) and another guard.
//! The twin is one host VMA, the region one or several ([`Stripes`]), all
//! registered before anything is touched; no host mmap, munmap, mprotect or
//! mremap follows until the end.
//!
//! The twin has a userfaultfd of its own, always with SIGBUS delivery, so that
//! the kernel's own access to a twin page that is not there fails at once
//! (EFAULT) and never waits for a handler thread.

use crate::cache;
use crate::cow::{self, GivingUp};
use crate::hidden::PageBits;
use crate::presence::Presence;
use crate::sigbus;
use crate::stripes::Stripes;
use crate::uffd::{OpenError, Privilege, Uffd, feature};
use crate::zeroed::Zeroed;
use nix::errno::Errno;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vmalab::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr, page_align_up};
use vmalab::stats::{self, Counter};

/// Start of region and twin are aligned to this: a whole page-table page.
const ALIGN: usize = 2 << 20;
/// User space has 47 address bits; the reservation takes twice the region.
const SIZE_MAX: usize = 1 << 45;

/// Why a region could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegionError {
    /// Zero bytes, or more than the host's address space holds twice.
    Size {
        /// What was asked for.
        bytes: usize,
    },
    /// The host refused the memory.
    Reserve {
        /// What was asked for.
        bytes: usize,
        /// The call that failed.
        call: &'static str,
        /// How.
        errno: Errno,
    },
    /// No userfaultfd.
    Open(OpenError),
    /// UFFDIO_REGISTER failed.
    Register(Errno),
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegionError::Size { bytes } => {
                write!(f, "a region of {bytes} bytes is impossible: ask for one page up to {SIZE_MAX} bytes")
            }
            RegionError::Reserve { bytes, call, errno } => write!(
                f,
                "cannot reserve a region of {bytes} bytes (twice that is needed; {call}: {errno}): ask for a smaller \
                 region, raise the address-space limit (ulimit -v), or set vm.overcommit_memory to 0 or 1"
            ),
            RegionError::Open(error) => error.fmt(f),
            RegionError::Register(errno) => write!(
                f,
                "cannot register memory with userfaultfd ({errno}): a kernel with write protection is needed (Linux 5.7)"
            ),
        }
    }
}

impl std::error::Error for RegionError {}

impl From<OpenError> for RegionError {
    fn from(error: OpenError) -> RegionError {
        RegionError::Open(error)
    }
}

/// Who is told of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notify {
    /// The faulting thread, by SIGBUS.
    Signal,
    /// Whoever reads the userfaultfd.
    Queue,
}

/// What page tables do not tell of a region's pages.
///
/// # Invariants
/// A page is at most one of: present in the region, hidden, inherited,
/// guarded. A lazy page is one of the first three, and no store to it can pass
/// without a fault.
#[repr(C, align(64))]
pub(crate) struct PageStates {
    // A fault asks whether there is any of the first three, which is told in one
    // cache line.
    /// The contents are in the twin.
    pub hidden: PageBits,
    /// MADV_GUARD_INSTALL.
    pub guards: PageBits,
    /// The contents are in a shared page ([`cow`]), which `Region::shares` names.
    pub inherited: PageBits,
    /// Freed lazily, and not stored to since.
    pub lazy: PageBits,
    /// The page is present, and a file's ([`cache`]).
    pub files: PageBits,
}

impl PageStates {
    fn new(pages: usize) -> Result<PageStates, Errno> {
        let [hidden, inherited, guards, lazy, files] = [(); 5].map(|()| PageBits::new(pages));
        Ok(PageStates { hidden: hidden?, inherited: inherited?, guards: guards?, lazy: lazy?, files: files? })
    }
}

/// See the module's documentation.
///
/// # Invariants
/// `range` and its twin (at `+ twin_offset`) lie in the reservation, are
/// readable and writable anonymous memory, registered with `uffd` and
/// `twin_uffd`. Nothing in this process but page faults we serve, and the
/// program's own raw accesses, touches them.
#[repr(C, align(64))]
pub struct Region {
    // Dropped in this order, after `Drop::drop` has unmapped: closing a
    // userfaultfd wakes whoever still waits for it, to find nothing mapped.
    //
    // The first three are what every fault looks at: one cache line.
    uffd: Stripes,
    range: PageRange,
    /// Some page may carry a poison marker.
    poisoned: AtomicBool,
    twin_uffd: Stripes,
    /// One bit a page for each thing that page tables do not tell.
    pub(crate) pages: PageStates,
    /// Numbers of inherited pages' shared pages. Changed by mutators, before
    /// they set the bit.
    pub(crate) shares: Zeroed<AtomicU32>,
    /// How slots of files name this region; 0: not at all.
    pub(crate) number: AtomicU32,
    presence: Presence,
    twin_offset: usize,
    reservation: PageRange,
}

/// An anonymous reservation that is given back unless it is kept.
struct Reservation(PageRange);

impl Reservation {
    fn new(bytes: usize) -> Result<Reservation, Errno> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        // After mlockall(MCL_FUTURE) it would be locked, so filled before it is
        // registered, and deaf to MADV_DONTNEED.
        // SAFETY: our new mapping.
        unsafe { libc::munlock(base, bytes) };
        Ok(Reservation(PageRange::sized(VirtAddr(base as usize), bytes)))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap(self.0);
    }
}

/// Reserves address space for good.
pub(crate) fn reserve(bytes: usize) -> Result<PageRange, Errno> {
    let reservation = Reservation::new(bytes)?;
    let range = reservation.0;
    std::mem::forget(reservation);
    Ok(range)
}

fn unmap(range: PageRange) {
    // SAFETY: the range is a reservation of this module, and its owner is gone.
    let result = unsafe { libc::munmap(range.start().get() as *mut _, range.bytes()) };
    assert_eq!(result, 0, "munmap of a whole reservation: {}", Errno::last());
}

/// Makes `range` of a reservation usable, but for its userfaultfd.
pub(crate) fn open_up(range: PageRange) -> Result<(), (&'static str, Errno)> {
    let (start, len) = (range.start().get() as *mut libc::c_void, range.bytes());
    // SAFETY: the range lies in our own reservation.
    unsafe {
        if libc::mprotect(start, len, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            return Err(("mprotect", Errno::last()));
        }
        // Not in a child: there it would be half-served.
        if libc::madvise(start, len, libc::MADV_DONTFORK) != 0 {
            return Err(("madvise(MADV_DONTFORK)", Errno::last()));
        }
        // Fails only where the kernel has no transparent huge pages.
        libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
    }
    Ok(())
}

/// Attempts of an ioctl that answers EAGAIN or ENOMEM without progress.
const TRIES: u32 = 64;

/// Counts attempts without progress, yielding between them.
pub(crate) struct Retry(u32);

impl Retry {
    pub(crate) fn new() -> Retry {
        Retry(0)
    }

    /// `true`: try again.
    pub(crate) fn again(&mut self) -> bool {
        self.0 += 1;
        if self.0 > 4 {
            // SAFETY: no arguments; async-signal-safe.
            unsafe { libc::sched_yield() };
        }
        self.0 < TRIES
    }
}

/// MADV_DONTNEED. It cannot fail on a mapped, unlocked range of ours.
pub(crate) fn drop_pages(range: PageRange) {
    let mut retry = Retry::new();
    loop {
        stats::count(Counter::HostMadvise);
        // SAFETY: the range lies in a region or its twin, whose pages only
        // faults and this crate care for.
        let result = unsafe { libc::madvise(range.start().get() as *mut _, range.bytes(), libc::MADV_DONTNEED) };
        match Errno::result(result) {
            Ok(_) => return,
            Err(Errno::EAGAIN | Errno::EINTR) if retry.again() => {}
            Err(errno) => panic!("MADV_DONTNEED of {range:?}: {errno}"),
        }
    }
}

impl Region {
    /// Reserves and registers a region of `bytes`, rounded up to whole pages.
    /// Nothing is left behind on failure.
    ///
    /// # Errors
    /// [`RegionError`].
    pub fn new(bytes: usize, notify: Notify, privilege: Privilege) -> Result<Region, RegionError> {
        let bytes = match page_align_up(bytes) {
            Some(rounded) if (PAGE_SIZE..=SIZE_MAX).contains(&rounded) => rounded,
            _ => return Err(RegionError::Size { bytes }),
        };
        let failed = |(call, errno)| RegionError::Reserve { bytes, call, errno };
        let align = if bytes >= ALIGN { ALIGN } else { PAGE_SIZE };
        // Region and twin, each rounded up to the alignment, a guard behind each,
        // and what aligning the start may cost.
        let twin_offset = bytes.next_multiple_of(align) + align;
        let reservation = Reservation::new(2 * twin_offset + align).map_err(|errno| failed(("mmap", errno)))?;
        let start = VirtAddr(reservation.0.start().get().next_multiple_of(align));
        let range = PageRange::sized(start, bytes);
        let twin = PageRange::sized(start + twin_offset, bytes);
        open_up(range).map_err(failed)?;
        open_up(twin).map_err(failed)?;

        let (needed, wanted) = match notify {
            Notify::Signal => (feature::WP | feature::SIGBUS, feature::MOVE),
            Notify::Queue => {
                (feature::WP | feature::THREAD_ID, feature::EXACT_ADDRESS | feature::MOVE | feature::POISON)
            }
        };
        let open = || Uffd::open(privilege, needed, wanted);
        let mut uffd = match notify {
            Notify::Signal => Stripes::open(bytes, open)?,
            Notify::Queue => Stripes::one(open()?),
        };
        let twin_uffd = Stripes::one(Uffd::open(Privilege::User, feature::WP | feature::SIGBUS, feature::MOVE)?);
        let mut registered = uffd.register(range);
        if registered == Err(Errno::ENOMEM) && uffd.count() > 1 {
            // Too many host mappings in this process (vm.max_map_count). Closing
            // the others joins them again; nothing was touched yet.
            uffd = uffd.into_one();
            registered = uffd.register(range);
        }
        registered.map_err(RegionError::Register)?;
        twin_uffd.register(twin).map_err(RegionError::Register)?;
        let pages = PageStates::new(range.pages()).map_err(|errno| failed(("mmap", errno)))?;
        let shares = Zeroed::new(range.pages()).map_err(|errno| failed(("mmap", errno)))?;

        let whole = reservation.0;
        std::mem::forget(reservation);
        tracing::debug!(?range, ?twin, origin = %uffd.origin(), "region registered");
        let (presence, poisoned) = (Presence::new(), AtomicBool::new(false));
        Ok(Region {
            uffd,
            twin_uffd,
            pages,
            shares,
            number: AtomicU32::new(0),
            presence,
            poisoned,
            range,
            twin_offset,
            reservation: whole,
        })
    }

    /// The addresses of the region.
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// Everything that is reserved: region, twin and guards.
    pub fn reservation(&self) -> PageRange {
        self.reservation
    }

    /// The region's userfaultfds.
    pub fn uffd(&self) -> &Stripes {
        &self.uffd
    }

    /// The twin's, which is one.
    pub(crate) fn twin_uffd(&self) -> &Stripes {
        &self.twin_uffd
    }

    /// Where the contents of `page` wait while hidden.
    pub(crate) fn twin(&self, page: VirtAddr) -> VirtAddr {
        page + self.twin_offset
    }

    /// The number of `page` in [`PageStates`].
    pub(crate) fn bit(&self, page: VirtAddr) -> usize {
        (page - self.range.start()) >> PAGE_SHIFT
    }

    /// The numbers of `range`'s pages.
    pub(crate) fn bits(&self, range: PageRange) -> (usize, usize) {
        (self.bit(range.start()), self.bit(range.end()))
    }

    /// The pages with numbers `from..to`.
    pub(crate) fn pages_of(&self, (from, to): (usize, usize)) -> PageRange {
        let start = self.range.start();
        PageRange::new(start + (from << PAGE_SHIFT), start + (to << PAGE_SHIFT))
    }

    /// The twin of `range`.
    pub(crate) fn twin_of(&self, range: PageRange) -> PageRange {
        PageRange::sized(self.twin(range.start()), range.bytes())
    }

    /// Whether some page may carry a poison marker, which COPY replaces, and
    /// ZEROPAGE and MOVE take for a page.
    pub(crate) fn is_poisoned(&self) -> bool {
        // Relaxed: a marker is met by faulting on it, or by an ioctl that
        // finds it, and this was set before the marker was.
        self.poisoned.load(Ordering::Relaxed)
    }

    /// Makes accesses to a missing page fail, until it is installed. Returns
    /// whether it could.
    pub(crate) fn poison(&self, page: VirtAddr) -> bool {
        if self.uffd.features() & feature::POISON == 0 {
            return false;
        }
        self.poisoned.store(true, Ordering::SeqCst);
        sigbus::expect_poison();
        self.uffd.poison(page).is_ok()
    }

    /// # Panics
    /// If a page of `range` is a file's, which the core must have released.
    pub(crate) fn assert_released(&self, range: PageRange) {
        if !self.pages.files.is_empty() {
            let (first, last) = self.bits(range);
            let kept = self.pages.files.runs(first, last).next();
            assert!(kept.is_none(), "a file's pages in {range:?} were not released: {kept:?}");
        }
    }

    /// Gives up what the pages with numbers `first..last` inherit.
    pub(crate) fn disinherit(&self, first: usize, last: usize) {
        if self.pages.inherited.is_empty() {
            return;
        }
        let arena = cow::existing();
        let mut giving_up = GivingUp::new(arena, drop_pages);
        self.pages.inherited.clear(first, last, |a, b| {
            // Relaxed: set by mutators, of whom we are one.
            (a..b).for_each(|bit| giving_up.give_up(self.shares[bit].load(Ordering::Relaxed) as usize));
        });
    }

    pub(crate) fn presence(&self) -> &Presence {
        &self.presence
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        cache::strike(self);
        // In steps: where the last bit has been found there is no use in going on.
        let pages = self.range.pages();
        for first in (0..pages).step_by(1 << 20).take_while(|_| !self.pages.inherited.is_empty()) {
            self.disinherit(first, (first + (1 << 20)).min(pages));
        }
        // Unmapped first, and closed after (by the fields' own drops): after
        // UFFDIO_UNREGISTER, or a close, of memory still mapped, a late access
        // would find plain memory and pass in silence. Unmapping ends the
        // registration as well.
        unmap(self.reservation);
    }
}
