//! R8: a tree position is kept across an RCU gap.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "tree-position-kept",
    title: "A walk goes on from a tree node that was freed while the reader was outside RCU",
    source: "Liam Howlett, 11 Nov 2025 (6.18-rc); kernel lineage R8, I8; papers §3 B15",
    story: "A fault finds a VMA that is detached when it locks it. It leaves its RCU section and walks \
            again, but from the position it had. Meanwhile the node was replaced and a grace period has \
            passed: the second walk reads freed memory.",
    check: "each walk starts at the root, in a section of its own; no position outlives the section it was \
            found in",
    mutant: Mutant::TreePositionKept,
    oracle: Oracle::O6,
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
            name: "fault",
            does: "loads from page 1 of address space A",
            act: |stage| {
                let _ = stage.mm(0).load(1);
            },
        },
        Actor {
            name: "mutator",
            does: "unmaps page 1 and waits for a grace period",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                vmalab::rcu::barrier();
            },
        },
    ],
    script: &[until(0, Point::H1), until(1, Point::H10), until(0, Point::H13), run(1), run(0), run(1)],
    finish: |_| {},
};
