//! The seed's reply: a VMA that is already attached is attached again.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "double-attach",
    title: "A store helper attaches a VMA that is in the tree already",
    source: "the reply in the seed (boot panic in vma_mark_attached); kernel lineage R2; papers §3 B12",
    story: "The helper that stores a VMA into the tree also marked it attached. But it serves VMAs that \
            merely change their size, too: a stack that moves, a merge. With a flag that hides, with a \
            counter it does not: attach sets the count to 1 while a passing reader holds one more. When the \
            reader has gone the count is 0, and a VMA in the tree counts as detached.",
    check: "two helpers: one attaches and stores a new VMA, by value; the other stores one that is attached",
    mutant: Mutant::AttachTwice,
    oracle: Oracle::O4,
    also: &[],
    locks: &[Lock::RefCount],
    executors: Executor::ALL,
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
            does: "maps page 2, which merges with page 1",
            act: |stage| {
                stage.mm(0).map(2, 1, RW).unwrap();
            },
        },
    ],
    script: &[
        until(0, Point::H2),
        until(1, Point::Commit),
        until(0, Point::H3),
        until(1, Point::H7),
        run(0),
        run(1),
        run(0),
    ],
    finish: |_| {},
};
