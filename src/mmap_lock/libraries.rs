//! The locks of std and of parking_lot.

use super::Rwsem;
use parking_lot::RawRwLock;
use parking_lot::lock_api::{RawRwLock as _, RawRwLockDowngrade as _, RawRwLockTimed as _};
use std::cell::UnsafeCell;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult};
use std::time::Duration;

/// One of them.
pub enum Library {
    Std(Std),
    ParkingLot(RawRwLock),
}

/// Makes parking_lot allocate what it keeps for a thread that waits.
pub fn prepare_thread() {
    let lock = RawRwLock::INIT;
    lock.lock_exclusive();
    // Waits for no time at all, which is enough.
    let got = lock.try_lock_shared_for(Duration::ZERO);
    assert!(!got, "a lock was shared with its writer");
    // SAFETY: taken above.
    unsafe { lock.unlock_exclusive() };
}

impl Library {
    /// `None` if `rwsem` is none of them.
    pub fn new(rwsem: Rwsem) -> Option<Library> {
        match rwsem {
            Rwsem::Std => Some(Library::Std(Std::new())),
            Rwsem::ParkingLot => Some(Library::ParkingLot(RawRwLock::INIT)),
            Rwsem::Futex | Rwsem::Kernel => None,
        }
    }

    #[inline]
    pub fn try_lock_read(&self) -> bool {
        match self {
            Library::Std(lock) => lock.try_lock_read(),
            Library::ParkingLot(lock) => lock.try_lock_shared(),
        }
    }

    #[inline]
    pub fn try_lock_write(&self) -> bool {
        match self {
            Library::Std(lock) => lock.try_lock_write(),
            Library::ParkingLot(lock) => lock.try_lock_exclusive(),
        }
    }

    pub fn lock_read(&self) {
        match self {
            Library::Std(lock) => lock.lock_read(),
            Library::ParkingLot(lock) => lock.lock_shared(),
        }
    }

    pub fn lock_write(&self) {
        match self {
            Library::Std(lock) => lock.lock_write(),
            Library::ParkingLot(lock) => lock.lock_exclusive(),
        }
    }

    /// # Safety
    /// The caller holds the lock for reading, and gives it up.
    pub unsafe fn unlock_read(&self) {
        match self {
            // SAFETY: the caller's promise.
            Library::Std(lock) => unsafe { lock.unlock_read() },
            // SAFETY: the caller's promise.
            Library::ParkingLot(lock) => unsafe { lock.unlock_shared() },
        }
    }

    /// # Safety
    /// The caller holds the lock for writing, and gives it up.
    pub unsafe fn unlock_write(&self) {
        match self {
            // SAFETY: the caller's promise.
            Library::Std(lock) => unsafe { lock.unlock_write() },
            // SAFETY: the caller's promise.
            Library::ParkingLot(lock) => unsafe { lock.unlock_exclusive() },
        }
    }

    /// # Safety
    /// The caller holds the lock for writing, and goes on as a reader.
    pub unsafe fn downgrade(&self) {
        match self {
            // SAFETY: the caller's promise.
            Library::Std(lock) => unsafe { lock.downgrade() },
            // SAFETY: the caller's promise.
            Library::ParkingLot(lock) => unsafe { lock.downgrade() },
        }
    }

    pub fn is_idle(&self) -> bool {
        let free = self.try_lock_write();
        if free {
            // SAFETY: taken just now.
            unsafe { self.unlock_write() };
        }
        free
    }
}

/// std's lock, which only a guard can unlock. Were guards of the mmap lock to
/// carry std's, all schemes would pay for it (measured: 2 ns of each fault
/// without hardware), so they are kept here.
///
/// # Invariants
/// `lock` comes from a `Box` and lives as long as this. `writing` is `Some` if
/// and only if the lock is held for writing, and belongs to the writer.
pub struct Std {
    lock: NonNull<RwLock<()>>,
    writing: UnsafeCell<Option<RwLockWriteGuard<'static, ()>>>,
    /// A read guard to make others of. A guard is two references to the lock,
    /// the same in all: which one is dropped does not matter, only how many.
    reading: ManuallyDrop<RwLockReadGuard<'static, ()>>,
}

// SAFETY: the lock is Sync; `writing` belongs to who holds it for writing, who
// releases it on the same thread (the guards of the mmap lock are not Send);
// `reading` is only copied.
unsafe impl Sync for Std {}
// SAFETY: nothing here is of one thread while the lock is free, and it is
// borrowed while it is not.
unsafe impl Send for Std {}

/// A writer that panicked leaves a poisoned lock; there is no value in it that
/// could be half-changed.
fn held<G>(result: TryLockResult<G>) -> Option<G> {
    match result {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Std {
    fn new() -> Std {
        let lock = NonNull::from(Box::leak(Box::new(RwLock::new(()))));
        // SAFETY: it lives until `drop`, after which no guard is used.
        let guard = ManuallyDrop::new(unsafe { lock.as_ref() }.read().unwrap_or_else(PoisonError::into_inner));
        let std = Std { lock, writing: UnsafeCell::new(None), reading: guard };
        // SAFETY: read-locked above.
        unsafe { std.unlock_read() };
        std
    }

    fn lock(&self) -> &'static RwLock<()> {
        // SAFETY: by the invariant; guards made of it do not outlive `self`.
        unsafe { self.lock.as_ref() }
    }

    fn try_lock_read(&self) -> bool {
        held(self.lock().try_read()).map(std::mem::forget).is_some()
    }

    fn lock_read(&self) {
        std::mem::forget(self.lock().read().unwrap_or_else(PoisonError::into_inner));
    }

    fn try_lock_write(&self) -> bool {
        held(self.lock().try_write()).map(|guard| self.keep(guard)).is_some()
    }

    fn lock_write(&self) {
        self.keep(self.lock().write().unwrap_or_else(PoisonError::into_inner));
    }

    fn keep(&self, guard: RwLockWriteGuard<'static, ()>) {
        // SAFETY: the guard says that the lock is held for writing, by us.
        unsafe { *self.writing.get() = Some(guard) };
    }

    /// # Safety
    /// As [`Library::unlock_read`].
    unsafe fn unlock_read(&self) {
        // SAFETY: one guard was forgotten when the lock was taken; this is it.
        drop(unsafe { ptr::read(&*self.reading) });
    }

    /// # Safety
    /// As [`Library::unlock_write`].
    unsafe fn unlock_write(&self) {
        // SAFETY: the cell is the writer's. Emptied before the lock is free.
        drop(unsafe { (*self.writing.get()).take() });
    }

    /// # Safety
    /// As [`Library::downgrade`].
    unsafe fn downgrade(&self) {
        // SAFETY: as in `unlock_write`.
        let guard = unsafe { (*self.writing.get()).take() };
        std::mem::forget(guard.map(RwLockWriteGuard::downgrade));
    }
}

impl Drop for Std {
    fn drop(&mut self) {
        *self.writing.get_mut() = None;
        // SAFETY: it came from a box, and nobody uses it any more.
        drop(unsafe { Box::from_raw(self.lock.as_ptr()) });
    }
}
