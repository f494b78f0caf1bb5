//! What the core costs without a fault: looking up, locking, mapping.
//!
//! `cargo bench --bench core`. Compare figures of one run only: the machine's
//! own speed wanders.

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::RwLock;
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::{Access, ServeFault};
use vmalab::lock::{LockScheme, MmapOnly, TypeSafe};
use vmalab::mm::{MapFlags, Mm, Prot};
use vmalab::mmu::Mmu;
use vmalab::mmu::soft::{BASE, SoftMmu};
use vmalab::pager::ZeroPager;

const RW: Prot = Prot::READ.union(Prot::WRITE);
const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS).union(MapFlags::FIXED);

/// An address space with `n` mappings of one page, a page apart.
fn with_vmas<S: LockScheme>(n: usize) -> Mm<S, SoftMmu, ZeroPager> {
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
fn probes(n: usize) -> Vec<VirtAddr> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..1 << 16)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            nth(state as usize % n) + 123
        })
        .collect()
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("lookup");
    for n in [1, 100, 1_000, 100_000, 1_000_000] {
        let probes = probes(n);
        let mm = with_vmas::<TypeSafe>(n);
        let mut i = 0;
        let mut next = || {
            i = (i + 1) % probes.len();
            probes[i]
        };
        // The RCU section is part of it.
        group.bench_function(BenchmarkId::new("tree", n), |b| b.iter(|| assert!(mm.is_mapped(black_box(next())))));
        group.bench_function(BenchmarkId::new("lock_vma_under_rcu + vma_end_read", n), |b| {
            b.iter(|| {
                let vma = TypeSafe::lock_vma_under_rcu(mm.core(), black_box(next())).unwrap();
                // SAFETY: locked just now.
                unsafe { TypeSafe::vma_end_read(vma) }
            })
        });
        let map: BTreeMap<usize, usize> = (0..n).map(|i| (nth(i).get(), nth(i).get() + PAGE_SIZE)).collect();
        let map = RwLock::new(map);
        group.bench_function(BenchmarkId::new("RwLock<BTreeMap>", n), |b| {
            b.iter(|| {
                let addr = black_box(next()).get();
                let map = map.read().unwrap();
                assert!(map.range(..=addr).next_back().is_some_and(|(_, &end)| addr < end));
            })
        });
    }
    group.finish();
}

fn rcu_section(c: &mut Criterion) {
    vmalab::thread::announce();
    c.bench_function("rcu section", |b| b.iter(|| drop(black_box(vmalab::rcu::read()))));
}

fn map_unmap(c: &mut Criterion) {
    fn bench<S: LockScheme>(c: &mut Criterion, n: usize) {
        let mm = with_vmas::<S>(n);
        let hole = nth(n / 2) + PAGE_SIZE;
        let none = Prot::NONE; // differs from its neighbours: no merge
        c.bench_function(&format!("mmap + munmap, no touch/{}/{n} VMAs", S::NAME), |b| {
            b.iter(|| {
                mm.mmap(hole.get(), PAGE_SIZE, none, FIXED).unwrap();
                mm.munmap(hole.get(), PAGE_SIZE).unwrap();
            })
        });
    }
    for n in [1, 1_000, 1_000_000] {
        bench::<TypeSafe>(c, n);
        bench::<MmapOnly>(c, n);
    }
}

/// The whole fault path over the software `Mmu`: all of it but the hardware.
fn soft_fault(c: &mut Criterion) {
    fn bench<S: LockScheme>(c: &mut Criterion) {
        const PAGES: usize = 512;
        let mm = with_vmas::<S>(1_000);
        let base = nth(1_000).get();
        mm.mmap(base, PAGES * PAGE_SIZE, RW, FIXED).unwrap();
        c.bench_function(&format!("fault without hardware/{}", S::NAME), |b| {
            b.iter_batched(
                || mm.mmu().zap(vmalab::addr::PageRange::sized(VirtAddr(base), PAGES * PAGE_SIZE)),
                |()| {
                    for i in 0..PAGES {
                        mm.serve_fault(VirtAddr(base + i * PAGE_SIZE), Access { write: true, present: false });
                    }
                },
                BatchSize::PerIteration,
            )
        });
    }
    bench::<TypeSafe>(c);
    bench::<MmapOnly>(c);
}

criterion_group!(benches, lookup, rcu_section, map_unmap, soft_fault);
criterion_main!(benches);
