//! Our own rwsem, `futex`: the whole state is one 64-bit word: readers that
//! hold the lock, readers that wait, writers that wait, and whether a writer
//! holds it. Every change is one compare-and-swap, so the transitions below are
//! all there is:
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
//! - whoever leaves the lock free wakes one waiting writer, unless one has been
//!   woken that has not looked yet: it will find the lock, or who holds it;
//! - a downgrade turns the writer into a reader and lets waiting readers in.
//!
//! Waiters spin, then sleep on a futex. A writer that was woken spins again, or
//! it would be unlucky each time against one that never sleeps.

use crate::sync::{AtomicU32, AtomicU64, MODEL, Ordering, SPINS, const_fn, futex_wait, futex_wake, spin_loop};

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
/// Bit 62: a waiting writer has been woken (or kept from sleeping) and has not
/// looked at the word since. It clears the bit in the exchange that looks, so
/// whoever leaves the lock later wakes again.
const WOKEN: u64 = 1 << 62;

/// Pauses of a writer that spins, in all: some tens of microseconds, as it takes
/// to wake a sleeper. (The kernel's spins as long as the holder runs.)
const PAUSES: u32 = if MODEL { 1 } else { 16 * SPINS };
/// ... and between two looks, at most: a microsecond or two.
const PAUSES_BETWEEN_MAX: u32 = 64;

/// See the file's documentation.
pub struct Futex {
    word: AtomicU64,
    /// Raised after waiting readers were given the lock; they sleep on it.
    reader_turn: AtomicU32,
    /// Raised when a waiting writer should try again; they sleep on it.
    writer_turn: AtomicU32,
}

impl Futex {
    const_fn! {
    pub const fn new() -> Futex {
        Futex { word: AtomicU64::new(0), reader_turn: AtomicU32::new(0), writer_turn: AtomicU32::new(0) }
    }
    }

    #[inline]
    pub fn try_lock_read(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & (WRITER | WRITERS_WAITING) == 0 {
            // Acquire: pairs with the Release of `leave`.
            match self.word.compare_exchange_weak(word, word + READER, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Takes the lock for writing if nobody holds it.
    #[inline]
    pub fn try_lock_write(&self) -> bool {
        self.take_for_writing(0)
    }

    /// Takes the lock for writing if nobody holds it, also from under those who
    /// wait. `counted` is WRITER_WAITING if the caller is one of them, else 0.
    #[inline]
    fn take_for_writing(&self, counted: u64) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & (READERS | WRITER) == 0 {
            let next = (word | WRITER) - counted;
            let next = if counted != 0 { next & !WOKEN } else { next };
            // Acquire: pairs with the Release of `unlock_read` and `leave`.
            match self.word.compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Waits and takes the lock for reading.
    pub fn lock_read(&self) {
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
            // Acquire: pairs with the Release in `leave`: the lock is
            // ours, and the writer's changes are visible.
            if self.word.load(Ordering::Acquire) & TURN != word & TURN {
                return;
            }
            futex_wait(&self.reader_turn, turn);
        }
    }

    #[inline]
    pub fn unlock_read(&self) {
        // Release: pairs with the Acquire of a writer's exchange.
        let word = self.word.fetch_sub(READER, Ordering::Release) - READER;
        if word & (READERS | WRITER) == 0 && word & WRITERS_WAITING != 0 {
            self.wake_writer();
        }
    }

    /// Waits and takes the lock for writing.
    pub fn lock_write(&self) {
        if self.spin_for_writing(0) {
            return;
        }
        // From here on new readers wait.
        self.word.fetch_add(WRITER_WAITING, Ordering::Relaxed);
        loop {
            // Read before the word, so that a release after our look raises it.
            // Acquire: keeps it there; pairs with the Release in `wake_writer`.
            let turn = self.writer_turn.load(Ordering::Acquire);
            if self.look_for_writing() {
                return;
            }
            futex_wait(&self.writer_turn, turn);
            if self.spin_for_writing(WRITER_WAITING) {
                return;
            }
        }
    }

    /// Tries for a while, ever less often: each look takes the word away from the
    /// holder, who will want it back, and each change of hands moves the tree from
    /// one processor's cache to another's.
    fn spin_for_writing(&self, counted: u64) -> bool {
        let (mut left, mut pauses) = (PAUSES, 1);
        while left > 0 {
            if self.take_for_writing(counted) {
                return true;
            }
            (0..pauses).for_each(|_| spin_loop());
            left = left.saturating_sub(pauses);
            pauses = (2 * pauses).min(PAUSES_BETWEEN_MAX);
        }
        false
    }

    /// The look of a waiting writer before it sleeps: takes the lock if nobody
    /// holds it, and is not on its way any more.
    fn look_for_writing(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let free = word & (READERS | WRITER) == 0;
            let next = if free { (word | WRITER) - WRITER_WAITING } else { word } & !WOKEN;
            if next == word {
                return false;
            }
            // Acquire: as in `take_for_writing`.
            match self.word.compare_exchange_weak(word, next, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return free,
                Err(now) => word = now,
            }
        }
    }

    #[inline]
    pub fn unlock_write(&self) {
        self.leave(0);
    }

    /// Ends a write section as a reader.
    pub fn downgrade(&self) {
        self.leave(READER);
    }

    /// Ends a write section; the writer stays as `keep` readers.
    #[inline]
    fn leave(&self, keep: u64) {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            debug_assert!(word & WRITER != 0 && word & READERS == 0);
            let waiting = (word & READERS_WAITING) / READER_WAITING;
            let turn = if waiting > 0 { !word & TURN } else { word & TURN };
            let next = turn | ((word & (WRITERS_WAITING | WOKEN)) + waiting * READER + keep);
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

    /// The lock was left free and writers wait: wake one, unless one is on its
    /// way, or somebody holds the lock again who will wake.
    #[cold]
    fn wake_writer(&self) {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & (READERS | WRITER | WOKEN) == 0 && word & WRITERS_WAITING != 0 {
            match self.word.compare_exchange_weak(word, word | WOKEN, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    // Release: after the exchange; pairs with the Acquire in `lock_write`.
                    self.writer_turn.fetch_add(1, Ordering::Release);
                    futex_wake(&self.writer_turn, 1);
                    return;
                }
                Err(now) => word = now,
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.word.load(Ordering::Relaxed) & !TURN == 0
    }
}
