//! Models of what a reader of `refcount` does after the walk, and of the one
//! counter.

use super::*;
use crate::lock::models::*;

/// Bound on the preemptions of models with two readers and a writer.
const TWO_READERS: Option<usize> = Some(2);

impl Found for RefCount {
    fn lock_found(mm: &MmCore<RefCount>, vma: &Vma<RefCount>, addr: VirtAddr) -> bool {
        lock_found(mm, vma, addr).is_ok()
    }
}

reuse_models!(RefCount, "refcount");
section_models!(RefCount, "refcount");
