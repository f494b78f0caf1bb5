//! The primitives that the locks, slab, RCU and tree are built from, and the
//! one place that decides what they are.
//!
//! Everything that takes part in a lock protocol imports from here, never
//! from `std::sync` directly. So the same source runs under three executors:
//!
//! | build | atomics, mutexes, futexes, statics | schedules |
//! |---|---|---|
//! | usual | the machine's (`host.rs`) | what happens |
//! | `--cfg shuttle` | shuttle's | random or PCT, replayed by seed; sequentially consistent |
//! | `--cfg loom` | loom's | every one within a bound, and every value that a weak ordering permits |
//!
//! The last two are *model builds*. There every static begins anew with each
//! execution (`statics!`), sizes are small ([`MODEL`]), and memory that has
//! been given back is kept, so that a use after free is reported ([`track`]).
//!
//! [`plain`] holds atomics that no executor looks at: statistics, and fields
//! that are settled by the mmap lock alone.
//!
//! The usual build with the feature `conflicts` notes what a thread accesses
//! (`record.rs`, for `vmalab conflicts`); `plain` as well.

#[cfg(not(any(loom, shuttle)))]
mod host;
#[cfg(not(any(loom, shuttle)))]
use host as back_end;
#[cfg(loom)]
mod loom;
#[cfg(loom)]
use loom as back_end;
#[cfg(all(shuttle, not(loom)))]
mod shuttle;
#[cfg(all(shuttle, not(loom)))]
use shuttle as back_end;
#[cfg(any(loom, shuttle))]
mod model;

#[cfg(feature = "conflicts")]
pub mod record;
pub mod track;
#[cfg(tsan)]
mod tsan;

pub use back_end::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Backoff, Mutex, compiler_fence, fence,
    futex_wait, futex_wake, futex_wake_at, spin_loop, thread,
};
pub(crate) use back_end::{array, const_fn, statics, thread_locals};
pub use crossbeam::utils::CachePadded;
pub use std::sync::atomic::Ordering;

/// Whether this is a model build.
pub const MODEL: bool = cfg!(any(loom, shuttle));

/// How often a writer looks before it sleeps: some microseconds. A model looks
/// once: every further look is one more schedule with nothing new in it.
pub const SPINS: u32 = if MODEL { 0 } else { 200 };

#[cfg(not(loom))]
pub use aside_nothing::{aside, set_aside};
#[cfg(loom)]
pub use back_end::{aside, set_aside};

#[cfg(not(loom))]
mod aside_nothing {
    /// Runs `f`. Under loom, if [`set_aside`] says so, without exploring what
    /// other threads could do meanwhile: for parts that have a model of their
    /// own, so that a model of a whole operation can look further elsewhere.
    #[inline(always)]
    pub fn aside<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    /// Whether [`aside`] leaves schedules out. Only loom has any.
    pub fn set_aside(_: bool) {}
}

/// Atomics of the machine in every build, for what is not part of a protocol.
pub mod plain {
    #[cfg(feature = "conflicts")]
    pub use super::record::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
    #[cfg(not(feature = "conflicts"))]
    pub use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
    pub use std::sync::atomic::{AtomicU16, Ordering};
}
