//! Pages of files on real faults: coherent between mappings, behind a store.

mod common;

use common::{How, Served, State};
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use vmalab::addr::PAGE_SIZE;
use vmalab::fault::Signal;
use vmalab::file::{FilePage, Inode, Store};
use vmalab::mmu::Mmu;
use vmalab_fault_handler::access::{load_u64, store_u64};
use vmalab_fault_handler::file::FdStore;

const PAGES: usize = 200;

fn file(bytes: usize) -> Arc<Inode> {
    Inode::new(Box::new(FdStore::memory(bytes as u64).unwrap()), (PAGES * PAGE_SIZE) as u64)
}

fn in_store(inode: &Inode, page: usize) -> u64 {
    let mut bytes = [0; 8];
    inode.store().read_at((page * PAGE_SIZE) as u64, &mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

fn put_in_store(inode: &Inode, page: usize, value: u64) {
    inode.store().write_at((page * PAGE_SIZE) as u64, &value.to_ne_bytes()).unwrap();
}

/// A mapping of the whole file.
fn map(inode: &Arc<Inode>, how: How, moves: bool, shared: bool) -> Served {
    let served = Served::new(PAGES, how);
    if !moves {
        served.map.mmu.forget_move();
    }
    served.map.file.set((inode.clone(), shared)).unwrap();
    served.map.set(0, PAGES, State::ReadWrite);
    served
}

fn everywhere(test: impl Fn(&dyn Fn(&Arc<Inode>, bool) -> Served)) {
    for how in [How::Sigbus, How::Queue(1, false)] {
        for moves in [true, false] {
            test(&|inode, shared| map(inode, how, moves, shared));
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

fn counter(served: &Served, page: usize) -> &AtomicU64 {
    // SAFETY: mapped by the test, to the end.
    unsafe { &*(served.map.addr(page) as *const AtomicU64) }
}

fn populated(served: &Served) -> usize {
    let mut pages = 0;
    served.map.mmu.presence(served.map.pages(0, PAGES), &mut |run| pages += run.pages());
    pages
}

#[test]
fn shared_mappings_see_each_other() {
    everywhere(|map| {
        let inode = file(PAGES * PAGE_SIZE);
        put_in_store(&inode, 0, 5);
        let (a, b) = (map(&inode, true), map(&inode, true));
        assert_eq!((load(&a, 0), load(&b, 0)), (Ok(5), Ok(5)));
        store(&a, 0, 6).unwrap();
        assert_eq!(load(&b, 0), Ok(6));
        store(&b, 0, 7).unwrap();
        store(&b, 1, 8).unwrap();
        assert_eq!((load(&a, 0), load(&a, 1)), (Ok(7), Ok(8)));
        assert_eq!((populated(&a), populated(&b)), (2, 0));
        // Nothing has been written back so far, and what goes is.
        assert_eq!((in_store(&inode, 0), in_store(&inode, 1)), (5, 0));
        a.map.set(0, 1, State::Unmapped);
        assert_eq!((in_store(&inode, 0), in_store(&inode, 1)), (7, 0));
        drop(a);
        assert_eq!((in_store(&inode, 1), load(&b, 0), load(&b, 1)), (8, Ok(7), Ok(8)));
    });
}

#[test]
fn private_mappings_keep_their_stores_to_themselves() {
    everywhere(|map| {
        let inode = file(PAGES * PAGE_SIZE);
        put_in_store(&inode, 0, 5);
        let (private, shared) = (map(&inode, false), map(&inode, true));
        assert_eq!(load(&private, 0), Ok(5));
        store(&shared, 0, 6).unwrap();
        // Not yet a copy: it follows the file.
        assert_eq!(load(&private, 0), Ok(6));
        // From the page that is here, which is dirty; from the store; from another's.
        store(&private, 0, 100).unwrap();
        store(&private, 1, 101).unwrap();
        store(&shared, 2, 7).unwrap();
        store(&private, 2, 102).unwrap();
        assert_eq!([0, 1, 2].map(|page| load(&shared, page)), [Ok(6), Ok(0), Ok(7)]);
        store(&shared, 0, 8).unwrap();
        assert_eq!([0, 1, 2].map(|page| load(&private, page)), [Ok(100), Ok(101), Ok(102)]);
        private.map.set(0, PAGES, State::Read);
        assert_eq!((store(&private, 0, 1), load(&private, 0)), (Err(Signal::AccErr), Ok(100)));
        private.map.set(0, PAGES, State::ReadWrite);
        store(&private, 0, 103).unwrap();
        // Hidden and back: the copies are the mapping's own.
        private.map.set(0, PAGES, State::None);
        private.map.set(0, PAGES, State::ReadWrite);
        assert_eq!((load(&private, 0), load(&private, 3)), (Ok(103), Ok(0)));
        drop(private);
        drop(shared);
        assert_eq!((in_store(&inode, 0), in_store(&inode, 1), in_store(&inode, 2)), (8, 0, 7));
    });
}

#[test]
fn a_file_ends_where_it_ends() {
    everywhere(|map| {
        let inode = file(PAGE_SIZE + 8);
        inode.store().write_at(PAGE_SIZE as u64, &[1; 8]).unwrap();
        let shared = map(&inode, true);
        assert_eq!((load(&shared, 2), store(&shared, 2, 1)), (Err(Signal::Bus), Err(Signal::Bus)));
        // SAFETY: in the last page, behind the end.
        let behind = unsafe { &*((shared.map.addr(1) + 8) as *const AtomicU64) };
        assert_eq!(behind.load(SeqCst), 0);
        behind.store(9, SeqCst);
        drop(shared);
        assert_eq!(inode.store().bytes(), PAGE_SIZE as u64 + 8);
        assert_eq!(in_store(&inode, 1), u64::from_ne_bytes([1; 8]));
    });
}

#[test]
fn what_the_store_is_behind_of_is_written_by_sync_and_a_hole_is_zero_everywhere() {
    everywhere(|map| {
        let inode = file(PAGES * PAGE_SIZE);
        let (a, b) = (map(&inode, true), map(&inode, true));
        for page in 0..70 {
            store(&a, page, 3).unwrap();
        }
        // Dirty pages that have gone elsewhere are written too.
        assert_eq!(load(&b, 1), Ok(3));
        a.map.mmu.sync_file(a.map.pages(0, 69), FilePage { inode: &inode, index: 0 }).unwrap();
        assert_eq!([0, 1, 68, 69].map(|page| in_store(&inode, page)), [3, 3, 3, 0]);
        store(&a, 0, 4).unwrap();
        put_in_store(&inode, 1, 9);
        assert_eq!((in_store(&inode, 0), load(&b, 0), load(&b, 1)), (3, Ok(4), Ok(3)));
        a.map.mmu.punch_file(FilePage { inode: &inode, index: 0 }, 2).unwrap();
        assert_eq!((load(&a, 0), load(&b, 1), load(&a, 2)), (Ok(0), Ok(0), Ok(3)));
        assert_eq!([0, 1, 2].map(|page| in_store(&inode, page)), [0, 0, 3]);
    });
}

/// A fault permits stores before it says that the store is behind, and holds the
/// page's lock meanwhile: a sync waits for what it is about to say.
#[test]
fn a_sync_waits_for_a_fault_that_permits_stores() {
    const LOCK: u64 = 1;
    const DIRTY: u64 = 2;
    everywhere(|map| {
        let inode = file(PAGES * PAGE_SIZE);
        let space = map(&inode, true);
        store(&space, 3, 1).unwrap();
        // As if the fault of that store were still being served, and another
        // thread's store passed.
        let slot = inode.slot(3);
        let done = slot.load(SeqCst);
        assert_eq!(done & (LOCK | DIRTY), DIRTY);
        slot.store(done & !DIRTY | LOCK, SeqCst);
        store(&space, 3, 2).unwrap();
        std::thread::scope(|scope| {
            let sync = || space.map.mmu.sync_file(space.map.pages(0, 8), FilePage { inode: &inode, index: 0 });
            let syncing = scope.spawn(sync);
            std::thread::sleep(std::time::Duration::from_millis(5));
            assert!(!syncing.is_finished(), "the page is locked");
            slot.store(done, SeqCst);
            syncing.join().unwrap().unwrap();
        });
        assert_eq!(in_store(&inode, 3), 2);
    });
}

/// A store whose holes cannot be made.
struct Solid(FdStore);

impl Store for Solid {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.0.write_at(offset, bytes)
    }

    fn punch(&self, _: u64, _: u64) -> Result<(), Errno> {
        Err(Errno::ENOSPC)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.0.sync()
    }
}

#[test]
fn a_hole_that_cannot_be_made_loses_nothing() {
    everywhere(|map| {
        let store_of = FdStore::memory((PAGES * PAGE_SIZE) as u64).unwrap();
        let inode = Inode::new(Box::new(Solid(store_of)), (PAGES * PAGE_SIZE) as u64);
        put_in_store(&inode, 1, 5);
        let (a, b) = (map(&inode, true), map(&inode, true));
        store(&a, 0, 4).unwrap();
        assert_eq!(load(&b, 1), Ok(5));
        assert_eq!(a.map.mmu.punch_file(FilePage { inode: &inode, index: 0 }, 3), Err(Errno::ENOSPC));
        assert_eq!((load(&b, 0), load(&a, 1)), (Ok(4), Ok(5)));
        a.map.mmu.sync_file(a.map.pages(0, 2), FilePage { inode: &inode, index: 0 }).unwrap();
        assert_eq!((in_store(&inode, 0), in_store(&inode, 1)), (4, 5));
    });
}

#[test]
fn a_hole_beyond_what_can_be_mapped_is_where_it_was_asked_for() {
    let inode = Inode::new(Box::new(FdStore::memory(6 * PAGE_SIZE as u64).unwrap()), 2 * PAGE_SIZE as u64);
    (0..6).for_each(|page| put_in_store(&inode, page, 9));
    let space = Served::new(1, How::Sigbus);
    space.map.mmu.punch_file(FilePage { inode: &inode, index: 4 }, 1).unwrap();
    assert_eq!([0, 1, 2, 3, 4, 5].map(|page| in_store(&inode, page)), [9, 9, 9, 9, 0, 9]);
    space.map.mmu.punch_file(FilePage { inode: &inode, index: 1 }, 2).unwrap();
    assert_eq!([0, 1, 2, 3, 4, 5].map(|page| in_store(&inode, page)), [9, 0, 0, 9, 0, 9]);
}

/// Protection changes of a mapping do not let a store pass unnoticed.
#[test]
fn no_store_passes_unnoticed() {
    everywhere(|map| {
        let inode = file(PAGES * PAGE_SIZE);
        let shared = map(&inode, true);
        let private = map(&inode, false);
        assert_eq!(load(&shared, 0), Ok(0));
        assert_eq!(load(&private, 1), Ok(0));
        for served in [&shared, &private] {
            served.map.set(0, PAGES, State::Read);
            served.map.set(0, PAGES, State::ReadWrite);
        }
        store(&shared, 0, 1).unwrap();
        store(&private, 1, 2).unwrap();
        assert_eq!((load(&private, 0), load(&shared, 1)), (Ok(1), Ok(0)));
        drop((shared, private));
        assert_eq!((in_store(&inode, 0), in_store(&inode, 1)), (1, 0));
    });
}

/// Threads count in the same pages through three mappings, while pages are
/// written back, unmapped and hidden, and a fourth mapping comes and goes.
#[test]
fn no_increment_is_lost_between_mappings() {
    const COUNTED: usize = 3;
    everywhere(|map| {
        let inode = file(PAGES * PAGE_SIZE);
        let spaces = [map(&inode, true), map(&inode, true)];
        let watcher = map(&inode, false);
        let stop = AtomicBool::new(false);
        let total: u64 = std::thread::scope(|scope| {
            let counting: Vec<_> = spaces
                .iter()
                .chain(&spaces)
                .map(|served| {
                    scope.spawn(|| {
                        let mut done = 0;
                        while !stop.load(SeqCst) {
                            for page in 0..COUNTED {
                                counter(served, page).fetch_add(1, SeqCst);
                            }
                            done += 1;
                        }
                        done
                    })
                })
                .collect();
            scope.spawn(|| {
                let mut last = [0; COUNTED];
                while !stop.load(SeqCst) {
                    for (page, last) in last.iter_mut().enumerate() {
                        let now = counter(&watcher, page).load(SeqCst);
                        assert!(now >= *last, "an older value was seen: {now} after {last}");
                        *last = now;
                    }
                }
            });
            for round in 0..150 {
                let space = &spaces[round % 2];
                space.map.mmu.sync_file(space.map.pages(0, PAGES), FilePage { inode: &inode, index: 0 }).unwrap();
                if round % 3 == 0 {
                    let visitor = map(&inode, true);
                    store(&visitor, COUNTED, round as u64).unwrap();
                    counter(&visitor, 0).load(SeqCst);
                }
                space.map.write_locked(|| {
                    // As an mremap or a zap of the mapping begins.
                    space.map.mmu.release_file(space.map.pages(0, PAGES), FilePage { inode: &inode, index: 0 });
                    space.map.mmu.zap(space.map.pages(0, PAGES));
                });
            }
            stop.store(true, SeqCst);
            counting.into_iter().map(|t| t.join().unwrap()).sum()
        });
        for page in 0..COUNTED {
            assert_eq!(load(&spaces[0], page), Ok(total));
        }
        drop(spaces);
        drop(watcher);
        assert_eq!([0, 1, 2].map(|page| in_store(&inode, page)), [total; COUNTED]);
    });
}

/// A store of a private mapping never lands in the file, whoever takes the
/// page away or brings it back between the fault and its answer (rule 4 of
/// `cache`).
#[test]
fn a_private_store_never_reaches_the_file() {
    const MINE: u64 = 1 << 40;
    everywhere(|map| {
        let inode = file(PAGES * PAGE_SIZE);
        for _ in 0..4 {
            let (private, shared) = (map(&inode, false), map(&inode, true));
            let turn = AtomicU64::new(0);
            std::thread::scope(|scope| {
                let storing = scope.spawn(|| {
                    for page in 0..PAGES {
                        turn.store(page as u64, SeqCst);
                        load(&private, page).unwrap();
                        counter(&private, page).fetch_or(MINE, SeqCst);
                    }
                    turn.store(u64::MAX, SeqCst);
                });
                for served in [&private, &shared, &shared] {
                    let turn = &turn;
                    scope.spawn(move || {
                        loop {
                            let page = turn.load(SeqCst);
                            if page == u64::MAX {
                                break;
                            }
                            load(served, page as usize).unwrap();
                        }
                    });
                }
                storing.join().unwrap();
            });
            for page in 0..PAGES {
                assert_eq!((load(&private, page), load(&shared, page)), (Ok(MINE), Ok(0)), "page {page}");
            }
        }
    });
}
