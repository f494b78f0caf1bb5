//! What one thread measures: [`Recorder`] for the report, [`Live`] for the
//! progress line. Both are written by their thread alone.

use crate::trace::attribution::Attribution;
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Calls that change an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Op {
    Mmap,
    Munmap,
    Mprotect,
    Mremap,
    Msync,
    Fork,
}

impl Op {
    pub(crate) const ALL: [Op; 6] = [Op::Mmap, Op::Munmap, Op::Mprotect, Op::Mremap, Op::Msync, Op::Fork];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Op::Mmap => "mmap",
            Op::Munmap => "munmap",
            Op::Mprotect => "mprotect",
            Op::Mremap => "mremap",
            Op::Msync => "msync",
            Op::Fork => "fork",
        }
    }
}

/// A histogram of 1 ns to a minute, to within 1 %.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("the bounds are right")
}

/// One thread's measurements since the measured part began.
pub(crate) struct Recorder {
    pub(crate) faults: Histogram<u64>,
    pub(crate) ops: [Histogram<u64>; Op::ALL.len()],
    pub(crate) touches: u64,
    pub(crate) first_touches: u64,
    pub(crate) attribution: Attribution,
}

impl Recorder {
    pub(crate) fn new() -> Recorder {
        Recorder {
            faults: histogram(),
            ops: std::array::from_fn(|_| histogram()),
            touches: 0,
            first_touches: 0,
            attribution: Attribution::new(),
        }
    }

    /// Forgets the warm-up.
    pub(crate) fn reset(&mut self) {
        self.faults.reset();
        self.ops.iter_mut().for_each(Histogram::reset);
        self.touches = 0;
        self.first_touches = 0;
        self.attribution.reset();
    }

    pub(crate) fn merge(&mut self, other: &Recorder) {
        let same = "histograms have the same bounds";
        self.faults.add(&other.faults).expect(same);
        for (mine, theirs) in self.ops.iter_mut().zip(&other.ops) {
            mine.add(theirs).expect(same);
        }
        self.touches += other.touches;
        self.first_touches += other.first_touches;
        self.attribution.merge(&other.attribution);
    }
}

/// Sub-buckets per power of two, as a power of two.
const SUB_BITS: u32 = 2;

/// Buckets of [`Live::latencies`]: log-linear, to within a quarter.
pub(crate) const BUCKETS: usize = 64 << SUB_BITS;

/// One thread's running totals, read by the runner while it works.
pub(crate) struct Live {
    /// The thread, as `gettid(2)` names it; 0 before it runs.
    pub(crate) tid: AtomicI32,
    pub(crate) ops: AtomicU64,
    pub(crate) first_touches: AtomicU64,
    pub(crate) checked: AtomicU64,
    pub(crate) unchecked_state: AtomicU64,
    pub(crate) latencies: [AtomicU64; BUCKETS],
}

impl Live {
    pub(crate) fn new() -> Live {
        Live {
            tid: AtomicI32::new(0),
            ops: AtomicU64::new(0),
            first_touches: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            unchecked_state: AtomicU64::new(0),
            latencies: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    pub(crate) fn latency(&self, ns: u64) {
        bump(&self.latencies[bucket(ns)]);
    }
}

/// Adds 1 to a counter that only this thread writes.
pub(crate) fn bump(counter: &AtomicU64) {
    // Relaxed, no read-modify-write: one writer, and readers only look.
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn bucket(ns: u64) -> usize {
    let ns = ns.max(1);
    let exp = 63 - ns.leading_zeros();
    let sub = if exp >= SUB_BITS { ns >> (exp - SUB_BITS) } else { ns << (SUB_BITS - exp) };
    (exp as usize) << SUB_BITS | (sub as usize & ((1 << SUB_BITS) - 1))
}

/// The 99th percentile of bucket counts, as the lower bound of its bucket.
pub(crate) fn p99(counts: &[u64]) -> Option<u64> {
    let total: u64 = counts.iter().sum();
    let mut left = total / 100;
    for (i, &count) in counts.iter().enumerate().rev() {
        if count > left {
            let (exp, sub) = (i as u32 >> SUB_BITS, i as u64 & ((1 << SUB_BITS) - 1));
            return Some(((1u128 << SUB_BITS | u128::from(sub)) << exp >> SUB_BITS) as u64);
        }
        left -= count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_percentile_is_within_a_quarter() {
        let mut counts = vec![0; BUCKETS];
        for ns in 1..=10_000u64 {
            counts[bucket(ns)] += 1;
        }
        let p99 = p99(&counts).unwrap();
        assert!((7_400..=9_900).contains(&p99), "{p99}");
        assert_eq!(super::p99(&vec![0; BUCKETS]), None);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
