//! From counts to throughput on many cores.
//!
//! A core does one unit of work after another (a unit is a fault, or a call in
//! workloads without faults). A unit takes
//!
//! - `alone_ns`, as measured with one thread, part of it inside write sections
//!   of the mmap lock (`exclusive_ns`), of which an address space has one at a
//!   time;
//! - and for each cache line that threads share with a write, the wait for
//!   that line whenever another core has it: `line_ns` each time, one core
//!   after another.
//!
//! How often does another core have it? Recorded is how often that was so while
//! `t` threads took turns, unit by unit or nearly: `w` writing visits a unit, and
//! `r0` of `r` visits that only read. With `m` cores that come in any order,
//!
//! - a writing visit that others would always come before finds the visit
//!   before to be its own once in m times: `w (m-1)/m` transfers;
//! - a reading visit needs a transfer if, looking back, another's write comes
//!   before a visit of its own. With `a` such writes to be expected in between,
//!   the chance is a/(a+1); recorded is r0/r of `t-1` others, and `a` grows with
//!   the number of others: `a = (m-1)/(t-1) * (r0/r) / (1 - r0/r)`.
//!
//! So the line is busy for
//!
//! ```text
//! line_ns * (w (m-1)/m + r a/(a+1))
//! ```
//!
//! a unit. This is a closed queueing network: `n` customers, a place without a
//! queue (what is done alone), and one queue for each line and each mmap lock.
//! Its throughput comes from exact mean value analysis (Reiser and Lavenberg,
//! JACM 1980). For many cores it tends to 1 / the largest demand: the hottest
//! line, or the lock.
//!
//! Assumed: all cores do the same; a transfer costs the same between any two
//! cores; a line is handed on in order. Left out: readers and writers of the
//! mmap lock that wait for each other (only writers queue here, so the lock
//! scheme `mmap` looks better than it is), drained VMA locks, the host kernel's
//! own lines, memory bandwidth, sleeping and waking.

use crate::report::Recording;

/// Lines with a queue of their own: the hottest ones. Others only delay.
const QUEUES: usize = 64;

/// What the model is told.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// A unit with one thread, ns.
    pub alone_ns: f64,
    /// Of that, while no other writer may have the mmap lock.
    pub exclusive_ns: f64,
    /// Address spaces, each with an mmap lock.
    pub address_spaces: u32,
    /// A transfer, ns.
    pub line_ns: f64,
    /// The lines that are shared with a write.
    pub lines: Vec<Visits>,
}

/// How a line goes from hand to hand, a unit, on average over all threads.
#[derive(Clone, Copy, Debug)]
pub struct Visits {
    /// Writing visits that find it with another thread, of threads that take turns.
    pub write_transfers: f64,
    /// The same of visits that only read.
    pub read_transfers: f64,
    /// Visits that only read.
    pub reads: f64,
    /// Part of the threads that visit it.
    pub threads: f64,
    /// Threads that were recorded.
    pub recorded: u32,
}

/// What bounds throughput for very many cores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Nothing that the model knows of.
    None,
    /// The write sections of the mmap lock.
    MmapLock,
    /// A line, by its place in [`Inputs::lines`].
    Line(usize),
}

impl Visits {
    /// Of all lines of a recording.
    pub fn of(recording: &Recording) -> Vec<Visits> {
        let visits = recording.lines.iter().map(|line| Visits {
            write_transfers: line.write_transfers,
            read_transfers: line.read_transfers,
            reads: line.reads,
            threads: line.threads,
            recorded: u32::try_from(recording.threads).unwrap_or(u32::MAX),
        });
        visits.collect()
    }

    /// Transfers a unit with `cores` cores.
    pub fn transfers(&self, cores: u32) -> f64 {
        let others = |threads: u32| (f64::from(threads) * self.threads - 1.0).max(0.0);
        let (now, recorded) = (others(cores), others(self.recorded));
        if recorded == 0.0 {
            return 0.0;
        }
        let reading = if self.read_transfers < self.reads {
            let between = now / recorded * self.read_transfers / (self.reads - self.read_transfers);
            self.reads * between / (between + 1.0)
        } else if now > 0.0 {
            self.reads
        } else {
            0.0
        };
        self.write_transfers * now / (now + 1.0) + reading
    }
}

impl Inputs {
    /// Units a second of `cores` cores together.
    pub fn throughput(&self, cores: u32) -> f64 {
        let mut demands: Vec<f64> = self.lines.iter().map(|line| self.line_ns * line.transfers(cores)).collect();
        demands.sort_by(|a, b| b.total_cmp(a));
        let rest: f64 = demands.iter().skip(QUEUES).sum();
        demands.truncate(QUEUES);
        let exclusive = self.exclusive_ns.min(self.alone_ns);
        let spaces = self.address_spaces.max(1);
        demands.extend(vec![exclusive / f64::from(spaces); spaces as usize]);
        mean_value_analysis(cores, self.alone_ns - exclusive + rest, &demands) * 1e9
    }

    /// What would bound very many cores, and at how many units a second.
    pub fn bound(&self) -> (Bound, f64) {
        let busy = |line: &Visits| self.line_ns * line.transfers(u32::MAX);
        let lines = self.lines.iter().enumerate().map(|(i, line)| (Bound::Line(i), busy(line)));
        let lock = (Bound::MmapLock, self.exclusive_ns / f64::from(self.address_spaces.max(1)));
        let (bound, ns) = lines.chain([lock]).max_by(|a, b| a.1.total_cmp(&b.1)).expect("the lock is one");
        if ns > 0.0 { (bound, 1e9 / ns) } else { (Bound::None, f64::INFINITY) }
    }
}

/// Throughput of `customers` that spend `alone` by themselves and then queue for
/// service of each of `demands`.
fn mean_value_analysis(customers: u32, alone: f64, demands: &[f64]) -> f64 {
    let mut queues = vec![0.0; demands.len()];
    let mut throughput = 0.0;
    for n in 1..=customers {
        let waits: Vec<f64> = demands.iter().zip(&queues).map(|(demand, queue)| demand * (1.0 + queue)).collect();
        throughput = f64::from(n) / (alone + waits.iter().sum::<f64>());
        queues = waits.iter().map(|wait| throughput * wait).collect();
    }
    throughput
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(lines: Vec<Visits>) -> Inputs {
        Inputs { alone_ns: 1_000.0, exclusive_ns: 0.0, address_spaces: 1, line_ns: 100.0, lines }
    }

    const COUNTER: Visits = Visits { write_transfers: 1.0, read_transfers: 0.0, reads: 0.0, threads: 1.0, recorded: 2 };

    #[test]
    fn without_conflicts_it_is_linear() {
        let inputs = inputs(Vec::new());
        for cores in [1, 2, 256] {
            assert!((inputs.throughput(cores) - f64::from(cores) * 1e6).abs() < 1e-3);
        }
        assert_eq!(inputs.bound().0, Bound::None);
    }

    #[test]
    fn one_core_waits_for_nobody() {
        assert!((inputs(vec![COUNTER; 100]).throughput(1) - 1e6).abs() < 1e-3);
    }

    #[test]
    fn a_counter_bounds_throughput() {
        let inputs = inputs(vec![COUNTER]);
        let (bound, per_s) = inputs.bound();
        assert!(bound == Bound::Line(0) && (per_s - 1e7).abs() < 1.0, "{bound:?} {per_s}");
        let many = inputs.throughput(1_000);
        assert!(many < 1.01e7 && many > 0.99e7, "{many}");
        // Two cores: half of the time the other has it, and nearly nobody waits in line.
        let two = inputs.throughput(2);
        assert!(two < 2e6 * 1_000.0 / 1_050.0 && two > 2e6 * 1_000.0 / 1_060.0, "{two}");
        let mut last = 0.0;
        for cores in 1..300 {
            let now = inputs.throughput(cores);
            // Once the line is always busy, it is so a little longer with each core: (m-1)/m.
            assert!(now > if cores < 10 { last } else { 0.99 * last }, "{cores}");
            last = now;
        }
    }

    #[test]
    fn readers_pay_for_what_others_write() {
        // A write in a hundred visits: with two cores nearly all reads hit, with many nearly none.
        let line = Visits { write_transfers: 0.01, read_transfers: 0.01, reads: 0.99, ..COUNTER };
        assert!((line.transfers(2) - 0.015).abs() < 1e-9, "what was recorded: {}", line.transfers(2));
        assert!(line.transfers(10_000) > 0.98, "{}", line.transfers(10_000));
        let read_only = Visits { write_transfers: 0.0, read_transfers: 0.0, ..line };
        assert_eq!(read_only.transfers(64), 0.0);
        let always = Visits { read_transfers: 1.0, reads: 1.0, ..line };
        assert!(always.transfers(1) == 0.0 && always.transfers(2) > 1.0);
        // A line of one thread is nobody else's.
        assert_eq!(Visits { threads: 0.5, ..COUNTER }.transfers(2), 0.0);
    }

    #[test]
    fn address_spaces_divide_the_lock() {
        let one = Inputs { exclusive_ns: 500.0, ..inputs(Vec::new()) };
        assert_eq!(one.bound(), (Bound::MmapLock, 2e6));
        let four = Inputs { address_spaces: 4, ..one.clone() };
        assert!(four.throughput(8) > 2.0 * one.throughput(8));
    }

    #[test]
    fn mean_value_analysis_agrees_with_a_closed_form() {
        // Two customers, one queue of 1, alone for 1: by hand X(2) = 2 / (1 + 1.5).
        assert!((mean_value_analysis(2, 1.0, &[1.0]) - 0.8).abs() < 1e-12);
    }
}
