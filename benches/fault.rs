//! What a whole fault costs, from the trap to the instruction's end, beside
//! the bare mechanism: a signal handler that does nothing but one ioctl. And
//! what mmap and munmap cost beside the host's own.
//!
//! `cargo bench --bench fault [-- FILTER]`. The rows and how they are taken: see
//! `common`. Everything runs beside an idle second thread, as in any program
//! that has a use for per-VMA locks: system calls cost more there.

#[allow(dead_code)] // what only the other bench needs
mod common;

use common::{Crew, Goal, Rows, Work};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmalab::addr::{PAGE_SIZE, PageRange};
use vmalab::lock::{LockScheme, MmapOnly, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, Prot};
use vmalab::mmu::Mmu;
use vmalab::stats::{Counter, Snapshot};
use vmalab_fault_handler::AddressSpace;
use vmalab_fault_handler::access::{load_u64, store_u64};
use vmalab_limits::bench::{BareFaults, BareMemory, Install, NativeFaults, Touch, bare_handler};

/// Pages of one pass: they are made absent again, untimed.
const PAGES: usize = 512;
const BYTES: usize = PAGES * PAGE_SIZE;
const FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);
const RW: Prot = Prot::READ.union(Prot::WRITE);

/// The floor: threads that fault, each in memory of its own, and a handler that does one ioctl.
fn bare(threads: usize, install: Install, touch: Touch) -> Work<'static> {
    let make = move |_| BareMemory::new(1, install).expect("a userfaultfd").faults(0, touch);
    with_handler(Crew::new(threads, move |worker| faulting(make(worker))))
}

/// The same with one mapping of the host's for all threads, as an address space has.
fn bare_together(threads: usize, install: Install, touch: Touch) -> Work<'static> {
    let memory = BareMemory::new(threads, install).expect("a userfaultfd");
    with_handler(Crew::new(threads, move |worker| faulting(memory.faults(worker, touch))))
}

fn faulting(mut faults: BareFaults) -> impl FnMut(u64) -> Duration {
    move |n| faults.run(n).expect("the floor")
}

fn with_handler(mut crew: Crew) -> Work<'static> {
    Box::new(move |n| {
        let _handler = bare_handler().expect("SIGBUS is ours");
        crew.run(n)
    })
}

/// An address space with a tree to walk.
fn space<S: LockScheme>(ready_pages: usize) -> Arc<AddressSpace<S>> {
    let space = AddressSpace::builder().region(1 << 30).ready_pages(ready_pages).build().expect("a userfaultfd region");
    for i in 0..1_000 {
        space.mmap(space.range().start().get() + 2 * i * PAGE_SIZE, PAGE_SIZE, Prot::READ, FLAGS).unwrap();
    }
    Arc::new(space)
}

/// Threads that fault, each in a VMA of its own. `ready`: so many ready pages are waited for before a pass.
fn whole<S: LockScheme>(threads: usize, space: &Arc<AddressSpace<S>>, how: Touch, ready: usize) -> Work<'static> {
    let space = space.clone();
    Crew::new(threads, move |_| {
        let space = space.clone();
        // Neighbours with other rights, or two threads' mappings would merge.
        let around = space.mmap(0, BYTES + 2 * PAGE_SIZE, Prot::NONE, FLAGS).unwrap();
        let start = around + PAGE_SIZE;
        space.mprotect(start.get(), BYTES, RW).unwrap();
        let range = PageRange::sized(start, BYTES);
        move |faults| {
            let (mut took, mut left) = (Duration::ZERO, faults as usize);
            while left > 0 {
                let now = left.min(PAGES);
                while space.mmu().ready_pages() < ready {
                    std::thread::yield_now();
                }
                let begin = Instant::now();
                for page in range.iter_pages().take(now) {
                    match how {
                        // SAFETY: a page of a mapping that this thread alone uses.
                        Touch::Store => unsafe { store_u64(page.get(), 1) }.unwrap(),
                        // SAFETY: as above.
                        Touch::Load => drop(unsafe { load_u64(page.get()) }.unwrap()),
                    }
                }
                took += begin.elapsed();
                left -= now;
                space.mmu().zap(range);
            }
            took
        }
    })
    .work()
}

fn faults(rows: &mut Rows) {
    let typesafe = space::<TypeSafe>(0);
    let (refcount, mmap) = (space::<RefCount>(0), space::<MmapOnly>(0));
    for threads in [1, 2] {
        let mut row = |what, install, touch, goal| {
            let name = |lock| format!("whole {what} fault, {threads} threads/{lock}");
            let floor = || ("bare SIGBUS + ioctl", bare(threads, install, touch));
            rows.beside(&name("typesafe"), goal, ("typesafe", whole(threads, &typesafe, touch, 0)), floor());
            rows.beside(&name("refcount"), goal, ("refcount", whole(threads, &refcount, touch, 0)), floor());
            rows.beside(&name("mmap"), Goal::None, ("mmap", whole(threads, &mmap, touch, 0)), floor());
        };
        row("write", Install::Copy, Touch::Store, Goal::AtMost(1.03));
        row("read", Install::ZeroPage, Touch::Load, Goal::AtMost(1.04));
    }
    // How much of that is the host's: two threads share its mapping and its userfaultfd.
    for (what, install, touch) in [("write", Install::Copy, Touch::Store), ("read", Install::ZeroPage, Touch::Load)] {
        let together = || ("bare, one host mapping for both", bare_together(2, install, touch));
        let apart = ("bare, a host mapping for each", bare(2, install, touch));
        rows.beside(&format!("bare {what} fault, 2 threads in one host mapping"), Goal::None, together(), apart);
        let ours = ("typesafe", whole(2, &typesafe, touch, 0));
        rows.beside(
            &format!("whole {what} fault, 2 threads/typesafe, against one host mapping"),
            Goal::None,
            ours,
            together(),
        );
    }
    let name = "two threads' faults in different VMAs, scaling against the floor's";
    if rows.wants(name) {
        let touch = Touch::Store;
        let [mut floor, mut ours] = [
            [1, 2].map(|threads| bare(threads, Install::Copy, touch)),
            [1, 2].map(|threads| whole(threads, &typesafe, touch, 0)),
        ];
        rows.values(name, "times the floor's", Goal::AtLeast(0.97), "typesafe, stores", |rounds| {
            let scaling = |[one, two]: &mut [Work<'static>; 2]| {
                let faults = PAGES as u64;
                one(faults).as_secs_f64() / two(faults).as_secs_f64()
            };
            (0..rounds).map(|_| scaling(&mut ours) / scaling(&mut floor)).collect()
        });
    }
}

/// A mapping touched in order, against the host's own anonymous memory.
fn first_touch(rows: &mut Rows) {
    const READY: usize = 4 * PAGES;
    for (what, touch, ready, goal) in [
        ("read", Touch::Load, 0, 0.55),
        ("write by COPY", Touch::Store, 0, 0.85),
        ("write from ready pages", Touch::Store, READY, 0.5),
    ] {
        let name = format!("first touch in order, fault-around 16, {what}");
        if rows.wants(&name) {
            let space = space::<TypeSafe>(ready);
            space.set_fault_around(16);
            let mut native = NativeFaults::new(touch).expect("memory");
            rows.beside(
                &name,
                Goal::AtMost(goal),
                ("typesafe", whole(1, &space, touch, ready)),
                ("host", Box::new(move |n| native.run(n).expect("memory"))),
            );
        }
    }
}

/// mmap and munmap of memory that nobody touches.
fn map_unmap(rows: &mut Rows) {
    fn emulated(threads: usize, space: &Arc<AddressSpace<TypeSafe>>, bytes: usize) -> Work<'static> {
        let space = space.clone();
        Crew::new(threads, move |_| {
            let space = space.clone();
            move |n| {
                let begin = Instant::now();
                for _ in 0..n {
                    let addr = space.mmap(0, bytes, RW, FLAGS).unwrap();
                    space.munmap(addr.get(), bytes).unwrap();
                }
                begin.elapsed()
            }
        })
        .work()
    }
    fn native(threads: usize, bytes: usize) -> Work<'static> {
        Crew::new(threads, move |_| {
            move |n| {
                let begin = Instant::now();
                for _ in 0..n {
                    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                    // SAFETY: a new mapping where the kernel likes, and its end.
                    unsafe {
                        let base = libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0);
                        assert_ne!(base, libc::MAP_FAILED);
                        assert_eq!(libc::munmap(base, bytes), 0);
                    }
                }
                begin.elapsed()
            }
        })
        .work()
    }
    let space = space::<TypeSafe>(0);
    // 128 MiB as in will-it-scale's mmap1; and what it is for a single page.
    for (what, bytes, goals) in
        [("128 MiB", 128 << 20, [Goal::AtMost(0.3), Goal::AtMost(0.2)]), ("one page", PAGE_SIZE, [Goal::None; 2])]
    {
        for (threads, goal) in [1, 2].into_iter().zip(goals) {
            let name = format!("mmap + munmap of {what} without touch, {threads} threads");
            let (emulated, native) = (("typesafe", emulated(threads, &space, bytes)), ("host", native(threads, bytes)));
            rows.beside(&name, goal, emulated, native);
        }
    }
    let name = "host calls of an mmap + munmap without touch";
    rows.values(name, "calls", Goal::AtMost(0.0), "typesafe", |rounds| {
        let calls = || {
            const HOST: [Counter; 6] = [
                Counter::HostMmap,
                Counter::HostMunmap,
                Counter::HostMprotect,
                Counter::HostMremap,
                Counter::HostMadvise,
                Counter::HostUffd,
            ];
            let now = Snapshot::take();
            HOST.iter().map(|&counter| now.get(counter)).sum::<u64>()
        };
        let one = || {
            let before = calls();
            let addr = space.mmap(0, 64 * PAGE_SIZE, RW, FLAGS).unwrap();
            space.munmap(addr.get(), 64 * PAGE_SIZE).unwrap();
            (calls() - before) as f64
        };
        (0..rounds).map(|_| one()).collect()
    });
}

fn main() {
    let mut rows = Rows::from_args();
    std::thread::spawn(std::thread::park);
    vmalab::thread::announce();
    faults(&mut rows);
    first_touch(&mut rows);
    map_unmap(&mut rows);
    rows.finish();
}
