//! A window of the seed that its mail does not list: a write lock by number does not look locked to another mm.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};
use vmalab::sync::aside;

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "detach-under-foreign-reader",
    title: "A VMA is detached and freed under a reader that belongs to another address space",
    source: "vmalab, found while arguing src/lock/typesafe.rs; compare kernel lineage §1.4, detach",
    story: "X belongs to B by now and B is about to unmap it: it has drained X and left its number. A fault \
            of A, with a stale pointer, locks X: its own mm has another number, so X does not look write- \
            locked, and it is still attached. Then B detaches and frees X, and A itself gets it from the \
            slab and writes its mm and range into it. The rest of the checks pass, on a VMA that is in no \
            tree.",
    check: "detach drains the lock once more (typesafe), or waits for the count (refcount)",
    mutant: Mutant::DetachDoesNotDrain,
    oracle: Oracle::O3,
    also: &[Oracle::O4],
    locks: Lock::REUSING,
    executors: &[Executor::Faults, Executor::Loom],
    depth: Depth { schedules: 20_000, preemptions: 3 },
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
            does: "unmaps page 1 of A, maps and unmaps page 1 of B, maps page 1 of A",
            act: |stage| {
                // (Not what is looked into: loom saves its preemptions for the rest.)
                aside(|| {
                    stage.mm(0).unmap(1, 1).unwrap();
                    stage.mm(1).map(1, 1, RW).unwrap();
                });
                stage.mm(1).unmap(1, 1).unwrap();
                stage.mm(0).map(1, 1, RW).unwrap();
            },
        },
    ],
    script: &[
        until(0, Point::H1),
        until(1, Point::Section),
        until(1, Point::Section),
        until(1, Point::Section),
        until(1, Point::H7),
        until(0, Point::Attached),
        run(1),
        run(0),
        run(1),
    ],
    finish: |_| {},
};
