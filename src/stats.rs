//! Counters and wait-time histograms, kept per thread and summed when read.
//!
//! Every announced thread ([`crate::thread`]) writes its own cache lines, so
//! counting on the fault path touches nothing shared; threads that never
//! announced themselves share one slot with atomic additions. Nothing here
//! allocates, so all of it may be used in a signal handler.

use crate::sync::MODEL;
use crate::sync::plain::{AtomicU64, AtomicUsize, Ordering};
use crate::thread;
use std::hint::cold_path;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What is counted. Totals are for the process, since its start.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in order.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];
        }
    };
}

counters! {
    // What every fault raises comes first, in one cache line.
    /// Faults that entered the fault path (`PGFAULT`).
    Fault,
    /// VMA_LOCK_SUCCESS: faults finished under the VMA lock, bad accesses too.
    VmaLockSuccess,
    /// Pages that the fault path made present.
    PageInstalled,
    /// userfaultfd ioctls made on a region.
    HostUffd,
    /// VMA_LOCK_RETRY: the VMA lock was held, but the fault needed the mmap lock.
    VmaLockRetry,
    /// VMA_LOCK_MISS: the VMA found was detached, and the tree was walked again.
    VmaLockMiss,
    /// VMA_LOCK_ABORT: no VMA at the address.
    AbortNoVma,
    /// VMA_LOCK_ABORT: the sequence numbers were equal before the lock attempt.
    AbortWriteLockedEarly,
    /// VMA_LOCK_ABORT: the read trylock failed, a writer drains readers.
    AbortContended,
    /// VMA_LOCK_ABORT: the sequence numbers were equal after locking.
    AbortWriteLockedLate,
    /// VMA_LOCK_ABORT: the object had been reused in another address space.
    AbortOtherMm,
    /// VMA_LOCK_ABORT: the object now covers another range.
    AbortOtherRange,
    /// VMA_LOCK_ABORT: the walk met detached VMAs too often.
    AbortMissLimit,
    /// mmap lock taken for reading.
    MmapLockRead,
    /// mmap lock taken for writing.
    MmapLockWrite,
    /// VMA objects handed out by the slab.
    VmaAllocated,
    /// ... that had been a VMA before.
    VmaReused,
    /// ... in another address space.
    VmaReusedOtherMm,
    /// Calls of mmap made on a region while it was in use.
    HostMmap,
    /// Calls of munmap made on a region while it was in use.
    HostMunmap,
    /// Calls of mprotect made on a region while it was in use.
    HostMprotect,
    /// Calls of mremap made on a region while it was in use.
    HostMremap,
    /// Calls of madvise (and mincore) made on a region.
    HostMadvise,
    /// Installations that found the page there already (EEXIST).
    PageExists,
    /// Faults answered with SIGSEGV.
    FaultSegv,
    /// Faults answered with SIGBUS for want of memory.
    FaultBus,
}

const COUNTERS: usize = Counter::ALL.len();

/// Sub-buckets per power of two: values are kept to within 1/16.
const SUB_BITS: u32 = 4;
/// (A model times nothing, and its threads have small stacks.)
const BUCKETS: usize = if MODEL { 1 } else { ((64 - SUB_BITS as usize) + 1) << SUB_BITS };

/// A log-linear histogram of nanoseconds that can be written in a signal handler.
pub struct AtomicHistogram {
    buckets: [AtomicU64; BUCKETS],
}

impl AtomicHistogram {
    const fn new() -> AtomicHistogram {
        AtomicHistogram { buckets: [const { AtomicU64::new(0) }; BUCKETS] }
    }

    fn index(value: u64) -> usize {
        let value = value.max(1);
        let exp = 63 - value.leading_zeros();
        if exp < SUB_BITS {
            value as usize
        } else {
            let sub = (value >> (exp - SUB_BITS)) as usize & ((1 << SUB_BITS) - 1);
            ((exp - SUB_BITS + 1) as usize) << SUB_BITS | sub
        }
    }

    /// The middle of a bucket.
    fn value(index: usize) -> u64 {
        let (exp, sub) = (index >> SUB_BITS, index & ((1 << SUB_BITS) - 1));
        if exp == 0 {
            sub as u64
        } else {
            let width = 1u64 << (exp - 1);
            (((1 << SUB_BITS) + sub as u64) << (exp - 1)) + width / 2
        }
    }

    fn record(&self, value: u64) {
        // Relaxed: a statistic; nothing is published through it.
        let bucket = if MODEL { 0 } else { AtomicHistogram::index(value) };
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }
}

/// Which waits are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Wait {
    /// For the mmap lock, to read.
    MmapRead,
    /// For the mmap lock, to write.
    MmapWrite,
}

/// One thread's counters. Lives in a [`thread`] slot.
pub(crate) struct ThreadStats {
    counters: [AtomicU64; COUNTERS],
    waits: [AtomicHistogram; 2],
}

impl ThreadStats {
    pub(crate) const fn new() -> ThreadStats {
        ThreadStats { counters: [const { AtomicU64::new(0) }; COUNTERS], waits: [const { AtomicHistogram::new() }; 2] }
    }
}

/// Adds 1 to `counter`. Async-signal-safe.
#[inline]
pub fn count(counter: Counter) {
    count_n(counter, 1);
}

/// Adds `n` to `counter`. Async-signal-safe.
#[inline]
pub fn count_n(counter: Counter, n: u64) {
    match thread::current() {
        Some(slot) => {
            let cell = &slot.stats.counters[counter as usize];
            // Relaxed, and no read-modify-write: only this thread writes the
            // cell. A signal handler of the same thread between load and store
            // can lose its own count; counters are statistics.
            cell.store(cell.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        }
        None => {
            cold_path();
            thread::shared().stats.counters[counter as usize].fetch_add(n, Ordering::Relaxed);
        }
    }
}

/// Records how long a lock was waited for, in ns. Async-signal-safe.
pub fn record_wait(wait: Wait, ns: u64) {
    let slot = thread::current().unwrap_or_else(thread::shared);
    slot.stats.waits[wait as usize].record(ns);
}

/// The calling thread's own count of `counter`, or `None` if the thread was
/// never announced.
#[inline]
pub fn of_this_thread(counter: Counter) -> Option<u64> {
    thread::current().map(|slot| slot.stats.counters[counter as usize].load(Ordering::Relaxed))
}

/// All counters and histograms of the process at (about) one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    counters: [u64; COUNTERS],
    waits: [Vec<u64>; 2],
}

impl Snapshot {
    /// Sums every thread's slot.
    pub fn take() -> Snapshot {
        let mut snap = Snapshot { counters: [0; COUNTERS], waits: [vec![0; BUCKETS], vec![0; BUCKETS]] };
        for slot in thread::all() {
            for (sum, cell) in snap.counters.iter_mut().zip(&slot.stats.counters) {
                *sum += cell.load(Ordering::Relaxed);
            }
            for (sums, histogram) in snap.waits.iter_mut().zip(&slot.stats.waits) {
                for (sum, cell) in sums.iter_mut().zip(&histogram.buckets) {
                    *sum += cell.load(Ordering::Relaxed);
                }
            }
        }
        snap
    }

    /// The total of one counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// VMA_LOCK_ABORT as the kernel counts it: all reasons together.
    pub fn vma_lock_abort(&self) -> u64 {
        use Counter::*;
        [
            AbortNoVma,
            AbortWriteLockedEarly,
            AbortContended,
            AbortWriteLockedLate,
            AbortOtherMm,
            AbortOtherRange,
            AbortMissLimit,
        ]
        .iter()
        .map(|&c| self.get(c))
        .sum()
    }

    /// Waits for a lock as `(nanoseconds, how often)`, ascending, to within
    /// 1/16. Acquisitions that did not wait are not in it.
    pub fn waits(&self, wait: Wait) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.waits[wait as usize]
            .iter()
            .enumerate()
            .filter(|&(_, &n)| n > 0)
            .map(|(i, &n)| (AtomicHistogram::value(i), n))
    }

    /// What happened between `earlier` and this snapshot.
    pub fn since(&self, earlier: &Snapshot) -> Snapshot {
        let mut diff = self.clone();
        for (new, old) in diff.counters.iter_mut().zip(earlier.counters) {
            *new = new.wrapping_sub(old);
        }
        for (new, old) in diff.waits.iter_mut().flatten().zip(earlier.waits.iter().flatten()) {
            *new = new.wrapping_sub(*old);
        }
        diff
    }
}

/// The clock that times waits: a `fn() -> u64` in ns, or 0 for none. The core
/// has no clock of its own.
static CLOCK: AtomicUsize = AtomicUsize::new(0);

/// Gives the core a clock (ns, monotonic, async-signal-safe). Until then waits
/// are not timed.
pub fn set_clock(clock: fn() -> u64) {
    // Release: pairs with the Acquire in `now_ns`, for what the clock has set up.
    CLOCK.store(clock as usize, Ordering::Release);
}

/// The time in ns, if there is a clock.
#[inline]
pub fn now_ns() -> Option<u64> {
    // Acquire: pairs with the Release in `set_clock`.
    let clock = CLOCK.load(Ordering::Acquire);
    if clock == 0 {
        return None;
    }
    // SAFETY: only `set_clock` stores a non-zero value, and it is a `fn() -> u64`.
    let clock: fn() -> u64 = unsafe { std::mem::transmute(clock) };
    Some(clock())
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_within_a_sixteenth() {
        for value in (0..64).map(|bit| 1u64 << bit).chain([3, 15, 16, 17, 1000, 123_456_789, u64::MAX]) {
            let back = AtomicHistogram::value(AtomicHistogram::index(value));
            assert!(back.abs_diff(value) <= value / 16, "{value} came back as {back}");
        }
        assert!(AtomicHistogram::index(u64::MAX) < BUCKETS);
    }

    #[test]
    fn counts_come_from_announced_and_unannounced_threads() {
        let before = Snapshot::take();
        count(Counter::AbortMissLimit);
        std::thread::spawn(|| {
            thread::announce();
            count_n(Counter::AbortMissLimit, 2);
        })
        .join()
        .unwrap();
        std::thread::spawn(|| count_n(Counter::AbortMissLimit, 4)).join().unwrap();
        assert_eq!(Snapshot::take().since(&before).get(Counter::AbortMissLimit), 7);
    }
}
