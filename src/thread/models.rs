//! Models of thread slots: a slot has one owner at a time, and the next owner
//! finds what the last one left.

use super::*;
use crate::models::{Plain, explore, join, spawn};
use crate::slab::{PageReturn, Slab};

struct Object {
    data: Plain,
    _pad: [u64; 2],
}

fn construct() -> Object {
    Object { data: Plain::new(), _pad: [0; 2] }
}

statics! {
    static SLAB: Slab<Object> = Slab::new(construct, PageReturn::AtOnce);
}

/// Announces itself, uses an object, and frees it into the slot's magazine.
fn works() {
    assert!(announce());
    let object = SLAB.alloc().expect("memory");
    // SAFETY: ours.
    unsafe { object.as_ref() }.data.change();
    // SAFETY: from this slab, and freed once.
    unsafe { SLAB.free(object) };
}

/// A thread that ends while another begins: that one takes the first slot or
/// the second. If it is the first, the magazine passes on with it. Needs
/// Release in `Lease::drop` with Acquire in `announce`.
#[test]
fn a_slot_passes_on_with_its_magazine() {
    explore("thread: a slot passes on", None, || {
        let _ = (all().count(), SLAB.stats());
        join([spawn(works), spawn(works)]);
    });
    explore("thread: a slot passes on, three threads", Some(2), || {
        let _ = (all().count(), SLAB.stats());
        join([spawn(works), spawn(works), spawn(works)]);
    });
}
