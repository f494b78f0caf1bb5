//! Guards, lazy freeing, presence and moves of anonymous memory, on real
//! faults, with and without UFFDIO_MOVE.

mod common;

use common::{How, Served, State};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::Signal;
use vmalab::mmu::{Mmu, PageAccess};
use vmalab_fault_handler::access::{load_u64, store_u64};

const PAGES: usize = 256;

fn everywhere(test: impl Fn(&Served)) {
    for moves in [true, false] {
        let served = Served::new(PAGES, How::Sigbus);
        if !moves {
            served.map.mmu.forget_move();
        }
        test(&served);
    }
}

fn load(served: &Served, page: usize) -> Result<u64, Signal> {
    // SAFETY: an address of the region.
    unsafe { load_u64(served.map.addr(page)) }
}

fn store(served: &Served, page: usize, value: u64) -> Result<(), Signal> {
    // SAFETY: as above.
    unsafe { store_u64(served.map.addr(page), value) }
}

fn faults(served: &Served, f: impl FnOnce()) -> u64 {
    let before = served.map.faults.load(SeqCst);
    f();
    served.map.faults.load(SeqCst) - before
}

fn populated(served: &Served) -> Vec<usize> {
    let mut found = Vec::new();
    let base = VirtAddr(served.map.addr(0));
    let range = served.map.pages(0, PAGES);
    served.map.mmu.presence(range, &mut |run| found.extend(run.iter_pages().map(|p| (p - base) / PAGE_SIZE)));
    found
}

#[test]
fn guards_survive_a_discard_but_not_a_zap() {
    everywhere(|served| {
        let (map, mmu) = (&served.map, &served.map.mmu);
        map.set(0, PAGES, State::ReadWrite);
        for page in 0..8 {
            store(served, page, 5).unwrap();
        }
        map.write_locked(|| mmu.guard(map.pages(2, 4)));
        assert_eq!((load(served, 2), store(served, 3, 1)), (Err(Signal::MapErr), Err(Signal::MapErr)));
        assert_eq!(mmu.first_guarded(map.pages(0, PAGES)), Some(VirtAddr(map.addr(2))));
        assert_eq!(mmu.first_guarded(map.pages(4, PAGES)), None);
        assert_eq!(populated(served), [0, 1, 4, 5, 6, 7]);
        map.write_locked(|| mmu.discard(map.pages(0, 6)));
        assert_eq!((load(served, 1), load(served, 2), load(served, 4)), (Ok(0), Err(Signal::MapErr), Ok(0)));
        map.write_locked(|| mmu.unguard(map.pages(2, 3)));
        assert_eq!((load(served, 2), load(served, 3)), (Ok(0), Err(Signal::MapErr)));
        map.write_locked(|| mmu.zap(map.pages(0, PAGES)));
        assert!(!mmu.is_guarded(VirtAddr(map.addr(3))) && populated(served).is_empty());
    });
}

#[test]
fn a_move_takes_present_pages_without_a_fault() {
    everywhere(|served| {
        let (map, mmu) = (&served.map, &served.map.mmu);
        map.set(0, PAGES, State::ReadWrite);
        for page in [0, 1, 2, 5, 6, 20] {
            store(served, page, page as u64 + 100).unwrap();
        }
        // A zero page that was only read moves too.
        assert_eq!(load(served, 8), Ok(0));
        map.write_locked(|| mmu.move_range(map.pages(0, 32), VirtAddr(map.addr(100)), PageAccess::ReadWrite).unwrap());
        assert_eq!(populated(served), [100, 101, 102, 105, 106, 108, 120]);
        assert_eq!(mmu.hidden_pages(), 0);
        let count = faults(served, || {
            for page in [0, 1, 2, 5, 6, 20] {
                assert_eq!(load(served, page + 100), Ok(page as u64 + 100));
                store(served, page + 100, 1).unwrap();
            }
            assert_eq!(load(served, 108), Ok(0));
        });
        assert_eq!(count, 0, "pages were not there, or not writable");
        store(served, 108, 4).unwrap();
        assert_eq!((load(served, 108), load(served, 0), load(served, 8)), (Ok(4), Ok(0), Ok(0)));
    });
}

#[test]
fn a_move_under_protection_lets_no_store_pass() {
    everywhere(|served| {
        let (map, mmu) = (&served.map, &served.map.mmu);
        for access in [PageAccess::Read, PageAccess::None] {
            map.set(0, 8, State::ReadWrite);
            for page in 0..4 {
                store(served, page, page as u64 + 1).unwrap();
            }
            map.set(2, 3, State::None);
            map.set(100, 108, if access == PageAccess::Read { State::Read } else { State::None });
            map.write_locked(|| mmu.move_range(map.pages(0, 8), VirtAddr(map.addr(100)), access).unwrap());
            assert_eq!(mmu.hidden_pages(), 4);
            assert_eq!(populated(served), [100, 101, 102, 103]);
            assert_eq!(store(served, 100, 9), Err(Signal::AccErr));
            map.set(100, 108, State::Read);
            for page in 0..4 {
                assert_eq!(load(served, 100 + page), Ok(page as u64 + 1));
                assert_eq!(store(served, 100 + page, 9), Err(Signal::AccErr));
            }
            assert_eq!(mmu.hidden_pages(), 0);
            map.set(100, 108, State::ReadWrite);
            store(served, 100, 9).unwrap();
            assert_eq!(load(served, 100), Ok(9));
            map.set(0, PAGES, State::Unmapped);
            assert!(populated(served).is_empty());
        }
    });
}

#[test]
fn marks_move_along() {
    everywhere(|served| {
        let (map, mmu) = (&served.map, &served.map.mmu);
        map.set(0, PAGES, State::ReadWrite);
        for page in 0..8 {
            store(served, page, page as u64 + 1).unwrap();
        }
        map.write_locked(|| {
            mmu.guard(map.pages(3, 4));
            mmu.lazy_free(map.pages(1, 3));
            mmu.move_range(map.pages(0, 8), VirtAddr(map.addr(70)), PageAccess::ReadWrite).unwrap();
        });
        assert!(mmu.is_guarded(VirtAddr(map.addr(73))) && !mmu.is_guarded(VirtAddr(map.addr(3))));
        // A load does not cancel, a store does.
        assert_eq!(load(served, 71), Ok(2));
        store(served, 72, 30).unwrap();
        map.write_locked(|| mmu.reclaim(map.pages(0, PAGES)));
        assert_eq!((load(served, 70), load(served, 71), load(served, 72)), (Ok(1), Ok(0), Ok(30)));
    });
}

#[test]
fn lazily_freed_pages_go_unless_they_are_stored_to() {
    everywhere(|served| {
        let (map, mmu) = (&served.map, &served.map.mmu);
        map.set(0, PAGES, State::ReadWrite);
        for page in 0..6 {
            store(served, page, 7).unwrap();
        }
        map.set(4, 6, State::None);
        map.write_locked(|| mmu.lazy_free(map.pages(0, 6)));
        map.set(4, 6, State::ReadWrite);
        assert_eq!(load(served, 0), Ok(7));
        // Whatever else permits stores, they are noticed.
        map.set(0, 2, State::Read);
        map.set(0, 2, State::ReadWrite);
        store(served, 1, 8).unwrap();
        assert_eq!(load(served, 4), Ok(7));
        store(served, 4, 8).unwrap();
        assert_eq!(populated(served), [0, 1, 2, 3, 4, 5]);
        map.write_locked(|| mmu.reclaim(map.pages(0, 3)));
        map.write_locked(|| mmu.reclaim(map.pages(4, 6)));
        assert_eq!(populated(served), [1, 3, 4]);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|page| load(served, page)), [0, 8, 0, 7, 8, 0].map(Ok));
    });
}

/// Pages go away and come back under a thread that counts in one of them.
#[test]
fn no_store_is_lost_while_pages_move() {
    everywhere(|served| {
        let (map, mmu) = (&served.map, &served.map.mmu);
        map.set(0, PAGES, State::ReadWrite);
        let (stop, progress) = (AtomicBool::new(false), AtomicU64::new(0));
        // SAFETY: a page of the region, which is mapped to the end.
        let counter = unsafe { &*(map.addr(3) as *const AtomicU64) };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..1000 {
                    let seen = progress.load(SeqCst);
                    // On a busy machine the other thread would not run at all.
                    while round % 4 == 0 && progress.load(SeqCst) == seen {
                        std::thread::yield_now();
                    }
                    let access = if round % 3 == 0 { PageAccess::Read } else { PageAccess::ReadWrite };
                    map.write_locked(|| {
                        mmu.move_range(map.pages(0, 8), VirtAddr(map.addr(128)), access).unwrap();
                        mmu.move_range(map.pages(128, 136), VirtAddr(map.addr(0)), access).unwrap();
                    });
                }
                stop.store(true, SeqCst);
            });
            let mut done = 0;
            while !stop.load(SeqCst) {
                assert_eq!(counter.fetch_add(1, SeqCst), done);
                done += 1;
                progress.store(done, SeqCst);
            }
        });
    });
}

/// A fact of the host that `move_range` relies on to be fast, not to be right.
#[test]
fn the_host_moves_zero_pages() {
    let served = Served::new(PAGES, How::Sigbus);
    let (map, region) = (&served.map, served.map.mmu.region());
    if !served.map.mmu.moves() {
        return;
    }
    map.set(0, PAGES, State::ReadWrite);
    assert_eq!((load(&served, 0), store(&served, 1, 7), load(&served, 2)), (Ok(0), Ok(()), Ok(0)));
    // SAFETY: pages of this test.
    let moved = unsafe { region.uffd().move_pages(VirtAddr(map.addr(64)), VirtAddr(map.addr(0)), 3 * PAGE_SIZE) };
    assert_eq!(moved, Ok(()));
    assert_eq!(populated(&served), [64, 65, 66]);
}
