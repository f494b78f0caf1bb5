//! The threads that measure: pinned, in step, first pass thrown away.

use crate::Reason;
use hdrhistogram::Histogram;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// One thread's part of a measurement. Made on that thread.
pub trait Probe {
    /// Does the operation some dozens or hundreds of times, each timed by
    /// [`Samples::time`], and prepares the next pass untimed. Takes some
    /// milliseconds at most.
    ///
    /// # Errors
    /// [`Reason`]: it does not work here.
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason>;
}

/// What one thread has measured.
pub struct Samples {
    clock: quanta::Clock,
    histogram: Histogram<u64>,
    keep: bool,
}

impl Samples {
    fn new(clock: quanta::Clock) -> Samples {
        Samples { clock, histogram: histogram(), keep: false }
    }

    /// Times `operation` and records a `per`-th of that.
    #[inline]
    pub fn time<R>(&mut self, per: u64, operation: impl FnOnce() -> R) -> R {
        let start = self.clock.raw();
        let result = operation();
        let ns = self.clock.delta_as_nanos(start, self.clock.raw());
        if self.keep {
            self.histogram.saturating_record(((ns + per / 2) / per).max(1));
        }
        result
    }
}

/// 1 ns to a minute, to within 1 %.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("the bounds are right")
}

/// A thread that only keeps its CPU busy.
pub struct Spin;

impl Probe for Spin {
    fn pass(&mut self, _: &mut Samples) -> Result<(), Reason> {
        (0..1_000).for_each(|_| std::hint::spin_loop());
        Ok(())
    }
}

/// Which thread of the crew this is, and where.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub worker: usize,
    pub cpu: usize,
    /// A CPU that no thread of the crew uses, if there is one.
    pub spare: Option<usize>,
}

/// The CPUs that this thread may use.
pub fn cpus() -> Result<Vec<usize>, Reason> {
    let set = sched_getaffinity(Pid::from_raw(0)).map_err(|errno| Reason::call("sched_getaffinity", errno))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// Keeps the calling thread on `cpu`.
pub fn pin(cpu: usize) -> Result<(), Reason> {
    let mut set = CpuSet::new();
    set.set(cpu).map_err(|errno| Reason::call("CPU number", errno))?;
    sched_setaffinity(Pid::from_raw(0), &set).map_err(|errno| Reason::call("sched_setaffinity", errno))
}

/// What the threads of a crew share.
struct Crew {
    /// Passed twice by every thread, whatever has failed.
    gate: Barrier,
    stop: AtomicBool,
    failed: Mutex<Option<Reason>>,
}

impl Crew {
    fn fail(&self, reason: Reason) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
        // Relaxed: a hint to stop. Results are handed over by joining.
        self.stop.store(true, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn work(
        &self,
        place: Place,
        clock: quanta::Clock,
        budget: Duration,
        make: &(impl Fn(Place) -> Result<Box<dyn Probe>, Reason> + Sync),
    ) -> Histogram<u64> {
        let mut samples = Samples::new(clock);
        let mut probe = pin(place.cpu).and_then(|()| make(place)).map_err(|reason| self.fail(reason)).ok();
        self.gate.wait();
        let mut pass = |samples: &mut Samples| {
            if let Some(Err(reason)) = probe.as_mut().map(|probe| probe.pass(samples)) {
                self.fail(reason);
            }
        };
        if !self.stopped() {
            pass(&mut samples);
        }
        self.gate.wait();
        samples.keep = true;
        let began = Instant::now();
        while !self.stopped() {
            pass(&mut samples);
            if began.elapsed() >= budget {
                self.stop.store(true, Ordering::Relaxed);
            }
        }
        samples.histogram
    }
}

/// Runs the probes of `threads` threads, each on a CPU of its own, for
/// `budget` and returns their samples together.
pub fn run(
    threads: usize,
    budget: Duration,
    make: impl Fn(Place) -> Result<Box<dyn Probe>, Reason> + Sync,
) -> Result<Histogram<u64>, Reason> {
    let cpus = cpus()?;
    if threads > cpus.len() {
        return Err(Reason(format!("{threads} threads need as many CPUs, and this process may use {}", cpus.len())));
    }
    let crew = Crew { gate: Barrier::new(threads), stop: AtomicBool::new(false), failed: Mutex::new(None) };
    let clock = quanta::Clock::new();
    let mut all = histogram();
    thread::scope(|scope| {
        let spawned: Vec<_> = (0..threads)
            .map(|worker| {
                let place = Place { worker, cpu: cpus[worker], spare: cpus.get(threads + worker).copied() };
                let (crew, clock, make) = (&crew, clock.clone(), &make);
                scope.spawn(move || crew.work(place, clock, budget, make))
            })
            .collect();
        for thread in spawned {
            match thread.join() {
                Ok(samples) => all.add(samples).expect("histograms have the same bounds"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    match crew.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(reason) => Err(reason),
        None if all.is_empty() => Err(Reason("no sample was taken".to_owned())),
        None => Ok(all),
    }
}
