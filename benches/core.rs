//! What the core costs without a fault: looking up, locking, mapping, and a
//! fault over the software `Mmu`.
//!
//! `cargo bench --bench core [-- FILTER]`. The rows and how they are taken: see
//! `common`. Compare figures of one run only: the machine's own speed wanders.

mod common;

use common::{Crew, Goal, Rows, Work, repeat};
use crossbeam_skiplist::SkipMap;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::{Access, ServeFault};
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, Mm, Prot};
use vmalab::mmu::Mmu;
use vmalab::mmu::soft::{BASE, SoftMmu};
use vmalab::pager::ZeroPager;
use vmalab::tree::{Entry, Reclaim, VmaTree};

const RW: Prot = Prot::READ.union(Prot::WRITE);
const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS).union(MapFlags::FIXED);

type Soft<S> = Mm<S, SoftMmu, ZeroPager>;

/// An address space with `n` mappings of one page, a page apart.
fn with_vmas<S: LockScheme>(n: usize) -> Soft<S> {
    vmalab::thread::announce();
    let mm = Mm::new(SoftMmu::new((2 * n + 4096) * PAGE_SIZE).unwrap(), ZeroPager);
    mm.set_max_map_count(usize::MAX);
    for i in 0..n {
        mm.mmap(nth(i).get(), PAGE_SIZE, RW, FIXED).unwrap();
    }
    mm
}

fn nth(i: usize) -> VirtAddr {
    BASE + 2 * i * PAGE_SIZE
}

/// Addresses in no order that a prefetcher knows, the same in every run.
fn probes(n: usize, worker: usize) -> Vec<VirtAddr> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 + worker as u64;
    (0..1 << 16)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            nth(state as usize % n) + 123
        })
        .collect()
}

/// A crew whose threads look random addresses up, each its own.
fn look_up<M: Send + Sync + 'static>(threads: usize, n: usize, map: &Arc<M>, look: fn(&M, VirtAddr)) -> Work<'static> {
    let map = map.clone();
    Crew::new(threads, move |worker| {
        let (map, probes, mut i) = (map.clone(), probes(n, worker), 0);
        move |operations| {
            let begin = Instant::now();
            for _ in 0..operations {
                i = (i + 1) % probes.len();
                look(&map, black_box(probes[i]));
            }
            begin.elapsed()
        }
    })
    .work()
}

fn lookup(rows: &mut Rows) {
    if !rows.wants("lookup") {
        return;
    }
    type Map = RwLock<BTreeMap<usize, usize>>;
    let tree = |mm: &Soft<TypeSafe>, addr: VirtAddr| assert!(mm.is_mapped(addr));
    let btree = |map: &Map, addr: VirtAddr| {
        let map = map.read().unwrap();
        assert!(map.range(..=addr.get()).next_back().is_some_and(|(_, &end)| addr.get() < end));
    };
    let skiplist = |map: &SkipMap<usize, usize>, addr: VirtAddr| {
        let found = map.upper_bound(std::ops::Bound::Included(&addr.get()));
        assert!(found.is_some_and(|entry| addr.get() < *entry.value()));
    };
    let scc = |map: &scc::TreeIndex<usize, usize>, addr: VirtAddr| {
        let guard = scc::Guard::new();
        // (No search downwards: by the end, of which there is a first one above.)
        assert!(map.range(addr.get() + 1.., &guard).next().is_some_and(|(_, &start)| start <= addr.get()));
    };
    for n in [100, 1_000, 100_000, 1_000_000] {
        let ranges = || (0..n).map(|i| (nth(i).get(), nth(i).get() + PAGE_SIZE));
        let mm = Arc::new(with_vmas::<TypeSafe>(n));
        // One by one, as ours (a map that is collected is laid out densely, which
        // no address space that changes stays).
        let mut map = BTreeMap::new();
        for (start, end) in ranges() {
            map.insert(start, end);
        }
        let map: Arc<Map> = Arc::new(RwLock::new(map));
        let skips = Arc::new(SkipMap::from_iter(ranges()));
        let index = Arc::new(scc::TreeIndex::new());
        for (start, end) in ranges() {
            index.insert_sync(end, start).expect("a new key");
        }
        for (threads, goal) in [(1, 0.8), (2, 0.45)] {
            let ours = || ("VmaTree", look_up(threads, n, &mm, tree));
            let row = |against| format!("lookup among {n}, {threads} threads, against {against}");
            rows.beside(
                &row("RwLock<BTreeMap>"),
                Goal::AtMost(goal),
                ours(),
                ("RwLock<BTreeMap>", look_up(threads, n, &map, btree)),
            );
            rows.beside(
                &row("SkipMap"),
                Goal::None,
                ours(),
                ("crossbeam SkipMap", look_up(threads, n, &skips, skiplist)),
            );
            rows.beside(&row("TreeIndex"), Goal::None, ours(), ("scc::TreeIndex", look_up(threads, n, &index, scc)));
        }
        let maple = [(100, 28.0), (1_000, 50.0), (100_000, 145.0)].iter().find(|(vmas, _)| *vmas == n);
        let goal = maple.map_or(Goal::None, |&(_, ns)| Goal::AtMost(ns));
        rows.alone(&format!("lookup among {n}, time"), goal, ("VmaTree", look_up(1, n, &mm, tree)));
    }
}

fn locks(rows: &mut Rows) {
    rows.alone("rcu section", Goal::AtMost(1.0), ("enter + leave", repeat(|| drop(vmalab::rcu::read()))));
    lock::<TypeSafe>(rows);
    lock::<RefCount>(rows);
    lock::<Rcu>(rows);
}

/// What read-locking a VMA and unlocking it adds to finding it.
fn lock<S: LockScheme>(rows: &mut Rows) {
    let name = format!("read-lock + unlock of a VMA/{}", S::NAME);
    if !rows.wants(&name) {
        return;
    }
    let mm = with_vmas::<S>(1);
    let addr = || black_box(nth(0));
    let mut locked = repeat(|| {
        let vma = S::lock_vma_under_rcu(mm.core(), addr()).unwrap();
        // SAFETY: locked just now.
        unsafe { S::vma_end_read(vma) }
    });
    let mut found = repeat(|| assert!(mm.is_mapped(addr())));
    let difference: Work<'_> = Box::new(move |n| {
        let (locked, found) = (locked(n), found(n));
        locked.saturating_sub(found).max(Duration::from_nanos(1))
    });
    let count = AtomicU32::new(0);
    let atomics = repeat(|| {
        let count = black_box(&count);
        count.fetch_add(1, Ordering::Acquire);
        count.fetch_sub(1, Ordering::Release);
    });
    rows.beside(
        &name,
        Goal::AtMost(1.2),
        ("lock_vma_under_rcu + vma_end_read, less the lookup", difference),
        ("atomic add + atomic sub", atomics),
    );
}

/// The tree's part of an mmap and a munmap, grace periods included.
fn update(rows: &mut Rows) {
    let name = "tree update of an mmap + munmap pair among 1000";
    if !rows.wants(name) {
        return;
    }
    vmalab::thread::announce();
    let tree = VmaTree::<u64>::new(Reclaim::AfterGracePeriod);
    let entry = |i: usize| Entry { range: PageRange::sized(nth(i), PAGE_SIZE), ptr: std::ptr::NonNull::dangling() };
    for i in 0..1_000 {
        // SAFETY: one thread, outside any section.
        unsafe { tree.replace(entry(i).range, &[entry(i)]) };
    }
    let mut at = 0;
    let pair = repeat(|| {
        // In a gap, somewhere else each time.
        at = (at + 389) % 1_000;
        let range = PageRange::sized(nth(at) + PAGE_SIZE, PAGE_SIZE);
        // SAFETY: as above.
        unsafe {
            tree.replace(range, &[Entry { range, ptr: std::ptr::NonNull::dangling() }]);
            tree.replace(range, &[]);
        }
        vmalab::rcu::poll();
    });
    rows.alone(name, Goal::AtMost(1_000.0), ("VmaTree::replace, twice, and rcu::poll", pair));
    vmalab::rcu::barrier();
}

/// The whole of mmap and munmap over the software `Mmu`.
fn map_unmap(rows: &mut Rows) {
    fn work<S: LockScheme>(mm: &Soft<S>, n: usize) -> Work<'_> {
        let hole = nth(n / 2) + PAGE_SIZE;
        let none = Prot::NONE; // differs from its neighbours: no merge
        repeat(move || {
            mm.mmap(hole.get(), PAGE_SIZE, none, FIXED).unwrap();
            mm.munmap(hole.get(), PAGE_SIZE).unwrap();
        })
    }
    for n in [1, 1_000, 1_000_000] {
        let name = format!("mmap + munmap in software among {n}");
        if rows.wants(&name) {
            let (typesafe, mmap) = (with_vmas::<TypeSafe>(n), with_vmas::<MmapOnly>(n));
            rows.beside(&name, Goal::None, ("typesafe", work(&typesafe, n)), ("mmap", work(&mmap, n)));
        }
    }
}

/// Pages that one pass of faults makes present.
const PAGES: usize = 512;

/// Faults in different VMAs, one for each thread.
fn soft_faults<S: LockScheme>(threads: usize, mm: &Arc<Soft<S>>) -> Work<'static> {
    let mm = mm.clone();
    Crew::new(threads, move |worker| soft_faulting(&mm, worker)).work()
}

/// One thread's part of it.
fn soft_faulting<S: LockScheme>(mm: &Arc<Soft<S>>, worker: usize) -> impl FnMut(u64) -> Duration + use<S> {
    let mm = mm.clone();
    let range = PageRange::sized(nth(1_000) + 2 * worker * PAGES * PAGE_SIZE, PAGES * PAGE_SIZE);
    mm.mmap(range.start().get(), range.bytes(), RW, FIXED).unwrap();
    move |faults| {
        let (mut took, mut left) = (Duration::ZERO, faults as usize);
        while left > 0 {
            let now = left.min(PAGES);
            let begin = Instant::now();
            for page in range.iter_pages().take(now) {
                mm.serve_fault(page, Access { write: true, present: false });
            }
            took += begin.elapsed();
            mm.mmu().zap(range);
            left -= now;
        }
        took
    }
}

fn software(rows: &mut Rows) {
    fn scaling<S: LockScheme>(rows: &mut Rows, goal: Goal) {
        let name = format!("software faults in different VMAs, two threads/{}", S::NAME);
        if !rows.wants(&name) {
            return;
        }
        let mm = Arc::new(with_vmas::<S>(1_000));
        let (mut one, mut two) = (soft_faults(1, &mm), soft_faults(2, &mm));
        // Twice the work in the same time would be 2.
        rows.values(&name, "times one thread's work", goal, "serve_fault over SoftMmu", |rounds| {
            let faults = 40 * PAGES as u64;
            let mut ratio = || 2.0 * one(faults).as_secs_f64() / two(faults).as_secs_f64();
            ratio();
            (0..rounds).map(|_| ratio()).collect()
        });
    }
    // What two threads can do here that share nothing at all: CPUs may be two halves of one core.
    let arithmetic = |threads| {
        Crew::new(threads, |worker| {
            let mut x = worker as u64 + 1;
            let mut step =
                repeat(move || x = black_box(x ^ x << 13).rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            move |n| step(n)
        })
        .work()
    };
    let name = "arithmetic, two threads that share nothing";
    if rows.wants(name) {
        let (mut one, mut two) = (arithmetic(1), arithmetic(2));
        rows.values(name, "times one thread's work", Goal::None, "registers only", |rounds| {
            let mut ratio = || 2.0 * one(1 << 20).as_secs_f64() / two(1 << 20).as_secs_f64();
            ratio();
            (0..rounds).map(|_| ratio()).collect()
        });
    }
    let name = "software faults in two address spaces, two threads/typesafe";
    if rows.wants(name) {
        let spaces = [0, 1].map(|_| Arc::new(with_vmas::<TypeSafe>(1_000)));
        let mut one = soft_faults(1, &spaces[0]);
        let mut apart = Crew::new(2, move |worker| soft_faulting(&spaces[worker], worker)).work();
        rows.values(name, "times one thread's work", Goal::None, "serve_fault over a SoftMmu for each", |rounds| {
            let faults = 40 * PAGES as u64;
            let mut ratio = || 2.0 * one(faults).as_secs_f64() / apart(faults).as_secs_f64();
            ratio();
            (0..rounds).map(|_| ratio()).collect()
        });
    }
    scaling::<TypeSafe>(rows, Goal::AtLeast(1.95));
    scaling::<RefCount>(rows, Goal::AtLeast(1.95));
    scaling::<Rcu>(rows, Goal::AtLeast(1.95));
    scaling::<MmapOnly>(rows, Goal::None);
    let name = "fault without hardware, typesafe against mmap";
    if rows.wants(name) {
        let (typesafe, mmap) = (Arc::new(with_vmas::<TypeSafe>(1_000)), Arc::new(with_vmas::<MmapOnly>(1_000)));
        rows.beside(name, Goal::None, ("typesafe", soft_faults(1, &typesafe)), ("mmap", soft_faults(1, &mmap)));
    }
}

/// Memory for one VMA, all told: by how much the process has grown when a
/// million of them are there. The `SoftMmu`'s own pages are touched by nothing.
fn memory(rows: &mut Rows) {
    fn resident() -> f64 {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
        let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("resident pages");
        pages * PAGE_SIZE as f64
    }
    const N: usize = 1_000_000;
    rows.values("memory of one VMA among 1000000", "bytes", Goal::AtMost(256.0), "growth of the process", |_| {
        let before = resident();
        let mm = with_vmas::<TypeSafe>(N);
        let grown = resident() - before;
        drop(mm);
        vec![grown / N as f64]
    });
}

fn main() {
    let mut rows = Rows::from_args();
    // An address space has been made, as wherever there is something to measure.
    drop(with_vmas::<TypeSafe>(1));
    // First, while the heap is small.
    memory(&mut rows);
    // Beside an idle second thread, as in any program that has a use for locks.
    std::thread::spawn(std::thread::park);
    vmalab::thread::announce();
    lookup(&mut rows);
    locks(&mut rows);
    update(&mut rows);
    map_unmap(&mut rows);
    software(&mut rows);
    rows.finish();
}
