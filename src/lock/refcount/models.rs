//! Models of what a reader of `refcount` does after the walk, and of the one
//! counter.

use super::*;
use crate::lock::models::*;
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
