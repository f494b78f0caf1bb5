//! loom's primitives (`--cfg loom`).

pub use super::model::{Backoff, futex_wait, futex_wake, futex_wake_at, spin_loop};
pub(crate) use super::model::{array, const_fn};
pub(super) use ::loom::sync::Condvar;
pub use ::loom::sync::Mutex;
pub use ::loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence};
pub use ::loom::thread;

/// Real threads rely on the heavy barrier that other threads issue; here
/// every thread has to do it by itself.
pub use ::loom::sync::atomic::fence as compiler_fence;

macro_rules! statics {
    () => {};
    ($(#[$attr:meta])* static $name:ident: $type:ty = $value:expr; $($rest:tt)*) => {
        ::loom::lazy_static! { $(#[$attr])* static ref $name: $type = $value; }
        $crate::sync::statics! { $($rest)* }
    };
    ($(#[$attr:meta])* pub static $name:ident: $type:ty = $value:expr; $($rest:tt)*) => {
        ::loom::lazy_static! { $(#[$attr])* pub static ref $name: $type = $value; }
        $crate::sync::statics! { $($rest)* }
    };
    ($(#[$attr:meta])* pub($($vis:tt)+) static $name:ident: $type:ty = $value:expr; $($rest:tt)*) => {
        ::loom::lazy_static! { $(#[$attr])* pub($($vis)+) static ref $name: $type = $value; }
        $crate::sync::statics! { $($rest)* }
    };
}

macro_rules! thread_locals {
    ($($(#[$attr:meta])* $vis:vis static $name:ident: $type:ty = $value:expr;)*) => {
        $(::loom::thread_local! { $(#[$attr])* $vis static $name: $type = $value; })*
    };
}

pub(crate) use {statics, thread_locals};

mod aside {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    static ON: AtomicBool = AtomicBool::new(false);
    /// Parts being run, by whichever thread.
    static DEPTH: AtomicU32 = AtomicU32::new(0);

    struct Part;

    impl Drop for Part {
        fn drop(&mut self) {
            if DEPTH.fetch_sub(1, Ordering::Relaxed) == 1 {
                ::loom::explore();
            }
        }
    }

    /// See the usual build's.
    pub fn aside<R>(f: impl FnOnce() -> R) -> R {
        if !ON.load(Ordering::Relaxed) {
            return f();
        }
        if DEPTH.fetch_add(1, Ordering::Relaxed) == 0 {
            ::loom::stop_exploring();
        }
        let _part = Part;
        f()
    }

    /// Whether [`aside`] leaves schedules out.
    pub fn set_aside(on: bool) {
        ON.store(on, Ordering::Relaxed);
    }
}
pub use aside::{aside, set_aside};
