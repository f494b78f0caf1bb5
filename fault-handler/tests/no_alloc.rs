//! The fault path does not allocate, in any delivery.

mod common;

use common::{How, Served, State};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use vmalab::fault::Signal;
use vmalab_fault_handler::access::{load_u64, store_u64};

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
    }
}
