//! The race catalogue: every known race of the per-VMA lock that a user-space
//! mm can show, as something that runs.
//!
//! An entry ([`Race`]) is a story with actors: what each thread does, in which
//! order it must happen to go wrong ([`Race::script`]), the check that removes
//! the race, the mutant that leaves the check out, and the oracle that notices.
//! The same actors run under three executors:
//!
//! | executor | threads | schedule |
//! |---|---|---|
//! | `faults` | real threads, real page faults | the script, replayed by holding threads at schedule points ([`script`]) |
//! | `shuttle` | shuttle's, over the software `Mmu` | random, by seed |
//! | `loom` | loom's, over the software `Mmu` | every one within a bound, weak memory included |
//!
//! An entry counts when its mutant is caught under every executor that it
//! lists and the complete code passes the very same run.
//!
//! ```
//! let race = vmalab_races::find("reuse-other-mm").unwrap();
//! assert!(race.source.contains("seed"));
//! for step in race.script {
//!     println!("{}", race.tell(step));
//! }
//! ```

mod bounds;
pub mod catalogue;
pub mod docs;
mod outcome;
mod race;
pub mod stage;

#[cfg(not(any(loom, shuttle)))]
pub mod faults;
#[cfg(any(loom, shuttle))]
pub mod model;
#[cfg(not(any(loom, shuttle)))]
pub mod process;
#[cfg(not(any(loom, shuttle)))]
pub mod script;
#[cfg(not(any(loom, shuttle)))]
pub mod suite;

pub use bounds::Bounds;
pub use catalogue::{CATALOGUE, find};
pub use outcome::{Outcome, Violation};
pub use race::{Actor, Executor, Lock, Race, Space, Step, run, until};

/// Exit status of a race's process when this machine or build cannot do it.
pub const CANNOT: i32 = 3;

/// What a race's own process does: `NAME LOCK complete|mutant ITERATIONS SEED
/// PREEMPTIONS SECONDS`, the last three for models. Prints an [`Outcome`].
///
/// # Errors
/// What is wrong with the arguments.
pub fn child_main(args: &[String]) -> Result<(), String> {
    let [name, lock, kind, bounds @ ..] = args else {
        return Err("usage: NAME LOCK complete|mutant [ITERATIONS [SEED [PREEMPTIONS [SECONDS]]]]".to_string());
    };
    let race = find(name).ok_or_else(|| format!("no race is named '{name}'"))?;
    let lock: Lock = lock.parse().map_err(|()| format!("no lock is named '{lock}'"))?;
    let mutant = match kind.as_str() {
        "mutant" => true,
        "complete" => false,
        _ => return Err(format!("'{kind}' is neither 'complete' nor 'mutant'")),
    };
    let bounds = Bounds::from_args(bounds)?;
    #[cfg(not(any(loom, shuttle)))]
    faults::child(race, lock, mutant, bounds.iterations);
    #[cfg(any(loom, shuttle))]
    {
        model::explore(race, lock, mutant, bounds);
        Ok(())
    }
}
