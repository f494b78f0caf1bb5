//! R3: the lock is initialised at reuse.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "lock-reinit",
    title: "Allocation initialises a lock that a stale reader holds",
    source: "v2 of the series, 12-13 Nov 2024; kernel lineage R3; papers §3 B8",
    story: "A fault holds X through a stale pointer, about to find out that X is free. The next owner \
            initialises X's lock. Now the lock says that nobody holds it: attach does not wait, and when the \
            reader gives back what it took, it gives back what is not there.",
    check: "the lock is initialised by the slab constructor alone, once for each slot",
    mutant: Mutant::LockInitialisedAtReuse,
    oracle: Oracle::O4,
    also: &[Oracle::O3, Oracle::O5],
    locks: &[Lock::TypeSafe],
    executors: Executor::ALL,
    depth: Depth { schedules: 150_000, preemptions: 2 },
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map(1, 1, RW).unwrap();
    },
    actors: &[
        Actor {
            name: "fault",
            does: "loads from page 1 of address space A",
            act: |stage| {
                let _ = stage.mm(0).load(1);
            },
        },
        Actor {
            name: "mutator",
            does: "unmaps page 1, then maps it again",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                stage.mm(0).map(1, 1, RW).unwrap();
            },
        },
    ],
    script: &[
        until(0, Point::H1),
        until(1, Point::Section),
        until(1, Point::Section),
        until(0, Point::Numbers),
        run(1),
        run(0),
        run(1),
        run(0),
    ],
    finish: |stage| {
        stage.mm(0).unmap(1, 1).unwrap();
    },
};
