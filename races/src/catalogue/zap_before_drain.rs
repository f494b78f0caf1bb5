//! R24: pages are removed before readers are drained.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "zap-before-drain",
    title: "A fault installs a page after munmap has removed the pages",
    source: "Documentation/mm/process_addrs.rst; kernel lineage R24, I10",
    story: "munmap removes the pages, and only then waits for the faults that are inside the VMA. One of \
            them has looked at the VMA before and installs its page now: a page where nothing is mapped.",
    check: "write-lock and drain, detach, take out of the tree; only then remove pages",
    mutant: Mutant::ZapBeforeDrain,
    oracle: Oracle::O2,
    also: &[],
    locks: Lock::PER_VMA,
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
            does: "unmaps page 1",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
            },
        },
    ],
    script: &[until(0, Point::Fill), run(1), run(0), run(1)],
    finish: |stage| stage.nothing_at(0, 1),
};
