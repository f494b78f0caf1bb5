//! [`Control`]: how whoever started a run stops it and watches it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Address spaces and threads are being made.
    SetUp,
    /// The warm-up runs.
    WarmUp,
    /// The measured part runs.
    Measure,
    /// Threads are being joined and address spaces checked.
    TearDown,
}

/// A run as it stands, for a progress line. Renewed about ten times a second.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Where the run is.
    pub stage: Stage,
    /// Since that stage began.
    pub elapsed: Duration,
    /// Faults (natively: first touches) so far in the stage.
    pub faults: u64,
    /// Faults of these that fell back to the mmap lock.
    pub fallbacks: u64,
    /// Calls of mmap, munmap and mprotect so far in the stage.
    pub ops: u64,
    /// 99th percentile of the fault latencies since the last renewal, ns (to
    /// within a quarter).
    pub recent_fault_ns_p99: Option<u64>,
    /// Accesses checked since the start.
    pub checked: u64,
}

/// Shared between [`run`](crate::run) and whoever stops or watches it. Serves
/// one run at a time, and any number in turn.
#[derive(Debug)]
pub struct Control {
    stop: AtomicBool,
    stage: AtomicU8,
    since: Mutex<Instant>,
    pub(crate) faults: AtomicU64,
    pub(crate) fallbacks: AtomicU64,
    pub(crate) ops: AtomicU64,
    pub(crate) p99: AtomicU64,
    pub(crate) checked: AtomicU64,
}

impl Default for Control {
    fn default() -> Control {
        Control::new()
    }
}

impl Control {
    /// For a run that nobody has stopped.
    pub fn new() -> Control {
        Control {
            stop: AtomicBool::new(false),
            stage: AtomicU8::new(Stage::SetUp as u8),
            since: Mutex::new(Instant::now()),
            faults: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
            ops: AtomicU64::new(0),
            p99: AtomicU64::new(0),
            checked: AtomicU64::new(0),
        }
    }

    /// Ends the run soon; its report is partial and says `interrupted`. Stays
    /// set: later runs with this control end at once. Async-signal-safe.
    pub fn stop(&self) {
        // Relaxed: a request; nothing is published through it.
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether [`stop`](Control::stop) was called.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How far the run is.
    pub fn progress(&self) -> Progress {
        // Relaxed throughout: figures to look at; they may be a moment apart.
        let p99 = self.p99.load(Ordering::Relaxed);
        Progress {
            stage: match self.stage.load(Ordering::Relaxed) {
                0 => Stage::SetUp,
                1 => Stage::WarmUp,
                2 => Stage::Measure,
                _ => Stage::TearDown,
            },
            elapsed: self.since().elapsed(),
            faults: self.faults.load(Ordering::Relaxed),
            fallbacks: self.fallbacks.load(Ordering::Relaxed),
            ops: self.ops.load(Ordering::Relaxed),
            recent_fault_ns_p99: (p99 > 0).then_some(p99),
            checked: self.checked.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn enter(&self, stage: Stage) {
        for counter in [&self.faults, &self.fallbacks, &self.ops, &self.p99] {
            counter.store(0, Ordering::Relaxed);
        }
        *self.since.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Instant::now();
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    fn since(&self) -> Instant {
        *self.since.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
