//! The command line: what may be typed, and what it must not say.

use crate::units::{parse_duration, parse_duration_above_zero, parse_size};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  vmalab doctor
      say whether this machine can run it, and what would help if not
  vmalab stress app-start --verify --duration 5
      one workload on one lock, every page checked
  vmalab compare app-start --locks mmap,typesafe --threads 4 --mutators 1
      is it faster than the mmap lock, and how sure is that?
  vmalab conform --ops 100000
      does it do what the host kernel does?
  vmalab race reuse-other-mm --mutant
      one known race, played step by step against the code without its check

Results go to standard output, everything else to standard error.
Exit status: 0 done; 1 a violation; 2 bad usage; 3 this machine, user or
build cannot do it; 130 interrupted (partial results are still printed).";

const LIMITS_EXAMPLES: &str = "\
Examples:
  vmalab limits
  vmalab limits --duration 20s
  vmalab limits --json | jq .floors.sigbus_copy_2t.p50

Each floor is a signal, an ioctl or a system call with nothing of vmalab's
around it, measured with one thread, with two and with one for each CPU.
'stress' prints its fault latency as a multiple of such a floor. What this
machine cannot measure is null; standard error says why. docs/limits.md tells
what each is.";

const STRESS_EXAMPLES: &str = "\
Examples:
  vmalab stress app-start
  vmalab stress app-start --lock mmap --threads 4 --mutators 1 --duration 10s
  vmalab stress app-start --verify --ops 100000 --seed 7
  vmalab stress app-start --duration 1 --timeline trace.json
  vmalab stress app-start --delivery queue --handlers 2 --json result.json
  vmalab stress app-start --backend native --json - | jq .fault_ns.p99";

const COMPARE_EXAMPLES: &str = "\
Examples:
  vmalab compare app-start
  vmalab compare app-start --locks mmap,typesafe --rounds 9 --duration 3
  vmalab compare app-start --locks mmap,typesafe,native --json result.json
  vmalab compare app-start --html report.html

First, one short run of each subject is thrown away. Each round runs every
subject once; the order changes from round to round. Ratios are taken round by
round to the baseline; the interval is a 95 % bootstrap interval of their
median. A run is cut into slices of time; those in which other programs or a
hypervisor had the CPUs are counted, and the ratio is told without them too. A
winner is named only when both intervals leave out 1, there were at least 5
rounds, and no more than half of the slices were such. docs/comparing.md tells
how.";

const PROFILE_EXAMPLES: &str = "\
Examples:
  vmalab profile page-fault
  vmalab profile app-start --lock mmap --threads 4 --duration 10 --out mmap

Writes to DIR: perf.data (for 'perf report -i'), stacks.folded, flamegraph.svg,
phases.txt (the table that is printed), stress.json and stress.txt (the run's
own report). Options are those of 'stress'. docs/profiling.md tells more: USDT
probes for perf and bpftrace, and 'stress --timeline'.

Exit status: as 'stress'; 3 also where perf is missing or forbidden.";

const RACE_EXAMPLES: &str = "\
Examples:
  vmalab list races
  vmalab race reuse-other-mm --mutant
      the code without the check: the oracle must notice
  vmalab race reuse-other-mm --lock typesafe --iterations 1000
      the complete code, the same interleaving a thousand times
  vmalab race reuse-other-mm --executor shuttle --iterations 100000 --seed 7
  vmalab race reuse-other-mm --mutant --executor loom --json - | jq .caught

The executor 'faults' needs a build with the feature 'races':
  cargo run --release --features races -- race reuse-other-mm --mutant
shuttle and loom have builds of their own, which cargo makes when this is
called inside a checkout of vmalab. docs/races.md tells every race.

Exit status: 0 the mutant was caught, or the complete code passed; 1 not so;
2 bad usage; 3 this machine, user or build cannot do it; 130 interrupted.";

const CONFLICTS_EXAMPLES: &str = "\
Examples:
  vmalab conflicts
      every pair of operations under every lock: how many lines they share
  vmalab conflicts fault-write mmap --lock rcu
      which lines, and who touches them where in the source
  vmalab conflicts page-fault --threads 4
      the same for the threads of a workload
  vmalab conflicts page-fault --model 1..256
      throughput with so many cores, as the lines and locks bound it

Operations: fault-read, fault-write, fault-first (the first store to a VMA),
mmap, munmap, mprotect, mremap, dontneed, maps. Each of a pair has a thread and
a VMA of its own, in one address space and in two.

Recording has a build of its own, which cargo makes when this is called inside
a checkout of vmalab. docs/conflicts.md tells how to read it, what cannot be
seen, and what the model assumes.

Exit status: 0 done; 2 bad usage; 3 this machine, user or build cannot do it;
130 interrupted.";

const CONFORM_EXAMPLES: &str = "\
Examples:
  vmalab conform
  vmalab conform --ops 1000000 --seed 7
  vmalab conform --lock refcount --delivery queue --json result.json
  vmalab conform --json - | jq .first

Sequences of random calls run on vmalab and, in a child process, on the host.
After each call the answer or errno, the VMAs, the pages present, their
contents and the signals of accesses must agree. The first difference is
shrunk to the shortest sequence and printed as a Rust test.

Exit status: 0 all agreed; 1 a divergence; 2 bad usage; 3 this machine, user
or build cannot do it; 130 interrupted (what was found is still printed).";

/// Linux's mm in user space, with real page faults: per-VMA locks against the
/// mmap lock
///
/// A process reserves a region of addresses and serves its own page faults
/// there. mmap, munmap and mprotect, the VMAs, their locks and the tree that
/// finds them are vmalab's; the faults are real.
#[derive(Debug, Parser)]
#[command(name = "vmalab", version, max_term_width = 80, after_help = EXAMPLES, subcommand_required = true)]
#[command(arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say whether this machine and user can run it, and what would help
    Doctor(DoctorArgs),
    /// Measure what the bare mechanisms cost here: the floors of every result
    #[command(after_help = LIMITS_EXAMPLES)]
    Limits(LimitsArgs),
    /// List what can be run
    List(ListArgs),
    /// Run one workload on one lock and report what it measured
    #[command(after_help = STRESS_EXAMPLES)]
    Stress(StressArgs),
    /// Run one workload on several locks in turn and say which is faster
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(CompareArgs),
    /// Record a run with perf: a flame graph, and where the time goes by phase
    /// of a fault
    #[command(after_help = PROFILE_EXAMPLES)]
    Profile(ProfileArgs),
    /// Show the cache lines that operations share with a write, and predict
    /// throughput on many cores
    #[command(after_help = CONFLICTS_EXAMPLES)]
    Conflicts(ConflictsArgs),
    /// Make the same random calls on vmalab and on the host kernel, and compare
    /// after each
    #[command(after_help = CONFORM_EXAMPLES)]
    Conform(ConformArgs),
    /// Run a known race: the code without its check must be caught, the
    /// complete code must pass
    #[command(after_help = RACE_EXAMPLES)]
    Race(RaceArgs),
    /// A race's own process.
    #[command(hide = true, disable_help_flag = true)]
    RaceChild(RaceChildArgs),
    #[command(flatten)]
    Later(Later),
}

/// Commands whose names are taken, but which this build does not have.
#[derive(Debug, Subcommand)]
pub enum Later {
    #[command(hide = true, disable_help_flag = true)]
    Record(Anything),
    #[command(hide = true, disable_help_flag = true)]
    Replay(Anything),
    #[command(hide = true, disable_help_flag = true)]
    Run(Anything),
}

impl Later {
    /// As typed.
    pub fn name(&self) -> &'static str {
        match self {
            Later::Record(_) => "record",
            Later::Replay(_) => "replay",
            Later::Run(_) => "run",
        }
    }
}

/// Whatever follows a command that is not there.
#[derive(Args, Debug)]
pub struct Anything {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct LimitsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Time for all of it: plain seconds, or with ms, s, m [default: 4]
    #[arg(long, value_name = "SECS", allow_negative_numbers = true, value_parser = parse_duration_above_zero)]
    pub duration: Option<Duration>,
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// What to list
    pub what: Listed,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    /// What 'stress' and 'compare' can run
    Workloads,
    /// How a fault gets a stable VMA
    Locks,
    /// The race catalogue
    Races,
}

#[derive(Args, Debug)]
pub struct StressArgs {
    /// Lock scheme ('vmalab list locks') [default: typesafe]
    #[arg(long, value_name = "LOCK")]
    pub lock: Option<String>,
    /// Whose address space: vmalab's (emulated), or the host's own (native)
    #[arg(long, value_enum, default_value_t = BackendArg::Emulated, hide_possible_values = true, value_name = "BACKEND")]
    pub backend: BackendArg,
    #[command(flatten)]
    pub run: RunArgs,
    /// Do not measure what the fault latency is a multiple of ('vmalab limits')
    #[arg(long)]
    pub no_floor: bool,
    /// Write a timeline of the last faults, operations, locks held and waits to
    /// FILE, for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
    /// Events of each thread that the timeline keeps, the latest (a fault is
    /// some eight) [default: 131072]
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "timeline", value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub timeline_events: Option<u32>,
    /// Write the result as JSON to FILE; '-' prints it in place of the table
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct CompareArgs {
    /// Subjects: lock names or 'native' [default: every lock of this build]
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub locks: Vec<String>,
    /// One lock to compare with the baseline; short for --locks BASELINE,LOCK
    #[arg(long, value_name = "LOCK", conflicts_with = "locks")]
    pub lock: Option<String>,
    /// Subject that the ratios are to [default: mmap, or else the first one]
    #[arg(long, value_name = "LOCK")]
    pub baseline: Option<String>,
    /// Rounds; each runs every subject once
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Only 'emulated' makes sense here: the host is the subject 'native'
    #[arg(long, value_enum, default_value_t = BackendArg::Emulated, hide = true)]
    pub backend: BackendArg,
    /// Write the result as JSON to FILE; '-' prints it in place of the table
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Write a page with charts to FILE, beside the table
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Args, Debug)]
pub struct ProfileArgs {
    /// Lock scheme ('vmalab list locks') [default: typesafe]
    #[arg(long, value_name = "LOCK")]
    pub lock: Option<String>,
    /// Whose address space: vmalab's (emulated), or the host's own (native)
    #[arg(long, value_enum, default_value_t = BackendArg::Emulated, hide_possible_values = true, value_name = "BACKEND")]
    pub backend: BackendArg,
    #[command(flatten)]
    pub run: RunArgs,
    /// Where the files go; made if need be
    #[arg(long, value_name = "DIR", default_value = "vmalab-profile")]
    pub out: PathBuf,
    /// Samples a second of each CPU
    #[arg(long, value_name = "HZ", allow_negative_numbers = true, default_value_t = 1999, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub frequency: u32,
}

#[derive(Args, Debug)]
pub struct ConflictsArgs {
    /// A workload, or two operations [default: every pair of operations; with
    /// '--model' the workload page-fault]
    #[arg(value_name = "WORKLOAD|OP OP", num_args = 0..=2)]
    pub what: Vec<String>,
    /// Lock schemes ('vmalab list locks') [default: all; of two operations and
    /// of a workload the lines are told for typesafe]
    #[arg(long, visible_alias = "lock", value_name = "A,B", value_delimiter = ',')]
    pub locks: Vec<String>,
    /// Predict throughput with so many cores, from the lines shared and the
    /// price of a contended line, and compare with 1 and 2 threads here
    #[arg(long, value_name = "FROM..TO", value_parser = parse_cores)]
    pub model: Option<Cores>,
    /// Price of a contended line, ns, for the model [default: measured here]
    #[arg(long, value_name = "NS", allow_negative_numbers = true, value_parser = parse_line_ns, requires = "model")]
    pub line_ns: Option<f64>,
    /// Time of each of the model's measurements; the best of 5 counts
    /// [default: 200ms]
    #[arg(long, value_name = "SECS", allow_negative_numbers = true, value_parser = parse_duration_above_zero, requires = "model")]
    pub duration: Option<Duration>,
    /// Repetitions of each pair, half of them in the other order
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    pub repetitions: u32,
    /// Calls and accesses of a workload to record
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub ops: u64,
    /// Threads of a workload that fault
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Threads that map and unmap meanwhile [default: the workload's own]
    #[arg(long, value_name = "M", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub mutators: Option<u32>,
    /// Address spaces that a workload's threads are spread over
    #[arg(long, value_name = "K", allow_negative_numbers = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub address_spaces: u32,
    /// Seed of the choices
    #[arg(long, value_name = "S", allow_negative_numbers = true, default_value_t = 1)]
    pub seed: u64,
    /// Write the result as JSON to FILE; '-' prints it in place of the tables
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

/// Numbers of cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The first.
    pub from: u32,
    /// The last.
    pub to: u32,
}

/// `1..256`, both included, or one number.
fn parse_cores(text: &str) -> Result<Cores, String> {
    /// More than any machine has; the model's work grows with it.
    const MOST: u32 = 4096;
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|n| (1..=MOST).contains(n));
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    match (number(from), number(to.trim_start_matches('='))) {
        (Some(from), Some(to)) if from <= to => Ok(Cores { from, to }),
        _ => Err(format!("FROM..TO is wanted, cores from 1 to {MOST}, for example 1..256")),
    }
}

fn parse_line_ns(text: &str) -> Result<f64, String> {
    let ns: f64 = text.parse().map_err(|_| "nanoseconds are wanted, for example 60".to_owned())?;
    if ns > 0.0 && ns < 1e6 { Ok(ns) } else { Err("between 0 and 1000000 ns is wanted".to_owned()) }
}

#[derive(Args, Debug)]
pub struct ConformArgs {
    /// Calls and accesses to make
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub ops: u64,
    /// Seed of the random choices
    #[arg(long, value_name = "S", allow_negative_numbers = true, default_value_t = 1)]
    pub seed: u64,
    /// Lock scheme of vmalab's side ('vmalab list locks') [default: typesafe]
    #[arg(long, value_name = "LOCK")]
    pub lock: Option<String>,
    /// How faults arrive on vmalab's side: on the faulting thread (sigbus), or
    /// through a handler thread (queue)
    #[arg(long, value_enum, default_value_t = FaultDeliveryArg::Sigbus, hide_possible_values = true, value_name = "HOW")]
    pub delivery: FaultDeliveryArg,
    /// Calls in a sequence; each sequence begins with nothing mapped
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub sequence_length: u32,
    /// Run short programs of calls and accesses on three threads at once, and
    /// check that each ends as some serial order of them does
    #[arg(long, conflicts_with_all = ["sequence_length", "shrink"])]
    pub concurrent: bool,
    /// Divergences to shrink; those of one kind are shown once
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub shrink: u32,
    /// Write the result as JSON to FILE; '-' prints it in place of the table
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

/// Deliveries of real faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FaultDeliveryArg {
    /// On the faulting thread
    Sigbus,
    /// Through a handler thread
    Queue,
}

#[derive(Args, Debug)]
pub struct RaceArgs {
    /// Race ('vmalab list races')
    pub name: String,
    /// Leave the check out: an oracle must notice
    #[arg(long)]
    pub mutant: bool,
    /// Who decides which thread runs when: the race's own script on real
    /// faults (faults), chance (shuttle), or every way in turn (loom)
    /// [default: faults, or else the first that the race lists]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "EXECUTOR", verbatim_doc_comment)]
    pub executor: Option<ExecutorArg>,
    /// Only this lock [default: all that have the check, in turn]
    #[arg(long, value_name = "LOCK")]
    pub lock: Option<String>,
    /// Runs, or schedules of a model, for each lock [default: faults 3,
    /// shuttle what the race needs (mostly 20000), loom all]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub iterations: Option<u64>,
    /// Seed of shuttle's choices
    #[arg(long, value_name = "S", allow_negative_numbers = true, default_value_t = 1)]
    pub seed: u64,
    /// Most preemptions in a schedule of loom's [default: what the race needs,
    /// mostly 2]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u8).range(0..=16))]
    pub preemptions: Option<u8>,
    /// Time that a model may take for each lock [default: loom 60s, shuttle 10m]
    #[arg(long, value_name = "SECS", allow_negative_numbers = true, value_parser = parse_duration_above_zero)]
    pub duration: Option<Duration>,
    /// Write the result as JSON to FILE; '-' prints it in place of the report
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExecutorArg {
    /// Real threads and real faults
    Faults,
    /// Random schedules
    Shuttle,
    /// All schedules within a bound
    Loom,
}

#[derive(Args, Debug)]
pub struct RaceChildArgs {
    /// As `vmalab_races::child_main` takes them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// What `stress` and `compare` share.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Workload ('vmalab list workloads')
    pub workload: String,
    /// How faults arrive: on the faulting thread (sigbus), through handler
    /// threads (queue), or as plain calls without a fault (software)
    #[arg(long, value_enum, default_value_t = DeliveryArg::Sigbus, hide_possible_values = true, value_name = "HOW")]
    pub delivery: DeliveryArg,
    /// Handler threads of '--delivery queue' [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub handlers: Option<u32>,
    /// Algorithm of the mmap lock: futex (ours), kernel (as Linux's rwsem),
    /// std or parking_lot [default: futex; 'compare': whichever is best for the
    /// lock mmap in a short run of each]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "RWSEM")]
    pub rwsem: Option<RwsemArg>,
    /// Threads that fault
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub threads: u32,
    /// Threads that map and unmap meanwhile [default: the workload's own]
    #[arg(long, value_name = "M", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=256))]
    pub mutators: Option<u32>,
    /// Calls a second that each of those makes at most [default: no limit]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub mutator_rate: Option<u32>,
    /// Address spaces that the threads are spread over
    #[arg(long, value_name = "K", allow_negative_numbers = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub address_spaces: u32,
    /// Measured time: plain seconds, or with ms, s, m [default: 5]
    #[arg(long, value_name = "SECS", allow_negative_numbers = true, value_parser = parse_duration_above_zero, conflicts_with = "ops")]
    pub duration: Option<Duration>,
    /// Stop after N calls that change the address space, instead of after a time
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub ops: Option<u64>,
    /// Time to run before measuring [default: 500ms]
    #[arg(long, value_name = "SECS", allow_negative_numbers = true, value_parser = parse_duration)]
    pub warmup: Option<Duration>,
    /// Seed of the workload's choices
    #[arg(long, value_name = "S", allow_negative_numbers = true, default_value_t = 1)]
    pub seed: u64,
    /// Stamp every page with its VMA and check it at each touch
    #[arg(long)]
    pub verify: bool,
    /// Addresses to reserve for each address space, with K, M, G or T
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = parse_size)]
    pub region: Option<u64>,
    /// Pages to install at each fault: a power of two up to 64 [default: 1]
    #[arg(long, value_name = "PAGES", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub fault_around: Option<u32>,
    /// Zeroed pages to keep ready, which fault-around of stores moves in
    /// [default: 0]
    #[arg(long, value_name = "PAGES", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub ready_pages: Option<u32>,
    /// Keep each thread on one CPU: fault threads, then mutators, on the CPUs in
    /// turn [default: 'compare' does, 'stress' does not]
    #[arg(long, overrides_with = "no_pin")]
    pub pin: bool,
    /// Let threads move between CPUs
    #[arg(long, overrides_with = "pin")]
    pub no_pin: bool,
    /// Be hostile: hand VMA objects on at once, poison them when freed, reuse
    /// addresses, delay threads at schedule points ('docs/adversary.md')
    #[arg(long, hide = cfg!(not(feature = "races")))]
    pub adversary: bool,
    /// Leave one check out, for example NoMmCheck, to see whether it is missed:
    /// a violation, and exit status 1, is then what to expect
    #[cfg(feature = "races")]
    #[arg(long, value_name = "NAME")]
    pub mutant: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// vmalab's own mm
    Emulated,
    /// The host's mmap
    Native,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RwsemArg {
    /// Ours
    Futex,
    /// The kernel's
    Kernel,
    /// std's
    Std,
    /// parking_lot's
    #[value(name = "parking_lot", alias = "parking-lot")]
    ParkingLot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeliveryArg {
    /// On the faulting thread
    Sigbus,
    /// Through handler threads
    Queue,
    /// No fault: a direct call
    Software,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn clap_accepts_the_definition() {
        Cli::command().debug_assert();
    }
}
