//! What makes a race something that can be run: schedule points, mutants and
//! the oracles' report.
//!
//! All of it exists in builds with the feature `races`, and in model builds.
//! In any other build the functions here are empty or constant, and the code
//! they guard is not there.
//!
//! - A **schedule point** ([`Point`], H1-H13 of the kernel lineage §2) is a
//!   named place between two steps of a protocol. Whoever has set a hook
//!   ([`set_hook`]) is called there, and may hold the thread: so an interleaving
//!   is replayed, not waited for.
//! - A **mutant** ([`Mutant`]) is the code with one check left out. At most one
//!   is in force in a process ([`set_mutant`]).
//! - A **knob** ([`Knob`]) makes a number small enough to be reached.
//! - An **oracle** that fires ends in [`violation`].
//! - The **adversary** (`adversary`, with the feature `races` alone) forces reuse,
//!   poisons what is freed and delays threads at schedule points, under stress.

#[cfg(feature = "races")]
pub mod adversary;
mod mutant;
mod point;
#[cfg(feature = "races")]
pub mod report;

pub use mutant::{Knob, Mutant, knob, mutant, set_knob, set_mutant, unless};
pub use point::{Point, point, set_hook};

use crate::sync::plain::{AtomicUsize, Ordering};
use std::fmt;

/// Whether this build has schedule points and mutants.
pub const ENABLED: bool = cfg!(any(feature = "races", loom, shuttle));

/// Whether freed memory is poisoned and kept where that finds its users.
pub const POISON: bool = ENABLED || cfg!(debug_assertions);

/// What noticed a violation (kernel lineage §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Oracle {
    /// Tag: a page carries an incarnation that never covered it, or an access
    /// passed that the mapping forbids.
    O1,
    /// No orphan: a page is present where nothing is mapped.
    O2,
    /// Exclusion: something changed under a lock that excludes changes.
    O3,
    /// Reference balance: counts are off at rest.
    O4,
    /// Liveness: a fault or a writer never ends.
    O5,
    /// Lifetime: memory was used after it had been given back.
    O6,
}

impl Oracle {
    /// All of them.
    pub const ALL: [Oracle; 6] = [Oracle::O1, Oracle::O2, Oracle::O3, Oracle::O4, Oracle::O5, Oracle::O6];

    /// `O1` ... `O6`.
    pub fn name(self) -> &'static str {
        match self {
            Oracle::O1 => "O1",
            Oracle::O2 => "O2",
            Oracle::O3 => "O3",
            Oracle::O4 => "O4",
            Oracle::O5 => "O5",
            Oracle::O6 => "O6",
        }
    }

    /// What it watches over, in a word.
    pub fn title(self) -> &'static str {
        match self {
            Oracle::O1 => "tag",
            Oracle::O2 => "no orphan",
            Oracle::O3 => "exclusion",
            Oracle::O4 => "reference balance",
            Oracle::O5 => "liveness",
            Oracle::O6 => "lifetime",
        }
    }
}

impl fmt::Display for Oracle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A function that hears of violations; it does not return to broken code.
pub type Reporter = fn(Oracle, &str) -> !;

static REPORTER: AtomicUsize = AtomicUsize::new(0);

/// Has violations told to `reporter` instead of a panic. On the fault path a
/// panic cannot be caught, so whoever replays races on real faults wants this.
pub fn set_reporter(reporter: Reporter) {
    REPORTER.store(reporter as usize, Ordering::Release);
}

/// An oracle has fired: what happened must not happen.
///
/// # Panics
/// Always, unless a reporter is set, which ends the process. The message
/// starts with the oracle's name.
#[cold]
#[inline(never)]
pub fn violation(oracle: Oracle, what: &str) -> ! {
    let reporter = REPORTER.load(Ordering::Acquire);
    if reporter != 0 {
        // SAFETY: only `set_reporter` stores here, and it stores a `Reporter`.
        let reporter: Reporter = unsafe { std::mem::transmute(reporter) };
        reporter(oracle, what);
    }
    panic!("{oracle}: {what}");
}
