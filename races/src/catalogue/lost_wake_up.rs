//! R14: the writer's wake-up is lost.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "lost-wake-up",
    title: "A reader leaves between the writer's look at the count and its sleep",
    source: "kernel lineage R14",
    story: "The writer looks at the count: a reader is inside. Before it sleeps the reader leaves, raises \
            the wake-up word and wakes nobody, for nobody sleeps yet. If the writer reads the word only now, \
            it sleeps until it changes again, which nothing will do.",
    check: "the word is read before the count; the futex compares it again as it puts the writer to sleep",
    mutant: Mutant::WakeWordReadLate,
    oracle: Oracle::O5,
    also: &[],
    locks: &[Lock::RefCount],
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
            name: "writer",
            does: "unmaps page 1",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
            },
        },
    ],
    script: &[until(0, Point::Fill), until(1, Point::Doze), run(0), run(1)],
    finish: |stage| stage.nothing_at(0, 1),
};
