//! Models of the slab: an object has one owner, and a page stays while
//! somebody may look at an object in it. (A model's pages hold two objects, a
//! magazine two, and the depot keeps no empty page.)

use super::*;
use crate::models::{Plain, explore, join, spawn};
use crate::sync::statics;
use std::sync::Arc;

/// An object of at least sixteen bytes, whose owner writes it.
struct Object {
    data: Plain,
    _pad: [u64; 2],
}

fn construct() -> Object {
    Object { data: Plain::new(), _pad: [0; 2] }
}

statics! {
    static SLAB: Slab<Object> = Slab::new(construct, PageReturn::AfterGracePeriod);
}

fn alloc() -> NonNull<Object> {
    SLAB.alloc().expect("memory")
}

fn own(object: NonNull<Object>) {
    // SAFETY: ours, by `alloc`.
    unsafe { object.as_ref() }.data.change();
}

fn free(object: NonNull<Object>) {
    // SAFETY: from `alloc`, and freed once.
    unsafe { SLAB.free(object) };
}

/// Makes the statics, see `rcu::models`.
fn touch() {
    rcu::stats();
    let _ = SLAB.stats();
    assert_eq!(thread::all().count(), 1);
}

/// All objects of a page are freed while a reader may still have a pointer to
/// one of them.
#[test]
fn a_page_waits_for_readers() {
    fn model(announced: bool) {
        touch();
        let objects = [(); 4].map(|()| alloc());
        assert_eq!(<Slab<Object>>::page_of(objects[0].as_ptr()), <Slab<Object>>::page_of(objects[1].as_ptr()));
        let found = Arc::new(AtomicPtr::new(objects[0].as_ptr()));
        let reader = {
            let found = found.clone();
            spawn(move || {
                if announced {
                    thread::announce();
                }
                let _section = rcu::read();
                if let Some(object) = NonNull::new(found.load(Ordering::Relaxed)) {
                    <Slab<Object>>::looked_at(object);
                }
            })
        };
        found.store(ptr::null_mut(), Ordering::Relaxed);
        let before = SLAB.stats().pages;
        objects.into_iter().for_each(free);
        assert_eq!(SLAB.stats().pages, before - 1, "a page is on its way back");
        rcu::poll();
        rcu::poll();
        join([reader]);
        rcu::barrier();
    }
    explore("slab: a page goes, a reader", None, || model(true));
    explore("slab: a page goes, a reader without a slot", None, || model(false));
}

/// Two threads trade objects through the depot.
#[test]
fn objects_have_one_owner() {
    explore("slab: two threads trade objects", None, || {
        touch();
        let trade = || {
            // More than a magazine holds, so that some go through the depot.
            let objects = [(); 3].map(|()| alloc());
            objects.into_iter().for_each(own);
            objects.into_iter().for_each(free);
        };
        let other = spawn(trade);
        trade();
        join([other]);
    });
}
