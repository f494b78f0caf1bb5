//! StackRot, CVE-2023-3269 (R17): a stack grows under the mmap lock held for reading.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "stack-rot",
    title: "A stack grows under the read lock and frees tree nodes under a walker",
    source: "CVE-2023-3269; kernel lineage R17; papers §3 B3",
    story: "A fault below a stack extends it. From 6.1 to 6.4 that took the mmap lock for reading only. To \
            extend is to replace a tree node; another fault, with the same lock held for reading, still \
            walks the old one, and it has been freed.",
    check: "growth takes the mmap lock for writing: let go, lock, look again, extend, downgrade",
    mutant: Mutant::GrowthUnderReadLock,
    oracle: Oracle::O6,
    also: &[Oracle::O3],
    locks: &[Lock::Mmap],
    executors: Executor::ALL,
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map_stack(8, 2).unwrap();
    },
    actors: &[
        Actor {
            name: "walker",
            does: "loads from the stack",
            act: |stage| {
                let _ = stage.mm(0).load(8);
            },
        },
        Actor {
            name: "grower",
            does: "loads from two pages below it",
            act: |stage| {
                let _ = stage.mm(0).load(6);
            },
        },
    ],
    script: &[until(0, Point::Walk), run(1), run(0), run(1)],
    finish: |stage| {
        assert_eq!(stage.mm(0).listing(), [(6, 10)], "the stack did not grow");
    },
};
