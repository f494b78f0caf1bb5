//! What replaces std under `--cfg tsan` (`scripts/tsan.sh`).
//!
//! ThreadSanitizer sees the hand-overs of code that was compiled with it. std
//! comes compiled without it: of its `Mutex` the contended path would go
//! unseen, and what the mutex protects be reported. This one is built from the
//! core's own atomics, which are seen. Not fair and not for production.

use super::{AtomicU32, Ordering, futex_wait, futex_wake};
use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Looks at the word this often before sleeping.
const SPINS: u32 = 100;

/// Stands for `std::sync::Mutex` as far as the core uses it. There is no
/// poisoning: a panic under ThreadSanitizer ends the run.
#[derive(Debug, Default)]
pub struct Mutex<T> {
    /// 0 free, 1 held, 2 held and perhaps somebody sleeps.
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is handed from thread to thread, never shared.
unsafe impl<T: Send> Sync for Mutex<T> {}

/// The mutex, held. Released when dropped.
#[must_use = "the mutex is released when the guard is dropped"]
pub struct MutexGuard<'a, T>(&'a Mutex<T>);

// SAFETY: sharing the guard shares the value.
unsafe impl<T: Sync> Sync for MutexGuard<'_, T> {}

/// Never made: the errors of `lock` have no case here.
#[derive(Debug)]
pub enum Poisoned {}

/// Somebody else holds the mutex.
#[derive(Debug)]
pub struct WouldBlock;

impl<T> Mutex<T> {
    /// A free mutex.
    pub const fn new(value: T) -> Mutex<T> {
        Mutex { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits for the mutex and takes it.
    ///
    /// # Errors
    /// Never: a `Result` because std's is one.
    pub fn lock(&self) -> Result<MutexGuard<'_, T>, Poisoned> {
        for _ in 0..SPINS {
            if let Ok(guard) = self.try_lock() {
                return Ok(guard);
            }
            std::hint::spin_loop();
        }
        // Acquire: pairs with the Release in `drop`.
        while self.word.swap(2, Ordering::Acquire) != 0 {
            futex_wait(&self.word, 2);
        }
        Ok(MutexGuard(self))
    }

    /// Takes the mutex if it is free.
    ///
    /// # Errors
    /// [`WouldBlock`]: it is not.
    pub fn try_lock(&self) -> Result<MutexGuard<'_, T>, WouldBlock> {
        // Acquire: pairs with the Release in `drop`.
        match self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(MutexGuard(self)),
            Err(_) => Err(WouldBlock),
        }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire of whoever comes next.
        if self.0.word.swap(0, Ordering::Release) == 2 {
            futex_wake(&self.0.word, 1);
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the mutex.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the mutex, and is borrowed exclusively.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
