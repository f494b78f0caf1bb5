//! A run in slices of time: how much was done in each, and how much of the
//! machine was taken away from the run meanwhile. A comparison on a machine
//! that others use too is only as good as it knows when they did.
//!
//! The runner's thread reads all of it from outside; the threads that are
//! measured do nothing for it. Of each thread that is its counters, the CPU
//! time it got, the time it waited for a CPU (`/proc/self/task/*/schedstat`)
//! and its involuntary switches (`ru_nivcsw`, in `/proc/self/task/*/status`);
//! of the process its CPU time; of the machine the time that a hypervisor
//! stole (`/proc/stat`).
//!
//! Threads of the run that wait for each other's CPU are not disturbed: that is
//! part of what is measured. So a slice is judged by what the threads did not
//! get of the CPU time that they could have had ([`Delta::taken_ns`]).

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::{Duration, Instant};

/// Length of a slice, until there are too many.
const SLICE: Duration = Duration::from_millis(50);

/// Slices kept: when there are as many, neighbours are joined and slices take
/// twice as long from then on.
const SLICES_MAX: usize = 128;

/// A slice is this many times longer than reading its end takes.
const READING_SHARE: u32 = 100;

/// A slice is disturbed when more than this share of the CPU time that its
/// threads could have used went to others.
const DISTURBED_SHARE: f64 = 0.02;

/// With fewer slices left, nothing is said about the undisturbed ones.
const UNDISTURBED_MIN: usize = 5;

/// Length of a tick of `/proc/stat`: USER_HZ is 100 on every x86 kernel.
const TICK_NS: u64 = 10_000_000;

/// One slice of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// Since the measured part began.
    pub start_ns: u64,
    /// Length.
    pub ns: u64,
    /// Faults that entered the fault path; natively, first touches.
    pub faults: u64,
    /// Calls that changed the address space.
    pub ops: u64,
    /// Timed faults and calls of each thread, those of the mutators last.
    pub by_thread: Vec<u64>,
    /// CPU time that the threads could have used but others got; `None` if the
    /// kernel does not tell how long threads wait for a CPU.
    pub taken_ns: Option<u64>,
    /// Time that a hypervisor took from all CPUs, in ticks of 10 ms.
    pub stolen_ns: Option<u64>,
    /// Times that a thread was switched out against its will.
    pub involuntary_switches: Option<u64>,
    /// Whether too much was taken or stolen.
    pub disturbed: bool,
}

/// The slices of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlicesReport {
    /// How many were disturbed.
    pub disturbed: u64,
    /// `faults_per_s` of those that were not; `None` if they are too few.
    pub undisturbed_faults_per_s: Option<f64>,
    /// `ops_per_s` of those that were not; `None` if they are too few.
    pub undisturbed_ops_per_s: Option<f64>,
    /// All, in order.
    pub each: Vec<Slice>,
}

/// Running totals of what a run has done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    pub(crate) faults: u64,
    pub(crate) ops: u64,
    pub(crate) by_thread: Vec<u64>,
}

/// Where a thread of the run is found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// As `gettid(2)` says.
    pub(crate) tid: i32,
    /// The CPU it is pinned to.
    pub(crate) cpu: Option<usize>,
}

/// Cuts a run into slices.
pub(crate) struct Sampler {
    threads: Vec<Place>,
    /// CPUs that the run may use.
    cpus: usize,
    last: Reading,
    every: Duration,
    slices: Vec<Delta>,
}

impl Sampler {
    /// The first slice begins now.
    pub(crate) fn start(threads: Vec<Place>, cpus: usize, done: Done) -> Sampler {
        // CPU time: on a busy machine the clock on the wall tells other things.
        let before = cpu_ns(ClockId::CLOCK_THREAD_CPUTIME_ID);
        let last = Reading::take(&threads, done, None);
        let cost_ns = cpu_ns(ClockId::CLOCK_THREAD_CPUTIME_ID).zip(before).map_or(0, |(after, before)| after - before);
        let every = SLICE.max(READING_SHARE * Duration::from_nanos(cost_ns));
        Sampler { threads, cpus, last, every, slices: Vec::new() }
    }

    /// Ends a slice, if it is time.
    pub(crate) fn look(&mut self, done: impl FnOnce() -> Done) {
        if self.last.at.elapsed() >= self.every {
            self.cut(done());
        }
    }

    fn cut(&mut self, done: Done) {
        let now = Reading::take(&self.threads, done, Some(&self.last));
        self.slices.push(now.since(&self.last));
        self.last = now;
        if self.slices.len() >= SLICES_MAX {
            self.slices = self.slices.chunks(2).map(Delta::joined).collect();
            self.every *= 2;
        }
    }

    /// Ends the last slice. What is left of it belongs to the one before if it
    /// is shorter than half of it.
    pub(crate) fn finish(mut self, done: Done) -> SlicesReport {
        let short = self.last.at.elapsed() < self.every / 2;
        self.cut(done);
        if short && self.slices.len() > 1 {
            let rest = self.slices.split_off(self.slices.len() - 2);
            self.slices.push(Delta::joined(&rest));
        }
        let places: Vec<Option<usize>> = self.threads.iter().map(|place| place.cpu).collect();
        report(self.slices, &places, self.cpus)
    }
}

/// What a thread has had so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Had {
    cpu_ns: u64,
    /// Runnable, without a CPU; `None` if the kernel does not tell.
    wait_ns: Option<u64>,
    switches: u64,
}

impl Had {
    /// `None` if the thread is gone, or there is no /proc.
    fn of(tid: i32) -> Option<Had> {
        let task = format!("/proc/self/task/{tid}");
        let wait_ns = fs::read_to_string(format!("{task}/schedstat")).ok().and_then(|text| wait_ns(&text));
        let switches = involuntary_switches(&fs::read_to_string(format!("{task}/status")).ok()?)?;
        // The clock that pthread_getcpuclockid(3) names. It is exact, where
        // schedstat's first number is as old as the last timer tick.
        let cpu_ns = cpu_ns(ClockId::from_raw(!tid << 3 | 6))?;
        Some(Had { cpu_ns, wait_ns, switches })
    }
}

fn cpu_ns(clock: ClockId) -> Option<u64> {
    clock_gettime(clock).ok()?.num_nanoseconds().try_into().ok()
}

/// The second number of `schedstat`: ns waited for a CPU.
fn wait_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_whitespace().nth(1)?.parse().ok()
}

/// `ru_nivcsw`, of a thread's `status`.
fn involuntary_switches(status: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?.trim().parse().ok()
}

/// Ticks that a hypervisor took, of `/proc/stat`.
fn stolen_ticks(stat: &str) -> Option<u64> {
    // user nice system idle iowait irq softirq steal
    stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().nth(7)?.parse().ok()
}

/// Everything at about one moment.
struct Reading {
    at: Instant,
    done: Done,
    threads: Option<Vec<Had>>,
    /// CPU time of the process.
    process_ns: u64,
    stolen: Option<u64>,
}

impl Reading {
    fn take(threads: &[Place], done: Done, last: Option<&Reading>) -> Reading {
        let had = threads.iter().enumerate().map(|(i, place)| {
            // A thread that has ended keeps what it had.
            Had::of(place.tid).or_else(|| Some(last?.threads.as_ref()?[i]))
        });
        Reading {
            at: Instant::now(),
            done,
            threads: had.collect(),
            process_ns: cpu_ns(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0),
            stolen: fs::read_to_string("/proc/stat").ok().and_then(|stat| stolen_ticks(&stat)),
        }
    }

    fn since(&self, earlier: &Reading) -> Delta {
        let threads = self.threads.as_ref().zip(earlier.threads.as_ref()).map(|(new, old)| {
            let differ = |(new, old): (&Had, &Had)| Had {
                cpu_ns: new.cpu_ns - old.cpu_ns,
                wait_ns: new.wait_ns.zip(old.wait_ns).map(|(new, old)| new - old),
                switches: new.switches - old.switches,
            };
            new.iter().zip(old).map(differ).collect()
        });
        let done = new_done(&self.done, &earlier.done);
        Delta {
            ns: (self.at - earlier.at).as_nanos() as u64,
            done,
            threads,
            process_ns: self.process_ns - earlier.process_ns,
            stolen_ns: self.stolen.zip(earlier.stolen).map(|(new, old)| new.saturating_sub(old) * TICK_NS),
        }
    }
}

fn new_done(new: &Done, old: &Done) -> Done {
    Done {
        faults: new.faults - old.faults,
        ops: new.ops - old.ops,
        by_thread: new.by_thread.iter().zip(&old.by_thread).map(|(new, old)| new - old).collect(),
    }
}

/// What happened between two readings.
#[derive(Clone, Debug, Default)]
struct Delta {
    ns: u64,
    done: Done,
    threads: Option<Vec<Had>>,
    process_ns: u64,
    stolen_ns: Option<u64>,
}

impl Delta {
    /// Neighbours as one.
    fn joined(neighbours: &[Delta]) -> Delta {
        let mut joined = neighbours[0].clone();
        for next in &neighbours[1..] {
            joined.ns += next.ns;
            joined.done.faults += next.done.faults;
            joined.done.ops += next.done.ops;
            joined.done.by_thread.iter_mut().zip(&next.done.by_thread).for_each(|(sum, n)| *sum += n);
            joined.process_ns += next.process_ns;
            joined.stolen_ns = joined.stolen_ns.zip(next.stolen_ns).map(|(a, b)| a + b);
            joined.threads = joined.threads.zip(next.threads.as_ref()).map(|(mut sums, threads)| {
                for (sum, had) in sums.iter_mut().zip(threads) {
                    sum.cpu_ns += had.cpu_ns;
                    sum.wait_ns = sum.wait_ns.zip(had.wait_ns).map(|(a, b)| a + b);
                    sum.switches += had.switches;
                }
                sums
            });
        }
        joined
    }

    /// CPU time that its threads could have used but others got, or less:
    /// rather too little than what they slept, which is a lock's doing.
    /// Threads pinned to one CPU share that one, the others share all. What
    /// other threads of the process got is no loss.
    fn taken_ns(&self, cpu_of: &[Option<usize>], cpus: usize) -> Option<u64> {
        let threads = self.threads.as_ref()?;
        let mut groups: Vec<Option<usize>> = cpu_of.to_vec();
        groups.sort_unstable();
        groups.dedup();
        let mut taken = 0;
        for group in groups {
            let members = threads.iter().zip(cpu_of).filter(|(_, cpu)| **cpu == group);
            let members: Vec<(u64, u64)> =
                members.map(|(had, _)| Some((had.cpu_ns, had.wait_ns?))).collect::<Option<_>>()?;
            taken += self.taken_from(&members, group.map_or(cpus, |_| 1) as u64);
        }
        let ran: u64 = threads.iter().map(|had| had.cpu_ns).sum();
        Some(taken.saturating_sub(self.process_ns.saturating_sub(ran)))
    }

    /// The same of threads, each with the time it ran and waited, that share
    /// so many CPUs. Two bounds from above, as none is close alone.
    fn taken_from(&self, threads: &[(u64, u64)], cpus: u64) -> u64 {
        let ran: u64 = threads.iter().map(|(ran, _)| ran).sum();
        let waited: u64 = threads.iter().map(|(_, waited)| waited).sum();
        let room = self.ns * cpus;
        // Of what there was, what they asked for and did not get. It holds the
        // time in which they slept, if they waited for each other at others.
        let missed = (ran + waited).min(room).saturating_sub(ran);
        // Waits that siblings do not explain. It is a little off, as a wait
        // counts when it ends.
        let unexplained = if cpus == 1 {
            threads.iter().map(|(own, waited)| waited.saturating_sub(ran - own)).max().unwrap_or(0)
        } else {
            let more_than_cpus = (threads.len() as u64).saturating_sub(cpus);
            waited.saturating_sub(more_than_cpus * self.ns)
        };
        missed.min(unexplained)
    }

    /// Whether others had too much of the machine.
    fn disturbed(&self, taken_ns: Option<u64>) -> bool {
        let switches = || self.threads.iter().flatten().any(|had| had.switches > 0);
        let taken = match taken_ns {
            Some(taken) => {
                let ran: u64 = self.threads.iter().flatten().map(|had| had.cpu_ns).sum();
                taken as f64 > DISTURBED_SHARE * (ran + taken) as f64
            }
            None => switches(),
        };
        taken || self.stolen_ns.is_some_and(|ns| ns > 0)
    }
}

/// A wait counts when the thread runs again. What of it does not fit into that
/// slice belongs to the slices before.
fn put_back_waits(slices: &mut [Delta]) {
    for i in (1..slices.len()).rev() {
        let (before, slice) = slices.split_at_mut(i);
        let ns = slice[0].ns;
        let (Some(threads), Some(earlier)) = (slice[0].threads.as_mut(), before[i - 1].threads.as_mut()) else {
            continue;
        };
        for (had, earlier) in threads.iter_mut().zip(earlier) {
            let (Some(wait), Some(earlier)) = (had.wait_ns.as_mut(), earlier.wait_ns.as_mut()) else { continue };
            let excess = wait.saturating_sub(ns.saturating_sub(had.cpu_ns));
            *wait -= excess;
            *earlier += excess;
        }
    }
}

fn report(mut slices: Vec<Delta>, cpu_of: &[Option<usize>], cpus: usize) -> SlicesReport {
    put_back_waits(&mut slices);
    let mut start_ns = 0;
    let each: Vec<Slice> = slices
        .into_iter()
        .map(|delta| {
            let taken_ns = delta.taken_ns(cpu_of, cpus);
            let slice = Slice {
                start_ns,
                ns: delta.ns,
                faults: delta.done.faults,
                ops: delta.done.ops,
                taken_ns,
                stolen_ns: delta.stolen_ns,
                involuntary_switches: delta.threads.as_ref().map(|t| t.iter().map(|had| had.switches).sum()),
                disturbed: delta.disturbed(taken_ns),
                by_thread: delta.done.by_thread,
            };
            start_ns += slice.ns;
            slice
        })
        .collect();
    let quiet: Vec<&Slice> = each.iter().filter(|slice| !slice.disturbed).collect();
    let ns: u64 = quiet.iter().map(|slice| slice.ns).sum();
    let per_s = |of: fn(&Slice) -> u64| {
        let enough = quiet.len() >= UNDISTURBED_MIN && ns > 0;
        enough.then(|| quiet.iter().map(|slice| of(slice)).sum::<u64>() as f64 * 1e9 / ns as f64)
    };
    SlicesReport {
        disturbed: (each.len() - quiet.len()) as u64,
        undisturbed_faults_per_s: per_s(|slice| slice.faults),
        undisturbed_ops_per_s: per_s(|slice| slice.ops),
        each,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn had(cpu_ms: u64, wait_ms: u64) -> Had {
        Had { cpu_ns: cpu_ms * MS, wait_ns: Some(wait_ms * MS), switches: 0 }
    }

    /// A slice of 50 ms with as many faults.
    fn slice(threads: &[Had]) -> Delta {
        Delta {
            ns: 50 * MS,
            done: Done { faults: 50, ops: 5, by_thread: vec![0; threads.len()] },
            process_ns: threads.iter().map(|had| had.cpu_ns).sum(),
            threads: Some(threads.to_vec()),
            stolen_ns: Some(0),
        }
    }

    #[test]
    fn what_others_got_is_taken_and_what_siblings_got_is_not() {
        let apart = [Some(0), Some(1)];
        assert_eq!(slice(&[had(50, 0), had(50, 0)]).taken_ns(&apart, 2), Some(0));
        assert_eq!(slice(&[had(50, 0), had(30, 20)]).taken_ns(&apart, 2), Some(20 * MS));
        // It slept: nobody took the rest.
        assert_eq!(slice(&[had(50, 0), had(30, 5)]).taken_ns(&apart, 2), Some(5 * MS));
        // Three on two CPUs: the first and the last wait for each other.
        let shared = [Some(0), Some(1), Some(0)];
        assert_eq!(slice(&[had(25, 25), had(50, 0), had(25, 25)]).taken_ns(&shared, 2), Some(0));
        assert_eq!(slice(&[had(15, 35), had(50, 0), had(25, 25)]).taken_ns(&shared, 2), Some(10 * MS));
        // They slept for a fifth of the time, having waited for each other before.
        assert_eq!(slice(&[had(25, 15), had(50, 0), had(15, 15)]).taken_ns(&shared, 2), Some(0));
        // A wait that began in the slice before: the CPU was theirs all the time.
        assert_eq!(slice(&[had(25, 29), had(50, 0), had(25, 25)]).taken_ns(&shared, 2), Some(0));
        // The same without pinning: both CPUs were theirs.
        assert_eq!(slice(&[had(30, 20), had(40, 10), had(30, 20)]).taken_ns(&[None; 3], 2), Some(0));
        assert_eq!(slice(&[had(30, 20), had(30, 20), had(30, 20)]).taken_ns(&[None; 3], 2), Some(10 * MS));
        // Handler threads of the process are no others.
        let mut handled = slice(&[had(30, 20)]);
        handled.process_ns += 20 * MS;
        assert_eq!(handled.taken_ns(&[Some(0)], 2), Some(0));
    }

    #[test]
    fn a_slice_is_disturbed_by_what_was_taken_or_stolen() {
        let disturbed = |delta: &Delta| delta.disturbed(delta.taken_ns(&[Some(0)], 1));
        assert!(!disturbed(&slice(&[had(50, 0)])));
        assert!(!disturbed(&slice(&[had(49, 1)])), "2 % are still nothing");
        assert!(disturbed(&slice(&[had(48, 2)])));
        assert!(disturbed(&Delta { stolen_ns: Some(TICK_NS), ..slice(&[had(50, 0)]) }));
        assert!(!disturbed(&Delta { stolen_ns: None, ..slice(&[had(50, 0)]) }), "unknown is not disturbed");
        // Where waits are unknown, an involuntary switch is enough.
        let blind = |switches| slice(&[Had { cpu_ns: 50 * MS, wait_ns: None, switches }]);
        assert_eq!(blind(1).taken_ns(&[Some(0)], 1), None);
        assert!(disturbed(&blind(1)) && !disturbed(&blind(0)));
    }

    #[test]
    fn a_wait_that_is_longer_than_its_slice_began_before() {
        let mut slices = [slice(&[had(50, 0)]), slice(&[had(10, 0)]), slice(&[had(0, 0)]), slice(&[had(20, 100)])];
        put_back_waits(&mut slices);
        let waits = slices.each_ref().map(|slice| slice.threads.as_ref().unwrap()[0].wait_ns.unwrap() / MS);
        assert_eq!(waits, [0, 20, 50, 30]);
    }

    #[test]
    fn the_undisturbed_rate_leaves_out_what_was_disturbed() {
        let slow = |had: Had| Delta { done: Done { faults: 10, ops: 1, by_thread: vec![11] }, ..slice(&[had]) };
        let mut slices = vec![slice(&[had(50, 0)]); UNDISTURBED_MIN];
        slices.extend([slow(had(20, 30)), slow(had(30, 20))]);
        let found = report(slices.clone(), &[Some(0)], 1);
        assert_eq!((found.disturbed, found.each.len()), (2, UNDISTURBED_MIN + 2));
        assert_eq!((found.undisturbed_faults_per_s, found.undisturbed_ops_per_s), (Some(1000.0), Some(100.0)));
        assert_eq!(found.each.last().unwrap().start_ns, (UNDISTURBED_MIN as u64 + 1) * 50 * MS);
        assert_eq!(found.each.iter().map(|slice| slice.faults).sum::<u64>(), 50 * UNDISTURBED_MIN as u64 + 20);
        let few = report(slices.split_off(1), &[Some(0)], 1);
        assert_eq!((few.disturbed, few.undisturbed_faults_per_s), (2, None));
    }

    #[test]
    fn joined_neighbours_lose_nothing() {
        let both = Delta::joined(&[slice(&[had(30, 20)]), slice(&[had(50, 0)])]);
        assert_eq!((both.ns, both.done.faults, both.process_ns), (100 * MS, 100, 80 * MS));
        assert_eq!((both.threads.unwrap()[0], both.stolen_ns), (had(80, 20), Some(0)));
    }

    #[test]
    fn proc_is_read() {
        assert_eq!(wait_ns("50909378 44050554 136\n"), Some(44_050_554));
        assert_eq!(involuntary_switches("Name:\tx\nnonvoluntary_ctxt_switches:\t7\n"), Some(7));
        assert_eq!(stolen_ticks("cpu  1 2 3 4 5 6 7 88 9 10\ncpu0 1\n"), Some(88));
        let spun = |tid| {
            let before = Had::of(tid).expect("this thread is there");
            let until = Instant::now() + Duration::from_millis(20);
            while Instant::now() < until {}
            let after = Had::of(tid).unwrap();
            (after.cpu_ns - before.cpu_ns) + (after.wait_ns.unwrap_or(0) - before.wait_ns.unwrap_or(0))
        };
        let ns = spun(nix::unistd::gettid().as_raw());
        assert!((10 * MS..).contains(&ns), "{ns} ns of 20 ms spun");
        assert_eq!(Had::of(i32::MAX), None);
    }

    #[test]
    fn many_slices_become_longer_ones() {
        let mut sampler = Sampler::start(Vec::new(), 1, Done::default());
        for n in 1..=SLICES_MAX as u64 + 1 {
            sampler.cut(Done { faults: n, ..Done::default() });
        }
        assert_eq!((sampler.slices.len(), sampler.every >= 2 * SLICE), (SLICES_MAX / 2 + 1, true));
        let found = sampler.finish(Done { faults: 1000, ..Done::default() });
        assert_eq!(found.each.iter().map(|slice| slice.faults).sum::<u64>(), 1000);
    }
}
