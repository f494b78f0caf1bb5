//! Models of what a reader of `rcu` does after the walk. (What happens between
//! the walk and that is up to grace periods: `src/rcu/models.rs`.)

use super::*;
use crate::lock::models::*;
use crate::models::{explore, join, spawn};
use std::sync::Arc;

/// Bound on the preemptions of models with two readers and a writer.
const TWO_READERS: Option<usize> = Some(2);

impl Found for Rcu {
    fn lock_found(mm: &MmCore<Rcu>, vma: &Vma<Rcu>, addr: VirtAddr) -> bool {
        lock_found(mm, vma, addr).is_ok()
    }
}

section_models!(Rcu, "rcu");

/// The whole lookup: the object is freed after a grace period, and only then
/// in use again, at another place.
#[test]
fn a_freed_object_waits_for_readers() {
    fn model(announced: bool) {
        rcu::stats();
        let mm = Arc::new(MmCore::<Rcu>::new());
        replace(&mm, 1, true);
        let found = mm.mmap_read().snapshot().lookup(page(1)).expect("mapped");
        let reader = {
            let mm = mm.clone();
            spawn(move || {
                if announced {
                    crate::thread::announce();
                }
                if let Ok(vma) = Rcu::lock_vma_under_rcu(&mm, page(1)) {
                    held(&mm, vma, 1);
                }
            })
        };
        replace(&mm, 1, false);
        rcu::poll();
        rcu::poll();
        replace(&mm, 2, true);
        join([reader]);
        rcu::barrier();
        let page_2 = mm.mmap_read().snapshot().lookup(page(2));
        let again = page_2 == Some(found) || attach(&mm.mmap_write(), pages(3, 4)).as_ptr() == found;
        assert!(again, "O4: an object that was freed does not come back");
    }
    explore("rcu: a freed object, a reader", Some(3), || model(true));
    explore("rcu: a freed object, a reader without a slot", Some(3), || model(false));
}
