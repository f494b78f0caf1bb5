//! R11: the number that ends a write section is a plain store.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::mm::Prot;
use vmalab::races::violation;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "unlock-order",
    title: "A reader sees the end of a write section, but not what was changed in it",
    source: "Jann Horn, 21 Jul 2023, b1f02b95758d (6.5); kernel lineage R11; papers §3 B19",
    story: "The writer changes a VMA and then raises `mm_lock_seq`, which releases all VMA locks. With a \
            plain store the number may become visible first: a reader finds the VMA unlocked and reads flags \
            from before. On x86 only a compiler can do that; a model of weak memory shows it every time.",
    check: "the number is stored with Release and read with Acquire in the second comparison",
    mutant: Mutant::UnlockIsPlainStore,
    oracle: Oracle::O1,
    also: &[],
    locks: Lock::PER_VMA,
    executors: &[Executor::Loom],
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map(1, 1, RW).unwrap();
    },
    actors: &[
        Actor {
            name: "fault",
            does: "stores to page 1",
            act: |stage| {
                let _ = stage.mm(0).store(1, 7);
            },
        },
        Actor {
            name: "mutator",
            does: "makes page 1 read-only",
            act: |stage| {
                stage.mm(0).protect(1, 1, Prot::READ).unwrap();
            },
        },
    ],
    script: &[until(0, Point::H1), run(1), run(0)],
    finish: |stage| {
        if stage.mm(0).store(1, 8).is_ok() {
            violation(Oracle::O1, "a store passed after the mprotect that forbids it had returned");
        }
    },
};
