//! What a run found: [`StressReport`], which serialises to the `stress` object
//! of the command's JSON (schema 1). Keys may be added, never changed.
//!
//! Times are nanoseconds. What was not measured is `null`, never 0.

use crate::slices::SlicesReport;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A distribution of nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Samples, at least 1.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// 99.9th percentile.
    pub p999: u64,
    /// Largest.
    pub max: u64,
}

impl Distribution {
    /// Sums a histogram up; `None` if nothing was recorded.
    pub fn of(histogram: &Histogram<u64>) -> Option<Distribution> {
        if histogram.is_empty() {
            return None;
        }
        let at = |quantile| histogram.value_at_quantile(quantile);
        Some(Distribution {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        })
    }
}

/// A distribution's quantiles, ascending, each with its value in ns: twenty for
/// each nine (0, 0.11, ... 0.9, ... 0.99) up to p99.99, or to where the last
/// sample stands.
pub type Cdf = Vec<(f64, u64)>;

/// Steps of a [`Cdf`] from one nine to the next.
const STEPS_PER_NINE: i32 = 20;

/// The quantiles of a histogram.
pub(crate) fn cdf(histogram: &Histogram<u64>) -> Cdf {
    (0..=4 * STEPS_PER_NINE)
        .map(|step| 10_f64.powf(f64::from(-step) / f64::from(STEPS_PER_NINE)))
        // As exact as the power above.
        .take_while(|above| histogram.len() as f64 * above > 1.0 - 1e-6)
        .map(|above| (1.0 - above, histogram.value_at_quantile(1.0 - above)))
        .collect()
}

/// What the fault latency is a multiple of: the bare mechanism, measured right
/// after the run (`vmalab limits`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FloorReport {
    /// As in `vmalab limits --json`.
    pub name: String,
    /// For people.
    pub title: String,
    /// Its median.
    pub ns: u64,
    /// The run's median fault over this one.
    pub ratio: f64,
}

/// Where the time of sampled faults went, from before the access to after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttributionReport {
    /// One access in so many was watched.
    pub one_in: u32,
    /// Faults of watched accesses.
    pub faults: u64,
    /// Watched accesses left out, as their phases did not add up.
    pub discarded: u64,
    /// The phases in their order; their means add up to `sum_ns`.
    pub phases: Vec<PhaseReport>,
    /// Sum of the phases' means.
    pub sum_ns: f64,
    /// The whole, measured around the access.
    pub whole_ns: Distribution,
    /// `sum_ns` over the mean of `whole_ns`, less 1.
    pub error: f64,
    /// What one reading of the clock takes. Each passage from phase to phase
    /// adds one, which faults that are not watched do without.
    pub clock_ns: f64,
}

/// A part of a fault's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// delivery, lookup, lock, wait, install or return.
    pub phase: String,
    /// Part of the whole, by the means.
    pub share: f64,
    /// How long it took; 0 where a fault did not pass it.
    pub ns: Distribution,
}

/// VMA_LOCK counters, as the kernel counts them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmaLockReport {
    /// Faults finished under the VMA lock.
    pub success: u64,
    /// Faults whose VMA lock attempt failed: done again under the mmap lock.
    pub abort: u64,
    /// Faults that held the VMA lock but needed the mmap lock.
    pub retry: u64,
    /// VMAs found detached: the tree was walked again.
    pub miss: u64,
    /// `abort` by reason.
    pub abort_reasons: AbortReasons,
}

/// Why VMA lock attempts failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AbortReasons {
    /// No VMA at the address.
    pub no_vma: u64,
    /// Write-locked, seen before the attempt.
    pub write_locked_early: u64,
    /// A writer was draining readers.
    pub contended: u64,
    /// Write-locked, seen after locking.
    pub write_locked_late: u64,
    /// The object had been reused in another address space.
    pub other_mm: u64,
    /// The object now covers another range.
    pub other_range: u64,
    /// Detached VMAs were met too often.
    pub miss_limit: u64,
}

/// The mmap locks of all address spaces together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MmapLockReport {
    /// Acquisitions for reading.
    pub read: u64,
    /// Acquisitions for writing.
    pub write: u64,
    /// Waits of readers; acquisitions that did not wait are not in it.
    pub read_wait_ns: Option<Distribution>,
    /// Waits of writers; acquisitions that did not wait are not in it.
    pub write_wait_ns: Option<Distribution>,
}

/// The slab of VMA objects.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlabReport {
    /// Objects handed out.
    pub allocated: u64,
    /// ... that had been a VMA before.
    pub reused: u64,
    /// ... in another address space.
    pub reused_other_mm: u64,
    /// Slabs held at the end of the run.
    pub slabs: Option<u64>,
    /// Bytes of one object.
    pub object_bytes: Option<u64>,
}

/// Host calls made on the regions while the workload ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // each is the call it is named after
pub struct HostCallsReport {
    pub mmap: u64,
    pub munmap: u64,
    pub mprotect: u64,
    pub mremap: u64,
    pub madvise: u64,
    /// userfaultfd ioctls.
    pub uffd: u64,
}

/// RCU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RcuReport {
    /// Grace periods completed while the workload ran.
    pub grace_periods: u64,
    /// Deferred calls waiting at the end of the run.
    pub backlog: u64,
}

/// How the fault path ended, beside the VMA lock's view of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FaultOutcomes {
    /// Installations that found the page there already (another thread's fault).
    pub exists: u64,
    /// Faults answered with SIGSEGV.
    pub segv: u64,
    /// Faults answered with SIGBUS for want of memory.
    pub bus: u64,
}

/// What the adversary did (`--adversary`), warm-up included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdversaryReport {
    /// Schedule points reached, by name.
    pub points: BTreeMap<String, u64>,
    /// Delays at schedule points.
    pub delays: DelaysReport,
    /// VMA objects handed out that had been a VMA before.
    pub reused: u64,
    /// ... in another address space.
    pub reused_other_mm: u64,
    /// VMA objects poisoned when they were freed.
    pub poisoned: u64,
    /// Calls of mmap that got a place unmapped a moment ago, as none was asked for.
    pub same_address: u64,
    /// Mappings made in twins, where the workload had just unmapped.
    pub twin_mappings: u64,
    /// Accesses beside the workload's, where objects change hands.
    pub ghosts: u64,
    /// Twins that died and were replaced.
    pub twin_deaths: u64,
}

/// Delays at schedule points, by kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DelaysReport {
    /// Up to 64 spins.
    pub spins: u64,
    /// The processor given away.
    pub yields: u64,
    /// Up to 100 us asleep.
    pub sleeps: u64,
    /// Until the other side, readers or writers, had taken some steps.
    pub awaits: u64,
}

/// What `--verify` found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Accesses checked, those of the warm-up too.
    pub checked: u64,
    /// Accesses among them whose address changed more often than the window
    /// remembers: their contents were checked, their outcome was not.
    pub unchecked_state: u64,
    /// Violations found; the run stops at the first, so threads that meet one
    /// at the same time make it more than 1.
    pub violations: u64,
    /// The first.
    pub first: Option<Violation>,
}

/// An access that saw what it must never see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Violation {
    /// The oracle that caught it (O1 contents, O2 readable where nothing is
    /// mapped, O3 an outcome that no state explains, O4 invariants at rest, O5 no end).
    pub oracle: String,
    /// One line: what was seen and what was expected.
    pub message: String,
    /// The address, in hexadecimal.
    pub address: String,
    /// Number of the address space among those of the run, from 0.
    pub address_space: u32,
    /// The incarnation that the page should have at least, if known.
    pub incarnation_expected: Option<u64>,
    /// The incarnation that the page carries, if it was readable.
    pub incarnation_seen: Option<u64>,
    /// The last events of the thread, oldest first.
    pub events: Vec<String>,
    /// Name of the thread.
    pub thread: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} violated at {} by {}: {}", self.oracle, self.address, self.thread, self.message)?;
        if let Some(expected) = self.incarnation_expected {
            write!(f, "\n  incarnation expected: {expected} or higher")?;
        }
        if let Some(seen) = self.incarnation_seen {
            write!(f, "\n  incarnation seen:     {seen}")?;
        }
        for event in &self.events {
            write!(f, "\n  {event}")?;
        }
        Ok(())
    }
}

/// The result of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StressReport {
    /// 1.
    pub schema: u32,
    /// `"stress"`.
    pub command: String,
    /// Name of the workload.
    pub workload: String,
    /// Name of the lock; `"native"` natively.
    pub lock: String,
    /// The algorithm of the mmap lock.
    #[serde(default)]
    pub rwsem: Option<String>,
    /// Name of the backend.
    pub backend: String,
    /// Name of the delivery; `"native"` natively.
    pub delivery: String,
    /// Handler threads of each address space, in `queue` delivery.
    pub handlers: Option<u32>,
    /// Threads that faulted.
    pub threads: u32,
    /// Threads that only mapped, protected and unmapped.
    pub mutators: u32,
    /// Calls a second that each of them made at most, if they were limited.
    pub mutator_rate: Option<u32>,
    /// Address spaces, at least the workload's minimum.
    pub address_spaces: u32,
    /// Bytes of each address space.
    pub region_bytes: u64,
    /// Userfaultfds of an address space, for as many kinds of stripes of its
    /// region; `None` without real faults.
    pub userfaultfds: Option<u32>,
    /// Seed of the threads' streams.
    pub seed: u64,
    /// Length of the measured part.
    pub seconds: f64,
    /// Whether the run was stopped from outside before its end.
    pub interrupted: bool,
    /// Faults that entered the fault path; natively, first touches.
    pub faults: Option<u64>,
    /// The same per second.
    pub faults_per_s: Option<f64>,
    /// Pages made present; natively, first touches.
    pub pages: Option<u64>,
    /// Accesses that the workload made.
    pub touches: u64,
    /// Latency of accesses that were expected to fault, clock reading included.
    pub fault_ns: Option<Distribution>,
    /// Filled in by the command, if it measured it.
    #[serde(default)]
    pub floor: Option<FloorReport>,
    /// Where the faults' time went; `None` natively, or if none was sampled.
    #[serde(default)]
    pub attribution: Option<AttributionReport>,
    /// The whole distributions of what a comparison looks at: `fault`, and the
    /// call `mmap`.
    #[serde(default)]
    pub cdf_ns: BTreeMap<String, Cdf>,
    /// Whether each thread was kept on one CPU.
    #[serde(default)]
    pub pinned: bool,
    /// The measured part in slices of time; `None` if there was none.
    #[serde(default)]
    pub slices: Option<SlicesReport>,
    /// Calls that changed the address space, by name.
    pub ops: BTreeMap<String, u64>,
    /// All of them per second.
    pub ops_per_s: f64,
    /// Those of mutators per second; `null` without mutators.
    pub mutator_ops_per_s: Option<f64>,
    /// Their latencies, by name; only calls that were made.
    pub op_ns: BTreeMap<String, Distribution>,
    /// `None` natively, as are the next five.
    pub vma_lock: Option<VmaLockReport>,
    /// The mmap locks.
    pub mmap_lock: Option<MmapLockReport>,
    /// The slab.
    pub slab: Option<SlabReport>,
    /// Host calls on the regions.
    pub host_calls: Option<HostCallsReport>,
    /// TLB shootdowns (interrupts, as the host counts them) while the workload
    /// ran, of the whole machine; `null` where it does not tell.
    pub tlb_shootdowns: Option<u64>,
    /// RCU.
    pub rcu: Option<RcuReport>,
    /// Ends of the fault path.
    pub fault_outcomes: Option<FaultOutcomes>,
    /// Only in runs with `--adversary`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adversary: Option<AdversaryReport>,
    /// `None` without `--verify`.
    pub verify: Option<VerifyReport>,
}

impl StressReport {
    /// Whether nothing wrong was found (exit status 0; else 1).
    pub fn passed(&self) -> bool {
        self.verify.as_ref().is_none_or(|verify| verify.violations == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_end_where_the_samples_do() {
        let mut histogram = crate::measure::histogram();
        (1..=1000u64).for_each(|ns| histogram.record(ns).unwrap());
        let found = cdf(&histogram);
        assert_eq!((found.len(), found[0]), (61, (0.0, 1)));
        assert!((found[60].0 - 0.999).abs() < 1e-9, "{found:?}");
        assert!(found.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{found:?}");
        let (quantile, ns) = found[20];
        assert!((quantile - 0.9).abs() < 1e-9 && (890..=910).contains(&ns), "{found:?}");
        (0..20).for_each(|_| histogram.record_n(5, 1000).unwrap());
        let whole = cdf(&histogram);
        assert!(whole.len() == 81 && (whole[80].0 - 0.9999).abs() < 1e-9, "{whole:?}");
        assert!(cdf(&crate::measure::histogram()).is_empty());
    }
}
