//! Floors for benchmarks: the same loops as [`Floor`](crate::Floor) times touch
//! by touch, timed as a whole, so that they can take turns with what they are
//! the floor of.

use crate::Reason;
pub use crate::Touch;
pub use crate::bare::Install;
use crate::calls::PAGES;
use crate::memory::Memory;
use crate::signal::{self, Served};
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

/// Faults of one thread on memory of its own, each served by one ioctl in the
/// signal handler. Made and used on that thread.
pub struct BareFaults(Served);

impl BareFaults {
    /// # Errors
    /// [`Reason`]: what this machine or user lacks.
    pub fn new(install: Install, touch: Touch) -> Result<BareFaults, Reason> {
        Served::new(install, touch, 1).map(BareFaults)
    }

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
