//! Models of `mm_count`: the memory of an address space is freed once, after
//! everybody has done with it, whoever drops the last reference.

use super::*;
use crate::lock::RefCount;
use crate::lock::models::{Stale, fault, page, replace};
use crate::models::{Plain, explore, join, spawn};
use std::sync::Arc;

/// Something counted, with data that everybody uses until they let go.
struct Counted {
    count: MmCount,
    data: Plain,
}

unsafe fn free(counted: *mut ()) {
    // SAFETY: from `counted`; a model keeps the memory.
    let counted = unsafe { &*counted.cast::<Counted>() };
    counted.data.change();
    assert!(!counted.count.dead.swap(true, Ordering::SeqCst), "O6: freed twice");
}

fn counted(references: usize) -> Arc<Counted> {
    let mut count = MmCount::new::<RefCount>();
    count.free = free;
    count.references.store(references, Ordering::Relaxed);
    let counted = Arc::new(Counted { count, data: Plain::new() });
    counted.count.mm.store(Arc::as_ptr(&counted).cast_mut().cast(), Ordering::Relaxed);
    counted
}

/// Uses it and lets go.
fn put(counted: &Counted) {
    counted.data.look();
    // SAFETY: one of the references, each dropped once.
    unsafe { MmCount::put(NonNull::from(&counted.count)) };
}

/// Needs Release of the decrements with Acquire of the last, and Release and
/// Acquire of the list.
#[test]
fn freed_once_and_last() {
    fn model(pins: usize) {
        assert!(DEAD.load(Ordering::Relaxed).is_null());
        let counted = counted(pins + 1);
        let pins = (0..pins).map(|_| {
            let counted = counted.clone();
            spawn(move || put(&counted))
        });
        let pins: Vec<_> = pins.collect();
        put(&counted);
        reap();
        join(pins);
        reap();
        assert!(counted.count.is_dead(), "O4: never freed");
    }
    explore("mm_count: an owner, a pin", None, || model(1));
    explore("mm_count: an owner, two pins", None, || model(2));
}

/// Two die at once, and two threads reap.
#[test]
fn the_list_of_the_dead() {
    explore("mm_count: two die, two reap", None, || {
        assert!(DEAD.load(Ordering::Relaxed).is_null());
        let both = [counted(1), counted(1)];
        let other = {
            let one = both[0].clone();
            spawn(move || {
                put(&one);
                reap();
            })
        };
        put(&both[1]);
        reap();
        join([other]);
        assert!(both.iter().all(|one| one.count.is_dead()), "O4: never freed");
    });
}

/// CVE-2025-38554 (R7): a reader of `a` has locked an object that is in use in
/// `b` by now, and lets go of it while `b` ends. Its count keeps `b`, until it
/// has pinned it.
#[test]
fn a_foreign_mm_ends() {
    explore("refcount: a foreign mm ends", Some(3), || {
        let (a, b) = (Arc::new(MmOwner::<RefCount>::new()), MmOwner::<RefCount>::new());
        // (Models keep the memory.)
        let count = NonNull::from(&b.count);
        replace(&a, 1, true);
        let found = a.mmap_read().snapshot().lookup(page(1)).expect("mapped");
        let reader = {
            let (a, found) = (a.clone(), Stale(found));
            spawn(move || {
                fault(&a, found.get(), 1);
            })
        };
        replace(&a, 1, false);
        replace(&b, 1, true);
        let now = b.mmap_read().snapshot().lookup(page(1)).expect("mapped");
        assert_eq!(now, found, "the slab reuses last what was freed last");
        drop(b);
        join([reader]);
        reap();
        // SAFETY: kept until the model ends.
        assert!(unsafe { count.as_ref() }.is_dead(), "O4: never freed");
    });
}
