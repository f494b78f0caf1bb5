//! Tests of the slab on real threads.

use super::*;
use crate::sync::AtomicU64;
use std::collections::HashSet;

struct Object {
    constructed: AtomicU64,
    owner: AtomicU64,
    _pad: [u64; 22],
}

macro_rules! slab {
    ($name:ident, $made:ident, $kind:expr) => {
        static $made: AtomicU64 = AtomicU64::new(0);
        static $name: Slab<Object> = Slab::new(
            || Object {
                constructed: AtomicU64::new($made.fetch_add(1, Ordering::Relaxed) + 1),
                owner: AtomicU64::new(0),
                _pad: [0; 22],
            },
            $kind,
        );
    };
}

#[test]
fn reuse_is_lifo_and_keeps_what_the_object_held() {
    slab!(SLAB, MADE, PageReturn::AfterGracePeriod);
    let a = SLAB.alloc().unwrap();
    // SAFETY: objects are shared and valid for ever.
    unsafe { a.as_ref() }.owner.store(77, Ordering::Relaxed);
    // SAFETY: ours.
    unsafe { SLAB.free(a) };
    let b = SLAB.alloc().unwrap();
    assert_eq!(a, b);
    // SAFETY: as above.
    assert_eq!(unsafe { b.as_ref() }.owner.load(Ordering::Relaxed), 77);
    // SAFETY: ours.
    unsafe { SLAB.free(b) };
}

#[test]
fn each_slot_is_constructed_once_and_owned_once() {
    slab!(SLAB, MADE, PageReturn::AtOnce);
    let per_page = SLAB.stats().objects_per_page as u64;
    let mut held: Vec<_> = (0..1000).map(|_| SLAB.alloc().unwrap()).collect();
    assert_eq!(held.iter().collect::<HashSet<_>>().len(), 1000);
    let numbers: HashSet<_> =
        // SAFETY: live objects.
        held.iter().map(|o| unsafe { o.as_ref() }.constructed.load(Ordering::Relaxed)).collect();
    assert_eq!(numbers.len(), 1000);
    assert_eq!(MADE.load(Ordering::Relaxed), 1000u64.div_ceil(per_page) * per_page);
    for _ in 0..10_000 {
        let object = held.pop().unwrap();
        // SAFETY: ours.
        unsafe { SLAB.free(object) };
        held.push(SLAB.alloc().unwrap());
    }
    assert_eq!(MADE.load(Ordering::Relaxed), 1000u64.div_ceil(per_page) * per_page, "constructor ran at allocation");
}

#[test]
fn free_pages_go_back_but_not_before_a_grace_period() {
    slab!(SLAB, MADE, PageReturn::AfterGracePeriod);
    let per_page = SLAB.stats().objects_per_page;
    let held: Vec<_> = (0..per_page * 20).map(|_| SLAB.alloc().unwrap()).collect();
    let pages = SLAB.stats().pages;
    assert!(pages >= 20);
    let guard = rcu::read();
    for object in &held {
        // SAFETY: ours; freed once.
        unsafe { SLAB.free(*object) };
    }
    assert!(SLAB.stats().pages <= EMPTY_PAGES_KEPT + 2, "{:?}", SLAB.stats());
    // Poison or a fault here would mean that a page went while we were reading.
    for object in &held {
        // SAFETY: type-stable while we are in the section.
        let n = unsafe { object.as_ref() }.constructed.load(Ordering::Relaxed);
        assert!((1..=MADE.load(Ordering::Relaxed)).contains(&n), "{n:#x}");
    }
    drop(guard);
    rcu::barrier();
}

/// A large slab's pages lie in blocks, whenever it is large.
#[test]
fn a_large_slab_lies_in_blocks() {
    slab!(SLAB, MADE, PageReturn::AtOnce);
    let pages = 3 * SINGLE_PAGES;
    let objects = pages * SLAB.stats().objects_per_page;
    let fill = || {
        let held: Vec<_> = (0..objects).map(|_| SLAB.alloc().unwrap()).collect();
        let in_blocks: HashSet<_> = held
            .iter()
            .map(|object| Slab::<Object>::page_of(object.as_ptr()))
            // SAFETY: the pages of live objects.
            .filter(|page| unsafe { page.as_ref() }.in_block)
            .collect();
        (held, in_blocks)
    };
    let (held, first) = fill();
    assert!(first.len() >= pages - SINGLE_PAGES, "{} of {pages} pages", first.len());
    // SAFETY: ours; freed once.
    held.into_iter().for_each(|object| unsafe { SLAB.free(object) });
    assert!(SLAB.stats().pages <= EMPTY_PAGES_KEPT + 1, "{:?}", SLAB.stats());
    let (held, again) = fill();
    assert!(again.len() + EMPTY_PAGES_KEPT + 1 >= first.len(), "{} of {}", again.len(), first.len());
    // SAFETY: ours; freed once.
    held.into_iter().for_each(|object| unsafe { SLAB.free(object) });
}

/// Some empty pages stay, however often they are filled and fall empty.
#[test]
fn a_page_that_falls_empty_is_kept_for_the_next_time() {
    slab!(SLAB, MADE, PageReturn::AtOnce);
    // With those in the magazine on no more than these pages.
    let objects = EMPTY_PAGES_KEPT * SLAB.stats().objects_per_page - MAGAZINE;
    let mut made = 0;
    for round in 0..10 {
        let held: Vec<_> = (0..objects).map(|_| SLAB.alloc().unwrap()).collect();
        // SAFETY: ours; freed once.
        held.into_iter().for_each(|object| unsafe { SLAB.free(object) });
        if round == 0 {
            made = MADE.load(Ordering::Relaxed);
        }
    }
    assert_eq!(MADE.load(Ordering::Relaxed), made);
}

#[test]
fn threads_trade_objects_without_sharing_one() {
    slab!(SLAB, MADE, PageReturn::AfterGracePeriod);
    let (tx, rx) = crossbeam::channel::bounded::<usize>(64);
    let threads: Vec<_> = (1..=3u64)
        .map(|me| {
            let (tx, rx) = (tx.clone(), rx.clone());
            std::thread::spawn(move || {
                for round in 0..20_000 {
                    let object = SLAB.alloc().unwrap();
                    // SAFETY: live.
                    let owner = unsafe { &object.as_ref().owner };
                    assert_eq!(owner.swap(me, Ordering::AcqRel), 0, "two owners");
                    if round % 3 == 0 && tx.try_send(object.as_ptr().expose_provenance()).is_ok() {
                        continue;
                    }
                    owner.store(0, Ordering::Release);
                    // SAFETY: ours.
                    unsafe { SLAB.free(object) };
                    if let Ok(addr) = rx.try_recv() {
                        let object = NonNull::new(ptr::with_exposed_provenance_mut::<Object>(addr)).unwrap();
                        // SAFETY: handed over by its owner.
                        unsafe { object.as_ref() }.owner.store(0, Ordering::Release);
                        // SAFETY: now ours.
                        unsafe { SLAB.free(object) };
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
