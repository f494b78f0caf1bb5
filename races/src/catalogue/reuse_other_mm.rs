//! The seed's case 1, third form: the object is in use again, in another
//! address space.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "reuse-other-mm",
    title: "A VMA is reused in another address space between the walk and the lock",
    source: "the seed, case 1; kernel lineage R1; papers §3 B7",
    story: "A fault finds VMA X in its tree. Before it locks X, X is unmapped, freed, and handed out again to another \
            address space, which maps it at the very same address. Everything the fault looks at is in order: X is \
            attached, not write-locked, and holds the address. Only it is somebody else's. The fault installs a page \
            in its own address space where nothing is mapped any more.",
    check: "after locking, `vma->vm_mm` is compared with the fault's own mm",
    mutant: Mutant::NoMmCheck,
    oracle: Oracle::O2,
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
