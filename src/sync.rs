//! The primitives that the locks, slab, RCU and tree are built from.
//!
//! Everything that takes part in a lock protocol imports from here, never
//! from `std::sync` directly, so that one place decides what an atomic, a
//! fence or a futex is.

#[cfg(tsan)]
mod tsan;

pub use crossbeam::utils::{Backoff, CachePadded};
#[cfg(not(tsan))]
pub use std::sync::Mutex;
pub use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence,
};
#[cfg(tsan)]
pub use tsan::Mutex;

/// Sleeps until `word` is woken, if it still holds `expected`. Returns at
/// once otherwise, and may return for no reason: callers loop.
/// Async-signal-safe (`futex(2)`, FUTEX_WAIT_PRIVATE).
pub fn futex_wait(word: &AtomicU32, expected: u32) {
    // SAFETY: the word outlives the call; the kernel only reads it. errno is
    // saved and restored because a signal handler may be the caller.
    unsafe {
        let errno = *libc::__errno_location();
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            expected,
            std::ptr::null::<libc::timespec>(),
        );
        *libc::__errno_location() = errno;
    }
}

/// Wakes up to `count` threads that sleep on `word`. The word may since have
/// become part of another object (type-stable memory): a stray wake-up is
/// allowed. Async-signal-safe.
pub fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: FUTEX_WAKE uses the address as a key and does not dereference
    // it for private futexes; errno is saved for the interrupted program.
    unsafe {
        let errno = *libc::__errno_location();
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count);
        *libc::__errno_location() = errno;
    }
}
