//! The executors `loom` and `shuttle`: the actors as threads of a model.

use crate::race::{Lock, Race};
use crate::stage::{Stage, soft};
use crate::{Outcome, Violation};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmalab::races::{set_knob, set_mutant};
use vmalab::sync::thread;

/// How far to look.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Schedules (shuttle), or at most so many (loom).
    pub iterations: u64,
    /// shuttle's seed.
    pub seed: u64,
    /// loom: at most so many preemptions in a schedule.
    pub preemptions: usize,
    /// loom: at most so long.
    pub duration: Duration,
}

/// One schedule.
fn play(race: &'static Race, lock: Lock) {
    let stage = Arc::new(Stage::new(race, |_, base| soft(lock, base)));
    let threads: Vec<_> = race
        .actors
        .iter()
        .map(|actor| {
            let stage = stage.clone();
            thread::spawn(move || (actor.act)(&stage))
        })
        .collect();
    for actor in threads {
        actor.join().expect("an actor panicked");
    }
    stage.finish(race);
}

/// Explores `race` under `lock`, with its mutant or without, and prints the
/// [`Outcome`] as JSON. A violation ends the process.
pub fn explore(race: &'static Race, lock: Lock, mutant: bool, bounds: Bounds) {
    set_mutant(mutant.then_some(race.mutant));
    if let Some(knob) = race.knob {
        set_knob(knob, true);
    }
    // RCU's queues, the slab's depot and the thread table have models of their own.
    vmalab::sync::set_aside(true);
    SCHEDULES.store(0, Ordering::Relaxed);
    *BEGAN.lock().expect("clock") = Some(Instant::now());
    std::panic::set_hook(Box::new(|info| {
        let text = info
            .payload()
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| info.payload().downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_else(|| info.to_string());
        caught(&text)
    }));
    executor(bounds, move || {
        SCHEDULES.fetch_add(1, Ordering::Relaxed);
        play(race, lock);
    });
    let _ = std::panic::take_hook();
    set_mutant(None);
    if let Some(knob) = race.knob {
        set_knob(knob, false);
    }
    tell(None)
}

static SCHEDULES: AtomicU64 = AtomicU64::new(0);
static BEGAN: Mutex<Option<Instant>> = Mutex::new(None);

/// Prints what came of it.
fn tell(violation: Option<Violation>) {
    let ns = BEGAN.lock().expect("clock").map(|began| began.elapsed().as_nanos() as u64);
    let outcome = Outcome {
        iterations: SCHEDULES.load(Ordering::Relaxed),
        ns_to_catch: ns.filter(|_| violation.is_some()),
        violation,
        interleaving: Vec::new(),
    };
    println!("{}", serde_json::to_string(&outcome).expect("an outcome is JSON"));
}

/// Ends the process at the first violation: a model's threads have small
/// stacks, and unwinding them runs code that is in the middle of a protocol.
fn caught(message: &str) -> ! {
    tell(Some(Violation::from_message(message)));
    std::process::exit(0);
}

#[cfg(loom)]
fn executor(bounds: Bounds, body: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bounds.preemptions);
    model.max_branches = 100_000;
    model.max_duration = Some(bounds.duration);
    model.max_permutations = Some(bounds.iterations as usize);
    model.check(body);
}

#[cfg(all(shuttle, not(loom)))]
fn executor(bounds: Bounds, body: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let mut config = shuttle::Config::new();
    config.silence_warnings = true;
    config.stack_size = 256 * 1024;
    config.failure_persistence = shuttle::FailurePersistence::None;
    let body = Arc::new(body);
    let share = |n: u64| (bounds.iterations * n / 8).max(1) as usize;
    // Mostly few changes of priority, which finds what takes a thread held for
    // long; the rest by chance.
    for (depth, n) in [(3, 3), (5, 3), (2, 1)] {
        let scheduler = PctScheduler::new_from_seed(bounds.seed, depth, share(n));
        let body = body.clone();
        shuttle::Runner::new(scheduler, config.clone()).run(move || body());
    }
    let scheduler = RandomScheduler::new_from_seed(bounds.seed, share(1));
    shuttle::Runner::new(scheduler, config).run(move || body());
}
