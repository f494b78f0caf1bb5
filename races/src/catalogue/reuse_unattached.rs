//! The seed's case 1, first form: the object is in use again, but not yet attached.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "reuse-unattached",
    title: "A freed VMA is locked while it is being filled in for a new life",
    source: "the seed, case 1; kernel lineage R1; papers §3 B18",
    story: "A fault finds VMA X. Before it locks X, X is unmapped and freed, and the next mmap gets X from \
            the slab. It has written the new range and mm, which happen to be what the fault looks for, but \
            X is in no tree yet and nobody has promised that it ever will be. A reader that locks X now \
            reads fields that its owner is still writing.",
    check: "`detached`, read after locking (typesafe); a count of zero, which a reader cannot raise \
            (refcount)",
    mutant: Mutant::NoDetachedCheck,
    oracle: Oracle::O3,
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
            does: "unmaps page 1, then maps it again",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                stage.mm(0).map(1, 1, RW).unwrap();
            },
        },
    ],
    script: &[until(0, Point::H1), until(1, Point::H6), run(0), run(1), run(0)],
    finish: |_| {},
};
