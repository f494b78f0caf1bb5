//! Random operations against faults under shuttle: whole address spaces, more
//! threads and more steps than loom can exhaust. Run with
//! `scripts/models.sh shuttle test --release -p vmalab --lib stress`.
//!
//! Two address spaces over the same addresses share the slab of VMAs. Two
//! mutators map, unmap, protect and replace pages of either, two faulters load
//! and store. Half the schedules are random, half PCT (few changes of priority,
//! which finds what takes a thread held for long); a failure prints the
//! schedule, which shuttle replays. shuttle is sequentially consistent:
//! orderings are loom's affair.
//!
//! Asserted are: a page is stamped for its own address space and address, and
//! for no mapping older than the last one that was in place when the load
//! began (O1); no signal but MapErr and AccErr; at rest nothing is present
//! where nothing is mapped (O2), `validate()` (O4), and everybody ends (O5).
//! Locks report the rest (O3, O6).

use super::{MapFlags, Mm, Prot};
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::fault::Signal;
use crate::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use crate::mmu::soft::{BASE, SoftMmu};
use crate::pager::{AnyPager, Stamp};
use crate::sync::plain::{AtomicU64, Ordering};
use crate::sync::thread;
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use std::sync::Arc;

/// Schedules of each kind under each lock.
const SCHEDULES: usize = 1000;
/// Steps of a thread.
const STEPS: usize = 5;
const PAGES: usize = 4;
/// Changes of priority in a PCT schedule.
const DEPTH: usize = 3;
const SEED: u64 = 0x5eed;

const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS).union(MapFlags::FIXED);
const RW: Prot = Prot::READ.union(Prot::WRITE);

struct Space<S: LockScheme> {
    mm: Mm<S, SoftMmu, AnyPager>,
    /// For each page the highest incarnation that a finished mmap gave it.
    floor: [AtomicU64; PAGES],
}

impl<S: LockScheme> Space<S> {
    fn new() -> Space<S> {
        let mmu = SoftMmu::new(PAGES * PAGE_SIZE).expect("memory");
        Space { mm: Mm::new(mmu, AnyPager::Stamped), floor: Default::default() }
    }

    fn mutate(&self) {
        let mut rng = shuttle::rand::thread_rng();
        let first = rng.gen_range(0..PAGES);
        let pages = rng.gen_range(1..=PAGES - first);
        let (addr, len) = (page(first).get(), pages * PAGE_SIZE);
        let prot = if rng.gen_bool(0.7) { RW } else { Prot::READ };
        match rng.gen_range(0..5) {
            0..2 => {
                let mapping = self.mm.map(addr, len, prot, FIXED).expect("a fixed mapping");
                for floor in &self.floor[first..first + pages] {
                    floor.fetch_max(mapping.incarnation, Ordering::SeqCst);
                }
            }
            2..4 => self.mm.munmap(addr, len).expect("munmap"),
            // ENOMEM where part of it is not mapped.
            _ => drop(self.mm.mprotect(addr, len, prot)),
        }
    }

    fn fault(&self) {
        let mut rng = shuttle::rand::thread_rng();
        let n = rng.gen_range(0..PAGES);
        let floor = self.floor[n].load(Ordering::SeqCst);
        if rng.gen_bool(0.3) {
            // Behind the stamp.
            match self.mm.write(page(n) + 64, &1u64.to_ne_bytes()) {
                Ok(()) => {}
                Err(error) => assert!(matches!(error.signal, Signal::MapErr | Signal::AccErr), "{error:?}"),
            }
            return;
        }
        match self.stamp(n) {
            Ok(stamp) => {
                assert_eq!((stamp.mm_id, stamp.page_addr()), (self.mm.id(), page(n)), "O1: another's page");
                assert!(stamp.incarnation >= floor, "O1: a page of a mapping that was replaced");
            }
            Err(signal) => assert_eq!(signal, Signal::MapErr),
        }
    }

    /// The stamp, if one load got all of it: between two the page may go.
    fn stamp(&self, n: usize) -> Result<Stamp, Signal> {
        let mut bytes = [0; 24];
        self.mm.read(page(n), &mut bytes).map_err(|error| error.signal)?;
        Ok(Stamp::from_bytes(&bytes))
    }

    fn at_rest(&self) {
        self.mm.validate();
        for n in 0..PAGES {
            if !self.mm.is_mapped(page(n)) {
                assert_eq!(self.stamp(n).err(), Some(Signal::MapErr), "O2: present where nothing is mapped");
            }
        }
    }
}

fn page(n: usize) -> VirtAddr {
    BASE + n * PAGE_SIZE
}

fn once<S: LockScheme>() {
    let spaces = Arc::new([Space::<S>::new(), Space::new()]);
    let spawn = |step: fn(&Space<S>)| {
        let spaces = spaces.clone();
        thread::spawn(move || {
            for _ in 0..STEPS {
                let either = shuttle::rand::thread_rng().gen_range(0..2);
                step(&spaces[either]);
            }
        })
    };
    let threads = [spawn(Space::mutate), spawn(Space::mutate), spawn(Space::fault), spawn(Space::fault)];
    threads.into_iter().for_each(|thread| thread.join().expect("a thread of the model"));
    spaces.iter().for_each(Space::at_rest);
}

fn run<S: LockScheme>() {
    let mut config = shuttle::Config::new();
    config.stack_size = 256 * 1024;
    config.silence_warnings = true;
    shuttle::Runner::new(RandomScheduler::new_from_seed(SEED, SCHEDULES), config.clone()).run(once::<S>);
    shuttle::Runner::new(PctScheduler::new_from_seed(SEED, DEPTH, SCHEDULES), config).run(once::<S>);
}

#[test]
fn mmap() {
    run::<MmapOnly>();
}

#[test]
fn rcu() {
    run::<Rcu>();
}

#[test]
fn typesafe() {
    run::<TypeSafe>();
}

#[test]
fn refcount() {
    run::<RefCount>();
}
