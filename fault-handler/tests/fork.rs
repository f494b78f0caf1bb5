//! Copy-on-write between address spaces, on real faults, with and without
//! UFFDIO_MOVE.

mod common;

use common::{How, Served, State};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::lock::TypeSafe;
use vmalab::mm::{MapFlags, Prot};
use vmalab::mmu::{Mmu, PageAccess};
use vmalab_fault_handler::AddressSpace;
use vmalab_fault_handler::access::{load_u64, store_u64};

const PAGES: usize = 256;

fn everywhere(test: impl Fn(&dyn Fn() -> Served)) {
    for how in [How::Sigbus, How::Queue(1, false)] {
        for moves in [true, false] {
            test(&|| {
                let served = Served::new(PAGES, how);
                served.map.set(0, PAGES, State::ReadWrite);
                if !moves {
                    served.map.mmu.forget_move();
                }
                served
            });
        }
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

fn fork(parent: &Served, child: &Served, from: usize, to: usize) {
    parent.map.write_locked(|| {
        let (range, at) = (parent.map.pages(from, to), VirtAddr(child.map.addr(from)));
        parent.map.mmu.fork_range(&child.map.mmu, range, at).unwrap();
    });
}

fn populated(served: &Served) -> usize {
    let mut pages = 0;
    served.map.mmu.presence(served.map.pages(0, PAGES), &mut |run| pages += run.pages());
    pages
}

#[test]
fn neither_sees_what_the_other_stores() {
    everywhere(|new| {
        let (parent, child) = (new(), new());
        for page in 0..8 {
            store(&parent, page, page as u64 + 1).unwrap();
        }
        parent.map.set(6, 8, State::None);
        assert_eq!(load(&parent, 8), Ok(0));
        fork(&parent, &child, 0, 16);
        parent.map.set(6, 8, State::ReadWrite);
        assert_eq!((populated(&parent), populated(&child)), (9, 9));
        assert_eq!(parent.map.mmu.inherited_pages(), 9);
        store(&parent, 0, 100).unwrap();
        store(&child, 1, 200).unwrap();
        assert_eq!((load(&parent, 0), load(&child, 0)), (Ok(100), Ok(1)));
        assert_eq!((load(&parent, 1), load(&child, 1)), (Ok(2), Ok(200)));
        for page in 2..8 {
            assert_eq!((load(&child, page), load(&parent, page)), (Ok(page as u64 + 1), Ok(page as u64 + 1)));
        }
        assert_eq!((load(&child, 8), load(&parent, 8), load(&child, 9)), (Ok(0), Ok(0), Ok(0)));
        assert_eq!((parent.map.mmu.inherited_pages(), child.map.mmu.inherited_pages()), (0, 0));
        store(&child, 2, 7).unwrap();
        assert_eq!(load(&parent, 2), Ok(3));
    });
}

#[test]
fn whoever_goes_first_leaves_the_other_everything() {
    everywhere(|new| {
        for parent_first in [true, false] {
            let (parent, child) = (new(), new());
            for page in 0..64 {
                store(&parent, page, page as u64 + 1).unwrap();
            }
            fork(&parent, &child, 0, 64);
            let (gone, left) = if parent_first { (parent, child) } else { (child, parent) };
            gone.map.set(0, 16, State::Unmapped);
            gone.map.write_locked(|| gone.map.mmu.discard(gone.map.pages(16, 32)));
            assert_eq!((load(&gone, 0), load(&gone, 16)), (Err(Signal::MapErr), Ok(0)));
            drop(gone);
            for page in 0..64 {
                assert_eq!(load(&left, page), Ok(page as u64 + 1));
                store(&left, page, 5).unwrap();
            }
        }
    });
}

#[test]
fn protection_marks_and_moves_hold_for_what_is_inherited() {
    everywhere(|new| {
        let (parent, child, grandchild) = (new(), new(), new());
        for page in 0..6 {
            store(&parent, page, page as u64 + 1).unwrap();
        }
        parent.map.write_locked(|| {
            parent.map.mmu.guard(parent.map.pages(4, 5));
            parent.map.mmu.lazy_free(parent.map.pages(5, 6));
        });
        fork(&parent, &child, 0, 8);
        child.map.write_locked(|| {
            let (range, to) = (child.map.pages(0, 8), VirtAddr(child.map.addr(32)));
            child.map.mmu.move_range(range, to, PageAccess::ReadWrite).unwrap();
        });
        assert_eq!(child.map.mmu.inherited_pages(), 5);
        fork(&child, &grandchild, 0, 64);
        assert_eq!(load(&grandchild, 36), Err(Signal::MapErr));
        child.map.set(32, 40, State::Read);
        assert_eq!((store(&child, 32, 9), load(&child, 32)), (Err(Signal::AccErr), Ok(1)));
        assert_eq!((store(&child, 32, 9), load(&child, 32)), (Err(Signal::AccErr), Ok(1)));
        child.map.set(32, 36, State::None);
        child.map.set(32, 36, State::ReadWrite);
        store(&child, 32, 10).unwrap();
        store(&child, 33, 10).unwrap();
        for (of, at) in [(&parent, 0), (&grandchild, 32)] {
            for page in 0..4 {
                assert_eq!(load(of, at + page), Ok(page as u64 + 1));
            }
            // A load leaves it free to go, in each by itself.
            assert_eq!(load(of, at + 5), Ok(6));
        }
        store(&grandchild, 37, 60).unwrap();
        for of in [&parent, &grandchild] {
            of.map.write_locked(|| of.map.mmu.reclaim(of.map.pages(0, PAGES)));
        }
        assert_eq!((load(&parent, 5), load(&child, 37), load(&grandchild, 37)), (Ok(0), Ok(6), Ok(60)));
    });
}

/// The last who inherits a page gets it without a copy, by whatever thread.
#[test]
fn threads_of_both_store_to_the_same_pages_while_one_unmaps() {
    everywhere(|new| {
        for round in 0..20 {
            let (parent, child) = (new(), new());
            for page in 0..PAGES {
                store(&parent, page, 1000).unwrap();
            }
            fork(&parent, &child, 0, PAGES);
            let start = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (served, start) = (if thread % 2 == 0 { &parent } else { &child }, &start);
                    scope.spawn(move || {
                        while !start.load(SeqCst) {
                            std::hint::spin_loop();
                        }
                        for page in 0..PAGES {
                            // SAFETY: in the parent only the lower half stays mapped.
                            let counter = unsafe { &*(served.map.addr(page) as *const AtomicU64) };
                            if thread % 2 == 1 || page < PAGES / 2 {
                                counter.fetch_add(1, SeqCst);
                            }
                        }
                    });
                }
                start.store(true, SeqCst);
                for page in (PAGES / 2..PAGES).step_by(8) {
                    if round % 2 == 0 {
                        parent.map.set(page, page + 8, State::Unmapped);
                    } else {
                        let to = State::None;
                        parent.map.set(page, page + 8, to);
                    }
                }
            });
            for page in 0..PAGES {
                assert_eq!(load(&child, page), Ok(1002), "child, page {page}");
                if page < PAGES / 2 {
                    assert_eq!(load(&parent, page), Ok(1002), "parent, page {page}");
                }
            }
        }
    });
}

/// Forks again and again while threads of the parent count, so that shared
/// pages are used anew all the time. Each child has a value that the parent had.
#[test]
fn children_come_and_go_under_stores() {
    everywhere(|new| {
        let parent = new();
        let stop = AtomicBool::new(false);
        let counter = |page: usize| {
            // SAFETY: mapped to the end.
            unsafe { &*(parent.map.addr(page) as *const AtomicU64) }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        let mut done = 0;
                        while !stop.load(SeqCst) {
                            for page in 0..16 {
                                counter(page).fetch_add(1, SeqCst);
                            }
                            done += 1;
                        }
                        done
                    })
                })
                .collect();
            let mut last = [0; 16];
            for _ in 0..60 {
                let child = new();
                fork(&parent, &child, 0, 16);
                let other = new();
                fork(&child, &other, 0, 16);
                for (page, last) in last.iter_mut().enumerate() {
                    let found = load(&child, page).unwrap();
                    assert!(found >= *last && found <= counter(page).load(SeqCst));
                    *last = found;
                    store(&child, page, 1 << 40).unwrap();
                    assert_eq!(load(&other, page), Ok(found));
                }
            }
            stop.store(true, SeqCst);
            let done: u64 = threads.into_iter().map(|t| t.join().unwrap()).sum();
            for page in 0..16 {
                assert_eq!(load(&parent, page), Ok(done), "a store was lost, or one of a child was seen");
            }
        });
    });
}

/// The host lets the first store to its zero page pass. One that comes between
/// an operation's look for such stores and its protection of the page leaves no
/// trace but its value; a fork finds it.
#[test]
fn a_store_that_raced_mprotect_is_inherited() {
    const PLAIN: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);
    for access in [PageAccess::Read, PageAccess::None] {
        let parent = AddressSpace::<TypeSafe>::builder().region(PAGES * PAGE_SIZE).build().unwrap();
        let addr = parent.mmap(0, 4 * PAGE_SIZE, Prot::READ | Prot::WRITE, PLAIN).unwrap().get();
        // SAFETY: addresses of the region, here and below.
        unsafe {
            assert_eq!((load_u64(addr), load_u64(addr + PAGE_SIZE)), (Ok(0), Ok(0)));
            store_u64(addr, 7).unwrap();
        }
        // As if the store had passed when mprotect had looked already.
        let page = PageRange::sized(VirtAddr(addr), PAGE_SIZE);
        parent.mmu().protect(page, PageAccess::ReadWrite, access).unwrap();
        let prot = if access == PageAccess::None { Prot::NONE } else { Prot::READ };
        parent.mprotect(addr, PAGE_SIZE, prot).unwrap();
        let child = parent.fork().unwrap();
        let there = child.range().start().get() + (addr - parent.range().start().get());
        for (space, at) in [(&child, there), (&parent, addr)] {
            space.mprotect(at, PAGE_SIZE, Prot::READ).unwrap();
            // SAFETY: as above.
            assert_eq!(unsafe { load_u64(at) }, Ok(7), "{access:?}");
        }
        child.validate();
        parent.validate();
    }
}

#[test]
fn memory_that_was_only_read_is_not_inherited() {
    const PLAIN: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);
    for prot in [Prot::READ, Prot::READ | Prot::WRITE] {
        let parent = AddressSpace::<TypeSafe>::builder().region(PAGES * PAGE_SIZE).build().unwrap();
        let addr = parent.mmap(0, 2 * PAGE_SIZE, prot, PLAIN).unwrap().get();
        // SAFETY: an address of the region.
        assert_eq!(unsafe { load_u64(addr) }, Ok(0));
        let child = parent.fork().unwrap();
        assert!(!parent.populated(parent.range()).is_empty() && child.populated(child.range()).is_empty());
    }
}
