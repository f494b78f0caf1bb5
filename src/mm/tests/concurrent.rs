//! Faults against mutators on the software `Mmu`.

use super::*;
use crate::sync::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

for_each_scheme!(a_replaced_range_never_shows_a_hole, forbidden_stores_never_pass, two_mms_trade_vmas);

fn rounds() -> u64 {
    if cfg!(debug_assertions) { 20_000 } else { 200_000 }
}

/// A fault that is under way when an operation begins, and is the first to
/// touch its VMA: its page must go all the same. (As in c46000458d57, a
/// decision taken before the VMA is write-locked would miss it.)
#[test]
fn a_page_that_comes_during_the_drain_is_not_missed() {
    use crate::lock::{Abort, LockScheme, TypeSafe};
    use crate::mmu::{Content, Mmu};
    use crate::vma::{Hold, VmaRead};
    type Operation = fn(&SoftMm<TypeSafe>);
    let operations: [(&str, Operation); 3] = [
        ("munmap", |mm| mm.munmap(page(1), PAGE_SIZE).unwrap()),
        ("MAP_FIXED", |mm| assert!(mm.mmap(page(1), PAGE_SIZE, RW, FIXED).is_ok())),
        ("mprotect", |mm| mm.mprotect(page(1), PAGE_SIZE, Prot::READ).unwrap()),
    ];
    for (name, operation) in operations {
        let mm = Arc::new(soft::<TypeSafe>(4));
        mm.mmap(page(1), PAGE_SIZE, RW, FIXED).unwrap();
        let addr = VirtAddr(page(1));
        let found = TypeSafe::lock_vma_under_rcu(mm.core(), addr).unwrap();
        // SAFETY: read-locked just now.
        let fault = unsafe { VmaRead::new(mm.core(), found, Hold::Vma) };
        let mutator = {
            let mm = mm.clone();
            std::thread::spawn(move || operation(&mm))
        };
        loop {
            match TypeSafe::lock_vma_under_rcu(mm.core(), addr) {
                Err(Abort::Contended) => break,
                Err(other) => panic!("{name}: {other:?}"),
                // SAFETY: locked just now.
                Ok(vma) => unsafe { TypeSafe::vma_end_read(vma) },
            }
        }
        fault.set_touched(addr, 1);
        mm.mmu().install(addr, Content::Zero, true, true).unwrap();
        drop(fault);
        mutator.join().unwrap();
        match name {
            "munmap" => assert_eq!(load(&mm, page(1)), Err(Signal::MapErr)),
            "MAP_FIXED" => assert_ne!(stamp(&mm, page(1)).unwrap().mm_id, 0, "the old page is still there"),
            _ => assert_eq!(store(&mm, page(1), 1), Err(Signal::AccErr), "the page is still writable"),
        }
        mm.mprotect(page(0), 0, RW).unwrap();
        // A new mapping there must not inherit the page.
        mm.mmap(page(1), PAGE_SIZE, RW, FIXED).unwrap();
        assert_ne!(stamp(&mm, page(1)).unwrap().mm_id, 0, "{name}: the old page is still there");
    }
}

/// R20: a range that is mapped before and after every MAP_FIXED, mprotect
/// split and merge; whoever reads it must never be told that nothing is mapped.
fn a_replaced_range_never_shows_a_hole<S: LockScheme>() {
    let mm = Arc::new(soft::<S>(16));
    mm.mmap(page(2), 8 * PAGE_SIZE, RW, FIXED).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|me| {
            let (mm, stop) = (mm.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut n = me;
                while !stop.load(Ordering::Relaxed) {
                    n = (n + 1) % 8;
                    load(&mm, page(2 + n)).unwrap();
                    let maps = mm.maps();
                    let covered: usize = maps.iter().map(|e| e.range.pages()).sum();
                    assert_eq!(covered, 8, "{maps:?}");
                }
            })
        })
        .collect();
    for i in 0..rounds() / 10 {
        let n = (i % 6) as usize;
        mm.mmap(page(2 + n), 2 * PAGE_SIZE, if i % 2 == 0 { Prot::READ } else { RW }, FIXED).unwrap();
        mm.mprotect(page(2 + n), PAGE_SIZE, Prot::READ).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|r| r.join().unwrap());
    mm.validate();
}

/// R26: once mprotect(PROT_READ) has returned no store succeeds.
fn forbidden_stores_never_pass<S: LockScheme>() {
    let mm = Arc::new(soft::<S>(4));
    mm.mmap(page(0), 2 * PAGE_SIZE, RW, FIXED).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writer = {
        let (mm, stop, written) = (mm.clone(), stop.clone(), written.clone());
        std::thread::spawn(move || {
            let mut value = 0;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                if store(&mm, page(0) + VALUE, value).is_ok() {
                    written.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    for i in 0..rounds() / 10 {
        let locked = if i % 2 == 0 { Prot::READ } else { Prot::NONE };
        mm.mprotect(page(0), PAGE_SIZE, locked).unwrap();
        if locked == Prot::READ {
            let first = load(&mm, page(0) + VALUE).unwrap();
            std::thread::yield_now();
            assert_eq!(load(&mm, page(0) + VALUE), Ok(first), "a store passed");
        }
        mm.mprotect(page(0), PAGE_SIZE, RW).unwrap();
    }
    // It can write now; that it does shows that the test tests something.
    while written.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    mm.validate();
}

/// The seed's cases 1-3 by force: two address spaces free and allocate the
/// same objects at the same addresses while readers fault on them. Every page
/// must say it was filled for the right mm, address and mapping.
fn two_mms_trade_vmas<S: LockScheme>() {
    let mms = [Arc::new(soft::<S>(8)), Arc::new(soft::<S>(8))];
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|me| {
            let (mms, stop) = (mms.clone(), stop.clone());
            std::thread::spawn(move || {
                let (mut n, mut seen) = (me, 0u64);
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let mm = &mms[n % 2];
                    match stamp(mm, page(n / 2 % 4)) {
                        Ok(s) => {
                            assert_eq!((s.mm_id, s.page_addr()), (mm.id(), VirtAddr(page(n / 2 % 4))));
                            seen += 1;
                        }
                        Err(signal) => assert_eq!(signal, Signal::MapErr),
                    }
                }
                seen
            })
        })
        .collect();
    let mutators: Vec<_> = (0..2)
        .map(|me| {
            let mm = mms[me].clone();
            let other = mms[1 - me].clone();
            std::thread::spawn(move || {
                for i in 0..rounds() {
                    let n = (i % 4) as usize;
                    let mm = if i % 3 == 0 { &other } else { &mm };
                    mm.mmap(page(n), PAGE_SIZE, RW, FIXED).unwrap();
                    mm.munmap(page(n), PAGE_SIZE).unwrap();
                }
            })
        })
        .collect();
    mutators.into_iter().for_each(|m| m.join().unwrap());
    stop.store(true, Ordering::Relaxed);
    assert!(readers.into_iter().map(|r| r.join().unwrap()).sum::<u64>() > 0);
    mms.iter().for_each(|mm| mm.validate());
}
