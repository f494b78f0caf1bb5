//! The locks of std and of parking_lot.

use super::Rwsem;
use parking_lot::RawRwLock;
use parking_lot::lock_api::{RawRwLock as _, RawRwLockDowngrade as _, RawRwLockTimed as _};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError, TryLockResult};
use std::time::Duration;

/// What a guard keeps: std's lock can be unlocked in no other way. `None` for
/// every other algorithm.
pub type Read<'a> = Option<RwLockReadGuard<'a, ()>>;
/// As [`Read`].
pub type Write<'a> = Option<RwLockWriteGuard<'a, ()>>;

/// One of them.
pub enum Library {
    Std(RwLock<()>),
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

/// A writer that panicked leaves a poisoned lock; there is no value in it that
/// could be half-changed.
fn held<G>(result: TryLockResult<G>) -> Option<G> {
    match result {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Library {
    /// `None` if `rwsem` is none of them.
    pub fn new(rwsem: Rwsem) -> Option<Library> {
        match rwsem {
            Rwsem::Std => Some(Library::Std(RwLock::new(()))),
            Rwsem::ParkingLot => Some(Library::ParkingLot(RawRwLock::INIT)),
            Rwsem::Futex | Rwsem::Kernel => None,
        }
    }

    #[inline]
    pub fn try_lock_read(&self) -> Option<Read<'_>> {
        match self {
            Library::Std(lock) => held(lock.try_read()).map(Some),
            Library::ParkingLot(lock) => lock.try_lock_shared().then_some(None),
        }
    }

    #[inline]
    pub fn try_lock_write(&self) -> Option<Write<'_>> {
        match self {
            Library::Std(lock) => held(lock.try_write()).map(Some),
            Library::ParkingLot(lock) => lock.try_lock_exclusive().then_some(None),
        }
    }

    pub fn lock_read(&self) -> Read<'_> {
        match self {
            Library::Std(lock) => Some(lock.read().unwrap_or_else(PoisonError::into_inner)),
            Library::ParkingLot(lock) => {
                lock.lock_shared();
                None
            }
        }
    }

    pub fn lock_write(&self) -> Write<'_> {
        match self {
            Library::Std(lock) => Some(lock.write().unwrap_or_else(PoisonError::into_inner)),
            Library::ParkingLot(lock) => {
                lock.lock_exclusive();
                None
            }
        }
    }

    /// # Safety
    /// The caller holds the lock for reading; `held` is what it got with it.
    #[inline]
    pub unsafe fn unlock_read(&self, held: Read<'_>) {
        match self {
            Library::Std(_) => drop(held),
            // SAFETY: the caller's promise.
            Library::ParkingLot(lock) => unsafe { lock.unlock_shared() },
        }
    }

    /// # Safety
    /// The caller holds the lock for writing; `held` is what it got with it.
    #[inline]
    pub unsafe fn unlock_write(&self, held: Write<'_>) {
        match self {
            Library::Std(_) => drop(held),
            // SAFETY: the caller's promise.
            Library::ParkingLot(lock) => unsafe { lock.unlock_exclusive() },
        }
    }

    /// # Safety
    /// As [`unlock_write`](Library::unlock_write).
    pub unsafe fn downgrade<'a>(&self, held: Write<'a>) -> Read<'a> {
        match self {
            Library::Std(_) => held.map(RwLockWriteGuard::downgrade),
            Library::ParkingLot(lock) => {
                // SAFETY: the caller's promise.
                unsafe { lock.downgrade() };
                None
            }
        }
    }

    pub fn is_idle(&self) -> bool {
        self.try_lock_write().is_some_and(|held| {
            // SAFETY: taken just now.
            unsafe { self.unlock_write(held) };
            true
        })
    }
}
