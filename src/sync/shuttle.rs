//! shuttle's primitives (`--cfg shuttle`).

pub use super::model::{Backoff, futex_wait, futex_wake, futex_wake_at, spin_loop};
pub(crate) use super::model::{array, const_fn};
pub(super) use ::shuttle::sync::Condvar;
pub use ::shuttle::sync::Mutex;
pub use ::shuttle::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, fence};
pub use ::shuttle::thread;

/// Real threads rely on the heavy barrier that other threads issue; here
/// every thread has to do it by itself.
pub use ::shuttle::sync::atomic::fence as compiler_fence;

macro_rules! statics {
    () => {};
    ($(#[$attr:meta])* static $name:ident: $type:ty = $value:expr; $($rest:tt)*) => {
        ::shuttle::lazy_static! { $(#[$attr])* static ref $name: $type = $value; }
        $crate::sync::statics! { $($rest)* }
    };
    ($(#[$attr:meta])* pub static $name:ident: $type:ty = $value:expr; $($rest:tt)*) => {
        ::shuttle::lazy_static! { $(#[$attr])* pub static ref $name: $type = $value; }
        $crate::sync::statics! { $($rest)* }
    };
    ($(#[$attr:meta])* pub($($vis:tt)+) static $name:ident: $type:ty = $value:expr; $($rest:tt)*) => {
        ::shuttle::lazy_static! { $(#[$attr])* pub($($vis)+) static ref $name: $type = $value; }
        $crate::sync::statics! { $($rest)* }
    };
}

macro_rules! thread_locals {
    ($($(#[$attr:meta])* $vis:vis static $name:ident: $type:ty = $value:expr;)*) => {
        $(::shuttle::thread_local! { $(#[$attr])* $vis static $name: $type = $value; })*
    };
}

pub(crate) use {statics, thread_locals};
