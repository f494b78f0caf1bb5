//! R20: a gap in time inside a MAP_FIXED replacement.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::violation;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "fixed-gap",
    title: "A walk finds a hole inside a mapping that is being replaced",
    source: "Howlett, RFC 2024; kernel lineage R20; papers §3 B6",
    story: "MAP_FIXED over an existing mapping: if what was there is first taken out of the tree and the new \
            VMA stored afterwards, a walk without the lock sees a hole that never existed for any user.",
    check: "the whole operation is one store of the tree's root",
    mutant: Mutant::ReplaceInTwoSteps,
    oracle: Oracle::O3,
    also: &[],
    locks: Lock::PER_VMA,
    executors: Executor::ALL,
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map(1, 1, RW).unwrap();
    },
    actors: &[
        Actor {
            name: "walker",
            does: "asks whether page 1 is mapped",
            act: |stage| {
                if !stage.mm(0).is_mapped(1) {
                    violation(Oracle::O3, "a walk found a hole inside a replacement");
                }
            },
        },
        Actor {
            name: "mutator",
            does: "maps page 1 over itself",
            act: |stage| {
                stage.mm(0).map(1, 1, RW).unwrap();
            },
        },
    ],
    script: &[until(1, Point::H8), run(0), run(1)],
    finish: |_| {},
};
