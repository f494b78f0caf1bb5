//! R23: a VMA is visible before it is finished.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use vmalab::mm::Prot;
use vmalab::races::violation;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "visible-unfinished",
    title: "A new VMA is published unlocked and gets its flags afterwards",
    source: "33313a747e81; kernel lineage R23",
    story: "mmap_region() stored the VMA in the tree and then settled its flags. A fault in between reads flags \
            that no mapping ever had: here it loads from a mapping that forbids everything from the first moment.",
    check: "a VMA is attached write-locked, finished, and stays locked until the mmap lock is released",
    mutant: Mutant::AttachUnlocked,
    oracle: Oracle::O1,
    also: &[],
    locks: Lock::PER_VMA,
    executors: Executor::ALL,
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        let _ = stage;
    },
    actors: &[
        Actor {
            name: "fault",
            does: "loads from page 1",
            act: |stage| {
                if stage.mm(0).load(1).is_ok() {
                    violation(Oracle::O1, "a load passed in a mapping that never permitted one");
                }
            },
        },
        Actor {
            name: "mutator",
            does: "maps page 1, PROT_NONE",
            act: |stage| {
                stage.mm(0).map(1, 1, Prot::NONE).unwrap();
            },
        },
    ],
    script: &[until(1, Point::H8), run(0), run(1), run(0)],
    finish: |_| {},
};
