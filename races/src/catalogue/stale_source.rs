//! B21: a page is installed from a decision that is out of date.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "stale-source",
    title: "A fault fills the next mapping with the contents meant for the last one",
    source: "e2b, TestStaleSourceRaceMissingAndRemove; papers §3 B21; kernel lineage R39",
    story: "A handler sees a missing page, decides what it holds, and installs it. If nothing keeps the \
            mapping in place in between, the page can be unmapped and mapped anew, and the new mapping shows \
            the old contents.",
    check: "the VMA stays locked from the look-up until the page is installed",
    mutant: Mutant::InstallAfterUnlock,
    oracle: Oracle::O1,
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
            does: "unmaps page 1, then maps it again",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                let mapping = stage.mm(0).map(1, 1, RW).unwrap();
                stage.note("incarnation", mapping.incarnation);
            },
        },
    ],
    script: &[until(0, Point::Fill), run(1), run(0), run(1)],
    finish: |stage| stage.stamped(0, 1, stage.noted("incarnation").expect("noted by the mutator")),
};
