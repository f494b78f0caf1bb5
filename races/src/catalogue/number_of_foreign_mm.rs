//! The seed's case 2: whose sequence number a reader compares with.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "number-of-foreign-mm",
    title: "The reader takes the sequence number from an mm that has been freed",
    source: "the seed, case 2; kernel lineage R1; papers §3 B9",
    story: "Up to the seed a reader compared `vma->vm_lock_seq` with `vma->vm_mm->mm_lock_seq`. With reuse, \
            `vm_mm` is whoever owns the object by now. Here X has gone to address space B, and B ends while \
            the fault of A is between reading `vm_mm` and reading the number behind it: a use after free, \
            before any check had a chance.",
    check: "the caller passes its own mm in; nothing of a foreign mm is dereferenced before the object is \
            locked",
    mutant: Mutant::NumberOfForeignMm,
    oracle: Oracle::O6,
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
            does: "unmaps page 1 of A, maps page 1 of B, ends B",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                stage.mm(1).map(1, 1, RW).unwrap();
                stage.end(1);
            },
        },
    ],
    script: &[
        until(0, Point::H1),
        until(1, Point::Section),
        until(1, Point::Section),
        until(1, Point::Section),
        until(0, Point::Number),
        run(1),
        run(0),
    ],
    finish: |_| {},
};
