//! B20: addresses are reused while their pages are still being removed.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::violation;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "zap-after-unlock",
    title: "munmap removes the pages of the mapping that came after it",
    source: "sv6; papers §3 B20; kernel lineage R24",
    story: "munmap takes the VMA out and lets go of the mmap lock before it removes the pages. Another \
            thread maps the same address at once and stores into it; then the pages go, with that store.",
    check: "the mmap lock is kept, downgraded, until the pages are gone",
    mutant: Mutant::ZapAfterUnlock,
    oracle: Oracle::O1,
    also: &[],
    locks: Lock::ALL,
    executors: Executor::ALL,
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map(1, 1, RW).unwrap();
        stage.mm(0).store(1, 1).unwrap();
    },
    actors: &[
        Actor {
            name: "unmapper",
            does: "unmaps page 1",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
            },
        },
        Actor {
            name: "mapper",
            does: "maps page 1 and stores 42 there",
            act: |stage| {
                stage.mm(0).map(1, 1, RW).unwrap();
                let _ = stage.mm(0).store(1, 42);
            },
        },
    ],
    script: &[until(0, Point::H9), run(1), run(0), run(1)],
    finish: |stage| {
        if let Ok(value) = stage.mm(0).load(1)
            && value != 42
        {
            violation(Oracle::O1, &format!("page 1 holds {value}; 42 was stored there and never overwritten"));
        }
    },
};
