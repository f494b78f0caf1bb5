//! The seed's dup window (S-A): a copy of a VMA looks attached for a moment.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::mm::Prot;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "dup-window-flag",
    title: "A duplicate of an attached VMA looks attached before it is",
    source: "kernel lineage §1.3 S-A; papers §3 B11",
    story: "A split takes X from the slab and copies the old VMA into it, `detached = false` included, and \
            only then sets `detached`. In between a stale reader of X finds it attached, not write-locked, \
            in the right mm, and holding its address: success on a VMA that is not in the tree.",
    check: "the lock is never copied: a new object stays detached while it is filled in, field by field",
    mutant: Mutant::DupCopiesLock,
    oracle: Oracle::O3,
    also: &[],
    locks: &[Lock::TypeSafe],
    executors: Executor::ALL,
    depth: Depth { schedules: 400_000, preemptions: 2 },
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map(4, 3, RW).unwrap();
        stage.mm(0).map(7, 1, Prot::READ).unwrap();
    },
    actors: &[
        Actor {
            name: "fault",
            does: "loads from page 7",
            act: |stage| {
                let _ = stage.mm(0).load(7);
            },
        },
        Actor {
            name: "mutator",
            does: "unmaps page 7, lets the mapping below grow over it, cuts a hole into that",
            act: |stage| {
                let mm = stage.mm(0);
                mm.unmap(7, 1).unwrap();
                mm.map(7, 1, RW).unwrap();
                mm.unmap(5, 1).unwrap();
            },
        },
    ],
    script: &[until(0, Point::H1), until(1, Point::H6), run(0), run(1), run(0)],
    finish: |_| {},
};
