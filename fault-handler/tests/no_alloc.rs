//! The fault path does not allocate, in any delivery.

mod common;

use common::{How, Served, State};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use vmalab::addr::VirtAddr;
use vmalab::fault::Signal;
use vmalab::file::Inode;
use vmalab::mmu::Mmu;
use vmalab_fault_handler::access::{load_u64, store_u64};
use vmalab_fault_handler::file::FdStore;

struct Counting;

static WATCHING: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU64 = AtomicU64::new(0);

fn note() {
    if WATCHING.load(SeqCst) {
        CALLS.fetch_add(1, SeqCst);
    }
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// One test: the harness itself allocates whenever it starts or reports one.
#[test]
fn faults_do_not_allocate() {
    for how in [How::Sigbus, How::Queue(1, false), How::Queue(2, false)] {
        let served = Served::new(64, how);
        served.map.set(0, 16, State::ReadWrite);
        served.map.set(16, 32, State::Read);
        served.map.set(32, 48, State::ReadWrite);
        let touch = |page: usize, write: bool| {
            let addr = served.map.addr(page);
            // SAFETY: addresses of our own region.
            unsafe { if write { store_u64(addr, 1) } else { load_u64(addr).map(drop) } }
        };
        for page in 32..48 {
            touch(page, true).unwrap();
        }
        served.map.set(32, 40, State::None);
        served.map.set(40, 48, State::None);
        served.map.set(32, 40, State::Read);
        served.map.set(40, 48, State::ReadWrite);
        CALLS.store(0, SeqCst);
        WATCHING.store(true, SeqCst);
        let mut good = true;
        for page in 0..48 {
            good &= touch(page, false).is_ok();
            good &= touch(page, true) == if (16..40).contains(&page) { Err(Signal::AccErr) } else { Ok(()) };
        }
        for page in 48..64 {
            good &= touch(page, true) == Err(Signal::MapErr);
        }
        WATCHING.store(false, SeqCst);
        assert!(good);
        assert_eq!(CALLS.load(SeqCst), 0, "{how:?}");
        shared_contents(how);
    }
}

/// The same for pages inherited by a fork, and for pages of files.
fn shared_contents(how: How) {
    let [parent, child, shared, other, private] = [(); 5].map(|()| Served::new(16, how));
    let inode = Inode::new(Box::new(FdStore::memory(16 << 12).unwrap()), 16 << 12);
    for (served, is_shared) in [(&shared, true), (&other, true), (&private, false)] {
        served.map.file.set((inode.clone(), is_shared)).unwrap();
    }
    for served in [&parent, &child, &shared, &other, &private] {
        served.map.set(0, 16, State::ReadWrite);
    }
    // SAFETY: addresses of our own regions.
    let touch = |served: &Served, page| unsafe {
        load_u64(served.map.addr(page)).is_ok() && store_u64(served.map.addr(page), 1).is_ok()
    };
    assert!((0..16).all(|page| touch(&parent, page)));
    parent.map.write_locked(|| {
        let to = VirtAddr(child.map.addr(0));
        parent.map.mmu.fork_range(&child.map.mmu, parent.map.pages(0, 16), to).unwrap();
    });
    CALLS.store(0, SeqCst);
    WATCHING.store(true, SeqCst);
    let good = [&parent, &child, &shared, &other, &shared, &private]
        .iter()
        .all(|served| (0..16).all(|page| touch(served, page)));
    WATCHING.store(false, SeqCst);
    assert!(good);
    assert_eq!(CALLS.load(SeqCst), 0, "{how:?}");
}
