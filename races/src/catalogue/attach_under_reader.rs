//! The seed's case 3: the object is attached while a stale reader holds its lock.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "attach-under-reader",
    title: "A VMA is attached while a reader of its former life holds its lock",
    source: "the seed, case 3; kernel lineage R1; papers §3 B10",
    story: "A fault locks X when X is free, and compares the numbers: they differ, X was last write-locked \
            in an earlier section. Before it looks at anything else, X is attached for a new mapping, at the \
            very address. The remaining checks pass. The fault now holds the read lock of a VMA that its \
            writer believes to have write-locked: both are inside.",
    check: "attach takes the lock exclusively and so waits for stale readers",
    mutant: Mutant::AttachDoesNotWait,
    oracle: Oracle::O3,
    also: &[Oracle::O4],
    locks: &[Lock::TypeSafe],
    executors: &[Executor::Faults, Executor::Loom],
    depth: Depth::USUAL,
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
        until(1, Point::H7),
        run(0),
        run(1),
        run(0),
    ],
    finish: |_| {},
};
