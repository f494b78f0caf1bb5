//! The signal handler: looks whose fault it is, does one ioctl or steps over
//! the instruction, and returns.

use crate::bare::{Bare, Install, Job, Notify};
use crate::calls::PAGES;
use crate::crew::{Probe, Samples};
use crate::memory::Memory;
use crate::{Reason, Touch};
use nix::errno::Errno;
use std::arch::asm;
use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmalab::addr::PAGE_SIZE;

/// What the calling thread's faults mean.
#[derive(Clone, Copy)]
enum Mine {
    Nothing,
    /// Served by the job.
    Serve(*const Job),
    /// An [`access`] to a page at this address is stepped over.
    StepOver(usize),
}

thread_local! {
    /// Const-initialised and without destructor: async-signal-safe.
    static MINE: Cell<Mine> = const { Cell::new(Mine::Nothing) };
}

/// Bytes of the instruction of [`access`].
const ACCESS_BYTES: i64 = 2;

/// A load that [`handler`] can step over.
#[inline(never)]
fn access(addr: usize) {
    // SAFETY: the byte is used for nothing. A fault is what the caller wants.
    unsafe { asm!("mov al, byte ptr [rdi]", in("rdi") addr, out("al") _, options(nostack, readonly, preserves_flags)) }
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel's siginfo of a fault.
    let addr = unsafe { (*info).si_addr() }.addr();
    match MINE.get() {
        // SAFETY: set by `Served`, which takes it back before the job goes.
        Mine::Serve(job) if unsafe { (*job).owns(addr) } => unsafe { (*job).serve(addr) },
        Mine::StepOver(page) if addr & !(PAGE_SIZE - 1) == page => {
            // SAFETY: the kernel's context of this thread, which stands at the
            // instruction of `access`: nothing else touches that page.
            unsafe { (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize] += ACCESS_BYTES }
        }
        // Somebody's bug. The access is repeated and kills.
        // SAFETY: async-signal-safe.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
    Errno::set_raw(errno);
}

/// Puts the former action back when dropped.
pub struct Installed {
    signal: i32,
    former: libc::sigaction,
}

/// Installs the handler for all threads.
pub fn install(signal: i32) -> Result<Installed, Reason> {
    // SAFETY: structures of zero bytes are valid; `handler` is async-signal-safe.
    unsafe {
        let mut former: libc::sigaction = std::mem::zeroed();
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&mut ours.sa_mask);
        match Errno::result(libc::sigaction(signal, &ours, &mut former)) {
            Ok(_) => Ok(Installed { signal, former }),
            Err(errno) => Err(Reason::call("sigaction", errno)),
        }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // SAFETY: the action that the signal had before.
        unsafe { libc::sigaction(self.signal, &self.former, ptr::null_mut()) };
    }
}

/// Faults served by an ioctl in the handler.
pub struct Served {
    bare: Box<Bare>,
    touch: Touch,
}

impl Served {
    pub fn new(install: Install, touch: Touch, pages: usize) -> Result<Served, Reason> {
        let bare = Box::new(Bare::new(install, pages, Notify::Signal)?);
        MINE.set(Mine::Serve(&bare.job));
        Ok(Served { bare, touch })
    }
}

/// Faults of one thread in its part of memory that several threads share.
pub struct Shared {
    bare: Arc<Bare>,
    touch: Touch,
    first: usize,
}

impl Shared {
    /// Thread number `worker`'s part of `bare`, which has one of [`PAGES`] for each.
    pub fn new(bare: Arc<Bare>, touch: Touch, worker: usize) -> Shared {
        MINE.set(Mine::Serve(&bare.job));
        Shared { bare, touch, first: worker * PAGES }
    }

    /// Touches its first `pages` pages, each a fault of its own; returns how
    /// long that took.
    pub fn touch_all(&mut self, pages: usize) -> Result<Duration, Reason> {
        let begin = Instant::now();
        (self.first..self.first + pages).for_each(|page| self.bare.touch_batch(page, self.touch));
        let took = begin.elapsed();
        self.bare.job.check()?;
        self.bare.reset_from(self.first)?;
        Ok(took)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        MINE.set(Mine::Nothing);
    }
}

impl Probe for Served {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        for first in self.bare.batches() {
            samples.time(self.bare.pages() as u64, || self.bare.touch_batch(first, self.touch));
        }
        self.bare.job.check()?;
        self.bare.reset()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        MINE.set(Mine::Nothing);
    }
}

/// A fault whose handler does nothing.
pub struct RoundTrip {
    page: usize,
    _memory: Backing,
}

enum Backing {
    Forbidden { _memory: Memory },
    Missing { _bare: Box<Bare> },
}

/// Faults in one pass.
const FAULTS: usize = 256;

impl RoundTrip {
    /// SIGSEGV of a page that may not be accessed.
    pub fn sigsegv() -> Result<RoundTrip, Reason> {
        let memory = Memory::forbidden(1)?;
        Ok(RoundTrip::at(memory.base(), Backing::Forbidden { _memory: memory }))
    }

    /// SIGBUS of a missing page under userfaultfd: the fault goes further.
    pub fn sigbus() -> Result<RoundTrip, Reason> {
        let bare = Box::new(Bare::new(Install::ZeroPage, 1, Notify::Signal)?);
        Ok(RoundTrip::at(bare.base(), Backing::Missing { _bare: bare }))
    }

    fn at(page: usize, memory: Backing) -> RoundTrip {
        MINE.set(Mine::StepOver(page));
        RoundTrip { page, _memory: memory }
    }
}

impl Probe for RoundTrip {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        (0..FAULTS).for_each(|_| samples.time(1, || access(self.page)));
        Ok(())
    }
}

impl Drop for RoundTrip {
    fn drop(&mut self) {
        MINE.set(Mine::Nothing);
    }
}
