//! What loom and shuttle have no counterpart for, built from what they have.
//! Included by both back ends.

use super::{AtomicU32, Ordering, thread};
use std::collections::HashMap;

/// `crossbeam::utils::Backoff` for a scheduler that decides everything: to
/// wait is to let another thread run.
#[derive(Debug, Default)]
pub struct Backoff(());

impl Backoff {
    /// One that has not waited yet.
    pub fn new() -> Backoff {
        Backoff(())
    }

    /// Lets another thread run.
    pub fn snooze(&self) {
        thread::yield_now();
    }

    /// Whether to sleep instead: never.
    pub fn is_completed(&self) -> bool {
        false
    }
}

/// Lets another thread run.
pub fn spin_loop() {
    thread::yield_now();
}

/// How often each futex word was woken, by address. Held while a sleeper
/// compares, as the kernel holds the bucket's lock: whoever wakes after the
/// comparison wakes the sleeper.
#[derive(Default)]
pub(super) struct Wakes(HashMap<usize, u64>);

super::statics! {
    static WAKES: super::Mutex<Wakes> = super::Mutex::new(Wakes::default());
    static WOKEN: super::back_end::Condvar = super::back_end::Condvar::new();
}

/// See the host's. A sleeper that nobody wakes is a deadlock, and the executor
/// reports it (oracle O5).
pub fn futex_wait(word: &AtomicU32, expected: u32) {
    let key = std::ptr::from_ref(word).addr();
    let mut wakes = WAKES.lock().expect("futex table");
    if word.load(Ordering::Acquire) != expected {
        return;
    }
    let now = wakes.0.get(&key).copied();
    while wakes.0.get(&key).copied() == now {
        wakes = WOKEN.wait(wakes).expect("futex table");
    }
}

/// See the host's. Wakes all: a wake-up for no reason is allowed.
pub fn futex_wake(word: &AtomicU32, count: i32) {
    futex_wake_at(word, count);
}

/// See the host's.
pub fn futex_wake_at(word: *const AtomicU32, _count: i32) {
    let key = word.addr();
    *WAKES.lock().expect("futex table").0.entry(key).or_default() += 1;
    WOKEN.notify_all();
}

macro_rules! const_fn {
    ($(#[$attr:meta])* $vis:vis const fn $($rest:tt)*) => { $(#[$attr])* $vis fn $($rest)* };
}

macro_rules! array {
    ($value:expr; $n:expr) => {
        std::array::from_fn::<_, { $n }, _>(|_| $value)
    };
}

pub(crate) use {array, const_fn};
