//! Calls and faults at the same time: does it end as some serial order would?
//!
//! A program is a few calls for each of two threads and a few accesses to one
//! page for a third. Its calls in every serial order, run one by one, give the
//! set of outcomes that are allowed: each call's and access's answer, and what
//! every page is in the end. (That one by one they behave as the host's is what
//! the rest of this crate shows.) Then the three threads run it at once, again
//! and again, and each outcome must be in the set.
//!
//! Accesses go to a single page, as calls that concern several pages are atomic
//! for each, not for all of them together; not in Linux either. How VMAs have
//! merged is not compared: a fault may give a VMA its `anon_vma` and then have
//! to be repeated, which no serial order does.

use crate::PAGE;
use crate::run::{Delivery, Lock};
use nix::errno::Errno;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Barrier;
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, Prot, RemapFlags};
use vmalab_fault_handler::{AddressSpace, Error, access};

const PAGES: usize = 8;
const THREADS: usize = 3;
/// Runs of one program at once.
const RUNS: usize = 30;

/// A step; numbers are of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `mmap` with MAP_FIXED.
    Map(usize, usize, u32),
    /// `munmap`
    Unmap(usize, usize),
    /// `mprotect`
    Protect(usize, usize, u32),
    /// `mremap` of one page with MREMAP_FIXED.
    Move(usize, usize),
    /// `madvise`, MADV_DONTNEED, of one page.
    DontNeed(usize),
    /// A load.
    Load(usize),
    /// A store.
    Store(usize, u64),
}

/// The threads' steps.
pub type Program = [Vec<Step>; THREADS];

/// What a step answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    NotRun,
    Ok(u64),
    Errno(i32),
    Signal(u8),
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outcome {
    answers: [Vec<Answer>; THREADS],
    /// Protection of each page, none if it is not mapped.
    pages: Vec<Option<u32>>,
    /// What a load of each page gives.
    contents: Vec<Answer>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "answers  {:?}", self.answers)?;
        writeln!(f, "pages    {:?}", self.pages)?;
        write!(f, "contents {:x?}", self.contents)
    }
}

/// An outcome that no serial order explains.
#[derive(Debug)]
pub struct Unexplained {
    /// The program.
    pub program: Program,
    /// How it ended.
    pub outcome: Outcome,
    /// How many outcomes the serial orders have.
    pub allowed: usize,
}

impl fmt::Display for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (thread, steps) in self.program.iter().enumerate() {
            writeln!(f, "thread {thread}: {steps:?}")?;
        }
        write!(f, "ended as none of {} outcomes of serial orders:\n{}", self.allowed, self.outcome)
    }
}

/// A run.
#[derive(Debug)]
pub struct Report {
    /// Steps that ran at the same time as others'.
    pub steps: u64,
    /// Programs.
    pub programs: u64,
    /// Outcomes seen that differ, summed up over programs: 1 a program would
    /// mean that nothing ever raced.
    pub outcomes: u64,
    /// The first outcome without an explanation.
    pub unexplained: Option<Unexplained>,
}

fn code(signal: Signal) -> Answer {
    Answer::Signal(match signal {
        Signal::MapErr => 1,
        Signal::AccErr => 2,
        Signal::Bus => 3,
    })
}

struct Space<S: LockScheme>(AddressSpace<S>);

impl<S: LockScheme> Space<S> {
    fn addr(&self, page: usize) -> usize {
        self.0.range().start().get() + page * PAGE
    }

    fn step(&self, step: Step) -> Answer {
        let done =
            |result: Result<(), Errno>| result.map_or_else(|errno| Answer::Errno(errno as i32), |()| Answer::Ok(0));
        let prot = Prot::from_bits_retain;
        let space = &self.0;
        match step {
            Step::Map(page, pages, p) => {
                let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
                done(space.mmap(self.addr(page), pages * PAGE, prot(p), flags).map(drop))
            }
            Step::Unmap(page, pages) => done(space.munmap(self.addr(page), pages * PAGE)),
            Step::Protect(page, pages, p) => done(space.mprotect(self.addr(page), pages * PAGE, prot(p))),
            Step::Move(from, to) => {
                let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
                done(space.mremap(self.addr(from), PAGE, PAGE, flags, self.addr(to)).map(drop))
            }
            Step::DontNeed(page) => done(space.madvise(self.addr(page), PAGE, vmalab::mm::Advice::DontNeed as i32)),
            // SAFETY: an address of the region, which lives as long as `self`.
            Step::Load(page) => unsafe { access::load_u64(self.addr(page)) }.map_or_else(code, Answer::Ok),
            Step::Store(page, value) => {
                // SAFETY: as above.
                unsafe { access::store_u64(self.addr(page), value) }.map_or_else(code, |()| Answer::Ok(0))
            }
        }
    }

    /// As before any step: the first half mapped, with something in each page.
    fn reset(&self) {
        self.step(Step::Unmap(0, PAGES));
        self.step(Step::Map(0, PAGES / 2, 3));
        for page in 0..PAGES / 2 {
            self.step(Step::Store(page, 0x100 + page as u64));
        }
    }

    fn outcome(&self, answers: [Vec<Answer>; THREADS]) -> Outcome {
        self.0.validate();
        let maps = self.0.maps();
        let page = |n: usize| VirtAddr(self.addr(n));
        let pages =
            (0..PAGES).map(|n| maps.iter().find(|m| m.range.contains(page(n))).map(|m| m.prot.bits())).collect();
        Outcome { answers, pages, contents: (0..PAGES).map(|n| self.step(Step::Load(n))).collect() }
    }

    /// Every serial order, from `at` steps of each thread on.
    fn serial(&self, program: &Program, order: &mut Vec<usize>, allowed: &mut BTreeSet<Outcome>) {
        let done = |thread: usize| order.iter().filter(|&&t| t == thread).count();
        let left: Vec<usize> = (0..THREADS).filter(|&thread| done(thread) < program[thread].len()).collect();
        if left.is_empty() {
            self.reset();
            let mut answers: [Vec<Answer>; THREADS] = Default::default();
            for &thread in order.iter() {
                let answer = self.step(program[thread][answers[thread].len()]);
                answers[thread].push(answer);
            }
            allowed.insert(self.outcome(answers));
            return;
        }
        for thread in left {
            order.push(thread);
            self.serial(program, order, allowed);
            order.pop();
        }
    }

    /// The three at once. `delays`: how long each dawdles before it begins.
    fn at_once(&self, program: &Program, delays: [u32; THREADS]) -> Outcome {
        self.reset();
        let barrier = Barrier::new(THREADS);
        let mut answers: [Vec<Answer>; THREADS] =
            std::array::from_fn(|thread| vec![Answer::NotRun; program[thread].len()]);
        std::thread::scope(|scope| {
            for ((steps, answers), delay) in program.iter().zip(&mut answers).zip(delays) {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    (0..delay).for_each(|_| std::hint::spin_loop());
                    for (step, answer) in steps.iter().zip(answers) {
                        *answer = self.step(*step);
                    }
                });
            }
        });
        self.outcome(answers)
    }
}

fn program(rng: &mut impl RngExt) -> Program {
    let page = rng.random_range(0..PAGES / 2);
    // Calls stay near the page that is accessed.
    let near = |rng: &mut dyn FnMut(usize) -> usize| (page + rng(3)).saturating_sub(1).min(PAGES - 3);
    let calls = |rng: &mut dyn FnMut(usize) -> usize| -> Vec<Step> {
        (0..2)
            .map(|_| {
                let (at, pages) = (near(rng), 1 + rng(3));
                let prot = [0, 1, 3, 3][rng(4)];
                match rng(10) {
                    0..3 => Step::Map(at, pages, prot),
                    3..5 => Step::Unmap(at, pages),
                    5..8 => Step::Protect(at, pages, prot),
                    8 => Step::Move(at, [page, PAGES - 1][rng(2)]),
                    _ => Step::DontNeed(page),
                }
            })
            .collect()
    };
    let mut draw = |n: usize| rng.random_range(0..n);
    let (first, second) = (calls(&mut draw), calls(&mut draw));
    let accesses = (0..3).map(|n| if draw(2) == 0 { Step::Load(page) } else { Step::Store(page, 0x200 + n) }).collect();
    [first, second, accesses]
}

/// Runs random programs until `steps` steps have run at once, or an outcome is
/// without an explanation, or `go_on` says no.
///
/// # Errors
/// The address space could not be made.
pub fn run(
    seed: u64,
    steps: u64,
    lock: Lock,
    delivery: Delivery,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Report, Error> {
    match lock {
        Lock::Mmap => run_on::<MmapOnly>(seed, steps, delivery, go_on),
        Lock::Rcu => run_on::<Rcu>(seed, steps, delivery, go_on),
        Lock::TypeSafe => run_on::<TypeSafe>(seed, steps, delivery, go_on),
        Lock::RefCount => run_on::<RefCount>(seed, steps, delivery, go_on),
    }
}

fn run_on<S: LockScheme>(
    seed: u64,
    steps: u64,
    delivery: Delivery,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Report, Error> {
    let delivery = match delivery {
        Delivery::Sigbus => vmalab_fault_handler::Delivery::Sigbus,
        Delivery::Queue => vmalab_fault_handler::Delivery::Queue { handlers: 1, polling: false },
    };
    let space = Space(AddressSpace::<S>::builder().region(PAGES * PAGE).delivery(delivery).build()?);
    debug_assert_eq!(space.0.range(), PageRange::sized(VirtAddr(space.addr(0)), PAGES * PAGE));
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut report = Report { steps: 0, programs: 0, outcomes: 0, unexplained: None };
    while report.steps < steps && report.unexplained.is_none() && go_on() {
        let program = program(&mut rng);
        let mut allowed = BTreeSet::new();
        space.serial(&program, &mut Vec::new(), &mut allowed);
        let mut seen = BTreeSet::new();
        for _ in 0..RUNS {
            let delays = std::array::from_fn(|_| rng.random_range(0..400));
            let outcome = space.at_once(&program, delays);
            report.steps += program.iter().map(|steps| steps.len() as u64).sum::<u64>();
            if !allowed.contains(&outcome) {
                report.unexplained = Some(Unexplained { program: program.clone(), outcome, allowed: allowed.len() });
                break;
            }
            seen.insert(outcome);
        }
        report.programs += 1;
        report.outcomes += seen.len() as u64;
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_a_serial_orders() {
        for delivery in [Delivery::Sigbus, Delivery::Queue] {
            for lock in Lock::ALL {
                let report = run(7, 1000, lock, delivery, &mut || true).unwrap();
                if let Some(unexplained) = report.unexplained {
                    panic!("{} lock, {} delivery: {unexplained}", lock.name(), delivery.name());
                }
                assert!(report.programs >= 4);
            }
        }
    }

    /// The check can fail: an outcome that is not in the set is seen.
    #[test]
    fn what_no_order_gives_is_not_in_the_set() {
        let space = Space(AddressSpace::<TypeSafe>::builder().region(PAGES * PAGE).build().unwrap());
        let program = [vec![Step::Unmap(1, 1)], vec![Step::Protect(0, 2, 1)], vec![Step::Load(1), Step::Store(1, 5)]];
        let mut allowed = BTreeSet::new();
        space.serial(&program, &mut Vec::new(), &mut allowed);
        assert!(allowed.len() > 3);
        let outcome = space.at_once(&program, [0; THREADS]);
        assert!(allowed.contains(&outcome));
        // A load that finds the page gone, and a store that finds it back.
        let mut wrong = outcome;
        wrong.answers[2] = vec![Answer::Signal(1), Answer::Ok(0)];
        assert!(!allowed.contains(&wrong));
    }
}
