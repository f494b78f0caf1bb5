//! R10: the VMA was detached between the look and the lock.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "detached-unnoticed",
    title: "A VMA is removed between the early comparison and the lock",
    source: "mail of 20 Jun 2023; kernel lineage R10",
    story: "The early comparison finds the VMA unlocked. Then it is write-locked, removed, and the section \
            ends; the numbers differ again. A reader that locks it now holds a VMA that is in no tree: its \
            memory is still there, nothing else is.",
    check: "`detached` is read after locking",
    mutant: Mutant::NoDetachedCheck,
    oracle: Oracle::O3,
    also: &[],
    locks: &[Lock::Rcu],
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
            does: "unmaps page 1",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
            },
        },
    ],
    script: &[until(0, Point::H2), run(1), run(0)],
    finish: |stage| stage.nothing_at(0, 1),
};
