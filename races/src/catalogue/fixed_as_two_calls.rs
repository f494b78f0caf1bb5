//! B22: munmap and mmap in place of MAP_FIXED.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::PAGES;
use crate::stage::RW;
use vmalab::mm::Prot;
use vmalab::races::violation;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "fixed-as-two-calls",
    title: "Another thread's mapping slips in between munmap and mmap",
    source: "gfxreconstruct #1161, ART 4e97dd87; papers §3 B22",
    story: "To replace a mapping a program unmaps it and maps anew at the same place. In between the \
            addresses are free, and any mmap without an address may get them; the second call then \
            overwrites a stranger's mapping.",
    check: "MAP_FIXED replaces in one write section",
    mutant: Mutant::FixedAsTwoCalls,
    oracle: Oracle::O1,
    also: &[],
    locks: Lock::ALL,
    executors: Executor::ALL,
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real],
    set_up: |stage| {
        stage.mm(0).map(0, PAGES, Prot::READ).unwrap();
        stage.mm(0).map(1, 1, RW).unwrap();
    },
    actors: &[
        Actor {
            name: "mutator",
            does: "maps page 1 over itself",
            act: |stage| {
                stage.mm(0).map(1, 1, RW).unwrap();
            },
        },
        Actor {
            name: "stranger",
            does: "maps a page anywhere; there is no room",
            act: |stage| {
                if let Ok(page) = stage.mm(0).map_anywhere(1) {
                    violation(Oracle::O1, &format!("page {page} was free for a moment"));
                }
            },
        },
    ],
    script: &[until(0, Point::Replace), run(1), run(0), run(1)],
    finish: |_| {},
};
