//! 6.4's scheme without its grace period.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "no-grace-period",
    title: "A VMA that readers may still find is reused before a grace period has passed",
    source: "kernel lineage §1.2; papers §3 B18",
    story: "In 6.4 a pointer found under RCU stays the same VMA until the section ends, so nobody compares \
            `vm_mm`. Free the object at once and that is no longer so: the fault of A locks what is B's by \
            now, and installs a page where nothing is mapped.",
    check: "call_rcu(): a VMA is freed after a grace period",
    mutant: Mutant::FreeWithoutGracePeriod,
    oracle: Oracle::O2,
    also: &[],
    locks: &[Lock::Rcu],
    executors: Executor::ALL,
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real, Space::Twin],
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
            does: "unmaps page 1 of A, then maps page 1 of B",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                stage.mm(1).map(1, 1, RW).unwrap();
            },
        },
    ],
    script: &[until(0, Point::H1), run(1), run(0)],
    finish: |stage| stage.nothing_at(0, 1),
};
