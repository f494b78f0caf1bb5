//! Where the time of a fault goes: for one access in [`ONE_IN`] the time from
//! before the access to after it, split into [`Phase`]s at the trace points
//! that the fault passes.
//!
//! At any moment a watched access is in one phase. A trace point ends it and
//! begins the next, on one clock, so the phases add up to the whole, and an
//! access where they do not is discarded. In `queue` delivery the fault is
//! served by another thread, which finds the watched access by its page.

use super::clock;
use crate::measure::histogram;
use crate::report::{AttributionReport, Distribution, PhaseReport};
use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;
use std::cell::Cell;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use vmalab::addr::{PAGE_SHIFT, VirtAddr};
use vmalab::trace::{self, Event};

/// One access in so many is watched: a prime, so that every page of a mapping
/// has its turn, and above 100, so that what watching costs is not seen in the
/// 99th percentile of all faults.
pub(crate) const ONE_IN: u32 = 127;

/// A part of a fault's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// From before the access until vmalab hears of the fault.
    Delivery,
    /// Finding the address space, and the VMA in its tree.
    Lookup,
    /// Taking the VMA's lock, or a free mmap lock, and giving it back.
    Lock,
    /// Waiting for the mmap lock.
    Wait,
    /// Judging the access and making the page present.
    Install,
    /// From the end of the fault path until the access is over.
    Return,
}

const PHASES: [(Phase, &str); 6] = [
    (Phase::Delivery, "delivery"),
    (Phase::Lookup, "lookup"),
    (Phase::Lock, "lock"),
    (Phase::Wait, "wait"),
    (Phase::Install, "install"),
    (Phase::Return, "return"),
];

/// The phase that begins at a trace point.
fn begun_by(event: Event) -> Option<Phase> {
    match event {
        Event::FaultDelivered | Event::FaultEntry => Some(Phase::Lookup),
        Event::Lookup | Event::Abort | Event::Fallback | Event::InstallReturn | Event::Unlock => Some(Phase::Lock),
        Event::MmapLockWait => Some(Phase::Wait),
        // What follows is a look at the tree.
        Event::MmapLockAcquired => Some(Phase::Lookup),
        Event::Lock | Event::Install => Some(Phase::Install),
        Event::FaultReturn => Some(Phase::Return),
        _ => None,
    }
}

/// A watched access, written by whoever serves its fault.
struct Watched {
    /// Its page, or 0: nothing is watched here.
    page: AtomicU64,
    phase: AtomicU8,
    /// Clock reading at which the phase began.
    since: AtomicU64,
    /// Clock ticks spent in each phase.
    spent: [AtomicU64; PHASES.len()],
    /// Faults that were served.
    faults: AtomicU32,
}

const SLOTS: usize = 64;

/// Watched accesses by page: who serves a fault finds them here.
static WATCHED: [CachePadded<Watched>; SLOTS] = [const {
    CachePadded::new(Watched {
        page: AtomicU64::new(0),
        phase: AtomicU8::new(0),
        since: AtomicU64::new(0),
        spent: [const { AtomicU64::new(0) }; PHASES.len()],
        faults: AtomicU32::new(0),
    })
}; SLOTS];

/// Whose fault a thread serves.
#[derive(Clone, Copy)]
enum Serving {
    /// Whichever comes: a handler thread between two faults.
    Any,
    /// Another thread's, which is watched; then whichever comes.
    Adopted(&'static Watched),
    /// Its own, which is watched.
    Own(&'static Watched),
    /// Its own, which is not.
    Unwatched,
}

thread_local! {
    /// Const-initialised and without destructor: async-signal-safe.
    static SERVING: Cell<Serving> = const { Cell::new(Serving::Any) };
}

/// The calling thread serves no faults but its own.
pub(crate) fn enter_worker() {
    SERVING.set(Serving::Unwatched);
}

fn page_of(addr: u64) -> u64 {
    addr >> PAGE_SHIFT << PAGE_SHIFT
}

fn slot_of(page: u64) -> &'static Watched {
    let hash = (page >> PAGE_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    &WATCHED[hash as usize % SLOTS]
}

/// A trace point was passed. Async-signal-safe.
pub(super) fn observe(event: Event, addr: u64, now: u64) {
    match SERVING.get() {
        Serving::Unwatched => {}
        Serving::Own(watched) => watched.turn(event, now),
        Serving::Adopted(watched) => {
            if event == Event::FaultReturn {
                SERVING.set(Serving::Any);
            }
            watched.turn(event, now);
        }
        Serving::Any if event == Event::FaultDelivered => {
            let watched = slot_of(page_of(addr));
            // Acquire: pairs with the Release in `Sampler::watch`.
            if watched.page.load(Ordering::Acquire) == page_of(addr) {
                SERVING.set(Serving::Adopted(watched));
                watched.turn(event, now);
            }
        }
        Serving::Any => {}
    }
}

impl Watched {
    /// Ends the phase, if the event begins another. Relaxed: one thread at a
    /// time; the hand-overs are `page`, and the last store here.
    fn turn(&self, event: Event, now: u64) {
        let Some(next) = begun_by(event) else { return };
        self.end_phase(now);
        self.phase.store(next as u8, Ordering::Relaxed);
        if next == Phase::Return {
            // Release: pairs with the Acquire in `Watch::end`.
            self.faults.store(self.faults.load(Ordering::Relaxed) + 1, Ordering::Release);
        }
    }

    fn end_phase(&self, now: u64) {
        let spent = &self.spent[usize::from(self.phase.load(Ordering::Relaxed))];
        let ticks = now.saturating_sub(self.since.load(Ordering::Relaxed));
        spent.store(spent.load(Ordering::Relaxed) + ticks, Ordering::Relaxed);
        self.since.store(now, Ordering::Relaxed);
    }
}

/// Chooses a thread's accesses to watch.
pub(crate) struct Sampler {
    left: u32,
}

impl Sampler {
    /// Of worker `worker`: threads do not all begin with the same access.
    pub(crate) fn new(worker: usize) -> Sampler {
        Sampler { left: 1 + worker as u32 * 13 % ONE_IN }
    }

    /// The clock reading before an access to `addr`, and the watch over it if
    /// it has its turn.
    #[inline]
    pub(crate) fn begin(&mut self, clock: &quanta::Clock, addr: VirtAddr) -> (u64, Option<Watch>) {
        self.left -= 1;
        if self.left > 0 {
            return (clock.raw(), None);
        }
        self.left = ONE_IN;
        Sampler::watch(clock, addr)
    }

    #[cold]
    fn watch(clock: &quanta::Clock, addr: VirtAddr) -> (u64, Option<Watch>) {
        let page = page_of(addr.get() as u64);
        let watched = slot_of(page);
        // Relaxed: only an empty slot is filled, and who empties it reads no more.
        let free = watched.page.compare_exchange(0, u64::MAX, Ordering::Acquire, Ordering::Relaxed).is_ok();
        if !free {
            return (clock.raw(), None);
        }
        watched.faults.store(0, Ordering::Relaxed);
        watched.phase.store(Phase::Delivery as u8, Ordering::Relaxed);
        watched.spent.iter().for_each(|spent| spent.store(0, Ordering::Relaxed));
        SERVING.set(Serving::Own(watched));
        trace::follow(true);
        let start = clock.raw();
        watched.since.store(start, Ordering::Relaxed);
        // Release: pairs with the Acquire in `observe`.
        watched.page.store(page, Ordering::Release);
        (start, Some(Watch { watched, start }))
    }
}

/// An access that is being watched.
pub(crate) struct Watch {
    watched: &'static Watched,
    start: u64,
}

impl Watch {
    /// The access is over; `end` was read right after it.
    #[cold]
    pub(crate) fn end(self, end: u64, into: &mut Attribution) {
        trace::follow(super::timeline::is_on());
        SERVING.set(Serving::Unwatched);
        let watched = self.watched;
        // Acquire: pairs with the Release in `Watched::turn`.
        let faults = watched.faults.load(Ordering::Acquire);
        watched.end_phase(end);
        let spent = std::array::from_fn(|phase| watched.spent[phase].load(Ordering::Relaxed));
        // Release: pairs with the Acquire of the next one to watch something here.
        watched.page.store(0, Ordering::Release);
        if faults > 0 {
            into.add(&spent, end.saturating_sub(self.start));
        }
    }
}

/// What the watched accesses of one thread, or of all, have given.
pub(crate) struct Attribution {
    phases: [Histogram<u64>; PHASES.len()],
    whole: Histogram<u64>,
    /// Clock ticks, all together.
    phase_ticks: [u64; PHASES.len()],
    whole_ticks: u64,
    discarded: u64,
}

impl Attribution {
    pub(crate) fn new() -> Attribution {
        Attribution {
            phases: std::array::from_fn(|_| histogram()),
            whole: histogram(),
            phase_ticks: [0; PHASES.len()],
            whole_ticks: 0,
            discarded: 0,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.phases.iter_mut().for_each(Histogram::reset);
        self.whole.reset();
        (self.phase_ticks, self.whole_ticks, self.discarded) = ([0; PHASES.len()], 0, 0);
    }

    pub(crate) fn merge(&mut self, other: &Attribution) {
        let same = "histograms have the same bounds";
        for (mine, theirs) in self.phases.iter_mut().zip(&other.phases) {
            mine.add(theirs).expect(same);
        }
        self.whole.add(&other.whole).expect(same);
        for (mine, theirs) in self.phase_ticks.iter_mut().zip(other.phase_ticks) {
            *mine += theirs;
        }
        self.whole_ticks += other.whole_ticks;
        self.discarded += other.discarded;
    }

    fn add(&mut self, spent: &[u64; PHASES.len()], whole: u64) {
        // Clocks of two CPUs that disagree, or a second handler thread at work
        // on the same page.
        if spent.iter().sum::<u64>() != whole {
            self.discarded += 1;
            return;
        }
        let ns = |ticks| clock().delta_as_nanos(0, ticks);
        for ((histogram, sum), &ticks) in self.phases.iter_mut().zip(&mut self.phase_ticks).zip(spent) {
            histogram.saturating_record(ns(ticks));
            *sum += ticks;
        }
        self.whole.saturating_record(ns(whole));
        self.whole_ticks += whole;
    }

    /// `None`: no fault was watched.
    pub(crate) fn report(&self) -> Option<AttributionReport> {
        let count = self.whole.len();
        let mean = |ticks| clock().delta_as_nanos(0, ticks) as f64 / count as f64;
        let distribution = |histogram, ticks| Some(Distribution { mean: mean(ticks), ..Distribution::of(histogram)? });
        let whole_ns = distribution(&self.whole, self.whole_ticks)?;
        let phases: Vec<PhaseReport> = PHASES
            .iter()
            .filter_map(|&(phase, name)| {
                let (histogram, ticks) = (&self.phases[phase as usize], self.phase_ticks[phase as usize]);
                let ns = distribution(histogram, ticks)?;
                Some(PhaseReport { phase: name.to_owned(), share: ns.mean / whole_ns.mean, ns })
            })
            .collect();
        let sum_ns: f64 = phases.iter().map(|phase| phase.ns.mean).sum();
        Some(AttributionReport {
            one_in: ONE_IN,
            faults: count,
            discarded: self.discarded,
            phases,
            sum_ns,
            error: sum_ns / whole_ns.mean - 1.0,
            whole_ns,
            clock_ns: clock_cost_ns(),
        })
    }
}

/// What one reading of the clock takes, and so what each trace point adds.
fn clock_cost_ns() -> f64 {
    const READINGS: u32 = 1000;
    let clock = clock();
    // The least of several: a reading that was interrupted is no measure.
    let once = || {
        let start = clock.raw();
        for _ in 0..READINGS {
            std::hint::black_box(clock.raw());
        }
        clock.delta_as_nanos(start, clock.raw())
    };
    (0..10).map(|_| once()).min().unwrap_or(0) as f64 / f64::from(READINGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_whole_or_the_access_is_discarded() {
        let mut attribution = Attribution::new();
        assert_eq!(attribution.report(), None);
        attribution.add(&[1000, 20, 30, 0, 2000, 500], 3550);
        attribution.add(&[1100, 20, 30, 400, 2000, 500], 4050);
        attribution.add(&[1, 2, 3, 4, 5, 6], 22);
        let report = attribution.report().unwrap();
        assert_eq!((report.faults, report.discarded), (2, 1));
        assert!(report.error.abs() < 0.01, "{}", report.error);
        let names: Vec<&str> = report.phases.iter().map(|phase| phase.phase.as_str()).collect();
        assert_eq!(names, ["delivery", "lookup", "lock", "wait", "install", "return"]);
        let shares: f64 = report.phases.iter().map(|phase| phase.share).sum();
        assert!((shares - 1.0).abs() < 0.01, "{shares}");
        assert!(report.phases[3].ns.p50 < report.phases[3].ns.max);
    }

    /// Every trace point that a fault passes, in its order, ends one phase.
    #[test]
    fn a_fault_that_falls_back_is_split_at_its_points() {
        let watched = slot_of(0x5000);
        enter_worker();
        let clock = clock();
        // (Its slot may be another test's for a moment.)
        let (start, watch) = std::iter::repeat_with(|| Sampler::watch(clock, VirtAddr(0x5123)))
            .find(|(_, watch)| watch.is_some())
            .expect("repeated until there is one");
        let points = [
            (Event::FaultDelivered, 1000, Phase::Delivery),
            (Event::FaultEntry, 10, Phase::Lookup),
            (Event::Lookup, 20, Phase::Lookup),
            (Event::Abort, 5, Phase::Lock),
            (Event::Fallback, 1, Phase::Lock),
            (Event::MmapLockWait, 2, Phase::Lock),
            (Event::MmapLockAcquired, 700, Phase::Wait),
            (Event::Lookup, 30, Phase::Lookup),
            (Event::Lock, 3, Phase::Lock),
            (Event::Install, 4, Phase::Install),
            (Event::InstallReturn, 2000, Phase::Install),
            (Event::Unlock, 6, Phase::Lock),
            (Event::MmapLockReleased, 0, Phase::Lock),
            (Event::FaultReturn, 7, Phase::Lock),
        ];
        let mut expected = [0; PHASES.len()];
        let mut now = start;
        for (event, ticks, phase) in points {
            now += ticks;
            expected[phase as usize] += ticks;
            observe(event, 0x5123, now);
        }
        expected[Phase::Return as usize] = 400;
        let spent = || watched.spent.iter().map(|spent| spent.load(Ordering::Relaxed));
        let mut attribution = Attribution::new();
        watch.unwrap().end(now + 400, &mut attribution);
        assert_eq!(spent().collect::<Vec<_>>(), expected);
        assert_eq!((attribution.whole.len(), attribution.discarded), (1, 0));
    }
}
