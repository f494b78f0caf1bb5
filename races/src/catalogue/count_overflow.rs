//! R13: more readers than the count can hold.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::mm::Prot;
use vmalab::races::Knob;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "count-overflow",
    title: "Readers raise the count past its limit, and past a writer's flag",
    source: "kernel lineage R13; VM_REFCNT_LIMIT in mm/mmap_lock.c",
    story: "The same comparison refuses readers beyond the limit and readers that come while a writer's flag \
            is set. Without it the count runs into the flag, and a reader gets in after the writer has seen \
            the last one go: it reads while the writer changes. With the limit at two readers the third one \
            falls back to the mmap lock, and must succeed there.",
    check: "a reader raises the count only below the limit",
    mutant: Mutant::NoCountLimit,
    oracle: Oracle::O3,
    also: &[],
    locks: &[Lock::RefCount],
    executors: &[Executor::Faults],
    depth: Depth::USUAL,
    knob: Some(Knob::TwoReaders),
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map(1, 4, RW).unwrap();
    },
    actors: &[
        Actor {
            name: "first",
            does: "loads from page 1",
            act: |stage| {
                let _ = stage.mm(0).load(1);
            },
        },
        Actor {
            name: "second",
            does: "loads from page 2",
            act: |stage| {
                let _ = stage.mm(0).load(2);
            },
        },
        Actor {
            name: "third",
            does: "loads from page 3, then from page 4",
            act: |stage| {
                let _ = stage.mm(0).load(3);
                let _ = stage.mm(0).load(4);
            },
        },
        Actor {
            name: "writer",
            does: "makes the mapping read-only",
            act: |stage| {
                stage.mm(0).protect(1, 4, Prot::READ).unwrap();
            },
        },
    ],
    script: &[
        until(0, Point::Fill),
        until(1, Point::Fill),
        until(2, Point::H2),
        until(2, Point::H2),
        run(0),
        run(1),
        until(3, Point::Drained),
        until(2, Point::Fill),
        run(3),
        run(2),
    ],
    finish: |_| {},
};
