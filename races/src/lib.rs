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
//! lists and the complete code passes the very same run. `scripts/races.sh`
//! runs them all; docs/races.md tells them all, with a diagram of the threads,
//! and is made from here ([`docs`]).
//!
//! # Adding an entry
//!
//! A new file in `catalogue/` and two lines in `catalogue/mod.rs`. The fields
//! of [`Race`] say what it needs; copy the nearest entry. In short:
//!
//! 1. [`Race::set_up`] maps what the story begins with, in each of
//!    [`Race::spaces`]. Address spaces go by number and pages by number
//!    ([`stage::Space`]).
//! 2. Each [`Actor`] is one thread. What it does must be right whatever the
//!    others do meanwhile: models try every order, so it may not expect the one
//!    of the script.
//! 3. [`Race::script`] is the order in which it goes wrong, step by step: one
//!    actor runs [`until`] a schedule point, or [`run`]s on, all others stand
//!    still. A point that is missing goes into `src/races/point.rs`.
//! 4. [`Race::mutant`] leaves the check out; a new one goes into
//!    `src/races/mutant.rs`, and `mutant(Mutant::...)` to the check.
//! 5. [`Race::finish`] says what must hold afterwards, for instance
//!    [`Stage::nothing_at`](stage::Stage::nothing_at) (O2) or
//!    [`Stage::stamped`](stage::Stage::stamped) (O1). Many oracles are in the
//!    core and need nothing here.
//!
//! ```text
//! script: &[until(0, Point::H1), run(1), run(0)],
//!
//!     fault            mutator
//!  1  ┃ starts
//!     ┻ held at H1
//!  2  ┊                ┃ starts
//!     ┊                ┻ to its end
//!  3  ┃ goes on
//!     ┻ to its end
//! ```
//!
//! Then `scripts/races.sh all NAME` must say ok for each executor, and
//! `scripts/docs-races.sh` renews the page.
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
mod diagram;
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
pub use race::{Actor, Depth, Executor, Lock, Race, Space, Step, run, until};

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
    let bounds = Bounds::from_args(race, bounds)?;
    #[cfg(not(any(loom, shuttle)))]
    faults::child(race, lock, mutant, bounds.iterations);
    #[cfg(any(loom, shuttle))]
    {
        model::explore(race, lock, mutant, bounds);
        Ok(())
    }
}
