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
pub mod script;

pub use catalogue::{CATALOGUE, find};
pub use outcome::{Outcome, Violation};
pub use race::{Actor, Depth, Executor, Lock, Race, Space, Step, run, until};

/// What a race's own process does: `NAME LOCK complete|mutant ITERATIONS SEED
/// PREEMPTIONS SECONDS`, the last three for models. Prints an [`Outcome`].
///
/// # Errors
/// What is wrong with the arguments.
pub fn child_main(args: &[String]) -> Result<(), String> {
    let [name, lock, kind, rest @ ..] = args else {
        return Err("usage: NAME LOCK complete|mutant ITERATIONS [SEED PREEMPTIONS SECONDS]".to_string());
    };
    let numbers: Vec<u64> = rest.iter().map_while(|text| text.parse().ok()).collect();
    let race = find(name).ok_or_else(|| format!("no race is named '{name}'"))?;
    let lock: Lock = lock.parse().map_err(|()| format!("no lock is named '{lock}'"))?;
    let iterations = numbers.first().copied().unwrap_or(1);
    #[cfg(not(any(loom, shuttle)))]
    faults::child(race, lock, kind == "mutant", iterations);
    #[cfg(any(loom, shuttle))]
    {
        let bounds = model::Bounds {
            iterations,
            seed: numbers.get(1).copied().unwrap_or(1),
            preemptions: numbers.get(2).copied().unwrap_or(2) as usize,
            duration: std::time::Duration::from_secs(numbers.get(3).copied().unwrap_or(60)),
        };
        model::explore(race, lock, kind == "mutant", bounds);
        Ok(())
    }
}
