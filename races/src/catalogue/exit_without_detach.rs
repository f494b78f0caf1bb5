//! R35: exit frees VMAs that are still attached.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "exit-without-detach",
    title: "The end of an address space puts attached VMAs back into the slab",
    source: "exit_mmap() before v7 of the series; kernel lineage R35, I15",
    story: "exit_mmap() frees all VMAs: nobody of this mm can look them up any more. But a stale reader of \
            another mm may hold one, and the next owner gets an object that says it is attached, before it \
            is filled in.",
    check: "exit detaches like everybody else, and waits for stale foreign readers",
    mutant: Mutant::ExitWithoutDetach,
    oracle: Oracle::O4,
    also: &[],
    locks: Lock::REUSING,
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
            does: "unmaps page 1 of A, maps page 1 of B, ends B, maps page 2 of A",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                stage.mm(1).map(1, 1, RW).unwrap();
                stage.end(1);
                stage.mm(0).map(2, 1, RW).unwrap();
            },
        },
    ],
    script: &[
        until(0, Point::H1),
        until(1, Point::Section),
        until(1, Point::Section),
        until(1, Point::Section),
        until(0, Point::H3),
        run(1),
        run(0),
        run(1),
    ],
    finish: |_| {},
};
