//! R15: a fault waits for the mmap lock while it holds a VMA.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::mm::Prot;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "fault-deadlock",
    title: "A fault and a writer wait for each other",
    source: "Documentation/mm/process_addrs.rst; kernel lineage R15, I11; papers §3 B23",
    story: "A first store needs an anon_vma, and choosing one takes the mmap lock. The fault holds its VMA's \
            lock. A writer holds the mmap lock and waits for that VMA. If the fault waits for the mmap lock \
            now, neither ever goes on.",
    check: "with a VMA lock held the mmap lock is only tried; if it is not free the fault lets go and starts \
            again under the mmap lock",
    mutant: Mutant::FaultWaitsForMmapLock,
    oracle: Oracle::O5,
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
    script: &[until(0, Point::Prepare), run(1), run(0), run(1)],
    finish: |_| {},
};
