//! RCU: read sections that cost two plain stores, and grace periods that wait
//! for them.
//!
//! # Protocol
//!
//! A **read section** publishes, in the thread's own word, the number of the
//! grace period it began in; leaving clears the word. Neither allocates,
//! frees, blocks or runs deferred work, and both may happen in a signal
//! handler, also one that interrupted another section of the same thread.
//!
//! A **grace period** number `n` starts by raising `STARTED` to `n`, issues
//! one *heavy barrier* (`membarrier(2)`, which makes every running thread of
//! the process execute a full fence) and ends when every thread's word has
//! been seen idle or holding a number `>= n`. Then:
//!
//! - a section whose word was stored before the heavy barrier is seen, and
//!   waited for;
//! - a section whose word was stored after it makes its loads after it, too,
//!   so it cannot find what was unlinked before the grace period started. The
//!   compiler fence in `enter` keeps the order that the barrier relies on.
//!
//! An object **retired** while `STARTED` is `s` is freed once `COMPLETED`
//! reaches `s + 1`: grace period `s` may have started before the object was
//! unlinked, the next one cannot have.
//!
//! Where `membarrier` is missing, sections pay a full fence of their own.
//!
//! Threads without a slot ([`crate::thread`]) enter through a pair of shared
//! counters, as in SRCU: the section adds itself to the counter that `PHASE`
//! selects; a grace period flips `PHASE` and waits for the other counter to
//! reach zero, twice, so that it has seen both at zero while new sections
//! always had somewhere else to go.
//!
//! # Two domains
//!
//! [`READERS`] protects tree nodes and slab pages; its sections are short and
//! never wait. [`FAULTS`] spans a whole fault, which may sleep for the mmap
//! lock; only the teardown of an address space waits for it, holding no lock.
//! They must be two: a mutator that holds the mmap lock may have to wait for
//! `READERS`.
//!
//! # Deferred work
//!
//! [`defer`] queues on the calling mutator's slot. Once [`BATCH`] items wait, the
//! mutator's next [`poll`] stamps them, pushes the grace periods along and frees
//! what is due; at [`BACKLOG_MAX`] `defer` waits. Sections never run any of it.
//!
//! Items are stamped by the hundred, not one by one: a stamp writes to `STARTED`,
//! which every section of every address space reads. Until then operations of
//! different address spaces touch nothing in common (`docs/conflicts.md`).

use crate::membarrier;
use crate::sync::plain::AtomicUsize;
use crate::sync::{
    AtomicBool, AtomicU64, Backoff, CachePadded, MODEL, Mutex, Ordering, array, aside, const_fn, statics,
};
use crate::thread::{self, SLOTS};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::hint::cold_path;
use std::marker::PhantomData;

/// Deferred items on one slot before [`poll`] looks for a grace period.
pub const BATCH: usize = if MODEL { 1 } else { 1024 };
/// Deferred items on one slot at which the mutator waits for a grace period.
pub const BACKLOG_MAX: usize = 8192;

/// Sections nested deeper than this panic: the depth has 16 bits.
const NEST_BITS: u32 = 16;
const NEST_MASK: u64 = (1 << NEST_BITS) - 1;

/// The two words of a thread slot, one for each domain.
pub(crate) struct ThreadWords {
    /// Bits 0..16: nesting depth, 0 = outside any section. Bits 16..64: the
    /// grace period number (modulo 2^48) read when the outermost section began.
    word: [AtomicU64; 2],
}

impl ThreadWords {
    const_fn! {
    pub(crate) const fn new() -> ThreadWords {
        ThreadWords { word: array![AtomicU64::new(0); 2] }
    }
    }

    /// # Panics
    /// If the owner is inside a section.
    pub(crate) fn assert_idle(&self) {
        for word in &self.word {
            assert_eq!(word.load(Ordering::Relaxed) & NEST_MASK, 0, "thread exits inside an RCU section");
        }
    }
}

/// Which of the words is [`READERS`]'s.
const READERS_WORD: usize = 0;

/// One kind of read section with its grace periods.
pub struct Domain {
    /// Read by every section, so apart from what grace periods write below.
    entry: CachePadded<Entry>,
    /// Grace periods finished; at most `started`.
    completed: AtomicU64,
    /// Sections of threads without a slot, by phase.
    shared: [AtomicU64; 2],
    phase: AtomicU64,
    /// The grace period in progress; only its holder moves it on.
    progress: Mutex<Progress>,
}

/// What a section looks at when it begins: one cache line.
struct Entry {
    /// The domain's word in each thread's slot.
    index: usize,
    /// Grace periods started. Begins at 1, so that 0 is never a section's number.
    started: AtomicU64,
    /// Sections rely on `membarrier`, not on a fence of their own ([`set_up`]).
    light: AtomicBool,
}

struct Progress {
    /// Number of the grace period in progress, or 0.
    target: u64,
    /// Slots below this have been seen past the target.
    slots_seen: usize,
    /// Flips of `phase` done, and whether the last one's counter was seen at zero.
    flips: u32,
    drained: bool,
}

statics! {
    /// Short sections: tree walks, lock attempts. Never held across a wait.
    pub static READERS: Domain = Domain::new(READERS_WORD);
    /// A whole fault. Waited for only when an address space is torn down.
    pub static FAULTS: Domain = Domain::new(1);
}

/// A read section of one [`Domain`]; ends when dropped, on the same thread.
#[must_use = "the section ends when the guard is dropped"]
pub struct ReadGuard {
    domain: &'static Domain,
    /// The thread's own word, or a shared counter.
    cell: &'static AtomicU64,
    /// `cell` is a shared counter: the thread has no slot.
    shared: bool,
    _not_send: PhantomData<*const ()>,
}

/// Finds out whether sections can do without a fence, unless that was done
/// before: they pay for one until then.
pub(crate) fn set_up() {
    let light = membarrier::set_up();
    // Every section reads that line: no store without need.
    if light && !(READERS.is_light() && FAULTS.is_light()) {
        READERS.entry.light.store(light, Ordering::Relaxed);
        FAULTS.entry.light.store(light, Ordering::Relaxed);
    }
}

/// Enters a section of [`READERS`] (`rcu_read_lock`). Async-signal-safe.
#[inline]
pub fn read() -> ReadGuard {
    READERS.enter_word(READERS_WORD)
}

/// Enters a section inside another, whose word is `old`. Out of line, for the sake
/// of those that are not.
#[inline(never)]
fn nest(word: &AtomicU64, old: u64) {
    assert!(old & NEST_MASK < NEST_MASK - 1, "RCU sections nested too deeply");
    // Release: as in `enter_word`, for `advance` may as well read this one.
    word.store(old + 1, Ordering::Release);
}

impl ReadGuard {
    /// The domain whose grace periods wait for this section.
    #[inline]
    pub fn domain(&self) -> &'static Domain {
        self.domain
    }
}

impl Drop for ReadGuard {
    #[inline]
    fn drop(&mut self) {
        // Release, in both: pairs with the Acquire in `advance`: what the section
        // read is read before anybody frees it.
        if self.shared {
            cold_path();
            self.cell.fetch_sub(1, Ordering::Release);
        } else {
            // Still this thread's word: `Lease::drop` asserts that no section
            // is open when it gives the slot back.
            self.cell.store(self.cell.load(Ordering::Relaxed) - 1, Ordering::Release);
        }
    }
}

impl Domain {
    const_fn! {
    const fn new(index: usize) -> Domain {
        Domain {
            entry: CachePadded::new(Entry { index, started: AtomicU64::new(1), light: AtomicBool::new(false) }),
            completed: AtomicU64::new(1),
            shared: array![AtomicU64::new(0); 2],
            phase: AtomicU64::new(0),
            progress: Mutex::new(Progress { target: 0, slots_seen: 0, flips: 0, drained: false }),
        }
    }
    }

    /// Enters a read section. Async-signal-safe.
    ///
    /// # Panics
    /// If sections nest deeper than 65 534.
    #[inline]
    pub fn enter(&'static self) -> ReadGuard {
        self.enter_word(self.entry.index)
    }

    /// `index` is this domain's; the caller knows it without a look.
    #[inline(always)]
    fn enter_word(&'static self, index: usize) -> ReadGuard {
        debug_assert_eq!(index, self.entry.index);
        let Some(slot) = thread::current() else {
            cold_path();
            return ReadGuard { domain: self, cell: self.enter_shared(), shared: true, _not_send: PhantomData };
        };
        let word = &slot.rcu.word[index];
        let old = word.load(Ordering::Relaxed);
        if old & NEST_MASK == 0 {
            // Acquire: pairs with the Release in `stamp`: a section that carries
            // number n sees what was stamped before n started.
            let number = self.entry.started.load(Ordering::Acquire);
            // A signal handler that enters and leaves between the load above
            // and this store leaves the word as it was; the number stored here
            // is then older than need be, which only makes a grace period wait
            // for us.
            //
            // Release, though it publishes nothing of this section: `advance` may
            // read this store and not the one that ended the section before, whose
            // reads must come before the free all the same.
            word.store(number << NEST_BITS | 1, Ordering::Release);
            membarrier::light(self.is_light());
        } else {
            nest(word, old);
        }
        ReadGuard { domain: self, cell: word, shared: false, _not_send: PhantomData }
    }

    #[inline(always)]
    fn is_light(&self) -> bool {
        // Relaxed: set once; a section that still sees false only does more than
        // it must. (A model says at its start what there is.)
        if MODEL { membarrier::set_up() } else { self.entry.light.load(Ordering::Relaxed) }
    }

    #[cold]
    fn enter_shared(&self) -> &AtomicU64 {
        // Relaxed: either counter is right, see the module's documentation.
        let counter = &self.shared[self.phase.load(Ordering::Relaxed) as usize & 1];
        // Acquire: pairs with the AcqRel addition of 0 in `advance`. If ours is
        // the later one it reads from that one's release sequence and sees what
        // was unlinked before; if the earlier, the grace period sees it.
        counter.fetch_add(1, Ordering::Acquire);
        counter
    }

    /// Starts a grace period unless one is in progress.
    fn start(&self, progress: &mut Progress) {
        if progress.target != 0 {
            return;
        }
        // Relaxed: this continues the release sequence of the stamps before it,
        // which `enter` acquires from, and the heavy barrier acquires from them.
        let target = self.entry.started.fetch_add(1, Ordering::Relaxed) + 1;
        membarrier::heavy();
        *progress = Progress { target, slots_seen: 0, flips: 0, drained: true };
    }

    /// Moves the grace period in progress as far as it will go without
    /// waiting. Returns whether it is over.
    fn advance(&self, progress: &mut Progress) -> bool {
        for slot in thread::all().skip(progress.slots_seen) {
            // Acquire: pairs with the Release in `ReadGuard::drop`, and in `enter`.
            let word = slot.rcu.word[self.entry.index].load(Ordering::Acquire);
            if word & NEST_MASK != 0 && word >> NEST_BITS < progress.target {
                return false;
            }
            progress.slots_seen += 1;
        }
        loop {
            if !progress.drained {
                let old = (self.phase.load(Ordering::Relaxed) & 1) ^ 1;
                // AcqRel, and an addition of 0 rather than a load: Release pairs
                // with the Acquire in `enter_shared`, Acquire with the Release in
                // `ReadGuard::drop`.
                progress.drained = self.shared[old as usize].fetch_add(0, Ordering::AcqRel) == 0;
                if !progress.drained {
                    return false;
                }
            }
            if progress.flips == 2 {
                break;
            }
            // Relaxed: it only keeps new sections away from the counter that is
            // waited for; both are seen at zero, whichever they choose.
            self.phase.fetch_add(1, Ordering::Relaxed);
            progress.flips += 1;
            progress.drained = false;
        }
        // Release: pairs with the Acquire in `completed`: what the sections did
        // happens before what is freed.
        self.completed.store(progress.target, Ordering::Release);
        progress.target = 0;
        true
    }

    /// Whether this is [`READERS`].
    #[inline]
    pub(crate) fn protects_readers(&self) -> bool {
        self.entry.index == READERS_WORD
    }

    /// The stamp for an object unlinked before this call: it may be freed when
    /// [`is_over`](Domain::is_over) says so.
    pub fn stamp(&self) -> u64 {
        // Release, and an addition of 0 rather than a load: puts the unlinking
        // store before the grace period that follows in this variable's order,
        // whichever thread starts it. Pairs with the fence in
        // `membarrier::heavy`, and with the Acquire in `enter`.
        self.entry.started.fetch_add(0, Ordering::Release) + 1
    }

    /// Whether a grace period has passed since the stamp was taken.
    pub fn is_over(&self, stamp: u64) -> bool {
        // Acquire: pairs with the Release in `advance`.
        self.completed.load(Ordering::Acquire) >= stamp
    }

    /// Starts and advances grace periods without waiting for any section.
    fn push(&self, stamp: u64) {
        if let Ok(mut progress) = self.progress.try_lock() {
            while !self.is_over(stamp) {
                self.start(&mut progress);
                if !self.advance(&mut progress) {
                    return;
                }
            }
        }
    }

    /// Waits until every section that is open now has ended
    /// (`synchronize_rcu`). Mutators only.
    ///
    /// # Panics
    /// If the calling thread is inside a section of this domain (one that it
    /// entered before it announced itself goes unnoticed, and is waited for in
    /// vain).
    pub fn synchronize(&'static self) {
        if let Some(slot) = thread::current() {
            let word = slot.rcu.word[self.entry.index].load(Ordering::Relaxed);
            assert_eq!(word & NEST_MASK, 0, "synchronize inside a section would wait for itself");
        }
        let stamp = self.stamp();
        let backoff = Backoff::new();
        while !self.is_over(stamp) {
            self.push(stamp);
            if self.is_over(stamp) {
                break;
            }
            // A section is short, but its thread may be preempted: spin, yield,
            // then sleep.
            if backoff.is_completed() {
                std::thread::sleep(std::time::Duration::from_micros(50)); // never in a model
            } else {
                backoff.snooze();
            }
        }
    }

    /// Grace periods completed since the process began.
    pub fn grace_periods(&self) -> u64 {
        self.completed.load(Ordering::Relaxed) - 1
    }
}

/// Waits for a grace period of [`READERS`].
pub fn synchronize() {
    READERS.synchronize();
}

/// Something to do after a grace period of [`READERS`].
#[derive(Clone, Copy)]
struct Deferred {
    /// What it waits for, or [`UNSTAMPED`].
    stamp: u64,
    object: *mut (),
    reclaim: unsafe fn(*mut ()),
}

// SAFETY: `defer`'s caller promises that `reclaim(object)` may run on any thread.
unsafe impl Send for Deferred {}

/// No grace period gets there: the item waits to be stamped.
const UNSTAMPED: u64 = u64::MAX;

/// Deferred items of one slot.
struct Queue {
    /// Oldest first; those that are unstamped come last.
    items: Mutex<VecDeque<Deferred>>,
    /// How many, for [`poll`], which has no need of the lock to see that they are few.
    len: AtomicUsize,
}

impl Queue {
    const_fn! {
    const fn new() -> Queue {
        Queue { items: Mutex::new(VecDeque::new()), len: AtomicUsize::new(0) }
    }
    }

    /// Runs `body` on the items, under the lock.
    fn with<R>(&self, body: impl FnOnce(&mut VecDeque<Deferred>) -> R) -> R {
        let mut items = self.items.lock().expect("deferred queue");
        let result = body(&mut items);
        // Relaxed: a hint.
        self.len.store(items.len(), Ordering::Relaxed);
        result
    }

    /// Stamps what is unstamped. All of it was unlinked before: by this thread,
    /// or by one that has given the queue's mutex on since, or the lock that
    /// excludes mutations of its tree.
    fn stamp(&self) {
        self.with(stamp_all);
    }

    fn backlog(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }
}

/// See [`Queue::stamp`].
fn stamp_all(items: &mut VecDeque<Deferred>) {
    if items.back().is_some_and(|last| last.stamp == UNSTAMPED) {
        let stamp = READERS.stamp();
        items.iter_mut().rev().take_while(|item| item.stamp == UNSTAMPED).for_each(|item| item.stamp = stamp);
    }
}

statics! {
    /// One queue for each slot and one for threads that have none.
    static QUEUES: [CachePadded<Queue>; SLOTS + 1] = array![CachePadded::new(Queue::new()); SLOTS + 1];
}

#[inline]
fn my_queue() -> &'static Queue {
    match thread::current() {
        Some(slot) => &QUEUES[slot.index()],
        None => new_queue(),
    }
}

#[cold]
#[inline(never)]
fn new_queue() -> &'static Queue {
    thread::announce();
    &QUEUES[thread::current().map_or(SLOTS, thread::Slot::index)]
}

/// Runs `reclaim(object)` after a grace period of [`READERS`] (`call_rcu`), on
/// some mutator thread. Does not wait, unless [`BACKLOG_MAX`] items are queued.
///
/// Mutators only: it allocates, and `reclaim` of other objects may run inside.
///
/// # Safety
/// `object` is unlinked: no section that begins after this call can reach it.
/// `reclaim(object)` may run once, on any thread, and must not call `defer`
/// or enter a section that outlives it. The caller is outside any section.
pub unsafe fn defer(object: *mut (), reclaim: unsafe fn(*mut ())) {
    // SAFETY: passed on from the caller.
    unsafe { defer_all(std::iter::once(object), reclaim) }
}

/// [`defer`] for several objects at the price of one.
///
/// # Safety
/// As [`defer`], for each object.
pub unsafe fn defer_all(objects: impl Iterator<Item = *mut ()>, reclaim: unsafe fn(*mut ())) {
    let queue = my_queue();
    let backlog = aside(|| {
        queue.with(|items| items.extend(objects.map(|object| Deferred { stamp: UNSTAMPED, object, reclaim })));
        queue.backlog()
    });
    if backlog >= BACKLOG_MAX {
        queue.stamp();
        READERS.synchronize();
        run_due(queue);
    }
}

/// Pushes grace periods along and reclaims what is due, if the calling mutator
/// has deferred [`BATCH`] items. Mutators call it after every operation, when
/// they hold no lock: a heavy barrier costs microseconds, and other threads'
/// frees run here.
#[inline]
pub fn poll() {
    aside(|| {
        let queue = my_queue();
        if queue.backlog() >= BATCH {
            reclaim_due(queue);
        }
    });
}

#[cold]
fn reclaim_due(queue: &Queue) {
    // Aim at the older half: with a grace period in progress the newest items
    // would need a second one. And stamp half a queue at least.
    let middle = queue.with(|items| {
        let middle = items.len() / 2;
        if items.get(middle).is_some_and(|item| item.stamp == UNSTAMPED) {
            stamp_all(items);
        }
        items.get(middle).map_or(0, |item| item.stamp)
    });
    if !READERS.is_over(middle) {
        READERS.push(middle);
    }
    run_due(queue);
}

/// Reclaims what is due at the front of `queue`; returns how many.
fn run_due(queue: &Queue) -> usize {
    const AT_ONCE: usize = 64;
    let mut done = 0;
    loop {
        let batch: SmallVec<[Deferred; AT_ONCE]> = queue.with(|items| {
            // (The front half of the ring, or all of it: what is beyond comes with the next batch.)
            let (front, _) = items.as_slices();
            let due = front.iter().take(AT_ONCE).take_while(|d| READERS.is_over(d.stamp)).count();
            let batch = SmallVec::from_slice(&front[..due]);
            items.drain(..due);
            batch
        });
        if batch.is_empty() {
            return done;
        }
        for item in &batch {
            // SAFETY: a grace period has passed since the object was unlinked,
            // and each item is taken once; the rest is `defer`'s contract.
            unsafe { (item.reclaim)(item.object) };
        }
        done += batch.len();
    }
}

/// Waits for a grace period and runs everything deferred before this call,
/// on every thread's behalf (`rcu_barrier`).
pub fn barrier() {
    QUEUES.iter().for_each(|queue| queue.stamp());
    READERS.synchronize();
    for queue in QUEUES.iter() {
        run_due(queue);
    }
}

/// What RCU has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Grace periods of [`READERS`] completed.
    pub grace_periods: u64,
    /// Items deferred and not yet reclaimed, on all threads.
    pub backlog: usize,
}

/// Reads the counters.
pub fn stats() -> Stats {
    let backlog = QUEUES.iter().map(|queue| queue.backlog()).sum();
    Stats { grace_periods: READERS.grace_periods(), backlog }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
