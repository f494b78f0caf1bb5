//! The machine's own primitives: real threads, real futexes.

#[cfg(feature = "conflicts")]
pub use super::record::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Mutex};
#[cfg(all(tsan, not(feature = "conflicts")))]
pub use super::tsan::Mutex;
pub use crossbeam::utils::Backoff;
pub use std::hint::spin_loop;
#[cfg(not(any(tsan, feature = "conflicts")))]
pub use std::sync::Mutex;
#[cfg(not(feature = "conflicts"))]
pub use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
pub use std::sync::atomic::{compiler_fence, fence};
pub use std::thread;

/// Sleeps until `word` is woken, if it still holds `expected`. Returns at
/// once otherwise, and may return for no reason: callers loop.
/// Async-signal-safe (`futex(2)`, FUTEX_WAIT_PRIVATE).
pub fn futex_wait(word: &AtomicU32, expected: u32) {
    crate::races::point(crate::races::Point::Sleep);
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
    crate::races::point(crate::races::Point::Woken);
}

/// Wakes up to `count` threads that sleep on `word`. The word may since have
/// become part of another object (type-stable memory): a stray wake-up is
/// allowed. Async-signal-safe.
pub fn futex_wake(word: &AtomicU32, count: i32) {
    futex_wake_at(word, count);
}

/// [`futex_wake`] of a word that may be gone: its address is all that counts.
pub fn futex_wake_at(word: *const AtomicU32, count: i32) {
    // SAFETY: FUTEX_WAKE uses the address as a key and does not dereference
    // it for private futexes; errno is saved for the interrupted program.
    unsafe {
        let errno = *libc::__errno_location();
        libc::syscall(libc::SYS_futex, word.addr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, count);
        *libc::__errno_location() = errno;
    }
}

/// A static of this build; in a model it begins anew with each execution.
macro_rules! statics {
    ($($(#[$attr:meta])* $vis:vis static $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$attr])* $vis static $name: $type = $value;)*
    };
}

/// A thread-local, const-initialised: async-signal-safe to read if its type
/// has no destructor.
macro_rules! thread_locals {
    ($($(#[$attr:meta])* $vis:vis static $name:ident: $type:ty = $value:expr;)*) => {
        thread_local! { $($(#[$attr])* $vis static $name: $type = const { $value };)* }
    };
}

/// A `const fn`, except in a model: its atomics have no const constructor.
macro_rules! const_fn {
    ($($all:tt)*) => { $($all)* };
}

/// An array of values made one by one.
macro_rules! array {
    ($value:expr; $n:expr) => {
        [const { $value }; $n]
    };
}

pub(crate) use {array, const_fn, statics, thread_locals};
