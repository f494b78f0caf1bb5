//! Models of what a reader of `refcount` does after the walk, and of the one
//! counter.

use super::*;
use crate::lock::models::*;
use crate::mm::MmapWrite;
use crate::models::{explore, join, spawn};
use std::sync::Arc;

/// Bound on the preemptions of models with two readers and a writer.
const TWO_READERS: Option<usize> = Some(2);

/// Bound on those of the reuse in another mm, which has three write sections.
const OTHER_MM: Option<usize> = Some(5);

impl Found for RefCount {
    fn lock_found(mm: &MmCore<RefCount>, vma: &Vma<RefCount>, addr: VirtAddr) -> bool {
        lock_found(mm, vma, addr).is_ok()
    }
}

reuse_models!(RefCount, "refcount");
section_models!(RefCount, "refcount");

/// The object is write-locked in `b` under the very number that `a` has just
/// now, and drained by a detach: `vm_mm` is compared before the numbers (I6), or
/// the reader of `a` lets go of it as of an object of its own, and wakes nobody.
fn number_of_a<'s>(scene: &'s Scene<RefCount>) {
    let write = scene.a.mmap_write();
    drop(lock(&write, scene.x).detach());
    drop(write);
    // Three sections each, and the third of both at once.
    drop(scene.b.mmap_write());
    let write = scene.b.mmap_write();
    assert_eq!(attach(&write, pages(1, 2)).as_ptr(), scene.x);
    drop(write);
    let both: [MmapWrite<'s, RefCount>; 2] = [scene.a.mmap_write(), scene.b.mmap_write()];
    drop(lock(&both[1], scene.x).detach());
}

#[test]
fn foreign_numbers_mean_nothing() {
    scene("refcount: equal numbers of two mms", Some(3), &[number_of_a, reads]);
}

/// A writer that is told to give up while it waits (R9): it ends, and leaves
/// nothing behind that would keep readers out or in.
#[test]
fn a_writer_is_killed() {
    explore("refcount: a killed writer", None, || {
        let mm = Arc::new((MmCore::<RefCount>::new(), Kill::default()));
        replace(&mm.0, 1, true);
        let vma = mm.0.mmap_read().snapshot().lookup(page(1)).expect("mapped");
        // SAFETY: attached until the end.
        unsafe { vma.as_ref() }.lock.vm_refcnt.fetch_add(1, Ordering::Acquire);
        let killer = {
            let mm = mm.clone();
            spawn(move || {
                mm.1.fire();
                mm.0.wake_vma_writer();
            })
        };
        let write = mm.0.mmap_write();
        // SAFETY: as above.
        let killed = RefCount::vma_start_write_killable(&mm.0, unsafe { vma.as_ref() }, &mm.1);
        assert_eq!(killed, Err(Killed), "there is a reader");
        drop(write);
        // SAFETY: as above.
        put(unsafe { vma.as_ref() }, &mm.0);
        assert!(fault(&mm.0, vma, 1), "O5: readers are kept out for good");
        join([killer]);
    });
}
