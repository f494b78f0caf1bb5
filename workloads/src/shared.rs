//! What the threads of a run share: [`Shared`], its phase and the
//! [`Rendezvous`] where they wait for each other.

use crate::measure::Live;
use crate::target::Target;
use crossbeam::utils::CachePadded;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;
use vmalab::addr::{PAGE_SIZE, PageRange};

/// A checked [`StressConfig`](crate::StressConfig): what a run does, with every
/// default filled in.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) threads: usize,
    pub(crate) mutators: usize,
    /// Calls a second that each mutator makes at most.
    pub(crate) mutator_rate: Option<u32>,
    pub(crate) address_spaces: usize,
    pub(crate) duration: Option<Duration>,
    pub(crate) ops: Option<u64>,
    pub(crate) warmup: Duration,
    pub(crate) seed: u64,
    pub(crate) verify: bool,
    /// The CPUs that the threads are pinned to in turn; `None`: they are not pinned.
    pub(crate) cpus: Option<Vec<usize>>,
}

impl Plan {
    /// The CPU of a thread, if it is pinned.
    pub(crate) fn cpu_of(&self, worker: usize) -> Option<usize> {
        self.cpus.as_ref().map(|cpus| cpus[worker % cpus.len()])
    }

    /// Fault threads and mutators together.
    pub(crate) fn workers(&self) -> usize {
        self.threads + self.mutators
    }
}

/// Where a run is, as its threads see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    WarmUp = 0,
    Measure = 1,
    Stop = 2,
}

/// State of a run that all its threads see.
pub(crate) struct Shared<T> {
    pub(crate) targets: Vec<T>,
    pub(crate) plan: Plan,
    pub(crate) clock: quanta::Clock,
    /// Clock reading at the start: events are told relative to it.
    pub(crate) started: u64,
    phase: AtomicU8,
    ops_left: AtomicI64,
    /// All fault threads meet here, where a workload makes them.
    pub(crate) meeting: Rendezvous,
    pub(crate) live: Vec<CachePadded<Live>>,
}

impl<T: Target> Shared<T> {
    pub(crate) fn new(targets: Vec<T>, plan: Plan) -> Shared<T> {
        let clock = quanta::Clock::new();
        let phase = if plan.warmup.is_zero() { Phase::Measure } else { Phase::WarmUp };
        Shared {
            started: clock.raw(),
            clock,
            phase: AtomicU8::new(phase as u8),
            ops_left: AtomicI64::new(plan.ops.map_or(i64::MAX, |ops| ops.min(i64::MAX as u64) as i64)),
            meeting: Rendezvous::new(plan.threads),
            live: (0..plan.workers()).map(|_| CachePadded::new(Live::new())).collect(),
            targets,
            plan,
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        // Relaxed: a signal to stop or to count; data is passed by joining.
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::WarmUp,
            1 => Phase::Measure,
            _ => Phase::Stop,
        }
    }

    /// Ends the warm-up. `false`: the run was stopped meanwhile, and stays so.
    pub(crate) fn begin_measuring(&self) -> bool {
        let (from, to) = (Phase::WarmUp as u8, Phase::Measure as u8);
        self.phase.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Threads leave at the end of what they are doing.
    pub(crate) fn stop(&self) {
        self.phase.store(Phase::Stop as u8, Ordering::Relaxed);
    }

    /// Threads leave, and nobody waits for a thread that has left.
    pub(crate) fn abort(&self) {
        self.stop();
        self.meeting.abort();
    }

    /// Takes one call off `--ops`.
    pub(crate) fn spend_op(&self) {
        // Relaxed: a count.
        if self.plan.ops.is_some() && self.ops_left.fetch_sub(1, Ordering::Relaxed) <= 1 {
            self.stop();
        }
    }

    /// The `worker`th of equal parts of an address space, one for each worker.
    pub(crate) fn area(&self, mm: usize, worker: usize) -> PageRange {
        let range = self.targets[mm].range();
        let bytes = (range.bytes() / self.plan.workers()) & !(PAGE_SIZE - 1);
        PageRange::sized(range.start() + worker * bytes, bytes)
    }
}

/// A barrier whose last arriver decides, for all, whether to go on: no thread
/// leaves a run while another waits for it.
pub(crate) struct Rendezvous {
    size: usize,
    state: Mutex<Meeting>,
    changed: Condvar,
}

struct Meeting {
    arrived: usize,
    round: u64,
    go_on: bool,
    aborted: bool,
}

impl Rendezvous {
    pub(crate) fn new(size: usize) -> Rendezvous {
        let meeting = Meeting { arrived: 0, round: 0, go_on: true, aborted: false };
        Rendezvous { size, state: Mutex::new(meeting), changed: Condvar::new() }
    }

    /// Waits for all; the last asks `go_on`, everyone returns its answer.
    /// `false` also once [`abort`](Rendezvous::abort) was called.
    pub(crate) fn wait(&self, go_on: impl FnOnce() -> bool) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.arrived += 1;
        if state.arrived == self.size {
            state.arrived = 0;
            state.round += 1;
            state.go_on = go_on();
            self.changed.notify_all();
        } else {
            let round = state.round;
            while state.round == round && !state.aborted {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.go_on && !state.aborted
    }

    pub(crate) fn abort(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).aborted = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_hears_the_same_answer() {
        let meeting = Rendezvous::new(3);
        let rounds: Vec<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut rounds = 0;
                        while meeting.wait(|| rounds < 1000) {
                            rounds += 1;
                        }
                        rounds
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(rounds, [1000; 3]);
    }

    #[test]
    fn abort_frees_those_who_wait() {
        let meeting = Rendezvous::new(2);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| meeting.wait(|| true));
            meeting.abort();
            assert!(!waiter.join().unwrap());
        });
    }
}
