//! R12: sequence numbers wrap.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::mm::Prot;
use vmalab::races::Knob;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "sequence-wrap",
    title: "A number that has wrapped looks like a write lock that is held",
    source: "comments in mm/mmap_lock.c; kernel lineage R12; papers §3 B19",
    story: "With 8-bit numbers 128 write sections bring a VMA's old number back. Readers that find it equal \
            are refused: a false \"locked\", which costs them the fallback and nothing else. But a writer \
            that takes the equality for a lock it already holds does not drain, and changes the VMA under a \
            reader that came before. (The kernel does take it so; with 32 bits it needs 2^31 sections within \
            one fault.)",
    check: "equal numbers never excuse a writer from draining",
    mutant: Mutant::EqualNumbersSkipDrain,
    oracle: Oracle::O3,
    also: &[],
    locks: Lock::PER_VMA,
    executors: &[Executor::Faults],
    depth: Depth::USUAL,
    knob: Some(Knob::SequenceOf8Bits),
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
            does: "maps and unmaps page 3 until the numbers have gone round, then makes page 1 read-only",
            act: |stage| {
                let mm = stage.mm(0);
                for section in 0..127 {
                    if section % 2 == 0 { mm.map(3, 1, RW).map(drop).unwrap() } else { mm.unmap(3, 1).unwrap() }
                }
                mm.protect(1, 1, Prot::READ).unwrap();
            },
        },
    ],
    script: &[until(0, Point::Fill), run(1), run(0), run(1)],
    finish: |_| {},
};
