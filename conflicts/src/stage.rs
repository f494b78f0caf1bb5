//! Where pairs are run: address spaces with hundreds of mappings, and two
//! threads that take turns. What an operation needs is made ready before it
//! is recorded, by the thread that then does it.

use crate::op::{Op, Relation};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::{Access, Outcome, ServeFault};
use vmalab::lock::LockScheme;
use vmalab::mm::{Advice, MapFlags, Mm, Prot, RemapFlags};
use vmalab::mmu::soft::{BASE, SoftMmu};
use vmalab::pager::ZeroPager;
use vmalab::sync::record;

/// Mappings in an address space: a tree of three levels.
pub const PLACES: usize = 600;
/// Pages of a mapping.
const VMA_PAGES: usize = 16;
/// Pages from one place to the next: mappings do not touch, and their pages'
/// states in the software `Mmu` lie in different lines.
const STRIDE_PAGES: usize = 64;
/// The page that faults.
const FAULTING: usize = 8;
/// Pages with contents in mappings that are unmapped, moved, ...
const PRESENT: usize = 4;

const BYTES: usize = VMA_PAGES * PAGE_SIZE;
const RW: Prot = Prot::READ.union(Prot::WRITE);
const FIXED: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS).union(MapFlags::FIXED_NOREPLACE);

type Space<S> = Mm<S, SoftMmu, ZeroPager>;

/// The start of a place.
fn at(place: usize) -> VirtAddr {
    BASE + place * STRIDE_PAGES * PAGE_SIZE
}

fn map<S: LockScheme>(mm: &Space<S>, place: usize) {
    mm.mmap(at(place).get(), BYTES, RW, FIXED).expect("the place is free");
}

fn touch<S: LockScheme>(mm: &Space<S>, place: usize, pages: usize) {
    (0..pages).for_each(|page| mm.write(at(place) + page * PAGE_SIZE, &[1]).expect("mapped writable"));
}

/// Makes the place ready for `op`.
fn prepare<S: LockScheme>(mm: &Space<S>, op: Op, place: usize) {
    mm.munmap(at(place).get(), STRIDE_PAGES * PAGE_SIZE).expect("whole mappings");
    match op {
        Op::Mmap => {}
        Op::FaultFirst => map(mm, place),
        Op::FaultRead | Op::FaultWrite => {
            map(mm, place);
            touch(mm, place, 1);
        }
        Op::Munmap | Op::Mprotect | Op::Mremap | Op::Dontneed | Op::Maps => {
            map(mm, place);
            touch(mm, place, PRESENT);
        }
    }
}

/// Does `op` at a place that is ready for it.
fn perform<S: LockScheme>(mm: &Space<S>, op: Op, place: usize) {
    let start = at(place).get();
    let fault = |write| {
        let outcome = mm.serve_fault(at(place) + FAULTING * PAGE_SIZE, Access { write, present: false });
        assert_eq!(outcome, Outcome::Done);
    };
    let done = match op {
        Op::FaultRead => {
            fault(false);
            Ok(())
        }
        Op::FaultWrite | Op::FaultFirst => {
            fault(true);
            Ok(())
        }
        Op::Mmap => mm.mmap(start, BYTES, RW, FIXED).map(drop),
        Op::Munmap => mm.munmap(start, BYTES),
        Op::Mprotect => mm.mprotect(start, BYTES, Prot::READ),
        Op::Mremap => {
            let to = start + 2 * BYTES;
            mm.mremap(start, BYTES, BYTES, RemapFlags::MAYMOVE | RemapFlags::FIXED, to).map(drop)
        }
        Op::Dontneed => mm.madvise(start, BYTES, Advice::DontNeed as i32),
        Op::Maps => {
            assert!(mm.maps().len() >= PLACES - 1);
            Ok(())
        }
    };
    done.unwrap_or_else(|errno| panic!("{op}: {errno}"));
}

/// What an operation accessed.
pub type Accesses = Vec<record::Access>;

type Job = Box<dyn FnOnce() -> Accesses + Send>;

/// A thread that does what it is given.
struct Worker {
    jobs: Option<Sender<Job>>,
    done: Receiver<Accesses>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start() -> Worker {
        let (jobs, todo) = channel::<Job>();
        let (tell, done) = channel();
        let work = move || {
            vmalab::thread::announce();
            for job in todo {
                if tell.send(job()).is_err() {
                    return;
                }
            }
        };
        Worker { jobs: Some(jobs), done, thread: Some(std::thread::spawn(work)) }
    }

    fn run(&self, job: impl FnOnce() -> Accesses + Send + 'static) -> Accesses {
        self.jobs.as_ref().expect("until dropped").send(Box::new(job)).expect("the worker lives");
        self.done.recv().expect("the operation succeeds")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed, and told by `run`.
            let _ = thread.join();
        }
    }
}

/// Two address spaces and two threads.
pub struct Stage<S: LockScheme> {
    spaces: [Arc<Space<S>>; 2],
    workers: [Worker; 2],
}

impl<S: LockScheme> Stage<S> {
    /// With every place mapped, and threads that have done everything before:
    /// magazines and slots are there.
    pub fn new() -> Stage<S> {
        let space = || {
            let mmu = SoftMmu::new(PLACES * STRIDE_PAGES * PAGE_SIZE).expect("memory for an address space");
            let mm = Mm::new(mmu, ZeroPager);
            (0..PLACES).for_each(|place| map(&mm, place));
            Arc::new(mm)
        };
        let stage = Stage { spaces: [space(), space()], workers: [Worker::start(), Worker::start()] };
        for relation in Relation::ALL {
            Op::ALL.into_iter().for_each(|op| drop(stage.pair([op, op], relation, [0, PLACES / 2], false)));
        }
        stage
    }

    /// Has one thread do the first operation and the other the second, each at
    /// its place; the second one first if `swapped`.
    pub fn pair(&self, ops: [Op; 2], relation: Relation, places: [usize; 2], swapped: bool) -> [Accesses; 2] {
        assert_ne!(places[0], places[1], "each operation has a place of its own");
        let space = |who: usize| &self.spaces[if relation == Relation::OtherMm { who } else { 0 }];
        for who in [0, 1] {
            let (mm, op, place) = (Arc::clone(space(who)), ops[who], places[who]);
            self.workers[who].run(move || {
                prepare(&mm, op, place);
                Vec::new()
            });
        }
        let mut accesses = [Vec::new(), Vec::new()];
        for who in if swapped { [1, 0] } else { [0, 1] } {
            let (mm, op, place) = (Arc::clone(space(who)), ops[who], places[who]);
            accesses[who] = self.workers[who].run(move || record::operation(|| perform(&mm, op, place)).1);
        }
        for (who, &place) in places.iter().enumerate() {
            // As it was at first: other pairs count on it.
            let mm = Arc::clone(space(who));
            self.workers[who].run(move || {
                prepare(&mm, Op::FaultFirst, place);
                Vec::new()
            });
        }
        accesses
    }
}
