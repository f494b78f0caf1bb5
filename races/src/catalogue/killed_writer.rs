//! R9: a writer that is told to give up leaves its flag behind.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "killed-writer",
    title: "A killed writer keeps readers out for ever",
    source: "\"mm: fix vma_start_write_killable() signal handling\" (6.19-rc1); kernel lineage R9; papers §3 \
            B16",
    story: "A writer announces itself in the count and waits for a reader. It is killed and returns EINTR. \
            If it leaves its flag in the count, no reader ever gets in again, and the next writer adds the \
            flag a second time and waits for a value that the count cannot reach.",
    check: "the error path takes the flag back",
    mutant: Mutant::InterruptedWriterKeepsFlag,
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
            does: "stores to page 1",
            act: |stage| {
                let _ = stage.mm(0).store(1, 7);
            },
        },
        Actor {
            name: "writer",
            does: "unmaps page 1, killable; if killed, unmaps it again",
            act: |stage| {
                if stage.mm(0).unmap_killable(1, 1, &stage.kill).is_err() {
                    stage.mm(0).unmap(1, 1).unwrap();
                }
            },
        },
        Actor {
            name: "killer",
            does: "kills the writer",
            act: |stage| {
                stage.mm(0).kill(&stage.kill);
            },
        },
    ],
    script: &[until(0, Point::Fill), run(1), run(2), run(1), run(0), run(1)],
    finish: |stage| stage.nothing_at(0, 1),
};
