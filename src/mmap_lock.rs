//! [`MmapLock`]: the reader-writer semaphore of an address space (`mmap_lock`).
//!
//! Which algorithm is behind it is chosen once for the process
//! ([`set_rwsem`]), because what per-VMA locks are compared with must be the
//! best that can be had, not one implementation of it:
//!
//! | [`Rwsem`] | what |
//! |---|---|
//! | `futex` | our own: one word, readers let in together (`futex.rs`); the default |
//! | `kernel` | the kernel's rwsem: a queue, optimistic spinning, hand-off after 4 ms (`kernel.rs`) |
//! | `std` | `std::sync::RwLock` |
//! | `parking_lot` | `parking_lot::RawRwLock` |
//!
//! The branch that this costs is taken with the lock only: faults under the
//! per-VMA schemes do not come here.
//!
//! The fault path takes the lock for reading in a signal handler. `futex`,
//! `kernel` and `std` (a futex too, on Linux) allocate nothing, and touch no
//! thread-local that needs initialisation or a destructor. `parking_lot` makes
//! its per-thread data when a thread first waits: `prepare_thread` has it do
//! so before, when the thread is announced. A thread that never was may
//! allocate in its first fault that waits. All four use mutexes or spin locks
//! inside; none is held while the region is touched, so a fault, which is
//! synchronous, never interrupts its own thread there.
//!
//! A thread must not fault while it holds the lock for reading (a writer may
//! wait), and one that holds it for writing must not touch the region at all:
//! the holder's identity is kept, and the deadlock becomes a panic.
//!
//! Acquisitions and the time waited are counted ([`crate::stats`]).

mod futex;
mod kernel;
#[cfg_attr(any(loom, shuttle), path = "mmap_lock/no_libraries.rs")]
mod libraries;

use crate::stats::{self, Counter, Wait};
use crate::sync::plain::{AtomicU8, AtomicU64 as TokenCell, Ordering};
use crate::sync::{const_fn, thread_locals};
use crate::trace::{Event, hit, id_of};
use futex::Futex;
use kernel::Kernel;
use libraries::Library;
use std::cell::Cell;
use std::marker::PhantomData;

/// Algorithms for the [`MmapLock`]; see the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rwsem {
    /// Our own.
    Futex,
    /// The kernel's.
    Kernel,
    /// std's (as `Futex` in model builds).
    Std,
    /// parking_lot's (as `Futex` in model builds).
    ParkingLot,
}

impl Rwsem {
    /// All, in the order of the documentation.
    pub const ALL: [Rwsem; 4] = [Rwsem::Futex, Rwsem::Kernel, Rwsem::Std, Rwsem::ParkingLot];
}

static CHOSEN: AtomicU8 = AtomicU8::new(Rwsem::Futex as u8);

/// Chooses the algorithm of address spaces made from now on. Call it before
/// the threads that use them are announced.
pub fn set_rwsem(rwsem: Rwsem) {
    // Relaxed: nothing is published with it.
    CHOSEN.store(rwsem as u8, Ordering::Relaxed);
    prepare_thread();
}

/// The algorithm chosen last.
pub fn rwsem() -> Rwsem {
    Rwsem::ALL[usize::from(CHOSEN.load(Ordering::Relaxed))]
}

/// Has the chosen algorithm allocate what it keeps for the calling thread.
pub(crate) fn prepare_thread() {
    if rwsem() == Rwsem::ParkingLot {
        libraries::prepare_thread();
    }
}

/// The algorithm with its state.
enum State {
    Futex(Futex),
    Kernel(Kernel),
    Library(Library),
}

/// The lock; see the module's documentation.
pub struct MmapLock {
    state: State,
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
        hit(Event::MmapLockReleased, id_of(self.lock), 0);
        match &self.lock.state {
            State::Futex(lock) => lock.unlock_read(),
            State::Kernel(lock) => lock.unlock_read(),
            // SAFETY: the guard held it for reading.
            State::Library(lock) => unsafe { lock.unlock_read() },
        }
    }
}

impl Drop for WriteGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        hit(Event::MmapLockReleased, id_of(self.lock), 1);
        self.lock.writer.store(0, Ordering::Relaxed);
        match &self.lock.state {
            State::Futex(lock) => lock.unlock_write(),
            State::Kernel(lock) => lock.unlock_write(),
            // SAFETY: the guard held it for writing.
            State::Library(lock) => unsafe { lock.unlock_write() },
        }
    }
}

impl<'a> WriteGuard<'a> {
    /// Lets readers in and goes on as one of them, without a gap
    /// (`mmap_write_downgrade`).
    pub fn downgrade(self) -> ReadGuard<'a> {
        let lock = self.lock;
        std::mem::forget(self);
        hit(Event::MmapLockDowngraded, id_of(lock), 0);
        lock.writer.store(0, Ordering::Relaxed);
        match &lock.state {
            State::Futex(lock) => lock.downgrade(),
            State::Kernel(lock) => lock.downgrade(),
            // SAFETY: the guard held it for writing, and is forgotten.
            State::Library(lock) => unsafe { lock.downgrade() },
        }
        ReadGuard { lock, _not_send: PhantomData }
    }
}

impl Default for MmapLock {
    fn default() -> MmapLock {
        MmapLock::of(rwsem())
    }
}

impl MmapLock {
    const_fn! {
    /// A free lock of our own kind.
    pub const fn new() -> MmapLock {
        MmapLock { state: State::Futex(Futex::new()), writer: TokenCell::new(0) }
    }
    }

    /// A free lock.
    pub fn of(rwsem: Rwsem) -> MmapLock {
        let state = match rwsem {
            Rwsem::Futex => State::Futex(Futex::new()),
            Rwsem::Kernel => State::Kernel(Kernel::new()),
            Rwsem::Std | Rwsem::ParkingLot => {
                Library::new(rwsem).map_or_else(|| State::Futex(Futex::new()), State::Library)
            }
        };
        MmapLock { state, writer: TokenCell::new(0) }
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
        hit(Event::MmapLockAcquired, id_of(self), 0);
        ReadGuard { lock: self, _not_send: PhantomData }
    }

    /// Takes the lock for reading if that needs no wait (`mmap_read_trylock`).
    #[inline]
    pub fn try_read(&self) -> Option<ReadGuard<'_>> {
        self.try_lock_read().then(|| {
            stats::count(Counter::MmapLockRead);
            hit(Event::MmapLockAcquired, id_of(self), 0);
            ReadGuard { lock: self, _not_send: PhantomData }
        })
    }

    /// Waits for the lock and takes it for writing.
    #[inline]
    pub fn write(&self) -> WriteGuard<'_> {
        if !self.try_lock_write() {
            self.write_slow();
        }
        self.writer.store(thread_token(), Ordering::Relaxed);
        stats::count(Counter::MmapLockWrite);
        hit(Event::MmapLockAcquired, id_of(self), 1);
        WriteGuard { lock: self, _not_send: PhantomData }
    }

    #[inline]
    fn try_lock_read(&self) -> bool {
        match &self.state {
            State::Futex(lock) => lock.try_lock_read(),
            State::Kernel(lock) => lock.try_lock_read(),
            State::Library(lock) => lock.try_lock_read(),
        }
    }

    #[inline]
    fn try_lock_write(&self) -> bool {
        match &self.state {
            State::Futex(lock) => lock.try_lock_write(),
            State::Kernel(lock) => lock.try_lock_write(),
            State::Library(lock) => lock.try_lock_write(),
        }
    }

    #[cold]
    fn read_slow(&self) {
        assert_ne!(
            self.writer.load(Ordering::Relaxed),
            thread_token(),
            "page fault by a thread that holds this address space's mmap lock for writing"
        );
        hit(Event::MmapLockWait, id_of(self), 0);
        timed(Wait::MmapRead, || match &self.state {
            State::Futex(lock) => lock.lock_read(),
            State::Kernel(lock) => lock.lock_read(),
            State::Library(lock) => lock.lock_read(),
        })
    }

    #[cold]
    fn write_slow(&self) {
        assert_ne!(self.writer.load(Ordering::Relaxed), thread_token(), "mmap lock taken twice for writing");
        hit(Event::MmapLockWait, id_of(self), 1);
        timed(Wait::MmapWrite, || match &self.state {
            State::Futex(lock) => lock.lock_write(),
            State::Kernel(lock) => lock.lock_write(&self.writer),
            State::Library(lock) => lock.lock_write(),
        })
    }

    /// Whether nobody holds or awaits the lock (oracle O5, at rest).
    pub fn is_idle(&self) -> bool {
        match &self.state {
            State::Futex(lock) => lock.is_idle(),
            State::Kernel(lock) => lock.is_idle(),
            State::Library(lock) => lock.is_idle(),
        }
    }

    /// Whether the calling thread holds the lock for writing.
    pub fn is_write_held_by_me(&self) -> bool {
        self.writer.load(Ordering::Relaxed) == thread_token()
    }
}

/// Records how long `wait` took, if there is a clock.
fn timed<T>(what: Wait, wait: impl FnOnce() -> T) -> T {
    let since = stats::now_ns();
    let result = wait();
    if let (Some(since), Some(now)) = (since, stats::now_ns()) {
        stats::record_wait(what, now.saturating_sub(since));
    }
    result
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
