//! Models of [`VmaSem`], the rwsem that `typesafe` and `rcu` put into a VMA,
//! and of what `typesafe` does after the walk.

use super::*;
use crate::models::{Plain, explore, join, spawn};
use std::sync::Arc;

/// Exclusion both ways, and a drain that always ends. Needs `try_down_read`
/// Acquire with `up_write` Release, `up_read` Release with the Acquire load
/// that ends the drain, and the reader's wake-up.
#[test]
fn sem_excludes_and_the_drain_ends() {
    explore("VmaSem: two readers, a writer", None, || {
        let shared = Arc::new((VmaSem::new(), Plain::new()));
        let readers = [0, 1].map(|_| {
            let shared = shared.clone();
            spawn(move || {
                let (sem, data) = &*shared;
                if sem.try_down_read() {
                    data.look();
                    sem.up_read();
                }
            })
        });
        let (sem, data) = &*shared;
        sem.down_write();
        data.change();
        sem.up_write();
        join(readers);
        assert_eq!(sem.word.load(Ordering::Relaxed), 0);
    });
}
