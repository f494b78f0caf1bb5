//! Per-thread slots: where a thread keeps its RCU word, its counters and its
//! place in the slab's magazines.
//!
//! A thread that calls a mutator, or [`announce`], owns a slot until it exits.
//! The pointer to it is a plain thread-local without destructor, so reading
//! it in a signal handler neither allocates nor runs code; a second
//! thread-local, whose destructor gives the slot back, is only touched in
//! `announce`. A thread that never announced itself (or came when all slots
//! were taken) works through the one shared slot, with atomic additions:
//! slower by some nanoseconds, right all the same, and nothing to leak.
//!
//! Slots are reused by later threads and never freed; what a former owner
//! left in one (counts, magazines) passes to the next.

use crate::stats::ThreadStats;
use crate::sync::{
    AtomicBool, AtomicUsize, CachePadded, MODEL, Ordering, array, aside, const_fn, statics, thread_locals, track,
};
use std::cell::Cell;
use std::ptr;

/// Announced threads alive at once; more share the shared slot.
pub const SLOTS: usize = if MODEL { 4 } else { 1024 };

/// One thread's slot.
pub(crate) struct Slot {
    taken: AtomicBool,
    pub(crate) rcu: CachePadded<crate::rcu::ThreadWords>,
    pub(crate) stats: CachePadded<ThreadStats>,
}

impl Slot {
    const_fn! {
    const fn new() -> Slot {
        Slot {
            taken: AtomicBool::new(false),
            rcu: CachePadded::new(crate::rcu::ThreadWords::new()),
            stats: CachePadded::new(ThreadStats::new()),
        }
    }
    }

    /// Position in the table, below [`SLOTS`].
    pub(crate) fn index(&'static self) -> usize {
        (ptr::from_ref(self).addr() - TABLE.as_ptr().addr()) / size_of::<Slot>()
    }
}

statics! {
    /// All zero bytes, so that it costs memory only where it is used.
    static TABLE: [Slot; SLOTS] = array![Slot::new(); SLOTS];
    static SHARED: Slot = Slot::new();
    /// Slots ever taken are `TABLE[..HIGH_WATER]`.
    static HIGH_WATER: AtomicUsize = AtomicUsize::new(0);
}

thread_locals! {
    /// This thread's slot or null. Const-initialised and without destructor:
    /// async-signal-safe to read.
    static CURRENT: Cell<*const Slot> = Cell::new(ptr::null());
    /// Gives the slot back when the thread exits.
    static LEASE: Lease = Lease(Cell::new(ptr::null()));
}

struct Lease(Cell<*const Slot>);

impl Drop for Lease {
    fn drop(&mut self) {
        let slot = self.0.get();
        if slot.is_null() {
            return;
        }
        // (Gone already, in a model: it has no order of destruction.)
        let _ = CURRENT.try_with(|current| current.set(ptr::null()));
        // SAFETY: slots are static.
        let slot = unsafe { &*slot };
        slot.rcu.assert_idle();
        // Release: pairs with the Acquire in `announce`, so that the next owner
        // sees this thread's magazines and counts.
        slot.taken.store(false, Ordering::Release);
    }
}

/// The calling thread's slot, if it is announced. Async-signal-safe.
#[inline]
pub(crate) fn current() -> Option<&'static Slot> {
    // SAFETY: null or a pointer into the static TABLE.
    unsafe { CURRENT.with(Cell::get).as_ref() }
}

/// The slot of all threads that own none. Only atomic additions are allowed.
#[inline]
pub(crate) fn shared() -> &'static Slot {
    &SHARED
}

/// Every slot that a thread has ever owned, and the shared one.
pub(crate) fn all() -> impl Iterator<Item = &'static Slot> {
    // Relaxed: a grace period that misses a slot here has issued its heavy barrier
    // before the light one of the owner's first read section.
    TABLE[..HIGH_WATER.load(Ordering::Relaxed)].iter().chain(std::iter::once(shared()))
}

/// Gives the calling thread a slot of its own, so that its faults and
/// operations count, read-lock and allocate without touching shared memory.
/// Mutators do it by themselves; call it at the start of threads that only
/// fault. Cheap when repeated. Returns whether the thread has a slot: `false`
/// only while more than [`SLOTS`] threads have one.
///
/// Not async-signal-safe.
pub fn announce() -> bool {
    if current().is_some() {
        return true;
    }
    crate::mmap_lock::prepare_thread();
    aside(take_slot)
}

fn take_slot() -> bool {
    for (i, slot) in TABLE.iter().enumerate() {
        // Acquire: pairs with the Release in `Lease::drop`.
        if !slot.taken.load(Ordering::Relaxed)
            && slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            // Relaxed, as in `all`. Before this thread's first read section.
            HIGH_WATER.fetch_max(i + 1, Ordering::Relaxed);
            // No destructor can be registered any more while thread-locals are
            // being torn down: give the slot back and stay unannounced.
            if LEASE.try_with(|lease| lease.0.set(slot)).is_err() {
                slot.taken.store(false, Ordering::Release);
                return false;
            }
            CURRENT.with(|current| current.set(slot));
            track::objects(slot, 1);
            return true;
        }
    }
    false
}

/// Slots owned by living threads.
pub fn announced() -> usize {
    TABLE.iter().filter(|slot| slot.taken.load(Ordering::Relaxed)).count()
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_threads_use_few_slots() {
        for _ in 0..1_000 {
            let threads: Vec<_> = (0..10).map(|_| std::thread::spawn(announce)).collect();
            assert!(threads.into_iter().all(|t| t.join().unwrap()));
        }
        // Other tests' threads come and go beside this one.
        assert!(HIGH_WATER.load(Ordering::SeqCst) < SLOTS / 2);
    }

    #[test]
    fn a_slot_is_owned_once() {
        announce();
        let mine = current().unwrap().index();
        let other = std::thread::spawn(|| {
            announce();
            current().unwrap().index()
        });
        assert_ne!(mine, other.join().unwrap());
    }

    /// A thread-local destructor that runs after the slot was given back may free
    /// something, and so announce its thread again: it gets no slot, and keeps none.
    #[test]
    fn a_thread_that_is_being_torn_down_keeps_no_slot() {
        struct Last;
        impl Drop for Last {
            fn drop(&mut self) {
                TOLD.fetch_add(1 + usize::from(announce()), Ordering::Relaxed);
            }
        }
        std::thread_local! {
            static LAST: Last = const { Last };
        }
        static TOLD: AtomicUsize = AtomicUsize::new(0);
        for _ in 0..2 * SLOTS {
            // Made first, so dropped after the lease.
            std::thread::spawn(|| LAST.with(|_| assert!(announce()))).join().unwrap();
        }
        assert_eq!(TOLD.load(Ordering::Relaxed), 2 * SLOTS, "announced while being torn down");
    }
}
