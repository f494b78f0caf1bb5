//! R10, second form: the VMA has lost the address between the look and the lock.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "shrunk-unnoticed",
    title: "A VMA is cut between the early comparison and the lock",
    source: "mail of 20 Jun 2023; kernel lineage R10",
    story: "As before, but the VMA stays: it has only been cut, and the address is in the part that went. \
            Nothing was reused, the object is attached, in the right mm, and unlocked.",
    check: "`vm_start` and `vm_end` are compared after locking",
    mutant: Mutant::NoRangeCheck,
    oracle: Oracle::O2,
    also: &[],
    locks: Lock::PER_VMA,
    executors: Executor::ALL,
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map(1, 2, RW).unwrap();
    },
    actors: &[
        Actor {
            name: "fault",
            does: "loads from page 2",
            act: |stage| {
                let _ = stage.mm(0).load(2);
            },
        },
        Actor {
            name: "mutator",
            does: "unmaps page 2 of two",
            act: |stage| {
                stage.mm(0).unmap(2, 1).unwrap();
            },
        },
    ],
    script: &[until(0, Point::H2), run(1), run(0)],
    finish: |stage| stage.nothing_at(0, 2),
};
