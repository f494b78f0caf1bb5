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
    run_of(Rwsem::Futex, name, preemptions, threads);
}

fn run_of(rwsem: Rwsem, name: &'static str, preemptions: Option<usize>, threads: &'static [fn(&MmapLock, &Plain)]) {
    explore(name, preemptions, move || {
        let shared = Arc::new((MmapLock::of(rwsem), Plain::new()));
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

/// Two may sleep while a third takes the lock past them.
#[test]
fn three_writers() {
    run("MmapLock: three writers", THREE, &[write, write, write]);
}

#[test]
fn a_downgrade() {
    run("MmapLock: a downgrade, a reader, a writer", THREE, &[downgrade, read, write]);
}

/// The kernel's has a mutex and a queue inside: more steps, so a smaller bound.
mod kernel {
    use super::*;

    const TWO: Option<usize> = None;
    const THREE: Option<usize> = Some(4);

    fn run(name: &'static str, preemptions: Option<usize>, threads: &'static [fn(&MmapLock, &Plain)]) {
        run_of(Rwsem::Kernel, name, preemptions, threads);
    }

    #[test]
    fn two_threads() {
        run("kernel rwsem: a reader, a writer", TWO, &[write, read]);
        run("kernel rwsem: two writers", TWO, &[write, write]);
        run("kernel rwsem: a downgrade, a reader", TWO, &[downgrade, read]);
        run("kernel rwsem: a downgrade, a writer", TWO, &[downgrade, write]);
    }

    #[test]
    fn readers_and_a_writer() {
        run("kernel rwsem: two readers, a writer", THREE, &[write, read, read]);
    }

    #[test]
    fn writers_and_a_reader() {
        run("kernel rwsem: two writers, a reader", THREE, &[write, write, read]);
    }

    #[test]
    fn three_writers() {
        run("kernel rwsem: three writers", THREE, &[write, write, write]);
    }

    #[test]
    fn a_downgrade() {
        run("kernel rwsem: a downgrade, a reader, a writer", THREE, &[downgrade, read, write]);
    }

    /// A thread that takes the lock again at once meets who still waits.
    #[test]
    fn again() {
        fn twice(lock: &MmapLock, data: &Plain) {
            write(lock, data);
            read(lock, data);
        }
        run("kernel rwsem: a writer that reads, a reader, a writer", Some(3), &[twice, read, write]);
    }
}
