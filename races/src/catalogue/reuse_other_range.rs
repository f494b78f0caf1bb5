//! The seed's case 1, second form: the object is in use again, at another range.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "reuse-other-range",
    title: "A VMA is reused at another range between the walk and the lock",
    source: "the seed, case 1; kernel lineage R1",
    story: "A fault finds VMA X. Before it locks X, X is unmapped, freed, and handed out again to the same \
            address space for a mapping somewhere else. X is attached and belongs to the right mm. Only it \
            does not hold the address: the fault installs a page where nothing is mapped any more.",
    check: "after locking, `vm_start` and `vm_end` are compared with the address",
    mutant: Mutant::NoRangeCheck,
    oracle: Oracle::O2,
    also: &[],
    locks: Lock::REUSING,
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
            does: "unmaps page 1, then maps page 5",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                stage.mm(0).map(5, 1, RW).unwrap();
            },
        },
    ],
    script: &[until(0, Point::H1), run(1), run(0)],
    finish: |stage| stage.nothing_at(0, 1),
};
