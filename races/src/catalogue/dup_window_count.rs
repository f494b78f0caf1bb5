//! R5: the count is copied by dup.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::mm::Prot;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "dup-window-count",
    title: "A duplicate of an attached VMA has a count before it is attached",
    source: "Vlastimil Babka on v7, 8 Jan 2025; kernel lineage R5; papers §3 B11",
    story: "The form of the dup window with a counter: a whole-struct copy puts the old VMA's count into X, \
            then sets it to 0. A stale reader raises it in between and either holds a VMA that is half \
            built, or gives its count back to one that says 0.",
    check: "vm_area_init_from(): a field-by-field copy that leaves the count alone; attach sets it with \
            Release",
    mutant: Mutant::DupCopiesLock,
    oracle: Oracle::O3,
    also: &[],
    locks: &[Lock::RefCount],
    executors: Executor::ALL,
    depth: Depth { schedules: 100_000, preemptions: 2 },
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
    script: &[until(0, Point::H2), until(1, Point::H6), run(0), run(1), run(0)],
    finish: |_| {},
};
