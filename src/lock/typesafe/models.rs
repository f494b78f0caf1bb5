//! Models of [`VmaSem`], the rwsem that `typesafe` and `rcu` put into a VMA,
//! and of what a reader of `typesafe` does after the walk.

use super::*;
use crate::lock::models::*;
use crate::models::{Plain, explore, join, spawn};
use std::sync::Arc;

/// Bound on the preemptions of models with two readers and a writer.
const TWO_READERS: Option<usize> = Some(2);

/// Bound on those of the reuse in another mm, which has three write sections.
const OTHER_MM: Option<usize> = Some(5);

impl Found for TypeSafe {
    fn lock_found(mm: &MmCore<TypeSafe>, vma: &Vma<TypeSafe>, addr: VirtAddr) -> bool {
        lock_found(mm, vma, addr).is_ok()
    }
}

reuse_models!(TypeSafe, "typesafe");
section_models!(TypeSafe, "typesafe");

fn sem(name: &'static str, preemptions: Option<usize>, readers: usize) {
    explore(name, preemptions, move || {
        let shared = Arc::new((VmaSem::new(), Plain::new()));
        let readers: Vec<_> = (0..readers)
            .map(|_| {
                let shared = shared.clone();
                spawn(move || {
                    let (sem, data) = &*shared;
                    if sem.try_down_read() {
                        data.look();
                        sem.up_read();
                    }
                })
            })
            .collect();
        let (sem, data) = &*shared;
        sem.down_write();
        data.change();
        sem.up_write();
        join(readers);
        assert_eq!(sem.word.load(Ordering::Relaxed), 0);
    });
}

/// Exclusion both ways, and a drain that always ends. Needs `try_down_read`
/// Acquire with `up_write` Release, `up_read` Release with the Acquire load
/// that ends the drain, and the reader's wake-up.
#[test]
fn sem_excludes_and_the_drain_ends() {
    sem("VmaSem: a reader, a writer", None, 1);
    sem("VmaSem: two readers, a writer", Some(4), 2);
}
