//! Models of [`MmapLock`]: exclusion, and that everybody who waits is woken.

use super::*;
use crate::models::{Plain, explore, join, spawn};
use std::sync::Arc;

fn write(lock: &MmapLock, data: &Plain) {
    let _guard = lock.write();
    data.change();
}

fn read(lock: &MmapLock, data: &Plain) {
    let _guard = lock.read();
    data.look();
}

fn downgrade(lock: &MmapLock, data: &Plain) {
    let guard = lock.write();
    data.change();
    let _guard = guard.downgrade();
    data.look();
}

fn run(name: &'static str, preemptions: Option<usize>, threads: &'static [fn(&MmapLock, &Plain)]) {
    explore(name, preemptions, move || {
        let shared = Arc::new((MmapLock::new(), Plain::new()));
        let (first, others) = threads.split_first().unwrap();
        let others: Vec<_> = others
            .iter()
            .map(|thread| {
                let shared = shared.clone();
                spawn(move || thread(&shared.0, &shared.1))
            })
            .collect();
        first(&shared.0, &shared.1);
        join(others);
        assert!(shared.0.is_idle(), "the lock is not idle");
    });
}

/// Bound on the preemptions of models with three threads.
const THREE: Option<usize> = Some(3);

#[test]
fn two_threads() {
    run("MmapLock: a reader, a writer", None, &[write, read]);
    run("MmapLock: two writers", None, &[write, write]);
    run("MmapLock: a downgrade, a reader", None, &[downgrade, read]);
    run("MmapLock: a downgrade, a writer", None, &[downgrade, write]);
}

#[test]
fn readers_and_a_writer() {
    run("MmapLock: two readers, a writer", THREE, &[write, read, read]);
}

#[test]
fn writers_and_a_reader() {
    run("MmapLock: two writers, a reader", THREE, &[write, write, read]);
}

#[test]
fn a_downgrade() {
    run("MmapLock: a downgrade, a reader, a writer", THREE, &[downgrade, read, write]);
}
