//! What is asked of `conflicts-record`, and what it answers.

use crate::op::{Op, Relation};
use serde::{Deserialize, Serialize};
use vmalab_workloads::Lock;

/// What to record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Pairs of operations.
    Pairs(PairsRequest),
    /// The threads of a workload.
    Workload(WorkloadRequest),
}

/// Which pairs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PairsRequest {
    /// Under these locks.
    pub locks: Vec<Lock>,
    /// These, each in one address space and in two.
    pub pairs: Vec<(Op, Op)>,
    /// So often each, half of the time in the other order.
    pub repetitions: u32,
    /// Of the places.
    pub seed: u64,
}

/// Which workload, over the software `Mmu`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkloadRequest {
    /// Under these locks.
    pub locks: Vec<Lock>,
    /// Its name.
    pub workload: String,
    /// Threads that fault.
    pub threads: u32,
    /// Threads that map and unmap; `None`: the workload's own.
    pub mutators: Option<u32>,
    /// Address spaces.
    pub address_spaces: u32,
    /// Calls and accesses that are recorded.
    pub ops: u64,
    /// Of the workload's choices.
    pub seed: u64,
}

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Pair by pair, lock by lock.
    Pairs(Vec<Pair>),
    /// Lock by lock.
    Workload(Vec<Recording>),
}

/// How often something was, over repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// At least.
    pub min: u64,
    /// Half of the time no more.
    pub median: u64,
    /// At most.
    pub max: u64,
}

impl Spread {
    /// Of these counts, one at least.
    pub fn of(mut counts: Vec<u64>) -> Spread {
        counts.sort_unstable();
        let last = counts.len() - 1;
        Spread { min: counts[0], median: counts[last / 2], max: counts[last] }
    }
}

/// One pair under one lock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pair {
    /// The operations.
    pub ops: [Op; 2],
    /// Where the second one is.
    pub relation: Relation,
    /// The lock.
    pub lock: Lock,
    /// Repetitions.
    pub repetitions: u32,
    /// Lines that both touched, at least one of them writing, by repetition.
    pub lines: Spread,
    /// Those of them in which no byte is touched by both with a write.
    pub false_sharing: Spread,
    /// Accesses that each operation made: the mean.
    pub accesses: [f64; 2],
    /// The lines, those that were shared most often first.
    pub shared: Vec<Shared>,
}

/// A line that is shared with a write, or several alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shared {
    /// The object that it lies in and the offset of the line in it; `None`:
    /// a static, or memory that the core tells nothing of.
    pub object: Option<String>,
    /// Lines a repetition, or in a workload: lines.
    pub lines: f64,
    /// Repetitions, or operations, that found any.
    pub found: u64,
    /// No byte of them is touched by both with a write.
    pub false_sharing: bool,
    /// Visits (operations that touch the line, by line and operation) that
    /// write, and that only read.
    pub writes: f64,
    /// See `writes`.
    pub reads: f64,
    /// Visits of either kind that found the line with another thread, which
    /// had changed it or now loses it, the threads taking turns.
    pub transfers: f64,
    /// Who touches it, writers first.
    pub touches: Vec<Touch>,
}

/// An operation's accesses to a shared line from one line of source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Touch {
    /// The operation.
    pub op: String,
    /// Whether it writes.
    pub write: bool,
    /// Accesses.
    pub accesses: u64,
    /// Source file.
    pub file: String,
    /// Line of it, from 1.
    pub line: u32,
    /// What stands there, if the file was found.
    pub code: Option<String>,
}

/// A workload's threads under one lock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Recording {
    /// The lock.
    pub lock: Lock,
    /// Threads seen.
    pub threads: u64,
    /// Calls and accesses recorded, by name.
    pub operations: Vec<(String, u64)>,
    /// Calls and first touches: what throughput counts.
    pub units: u64,
    /// Accesses an operation: the mean.
    pub accesses: f64,
    /// Lines shared with a write, those handed on most often first.
    pub shared: Vec<Shared>,
    /// The same line by line, for the model.
    pub lines: Vec<Line>,
}

/// A line of a workload that is shared with a write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// As in [`Shared`].
    pub object: Option<String>,
    /// Visits a unit that write.
    pub writes: f64,
    /// Visits a unit that only read.
    pub reads: f64,
    /// Writing visits a unit that found the line with another thread.
    pub write_transfers: f64,
    /// The same of those that only read.
    pub read_transfers: f64,
    /// Part of the threads that touch it.
    pub threads: f64,
}
