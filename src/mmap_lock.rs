//! [`MmapLock`]: the reader-writer semaphore of an address space (`mmap_lock`).
//!
//! # Protocol
//!
//! The whole state is one 64-bit word: readers that hold the lock, readers
//! that wait, writers that wait, and whether a writer holds it. Every change
//! is one compare-and-swap, so the transitions below are all there is:
//!
//! - a reader gets in while no writer holds the lock **and none waits**, so
//!   readers cannot starve a writer;
//! - a writer gets in while nobody holds the lock, even if others wait (like
//!   the kernel's rwsem, it may steal: handing the lock to a sleeper would
//!   leave it idle for a wake-up);
//! - a writer that leaves gives the lock to **all** waiting readers at once
//!   (they hold it before they wake), so a writer cannot starve readers: one
//!   that waits is passed by at most the writers that come while the lock is
//!   held for the first time;
//! - the last reader to leave wakes one waiting writer;
//! - a downgrade turns the writer into a reader and lets waiting readers in.
//!
//! Waiters spin shortly, then sleep on a futex. Nothing allocates, and the
//! thread-locals that are touched need neither initialisation nor destructor,
//! so the fault path may take the lock for reading in a signal handler. It must
//! not fault while it holds the lock, and a
//! thread that holds it for writing must not touch the region at all: the
//! holder's identity is kept, and the deadlock becomes a panic.
//!
//! Acquisitions and the time waited are counted ([`crate::stats`]).

use crate::stats::{self, Counter, Wait};
use crate::sync::plain::AtomicU64 as TokenCell;
use crate::sync::{AtomicU32, AtomicU64, Ordering, SPINS, const_fn, futex_wait, futex_wake, spin_loop, thread_locals};
use std::cell::Cell;
use std::marker::PhantomData;

/// Bits 0..20: readers that hold the lock.
const READER: u64 = 1;
const READERS: u64 = (1 << 20) - 1;
/// Bits 20..40: readers that wait for a writer to give them the lock.
const READER_WAITING: u64 = 1 << 20;
const READERS_WAITING: u64 = READERS << 20;
/// Bits 40..60: writers that wait.
const WRITER_WAITING: u64 = 1 << 40;
const WRITERS_WAITING: u64 = READERS << 40;
/// Bit 60: a writer holds the lock.
const WRITER: u64 = 1 << 60;
/// Bit 61: flips whenever waiting readers are given the lock, in the same
/// exchange. A waiting reader that sees it flip owns the lock. (One bit is
/// enough: until that reader lets go, no writer gets in to give again. A
/// counter beside the word would not do: a late announcement of the gift
/// before would be taken for one's own.)
const TURN: u64 = 1 << 61;

/// The lock; see the module's documentation.
pub struct MmapLock {
    word: AtomicU64,
    /// Raised after waiting readers were given the lock; they sleep on it.
    reader_turn: AtomicU32,
    /// Raised when a waiting writer should try again; they sleep on it.
    writer_turn: AtomicU32,
    /// Which thread holds the lock for writing ([`thread_token`]), or 0.
    writer: TokenCell,
}

thread_locals! {
    /// Its address tells threads apart. Const and without destructor, so safe in a signal handler.
    static TOKEN: Cell<u8> = Cell::new(0);
}

fn thread_token() -> u64 {
    TOKEN.with(|token| token.as_ptr().addr() as u64)
}

/// The lock, held for reading (`mmap_read_lock`). Released when dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReadGuard<'a> {
    lock: &'a MmapLock,
    _not_send: PhantomData<*const ()>,
}

/// The lock, held for writing (`mmap_write_lock`). Released when dropped.
#[must_use = "the lock is released when the guard is dropped"]
pub struct WriteGuard<'a> {
    lock: &'a MmapLock,
    _not_send: PhantomData<*const ()>,
}

impl Drop for ReadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock_read();
    }
}

impl Drop for WriteGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock_write(0);
    }
}

impl<'a> WriteGuard<'a> {
    /// Lets readers in and goes on as one of them, without a gap
    /// (`mmap_write_downgrade`).
    pub fn downgrade(self) -> ReadGuard<'a> {
        let lock = self.lock;
        std::mem::forget(self);
        lock.unlock_write(READER);
        ReadGuard { lock, _not_send: PhantomData }
    }
}

impl Default for MmapLock {
    fn default() -> MmapLock {
        MmapLock::new()
    }
}

impl MmapLock {
    const_fn! {
    /// A free lock.
    pub const fn new() -> MmapLock {
        MmapLock {
            word: AtomicU64::new(0),
            reader_turn: AtomicU32::new(0),
            writer_turn: AtomicU32::new(0),
            writer: TokenCell::new(0),
        }
    }
    }

    /// Waits for the lock and takes it for reading. Async-signal-safe.
    ///
    /// # Panics
    /// If the calling thread holds the lock for writing: it touched the region
    /// from inside an operation, or in an asynchronous signal handler that
    /// interrupted one, and would wait for itself.
    #[inline]
    pub fn read(&self) -> ReadGuard<'_> {
        if !self.try_lock_read() {
            self.read_slow();
        }
        stats::count(Counter::MmapLockRead);
        ReadGuard { lock: self, _not_send: PhantomData }
    }

    /// Takes the lock for reading if that needs no wait (`mmap_read_trylock`).
    #[inline]
    pub fn try_read(&self) -> Option<ReadGuard<'_>> {
        self.try_lock_read().then(|| {
            stats::count(Counter::MmapLockRead);
            ReadGuard { lock: self, _not_send: PhantomData }
        })
    }

    /// Waits for the lock and takes it for writing.
    #[inline]
    pub fn write(&self) -> WriteGuard<'_> {
        if !self.try_lock_write(0) {
            self.write_slow();
        }
        self.writer.store(thread_token(), Ordering::Relaxed);
        stats::count(Counter::MmapLockWrite);
        WriteGuard { lock: self, _not_send: PhantomData }
    }

    #[inline]
    fn try_lock_read(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & (WRITER | WRITERS_WAITING) == 0 {
            // Acquire: pairs with the Release of `unlock_write`.
            match self.word.compare_exchange_weak(word, word + READER, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Takes the lock for writing if nobody holds it, also from under those who
    /// wait. `counted` is WRITER_WAITING if the caller is one of them, else 0.
    #[inline]
    fn try_lock_write(&self, counted: u64) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & (READERS | WRITER) == 0 {
            let next = (word | WRITER) - counted;
            // Acquire: pairs with the Release of `unlock_read` and `unlock_write`.
            match self.word.compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    #[cold]
    fn read_slow(&self) {
        assert_ne!(
            self.writer.load(Ordering::Relaxed),
            thread_token(),
            "page fault by a thread that holds this address space's mmap lock for writing"
        );
        let since = stats::now_ns();
        self.read_wait();
        if let (Some(since), Some(now)) = (since, stats::now_ns()) {
            stats::record_wait(Wait::MmapRead, now.saturating_sub(since));
        }
    }

    fn read_wait(&self) {
        for _ in 0..SPINS {
            if self.try_lock_read() {
                return;
            }
            spin_loop();
        }
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let free = word & (WRITER | WRITERS_WAITING) == 0;
            let next = if free { word + READER } else { word + READER_WAITING };
            // Acquire: as in `try_lock_read`.
            match self.word.compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) if free => return,
                Ok(_) => break,
                Err(now) => word = now,
            }
        }
        loop {
            // Read before the word: a gift after our look raises it, and the
            // futex will not sleep. Acquire: keeps the order of the two.
            let turn = self.reader_turn.load(Ordering::Acquire);
            // Acquire: pairs with the Release in `unlock_write`: the lock is
            // ours, and the writer's changes are visible.
            if self.word.load(Ordering::Acquire) & TURN != word & TURN {
                return;
            }
            futex_wait(&self.reader_turn, turn);
        }
    }

    #[inline]
    fn unlock_read(&self) {
        // Release: pairs with the Acquire of a writer's exchange.
        let word = self.word.fetch_sub(READER, Ordering::Release) - READER;
        if word & (READERS | WRITER) == 0 && word & WRITERS_WAITING != 0 {
            self.wake_writer();
        }
    }

    #[cold]
    fn write_slow(&self) {
        assert_ne!(self.writer.load(Ordering::Relaxed), thread_token(), "mmap lock taken twice for writing");
        let since = stats::now_ns();
        self.write_wait();
        if let (Some(since), Some(now)) = (since, stats::now_ns()) {
            stats::record_wait(Wait::MmapWrite, now.saturating_sub(since));
        }
    }

    fn write_wait(&self) {
        for _ in 0..SPINS {
            if self.try_lock_write(0) {
                return;
            }
            spin_loop();
        }
        // From here on new readers wait.
        self.word.fetch_add(WRITER_WAITING, Ordering::Relaxed);
        loop {
            // Read before the word, so that a release after our look raises it.
            // Acquire: keeps it there; pairs with the Release in `wake_writer`.
            let turn = self.writer_turn.load(Ordering::Acquire);
            if self.try_lock_write(WRITER_WAITING) {
                return;
            }
            futex_wait(&self.writer_turn, turn);
        }
    }

    /// Ends a write section; the writer stays as `keep` readers.
    #[inline]
    fn unlock_write(&self, keep: u64) {
        self.writer.store(0, Ordering::Relaxed);
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            debug_assert!(word & WRITER != 0 && word & READERS == 0);
            let waiting = (word & READERS_WAITING) / READER_WAITING;
            let turn = if waiting > 0 { !word & TURN } else { word & TURN };
            let next = turn | ((word & WRITERS_WAITING) + waiting * READER + keep);
            // Release: pairs with the Acquire of whoever comes next.
            match self.word.compare_exchange_weak(word, next, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => {
                    if waiting > 0 {
                        self.give_to_readers();
                    } else if keep == 0 && next & WRITERS_WAITING != 0 {
                        self.wake_writer();
                    }
                    return;
                }
                Err(now) => word = now,
            }
        }
    }

    /// The readers counted as waiting have been made holders: wake them.
    #[cold]
    fn give_to_readers(&self) {
        // Release: after the exchange; pairs with the Acquire in `read_wait`.
        self.reader_turn.fetch_add(1, Ordering::Release);
        futex_wake(&self.reader_turn, i32::MAX);
    }

    #[cold]
    fn wake_writer(&self) {
        // Release: pairs with the Acquire in `write_wait`.
        self.writer_turn.fetch_add(1, Ordering::Release);
        futex_wake(&self.writer_turn, 1);
    }

    /// Whether nobody holds or awaits the lock (oracle O5, at rest).
    pub fn is_idle(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !TURN == 0
    }

    /// Whether the calling thread holds the lock for writing.
    pub fn is_write_held_by_me(&self) -> bool {
        self.writer.load(Ordering::Relaxed) == thread_token()
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::sync::{AtomicBool, AtomicUsize};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn excludes_and_balances() {
        let lock = Arc::new((MmapLock::new(), [AtomicUsize::new(0), AtomicUsize::new(0)]));
        let threads: Vec<_> = (0..4)
            .map(|me| {
                let lock = lock.clone();
                std::thread::spawn(move || {
                    for round in 0..20_000 {
                        let (lock, pair) = &*lock;
                        if (round + me) % 4 == 0 {
                            let guard = lock.write();
                            pair[0].store(pair[0].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                            pair[1].store(pair[1].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                            if round % 8 == 0 {
                                let _reader = guard.downgrade();
                                assert_eq!(pair[0].load(Ordering::Relaxed), pair[1].load(Ordering::Relaxed));
                            }
                        } else {
                            let _guard = lock.read();
                            assert_eq!(pair[0].load(Ordering::Relaxed), pair[1].load(Ordering::Relaxed));
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(lock.1[0].load(Ordering::Relaxed), 20_000);
        assert!(lock.0.is_idle());
    }

    /// Readers that always overlap: without the waiting-writer rule no writer
    /// would ever see the lock free.
    #[test]
    fn overlapping_readers_do_not_starve_a_writer() {
        let lock = Arc::new(MmapLock::new());
        let stop = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (lock, stop) = (lock.clone(), stop.clone());
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let _guard = lock.read();
                        std::thread::sleep(Duration::from_millis(2));
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            drop(lock.write());
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|r| r.join().unwrap());
    }

    /// A writer that takes the lock again at once: without the hand-over a
    /// sleeping reader would always come too late.
    #[test]
    fn a_busy_writer_does_not_starve_a_reader() {
        let lock = Arc::new(MmapLock::new());
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let (lock, stop) = (lock.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _guard = lock.write();
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        };
        for _ in 0..20 {
            drop(lock.read());
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    }

    #[test]
    fn a_writer_that_faults_on_itself_is_told() {
        let lock = MmapLock::new();
        let _guard = lock.write();
        assert!(lock.try_read().is_none());
        let message = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(lock.read()))).unwrap_err();
        assert!(message.downcast_ref::<String>().unwrap().contains("holds this address space's mmap lock"));
    }

    #[test]
    fn waits_are_timed_when_there_is_a_clock() {
        fn clock() -> u64 {
            static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
            START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
        }
        stats::set_clock(clock);
        let lock = Arc::new(MmapLock::new());
        let before = stats::Snapshot::take();
        let guard = lock.write();
        let reader = {
            let lock = lock.clone();
            std::thread::spawn(move || drop(lock.read()))
        };
        std::thread::sleep(Duration::from_millis(30));
        drop(guard);
        reader.join().unwrap();
        let longest = stats::Snapshot::take().since(&before).waits(Wait::MmapRead).map(|(ns, _)| ns).max();
        assert!(longest.unwrap() > 10_000_000, "{longest:?}");
    }
}
