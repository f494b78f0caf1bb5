//! Exhaustive models of the parts, under loom: what the files named
//! `models.rs` share. Run them with
//! `scripts/models.sh loom test --release -p vmalab --lib models`.
//!
//! A model is a few threads over a part of the core. loom runs them through
//! every schedule within a bound on preemptions (most models have none), and
//! through every value that a weak ordering lets a load return. What must
//! hold is asserted by the threads, and by [`Plain`]: data without any
//! ordering of its own, of which loom reports two accesses if neither is
//! certain to come before the other.
//!
//! What loom does not show: a load that returns a value stored later (load
//! buffering), a compare-and-swap that fails for no reason, and more than five
//! threads. SeqCst is AcqRel to it, except at fences.

use crate::sync::thread;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Runs `body` through every schedule with at most `preemptions` preemptions,
/// or through all there are.
///
/// A violation ends the process: a model's threads have small stacks, and
/// unwinding them runs code that is in the middle of a protocol.
pub(crate) fn explore(name: &str, preemptions: Option<usize>, body: impl Fn() + Send + Sync + 'static) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            say(&format!("a model failed: {info}\n"));
            std::process::exit(101);
        }))
    });
    let began = Instant::now();
    let schedules = std::sync::Arc::new(AtomicU64::new(0));
    let mut model = loom::model::Builder::new();
    // (loom's own LOOM_MAX_PREEMPTIONS goes first: to see what a bound costs.)
    let preemptions = model.preemption_bound.or(preemptions);
    model.preemption_bound = preemptions;
    model.max_branches = 20_000;
    let count = schedules.clone();
    model.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        body();
    });
    let bound = preemptions.map_or("no bound".to_string(), |n| format!("{n} preemptions"));
    let (n, seconds) = (schedules.load(Ordering::Relaxed), began.elapsed().as_secs_f32());
    say(&format!("{name}: {n} schedules, {bound}, {seconds:.1} s\n"));
}

/// Past the test harness, which keeps what tests print, and drops it at exit.
fn say(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// A thread of a model, with room for whole operations on its stack.
pub(crate) fn spawn(f: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::Builder::new().stack_size(1 << 15).spawn(f).expect("a model's thread")
}

/// Waits for all of them.
pub(crate) fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("a model's thread"));
}

/// Data that has no ordering of its own.
pub(crate) struct Plain(loom::cell::UnsafeCell<()>);

// SAFETY: the cell holds nothing; it only reports who accesses it when.
unsafe impl Send for Plain {}
// SAFETY: as above.
unsafe impl Sync for Plain {}

impl Plain {
    /// Written by its maker.
    pub(crate) fn new() -> Plain {
        Plain(loom::cell::UnsafeCell::new(()))
    }

    /// Reads it.
    pub(crate) fn look(&self) {
        self.0.with(|_| ());
    }

    /// Writes it.
    pub(crate) fn change(&self) {
        self.0.with_mut(|_| ());
    }
}
