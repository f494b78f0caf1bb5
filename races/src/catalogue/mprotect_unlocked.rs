//! R26: mprotect does not write-lock the VMA.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::mm::Prot;
use vmalab::races::violation;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "mprotect-unlocked",
    title: "A fault installs a writable page while mprotect forbids writing",
    source: "49b0638502da; kernel lineage R26, I9",
    story: "Under the mmap write lock alone mprotect is not alone: a fault that holds the VMA's lock has \
            read the old flags. mprotect changes flags and page protections and returns; then the fault \
            installs its page, writable.",
    check: "mprotect write-locks every VMA that it changes, before it changes anything",
    mutant: Mutant::ProtectWithoutVmaLock,
    oracle: Oracle::O3,
    also: &[Oracle::O1],
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
    script: &[until(0, Point::Fill), run(1), run(0), run(1)],
    finish: |stage| {
        if stage.mm(0).store(1, 8).is_ok() {
            violation(Oracle::O1, "a store passed after the mprotect that forbids it had returned");
        }
    },
};
