//! The whole fault path, from the trap to the installed page, allocates and
//! frees nothing: under every lock scheme and delivery that serves real
//! faults, on threads that announced themselves and threads that did not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::Signal;
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, Prot};
use vmalab::pager::AnyPager;
use vmalab_fault_handler::access::{load_u64, store_u64};
use vmalab_fault_handler::{AddressSpace, Delivery};

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

const RW: Prot = Prot::READ.union(Prot::WRITE);
const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS).union(MapFlags::FIXED);

/// Every way through the fault path: first load, first store, store to a
/// page that was protected, hidden pages back, no mapping, no permission.
fn touch_all(start: VirtAddr) -> bool {
    // SAFETY: addresses of the region under test.
    let load = |page: usize| unsafe { load_u64(start.get() + page * PAGE_SIZE) }.map(drop);
    // SAFETY: as above.
    let store = |page: usize| unsafe { store_u64(start.get() + page * PAGE_SIZE + 64, 7) };
    let mut good = true;
    for page in 0..32 {
        good &= load(page).is_ok();
        good &= store(page) == if page < 16 { Ok(()) } else { Err(Signal::AccErr) };
    }
    for page in 32..64 {
        good &= load(page).is_ok() && load(page + 32) == Err(Signal::MapErr);
    }
    good
}

fn check<S: LockScheme>(delivery: Delivery, announced: bool) {
    let space = AddressSpace::<S>::builder()
        .region(128 * PAGE_SIZE)
        .delivery(delivery)
        .pager(AnyPager::Stamped)
        .build()
        .expect("a userfaultfd region");
    let start = space.mm().range().start();
    let mm = space.mm();
    mm.mmap(start.get(), 64 * PAGE_SIZE, RW, FIXED).unwrap();
    // Pages 32..64 have been seen, hidden, and half of them come back read-only.
    for page in 32..64 {
        // SAFETY: mapped just now.
        unsafe { store_u64(start.get() + page * PAGE_SIZE + 64, 7) }.unwrap();
    }
    mm.mprotect(start.get() + 32 * PAGE_SIZE, 32 * PAGE_SIZE, Prot::NONE).unwrap();
    mm.mprotect(start.get() + 32 * PAGE_SIZE, 16 * PAGE_SIZE, Prot::READ).unwrap();
    mm.mprotect(start.get() + 48 * PAGE_SIZE, 16 * PAGE_SIZE, RW).unwrap();
    mm.mprotect(start.get() + 16 * PAGE_SIZE, 16 * PAGE_SIZE, Prot::READ).unwrap();
    let good = std::thread::scope(|scope| {
        let toucher = scope.spawn(|| {
            if announced {
                vmalab::thread::announce();
            }
            CALLS.store(0, SeqCst);
            WATCHING.store(true, SeqCst);
            let good = touch_all(start);
            WATCHING.store(false, SeqCst);
            good
        });
        toucher.join().unwrap()
    });
    let how = format!("{} {delivery:?} announced: {announced}", S::NAME);
    assert!(good, "{how}");
    assert_eq!(CALLS.load(SeqCst), 0, "{how}");
    mm.validate();
}

// One test: the harness itself allocates whenever it starts or reports one.
#[test]
fn the_fault_path_does_not_allocate() {
    for delivery in [Delivery::Sigbus, Delivery::Queue { handlers: 2, polling: false }] {
        for announced in [true, false] {
            check::<TypeSafe>(delivery, announced);
            check::<MmapOnly>(delivery, announced);
            check::<Rcu>(delivery, announced);
            check::<RefCount>(delivery, announced);
        }
    }
    // The watch works: an allocation in between is seen.
    WATCHING.store(true, SeqCst);
    drop(std::hint::black_box(Box::new(1)));
    WATCHING.store(false, SeqCst);
    assert!(CALLS.load(SeqCst) >= 2);
}
