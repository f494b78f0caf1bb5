//! R4: the sequence number is reset when a VMA is freed.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "number-reset-at-free",
    title: "The sequence number of a freed VMA is reset while its mm is write-locked",
    source: "Vlastimil Babka on v5, 10 Dec 2024; kernel lineage R4, S-B, S-C",
    story: "Within one write section X is detached and freed, and the free resets `vm_lock_seq`. The number \
            that said write-locked is gone, and `detached` was set by a plain store that pairs with nothing: \
            a stale reader may see the new number and the old flag. Two numbers cannot protect a free \
            object.",
    check: "the number is never reset; `detached` changes only under the lock itself, so whoever locks it \
            sees the flag",
    mutant: Mutant::NumberResetAtFree,
    oracle: Oracle::O3,
    also: &[],
    locks: &[Lock::TypeSafe],
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
    script: &[until(0, Point::H1), run(1), run(0)],
    finish: |stage| stage.nothing_at(0, 1),
};
