//! [`Race`]: one entry of the catalogue, as data.

use crate::stage::Stage;
use std::fmt;
use std::str::FromStr;
use vmalab::races::{Knob, Mutant, Oracle, Point};

/// A lock scheme, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lock {
    /// The mmap lock alone.
    Mmap,
    /// Linux 6.4.
    Rcu,
    /// The seed.
    TypeSafe,
    /// Linux 6.15 and later.
    RefCount,
}

impl Lock {
    /// All of them, oldest first.
    pub const ALL: &'static [Lock] = &[Lock::Mmap, Lock::Rcu, Lock::TypeSafe, Lock::RefCount];
    /// Those with a lock in each VMA.
    pub const PER_VMA: &'static [Lock] = &[Lock::Rcu, Lock::TypeSafe, Lock::RefCount];
    /// Those that reuse a VMA at once.
    pub const REUSING: &'static [Lock] = &[Lock::TypeSafe, Lock::RefCount];

    /// As `--lock` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Lock::Mmap => "mmap",
            Lock::Rcu => "rcu",
            Lock::TypeSafe => "typesafe",
            Lock::RefCount => "refcount",
        }
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Lock {
    type Err = ();

    fn from_str(name: &str) -> Result<Lock, ()> {
        Lock::ALL.iter().copied().find(|lock| lock.name() == name).ok_or(())
    }
}

/// Who decides which thread runs when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Executor {
    /// The entry's script, on real threads and real faults.
    Faults,
    /// shuttle: random schedules.
    Shuttle,
    /// loom: all schedules within a bound.
    Loom,
}

impl Executor {
    /// All of them.
    pub const ALL: &'static [Executor] = &[Executor::Faults, Executor::Shuttle, Executor::Loom];

    /// As `--executor` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Executor::Faults => "faults",
            Executor::Shuttle => "shuttle",
            Executor::Loom => "loom",
        }
    }
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Executor {
    type Err = ();

    fn from_str(name: &str) -> Result<Executor, ()> {
        Executor::ALL.iter().copied().find(|executor| executor.name() == name).ok_or(())
    }
}

/// One address space of an entry, in the `faults` executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// With real faults.
    Real,
    /// Over the software `Mmu`, at the first space's very addresses, which two
    /// real ones cannot share in one process. It may also end while a fault is
    /// held elsewhere; the end of a real one waits for all faults of the process.
    Twin,
}

/// One thread of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Actor {
    /// Who it is in the story.
    pub name: &'static str,
    /// What it does, as the script tells it, in one line.
    pub does: &'static str,
    /// What it does. Must be right in every interleaving.
    pub act: fn(&Stage),
}

/// One step of a script: an actor runs until it reaches a point, must wait, or
/// is done, whichever comes first. All others stand still.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Index of the actor.
    pub actor: usize,
    /// Where it is held; `None`: nowhere.
    pub until: Option<Point>,
}

/// A step up to a point.
pub const fn until(actor: usize, point: Point) -> Step {
    Step { actor, until: Some(point) }
}

/// A step to the end.
pub const fn run(actor: usize) -> Step {
    Step { actor, until: None }
}

/// How far a model must look to find a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Schedules of shuttle.
    pub schedules: u64,
    /// Preemptions in one schedule of loom.
    pub preemptions: usize,
}

impl Depth {
    /// Enough for most.
    pub const USUAL: Depth = Depth { schedules: 20_000, preemptions: 2 };
}

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct Race {
    /// As `vmalab race` takes it.
    pub name: &'static str,
    /// In a line.
    pub title: &'static str,
    /// Where it is known from.
    pub source: &'static str,
    /// What goes wrong, and why it is hard to see.
    pub story: &'static str,
    /// What removes it.
    pub check: &'static str,
    /// The code without that check.
    pub mutant: Mutant,
    /// What must notice.
    pub oracle: Oracle,
    /// What may notice instead: in a model, or under another lock, the same
    /// race may show otherwise.
    pub also: &'static [Oracle],
    /// The schemes that have the check.
    pub locks: &'static [Lock],
    /// Who can show it.
    pub executors: &'static [Executor],
    /// How far a model must look: schedules of shuttle, preemptions of loom.
    pub depth: Depth,
    /// Numbers made small, with and without the mutant.
    pub knob: Option<Knob>,
    /// Address spaces, each of [`PAGES`](crate::stage::PAGES) pages.
    pub spaces: &'static [Space],
    /// Before the actors start.
    pub set_up: fn(&Stage),
    /// The threads.
    pub actors: &'static [Actor],
    /// The interleaving.
    pub script: &'static [Step],
    /// After the actors have ended: what must hold now. The executor checks
    /// [`Mm::validate`](vmalab::mm::Mm::validate) of every space besides.
    pub finish: fn(&Stage),
}

impl Race {
    /// A step in words.
    pub fn tell(&self, step: &Step) -> String {
        let name = self.actors[step.actor].name;
        match step.until {
            Some(point) => format!("{name}: runs until {} ({})", point.name(), point.place()),
            None => format!("{name}: runs on, to its end or until it must wait"),
        }
    }

    /// Whether the oracle of that name may notice the mutant. One that may not
    /// has found something else.
    pub fn foresees(&self, oracle: &str) -> bool {
        self.oracle.name() == oracle || self.also.iter().any(|also| also.name() == oracle)
    }

    /// Whether the mutant can be told from the complete code under `lock`.
    pub fn has_lock(&self, lock: Lock) -> bool {
        self.locks.contains(&lock)
    }
}
