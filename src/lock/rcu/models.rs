//! Models of what a reader of `rcu` does after the walk. (What happens between
//! the walk and that is up to grace periods: `src/rcu/models.rs`.)

use super::*;
use crate::lock::models::*;

/// Bound on the preemptions of models with two readers and a writer.
const TWO_READERS: Option<usize> = Some(2);

impl Found for Rcu {
    fn lock_found(mm: &MmCore<Rcu>, vma: &Vma<Rcu>, addr: VirtAddr) -> bool {
        lock_found(mm, vma, addr).is_ok()
    }
}

section_models!(Rcu, "rcu");
