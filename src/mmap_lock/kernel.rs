//! The kernel's rwsem, `kernel`: what `kernel/locking/rwsem.c` of Linux 6.x
//! does, in our own words and code.
//!
//! One count word, and a queue of those who sleep. Rules:
//!
//! - a reader adds itself to the count. If no writer holds the lock and no
//!   hand-off is due it keeps it, past the queue (it *steals*), unless other
//!   readers hold the lock already: a stream of readers must not starve a
//!   writer. Otherwise it takes itself out of the count and queues;
//! - a writer that finds the lock taken spins while the lock moves, one writer
//!   at a time (*optimistic spinning*), and takes the lock past the queue when
//!   it falls free. Otherwise it queues, and takes the lock only as the first;
//! - whoever leaves the lock free wakes the first of the queue. A writer that
//!   is woken competes with spinners and stealing readers. If the first reader
//!   is woken, so are **all readers** in the queue, who are given the lock
//!   before they wake;
//! - the first of the queue that has waited for 4 ms asks for the *hand-off*:
//!   until it has the lock nobody takes it past the queue;
//! - a downgrade lets all readers of the queue in.
//!
//! Where user space differs: nobody can see whether the holder is on a CPU, so
//! a writer spins for as long as the holder changes every few microseconds.
//! Spinners do not queue among themselves (the kernel's osq): the second one
//! goes to sleep. And the wait lock is a mutex that sleeps.
//!
//! Without a clock ([`crate::stats::set_clock`]) the hand-off is due after a
//! few vain wake-ups; in a model, after the first.

use crate::stats;
use crate::sync::plain::AtomicU64 as TokenCell;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, MODEL, Mutex, Ordering, SPINS};
use crate::sync::{futex_wait, futex_wake_at, spin_loop};
use std::cell::Cell;
use std::ptr;

/// A writer holds the lock.
const WRITER: u64 = 1 << 0;
/// The queue is not empty. Changed under the wait lock.
const WAITERS: u64 = 1 << 1;
/// The first of the queue is due. Changed under the wait lock.
const HANDOFF: u64 = 1 << 2;
/// One reader; the count of readers is in the bits from here on.
const READER: u64 = 1 << 8;
const READERS: u64 = !(READER - 1);
/// Somebody holds the lock (or a reader is about to take itself out again).
const HELD: u64 = WRITER | READERS;

/// RWSEM_WAIT_TIMEOUT.
const HANDOFF_NS: u64 = 4_000_000;
/// What stands for it without a clock: vain wake-ups.
const HANDOFF_TRIES: u32 = if MODEL { 1 } else { 8 };
/// MAX_READERS_WAKEUP.
const READERS_WOKEN_MAX: u64 = 256;
/// Looks at a lock whose holder does not change (some 20 us: the kernel spins
/// on readers for up to 25), and at most, whatever the holder does.
const SPIN_STILL: u32 = 5 * SPINS + 1;
const SPIN_MAX: u32 = 20 * SPIN_STILL;

/// Who waits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}

/// One thread that waits; on its stack.
///
/// # Invariants
/// In the queue, or in a [`Wakes`]: alive, and all but `woken` belongs to who
/// holds the wait lock (or owns the `Wakes`). A reader leaves when `woken` is
/// set, so nobody touches it afterwards; a writer takes itself off the queue.
struct Waiter {
    kind: Kind,
    since: Option<u64>,
    tries: Cell<u32>,
    next: Cell<*const Waiter>,
    /// Reader: 1 when it holds the lock. Writer: 1 when it should look again.
    woken: AtomicU32,
}

impl Waiter {
    fn new(kind: Kind) -> Waiter {
        Waiter {
            kind,
            since: stats::now_ns(),
            tries: Cell::new(0),
            next: Cell::new(ptr::null()),
            woken: AtomicU32::new(0),
        }
    }

    /// Whether it has waited so long that it may ask for the hand-off.
    fn is_overdue(&self) -> bool {
        match (self.since, stats::now_ns()) {
            (Some(since), Some(now)) => now.saturating_sub(since) > HANDOFF_NS,
            _ => self.tries.get() >= HANDOFF_TRIES,
        }
    }
}

/// Those who wait, first come first.
///
/// # Invariants
/// A list from `first` to `last` of living waiters, or both null.
struct Queue {
    first: *const Waiter,
    last: *const Waiter,
}

// SAFETY: the pointers are to waiters that stay until they are taken off.
unsafe impl Send for Queue {}

impl Queue {
    fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    fn first(&self) -> Option<&Waiter> {
        // SAFETY: waiters of the queue are alive.
        unsafe { self.first.as_ref() }
    }

    fn is_first(&self, waiter: &Waiter) -> bool {
        ptr::eq(self.first, waiter)
    }

    fn push(&mut self, waiter: &Waiter) {
        waiter.next.set(ptr::null());
        // SAFETY: as in `first`.
        match unsafe { self.last.as_ref() } {
            Some(last) => last.next.set(waiter),
            None => self.first = waiter,
        }
        self.last = waiter;
    }

    fn pop(&mut self) {
        let next = self.first().expect("a waiter takes itself off").next.get();
        self.first = next;
        if next.is_null() {
            self.last = ptr::null();
        }
    }

    /// Takes the first so many readers off, into a list of their own.
    fn take_readers(&mut self, max: u64) -> (*const Waiter, u64) {
        let (mut readers, mut kept) = (Queue::EMPTY, Queue::EMPTY);
        let mut taken = 0;
        let mut next = self.first;
        // SAFETY: as in `first`; `next` is read before the waiter is moved.
        while let Some(waiter) = unsafe { next.as_ref() } {
            next = waiter.next.get();
            if waiter.kind == Kind::Read && taken < max {
                readers.push(waiter);
                taken += 1;
            } else {
                kept.push(waiter);
            }
        }
        *self = kept;
        (readers.first, taken)
    }

    const EMPTY: Queue = Queue { first: ptr::null(), last: ptr::null() };
}

/// Whom to wake once the wait lock is released (the kernel's wake_q).
#[must_use]
struct Wakes {
    /// A list of readers that hold the lock.
    readers: *const Waiter,
    /// The word of a writer that has been told.
    writer: *const AtomicU32,
}

impl Wakes {
    const NOBODY: Wakes = Wakes { readers: ptr::null(), writer: ptr::null() };

    fn go(self) {
        let mut next = self.readers;
        // SAFETY: a reader stays until it is told, below; `next` is read before.
        while let Some(reader) = unsafe { next.as_ref() } {
            next = reader.next.get();
            let word = ptr::from_ref(&reader.woken);
            // Release: pairs with the Acquire in `lock_read`, to hand on what the
            // last writer did. From here on the reader may be gone.
            reader.woken.store(1, Ordering::Release);
            futex_wake_at(word, 1);
        }
        if !self.writer.is_null() {
            futex_wake_at(self.writer, 1);
        }
    }
}

/// Whom `mark_wake` may wake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    /// The first, be it a reader or a writer.
    Any,
    /// Readers, if the first is one.
    Readers,
    /// The same; the caller is a reader that holds the lock.
    ReadersOfHolder,
}

/// See the file's documentation.
pub struct Kernel {
    count: AtomicU64,
    /// A writer spins.
    spinning: AtomicBool,
    /// The wait lock, and what it protects.
    queue: Mutex<Queue>,
}

impl Kernel {
    pub fn new() -> Kernel {
        Kernel { count: AtomicU64::new(0), spinning: AtomicBool::new(false), queue: Mutex::new(Queue::EMPTY) }
    }

    #[inline]
    pub fn try_lock_read(&self) -> bool {
        let mut count = self.count.load(Ordering::Relaxed);
        while count & (WRITER | WAITERS | HANDOFF) == 0 {
            // Acquire: pairs with the Release of `unlock_write`.
            match self.count.compare_exchange_weak(count, count + READER, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => count = now,
            }
        }
        false
    }

    #[inline]
    pub fn try_lock_write(&self) -> bool {
        // Acquire: pairs with the Release of `unlock_read` and `unlock_write`.
        self.count.compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Waits and takes the lock for reading (`rwsem_down_read_slowpath`).
    pub fn lock_read(&self) {
        // Acquire: as in `try_lock_read`.
        let before = self.count.fetch_add(READER, Ordering::Acquire);
        let stream_of_readers = before & READERS != 0 && before & WAITERS != 0;
        if before & (WRITER | HANDOFF) == 0 && !stream_of_readers {
            // Stolen. The first reader lets those who queue in.
            if before & WAITERS != 0 {
                self.wake(Whom::ReadersOfHolder);
            }
            return;
        }
        let waiter = Waiter::new(Kind::Read);
        let wakes = {
            let mut queue = self.lock_queue();
            let mut adjustment = READER.wrapping_neg();
            if queue.is_empty() {
                // Acquire: pairs with the Release of `unlock_write`.
                if self.count.load(Ordering::Acquire) & (WRITER | HANDOFF) == 0 {
                    // The writer has left, and we are in the count.
                    return;
                }
                adjustment = adjustment.wrapping_add(WAITERS);
            }
            queue.push(&waiter);
            let count = self.count.fetch_add(adjustment, Ordering::Relaxed).wrapping_add(adjustment);
            self.wake_if_free(&mut queue, count)
        };
        wakes.go();
        // Acquire: pairs with the Release in `Wakes::go`.
        while waiter.woken.load(Ordering::Acquire) == 0 {
            futex_wait(&waiter.woken, 0);
        }
    }

    #[inline]
    pub fn unlock_read(&self) {
        // Release: pairs with the Acquire of a writer's exchange.
        let count = self.count.fetch_sub(READER, Ordering::Release) - READER;
        if count & (HELD | WAITERS) == WAITERS {
            self.wake(Whom::Any);
        }
    }

    /// Waits and takes the lock for writing (`rwsem_down_write_slowpath`).
    /// `holder`: which writer holds it, or 0.
    pub fn lock_write(&self, holder: &TokenCell) {
        if self.spin(holder) {
            return;
        }
        let waiter = Waiter::new(Kind::Write);
        let mut queue = self.lock_queue();
        let behind_others = !queue.is_empty();
        queue.push(&waiter);
        let count = self.count.fetch_or(WAITERS, Ordering::Relaxed) | WAITERS;
        if behind_others {
            let wakes = self.wake_if_free(&mut queue, count);
            drop(queue);
            wakes.go();
            queue = self.lock_queue();
        }
        while !self.take_as_first(&mut queue, &waiter) {
            waiter.tries.set(waiter.tries.get() + 1);
            // Whoever leaves the lock free from now on sees WAITERS, takes the
            // wait lock after us, and sets it again.
            waiter.woken.store(0, Ordering::Relaxed);
            drop(queue);
            futex_wait(&waiter.woken, 0);
            queue = self.lock_queue();
        }
    }

    /// Optimistic spinning: whether the lock was taken by it.
    fn spin(&self, holder: &TokenCell) -> bool {
        // Relaxed: it only keeps others from spinning.
        if self.spinning.swap(true, Ordering::Relaxed) {
            return false;
        }
        let mut taken = false;
        let mut last = holder.load(Ordering::Relaxed);
        let mut still = 0;
        for _ in 0..SPIN_MAX {
            taken = self.take_past_queue();
            let now = holder.load(Ordering::Relaxed);
            still = if now == last { still + 1 } else { 0 };
            last = now;
            if taken || still >= SPIN_STILL {
                break;
            }
            spin_loop();
        }
        self.spinning.store(false, Ordering::Relaxed);
        taken
    }

    /// `rwsem_try_write_lock_unqueued`.
    fn take_past_queue(&self) -> bool {
        let mut count = self.count.load(Ordering::Relaxed);
        while count & (HELD | HANDOFF) == 0 {
            // Acquire: as in `try_lock_write`.
            match self.count.compare_exchange_weak(count, count | WRITER, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => count = now,
            }
        }
        false
    }

    /// `rwsem_try_write_lock`: takes the lock, and the waiter off the queue, if
    /// it is the first and the lock free; or asks for the hand-off.
    fn take_as_first(&self, queue: &mut Queue, waiter: &Waiter) -> bool {
        if !queue.is_first(waiter) {
            return false;
        }
        let alone = waiter.next.get().is_null();
        let mut count = self.count.load(Ordering::Relaxed);
        loop {
            let held = count & HELD != 0;
            let next = match held {
                true if count & HANDOFF != 0 || !waiter.is_overdue() => return false,
                true => count | HANDOFF,
                false if alone => (count | WRITER) & !(HANDOFF | WAITERS),
                false => (count | WRITER) & !HANDOFF,
            };
            // Acquire: as in `try_lock_write`.
            match self.count.compare_exchange_weak(count, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) if held => return false,
                Ok(_) => break,
                Err(now) => count = now,
            }
        }
        queue.pop();
        true
    }

    #[inline]
    pub fn unlock_write(&self) {
        // Release: pairs with the Acquire of whoever comes next.
        let count = self.count.fetch_sub(WRITER, Ordering::Release);
        if count & WAITERS != 0 {
            self.wake(Whom::Any);
        }
    }

    /// Ends a write section as a reader (`downgrade_write`).
    pub fn downgrade(&self) {
        // Release: pairs with the Acquire of the readers that come.
        let count = self.count.fetch_add(READER - WRITER, Ordering::Release);
        if count & WAITERS != 0 {
            self.wake(Whom::ReadersOfHolder);
        }
    }

    /// `rwsem_wake`.
    #[cold]
    fn wake(&self, whom: Whom) {
        let wakes = {
            let mut queue = self.lock_queue();
            self.mark_wake(&mut queue, whom)
        };
        wakes.go();
    }

    /// `rwsem_cond_wake_waiter`: the lock may have fallen free before the
    /// caller was in the queue, or be held by readers.
    fn wake_if_free(&self, queue: &mut Queue, count: u64) -> Wakes {
        match count {
            count if count & WRITER != 0 => Wakes::NOBODY,
            count if count & READERS != 0 => self.mark_wake(queue, Whom::Readers),
            _ => self.mark_wake(queue, Whom::Any),
        }
    }

    /// `rwsem_mark_wake`: gives the lock to readers, or tells a writer.
    fn mark_wake(&self, queue: &mut Queue, whom: Whom) -> Wakes {
        let Some(first) = queue.first() else { return Wakes::NOBODY };
        if first.kind == Kind::Write {
            if whom != Whom::Any {
                return Wakes::NOBODY;
            }
            // Relaxed: it looks again under the wait lock. Who has been told already
            // is on its way, and forgets it there before it sleeps again. Told again
            // if nobody else can take the lock: whoever told it may have lost the
            // processor before the wake-up.
            let told = first.woken.swap(1, Ordering::Relaxed) == 1;
            if told && self.count.load(Ordering::Relaxed) & HANDOFF == 0 {
                return Wakes::NOBODY;
            }
            return Wakes { writer: &first.woken, ..Wakes::NOBODY };
        }
        let mut counted = 0;
        if whom != Whom::ReadersOfHolder {
            // One reader at once, so that no writer takes the lock meanwhile.
            // Acquire: pairs with the Release of `unlock_write`, for the readers.
            let before = self.count.fetch_add(READER, Ordering::Acquire);
            if before & WRITER != 0 {
                // One had. It will wake us when it leaves.
                let handoff = if before & HANDOFF == 0 && first.is_overdue() { HANDOFF } else { 0 };
                first.tries.set(first.tries.get() + 1);
                self.count.fetch_add(handoff.wrapping_sub(READER), Ordering::Relaxed);
                return Wakes::NOBODY;
            }
            counted = READER;
        }
        let (readers, taken) = queue.take_readers(READERS_WOKEN_MAX);
        let mut adjustment = (taken * READER).wrapping_sub(counted);
        if queue.is_empty() {
            adjustment = adjustment.wrapping_sub(WAITERS);
        }
        // The first had asked for it, and has the lock.
        if self.count.load(Ordering::Relaxed) & HANDOFF != 0 {
            adjustment = adjustment.wrapping_sub(HANDOFF);
        }
        self.count.fetch_add(adjustment, Ordering::Relaxed);
        Wakes { readers, ..Wakes::NOBODY }
    }

    fn lock_queue(&self) -> impl std::ops::DerefMut<Target = Queue> {
        self.queue.lock().expect("nothing panics under the wait lock")
    }

    /// Whether nobody holds or awaits the lock.
    pub fn is_idle(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    fn list(first: *const Waiter) -> Vec<*const Waiter> {
        // SAFETY: the tests' waiters outlive their queues.
        std::iter::successors(Some(first), |waiter| Some(unsafe { waiter.as_ref() }?.next.get()))
            .take_while(|waiter| !waiter.is_null())
            .collect()
    }

    #[test]
    fn readers_leave_the_queue_and_the_rest_keep_their_order() {
        let waiters = [Kind::Read, Kind::Write, Kind::Read, Kind::Read].map(Waiter::new);
        let [a, b, c, d] = waiters.each_ref().map(ptr::from_ref);
        let mut queue = Queue::EMPTY;
        waiters.iter().for_each(|waiter| queue.push(waiter));
        assert_eq!(list(queue.first), [a, b, c, d]);
        let (readers, taken) = queue.take_readers(2);
        assert_eq!((list(readers), taken), (vec![a, c], 2), "no more than asked for");
        assert_eq!(list(queue.first), [b, d]);
        queue.push(&waiters[0]);
        assert_eq!(list(queue.first), [b, d, a], "behind the last");
        queue.pop();
        queue.pop();
        queue.pop();
        assert!(queue.is_empty());
        queue.push(&waiters[1]);
        assert_eq!(list(queue.first), [b]);
    }

    /// One that has waited long enough for the hand-off, or has just come.
    fn waiter(kind: Kind, tries: u32) -> Waiter {
        Waiter { since: None, tries: Cell::new(tries), ..Waiter::new(kind) }
    }

    /// A lock in this state, with this one in the queue.
    fn lock(count: u64, waiter: &Waiter) -> Kernel {
        let lock = Kernel::new();
        lock.count.store(count, Ordering::Relaxed);
        lock.lock_queue().push(waiter);
        lock
    }

    fn state(lock: &Kernel, waiter: &Waiter) -> (u64, u32) {
        (lock.count.load(Ordering::Relaxed), waiter.woken.load(Ordering::Relaxed))
    }

    #[test]
    fn a_reader_that_steals_lets_the_queue_in() {
        let first = waiter(Kind::Read, 0);
        let lock = lock(WAITERS, &first);
        lock.lock_read();
        assert_eq!(state(&lock, &first), (2 * READER, 1));
    }

    #[test]
    fn a_downgrade_lets_the_queue_in() {
        let first = waiter(Kind::Read, 0);
        let lock = lock(WRITER | WAITERS, &first);
        lock.downgrade();
        assert_eq!(state(&lock, &first), (2 * READER, 1));
    }

    #[test]
    fn a_writer_is_not_told_by_a_reader_that_holds_the_lock() {
        let first = waiter(Kind::Write, 0);
        let lock = lock(READER | WAITERS, &first);
        lock.wake(Whom::ReadersOfHolder);
        assert_eq!(state(&lock, &first), (READER | WAITERS, 0));
    }

    /// A writer came first: the reader stays in the queue, and asks for the
    /// hand-off once it is overdue.
    #[test]
    fn a_reader_that_came_too_late_asks_for_the_hand_off_in_time() {
        for (tries, asked) in [(0, 0), (HANDOFF_TRIES, HANDOFF)] {
            let first = waiter(Kind::Read, tries);
            let lock = lock(WRITER | WAITERS, &first);
            lock.wake(Whom::Any);
            assert_eq!(state(&lock, &first), (WRITER | WAITERS | asked, 0));
            assert_eq!(first.tries.get(), tries + 1);
        }
    }

    #[test]
    fn the_hand_off_ends_when_the_lock_is_given() {
        let first = waiter(Kind::Read, HANDOFF_TRIES);
        let lock = lock(WAITERS | HANDOFF, &first);
        lock.wake(Whom::Any);
        assert_eq!(state(&lock, &first), (READER, 1));
    }
}
