//! Floors for benchmarks: the same loops as [`Floor`](crate::Floor) times touch
//! by touch, timed as a whole, so that they can take turns with what they are
//! the floor of.

use crate::Reason;
pub use crate::Touch;
pub use crate::bare::Install;
use crate::bare::{Bare, Notify};
use crate::calls::PAGES;
use crate::memory::Memory;
use crate::signal::{self, Shared};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// While it lives, faults on [`BareFaults`] are served, and no others: SIGBUS
/// has a handler that does one ioctl. The former action comes back after it.
pub struct BareHandler {
    _installed: signal::Installed,
}

/// Installs that handler, for all threads.
///
/// # Errors
/// [`Reason`]: sigaction(2) failed.
pub fn bare_handler() -> Result<BareHandler, Reason> {
    Ok(BareHandler { _installed: signal::install(libc::SIGBUS)? })
}

/// Memory in which threads fault, each served by one ioctl in the signal handler.
pub struct BareMemory {
    bare: Arc<Bare>,
}

impl BareMemory {
    /// For so many threads, under one userfaultfd and in one mapping of the host's.
    ///
    /// # Errors
    /// [`Reason`]: what this machine or user lacks.
    pub fn new(threads: usize, install: Install) -> Result<BareMemory, Reason> {
        Ok(BareMemory { bare: Arc::new(Bare::for_threads(threads, install, 1, Notify::Signal)?) })
    }

    /// The part of thread `worker`, below the number of threads; to be called
    /// and used on that thread.
    pub fn faults(&self, worker: usize, touch: Touch) -> BareFaults {
        BareFaults(Shared::new(Arc::clone(&self.bare), touch, worker))
    }
}

/// Faults of one thread in its part of a [`BareMemory`].
pub struct BareFaults(Shared);

impl BareFaults {
    /// Touches so many missing pages; returns the time without what makes them
    /// missing again. A [`BareHandler`] must be there.
    ///
    /// # Errors
    /// [`Reason`]: an ioctl failed.
    pub fn run(&mut self, faults: u64) -> Result<Duration, Reason> {
        in_passes(faults, |pages| self.0.touch_all(pages))
    }
}

/// First touches of the host's own anonymous memory, in order.
pub struct NativeFaults {
    memory: Memory,
    touch: Touch,
}

impl NativeFaults {
    /// # Errors
    /// [`Reason`]: no memory.
    pub fn new(touch: Touch) -> Result<NativeFaults, Reason> {
        Ok(NativeFaults { memory: Memory::anonymous(PAGES)?, touch })
    }

    /// Touches so many missing pages; returns the time without what makes them
    /// missing again.
    ///
    /// # Errors
    /// [`Reason`]: madvise(2) failed.
    pub fn run(&mut self, faults: u64) -> Result<Duration, Reason> {
        in_passes(faults, |pages| {
            let begin = Instant::now();
            (0..pages).for_each(|page| self.memory.touch(page, self.touch));
            let took = begin.elapsed();
            self.memory.drop_pages(0, pages)?;
            Ok(took)
        })
    }
}

/// `pass` touches at most [`PAGES`] pages.
fn in_passes(faults: u64, mut pass: impl FnMut(usize) -> Result<Duration, Reason>) -> Result<Duration, Reason> {
    let (mut took, mut left) = (Duration::ZERO, faults as usize);
    while left > 0 {
        let now = left.min(PAGES);
        took += pass(now)?;
        left -= now;
    }
    Ok(took)
}
