//! Address spaces on real page faults: what the core promises, seen through
//! the hardware, under each lock scheme and delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, Prot};
use vmalab::pager::{AnyPager, Stamp};
use vmalab::stats::{Counter, Snapshot};
use vmalab_fault_handler::access::{load_u64, store_u64};
use vmalab_fault_handler::{AddressSpace, Delivery};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS).union(MapFlags::FIXED);
const VALUE: usize = 64;

fn space<S: LockScheme>(delivery: Delivery) -> AddressSpace<S> {
    let builder = AddressSpace::<S>::builder().region(1024 * PAGE_SIZE).delivery(delivery);
    builder.pager(AnyPager::Stamped).build().expect("a userfaultfd region")
}

fn load(addr: usize) -> Result<u64, Signal> {
    // SAFETY: tests pass addresses of regions that live as long as they run.
    unsafe { load_u64(addr) }
}

fn store(addr: usize, value: u64) -> Result<(), Signal> {
    // SAFETY: as above.
    unsafe { store_u64(addr, value) }
}

fn stamp<S: LockScheme>(space: &AddressSpace<S>, addr: usize) -> Stamp {
    let mut bytes = [0; 24];
    space.mm().read(VirtAddr(addr), &mut bytes).unwrap();
    Stamp::from_bytes(&bytes)
}

macro_rules! for_each_delivery {
    ($($test:ident),* $(,)?) => {
        mod sigbus {
            $(#[test] fn $test() {
                super::$test::<super::TypeSafe>(super::Delivery::Sigbus);
                super::$test::<super::MmapOnly>(super::Delivery::Sigbus);
                super::$test::<super::Rcu>(super::Delivery::Sigbus);
                super::$test::<super::RefCount>(super::Delivery::Sigbus);
            })*
        }
        mod queue {
            $(#[test] fn $test() {
                super::$test::<super::TypeSafe>(super::Delivery::Queue { handlers: 2, polling: false });
                super::$test::<super::MmapOnly>(super::Delivery::Queue { handlers: 1, polling: false });
                super::$test::<super::Rcu>(super::Delivery::Queue { handlers: 1, polling: false });
                super::$test::<super::RefCount>(super::Delivery::Queue { handlers: 2, polling: false });
            })*
        }
    };
}

for_each_delivery!(
    contents_and_signals,
    host_mappings_stay_however_many_of_ours,
    a_fixed_range_never_faults,
    forbidden_stores_never_pass,
    many_short_threads,
    what_was_never_touched_costs_no_host_call,
);

fn contents_and_signals<S: LockScheme>(delivery: Delivery) {
    let space = space::<S>(delivery);
    let mm = space.mm();
    let page = |n: usize| mm.range().start().get() + n * PAGE_SIZE;
    assert_eq!(load(page(3)), Err(Signal::MapErr));
    let first = mm.map(page(2), 4 * PAGE_SIZE, RW, FIXED).unwrap();
    store(page(3) + VALUE, 42).unwrap();
    let seen = stamp(&space, page(3));
    assert_eq!((seen.page_addr(), seen.mm_id), (VirtAddr(page(3)), mm.id()));
    assert!(seen.incarnation >= first.incarnation);
    for prot in [Prot::READ, Prot::NONE, Prot::READ, RW, Prot::NONE, RW] {
        mm.mprotect(page(3), PAGE_SIZE, prot).unwrap();
        let (loads, stores) = match prot {
            RW => (Ok(42), Ok(())),
            Prot::READ => (Ok(42), Err(Signal::AccErr)),
            _ => (Err(Signal::AccErr), Err(Signal::AccErr)),
        };
        assert_eq!(load(page(3) + VALUE), loads, "{prot:?}");
        assert_eq!(store(page(3) + VALUE, 42), stores, "{prot:?}");
    }
    // Read first, then made read-only: the zero page must not let a store pass.
    load(page(4) + VALUE).unwrap();
    mm.mprotect(page(4), PAGE_SIZE, Prot::READ).unwrap();
    assert_eq!(store(page(4) + VALUE, 1), Err(Signal::AccErr));
    let second = mm.map(page(3), PAGE_SIZE, RW, FIXED).unwrap();
    assert_eq!(load(page(3) + VALUE), Ok(0), "replaced");
    assert!(stamp(&space, page(3)).incarnation >= second.incarnation);
    mm.munmap(page(2), 4 * PAGE_SIZE).unwrap();
    for n in 2..6 {
        assert_eq!(load(page(n)), Err(Signal::MapErr));
    }
    mm.validate();
}

/// Lines of /proc/self/maps that overlap the region.
fn host_mappings(region: PageRange) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let inside = |line: &&str| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let hex = |s| usize::from_str_radix(s, 16).unwrap();
        hex(start) < region.end().get() && region.start().get() < hex(end)
    };
    maps.lines().filter(inside).map(str::to_owned).collect()
}

fn host_mappings_stay_however_many_of_ours<S: LockScheme>(delivery: Delivery) {
    let space = space::<S>(delivery);
    let mm = space.mm();
    let before = host_mappings(mm.range());
    // One, or a stripe for each 2 MiB.
    let stripes = mm.range().bytes().div_ceil(2 << 20) + 1;
    assert!((1..=stripes).contains(&before.len()), "{before:#?}");
    let counted = Snapshot::take();
    for n in 0..256 {
        let addr = mm.range().start().get() + 4 * n * PAGE_SIZE;
        mm.mmap(addr, 2 * PAGE_SIZE, RW, FIXED).unwrap();
        store(addr, 1).unwrap();
        mm.mprotect(addr, PAGE_SIZE, if n % 2 == 0 { Prot::READ } else { Prot::NONE }).unwrap();
    }
    assert_eq!(mm.map_count(), 512);
    // The host's own view, and our count of what we asked of it.
    assert_eq!(host_mappings(mm.range()), before);
    let counted = Snapshot::take().since(&counted);
    for call in [Counter::HostMmap, Counter::HostMunmap, Counter::HostMprotect, Counter::HostMremap] {
        assert_eq!(counted.get(call), 0, "{call:?}");
    }
    mm.munmap(mm.range().start().get(), mm.range().bytes()).unwrap();
    assert_eq!((mm.map_count(), host_mappings(mm.range())), (0, before));
}

fn a_fixed_range_never_faults<S: LockScheme>(delivery: Delivery) {
    let space = Arc::new(space::<S>(delivery));
    let page = space.mm().range().start().get();
    space.mm().mmap(page, 8 * PAGE_SIZE, RW, FIXED).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for me in 0..2 {
            let stop = &stop;
            scope.spawn(move || {
                let mut n = me;
                while !stop.load(Ordering::Relaxed) {
                    n = (n + 1) % 8;
                    load(page + n * PAGE_SIZE).expect("mapped before, during and after");
                }
            });
        }
        for i in 0..2_000usize {
            let prot = if i % 2 == 0 { Prot::READ } else { RW };
            space.mm().mmap(page + i % 6 * PAGE_SIZE, 2 * PAGE_SIZE, prot, FIXED).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    space.mm().validate();
}

fn forbidden_stores_never_pass<S: LockScheme>(delivery: Delivery) {
    let space = space::<S>(delivery);
    let page = space.mm().range().start().get();
    space.mm().mmap(page, PAGE_SIZE, RW, FIXED).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let mut value = 0;
            while !stop.load(Ordering::Relaxed) {
                value += 1;
                let _ = store(page + VALUE, value);
            }
        });
        for i in 0..1_000 {
            space.mm().mprotect(page, PAGE_SIZE, Prot::READ).unwrap();
            let first = load(page + VALUE).unwrap();
            std::thread::yield_now();
            assert_eq!(load(page + VALUE), Ok(first), "a store passed in round {i}");
            if i % 3 == 0 {
                space.mm().mprotect(page, PAGE_SIZE, Prot::NONE).unwrap();
            }
            space.mm().mprotect(page, PAGE_SIZE, RW).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    space.mm().validate();
}

/// Not even where it was one VMA with a neighbour that has pages.
fn what_was_never_touched_costs_no_host_call<S: LockScheme>(delivery: Delivery) {
    const PART: usize = 64 * PAGE_SIZE;
    let space = space::<S>(delivery);
    let at = space.range().start().get() + PART;
    space.mmap(at, PART, RW, FIXED).unwrap();
    store(at + VALUE, 1).unwrap();
    vmalab::thread::announce();
    let calls = || {
        let of = |counter| vmalab::stats::of_this_thread(counter).unwrap();
        of(Counter::HostMadvise) + of(Counter::HostUffd)
    };
    space.mmap(at + PART, PART, RW, FIXED).unwrap();
    assert_eq!(space.map_count(), 1);
    let before = calls();
    space.munmap(at + PART, PART).unwrap();
    assert_eq!(calls(), before, "munmap");
    space.mmap(at + PART, PART, RW, FIXED).unwrap();
    space.mprotect(at + PART, PART, Prot::READ).unwrap();
    assert_eq!(calls(), before, "mprotect");
    space.munmap(at, 2 * PART).unwrap();
    assert!(calls() > before, "the page that was touched");
    space.validate();
}

/// 10 000 threads over the life of the process, each faulting, half of them
/// announced: no slot, object or page is lost.
fn many_short_threads<S: LockScheme>(delivery: Delivery) {
    let space = space::<S>(delivery);
    let mm = space.mm();
    let start = mm.range().start().get();
    let threads = if matches!(delivery, Delivery::Sigbus) { 5_000 } else { 500 };
    for round in 0..threads / 4 {
        std::thread::scope(|scope| {
            for me in 0..4 {
                scope.spawn(move || {
                    let addr = start + me * 4 * PAGE_SIZE;
                    if me % 2 == 0 {
                        mm.mmap(addr, PAGE_SIZE, RW, FIXED).unwrap();
                        store(addr + VALUE, round as u64).unwrap();
                        mm.munmap(addr, PAGE_SIZE).unwrap();
                    } else {
                        assert_eq!(load(addr), Err(Signal::MapErr));
                    }
                });
            }
        });
    }
    mm.validate();
    assert!(vmalab::thread::announced() < 100);
}

/// A system call that stores a byte at `addr`.
fn fill(addr: usize) -> Result<usize, vmalab::Errno> {
    let zero = std::fs::File::open("/dev/zero").unwrap();
    // SAFETY: the kernel writes into a region of this test, or fails.
    vmalab::Errno::result(unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&zero), addr as *mut _, 1) })
        .map(|n| n as usize)
}

/// What refused a system call's access goes with the mapping that it was in.
fn a_refused_system_call_leaves_no_trace<S: LockScheme>() {
    const PART: usize = 64 * PAGE_SIZE;
    let delivery = Delivery::Queue { handlers: 1, polling: false };
    let builder = AddressSpace::<S>::builder().region(1024 * PAGE_SIZE).delivery(delivery).kernel_faults(true);
    let Ok(space) = builder.build() else {
        return eprintln!("skipped: no right to serve faults inside system calls");
    };
    let at = space.range().start().get();
    space.mmap(at, PART, RW, FIXED).unwrap();
    store(at, 1).unwrap();
    space.mprotect(at, PART, Prot::NONE).unwrap();
    let far = at + PART - PAGE_SIZE;
    assert_eq!(fill(far), Err(vmalab::Errno::EFAULT));
    space.validate();
    space.munmap(at, PART).unwrap();
    space.mmap(at, PART, RW, FIXED).unwrap();
    assert_eq!((fill(far), fill(at)), (Ok(1), Ok(1)));
    space.validate();
}

#[test]
fn refused_system_calls() {
    a_refused_system_call_leaves_no_trace::<TypeSafe>();
    a_refused_system_call_leaves_no_trace::<MmapOnly>();
    a_refused_system_call_leaves_no_trace::<Rcu>();
    a_refused_system_call_leaves_no_trace::<RefCount>();
}
