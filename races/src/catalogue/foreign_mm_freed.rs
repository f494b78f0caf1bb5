//! CVE-2025-38554 (R7): the mm is freed between the put and the wake-up.

use crate::race::{Actor, Depth, Executor, Lock, Race, Space, run, until};
use crate::stage::RW;
use vmalab::races::{Mutant, Oracle, Point};

/// See the file's documentation.
pub static RACE: Race = Race {
    name: "foreign-mm-freed",
    title: "A reader lets go of a reused VMA and wakes the writer of an mm that is gone",
    source: "CVE-2025-38554, Jann Horn, 23 Jul 2025, fixed by 9bbffee67ffd; kernel lineage R7; papers §3 B13",
    story: "A fault of A raises the count of X, which belongs to B by now, sees that, and gives the count \
            back. B is ending: it waits for that very count. The moment the count falls B goes on, exits, \
            and its mm is freed; then the fault wakes B's writer, through a wait queue inside the freed mm. \
            Three threads, a window of a few instructions; its finder had to patch delays into a kernel to \
            see it once.",
    check: "the reader pins the foreign mm while it still holds the count, and drops the pin last",
    mutant: Mutant::ForeignMmNotPinned,
    oracle: Oracle::O6,
    also: &[],
    locks: &[Lock::RefCount],
    executors: &[Executor::Faults],
    depth: Depth::USUAL,
    knob: None,
    spaces: &[Space::Real, Space::Twin],
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
            does: "unmaps page 1 of A, maps page 1 of B, ends B",
            act: |stage| {
                stage.mm(0).unmap(1, 1).unwrap();
                stage.mm(1).map(1, 1, RW).unwrap();
                stage.end(1);
            },
        },
    ],
    script: &[
        until(0, Point::H1),
        until(1, Point::Section),
        until(1, Point::Section),
        until(1, Point::Section),
        until(0, Point::H3),
        until(1, Point::H11),
        until(0, Point::H5),
        run(1),
        run(0),
    ],
    finish: |_| {},
};
