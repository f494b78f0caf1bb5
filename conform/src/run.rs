//! The loop: sequence after sequence on both sides.

use crate::coverage::{CallCount, Coverage, Reached};
use crate::emulated::{self, Emulated, Stopped};
use crate::generate::Generator;
use crate::host::{Host, HostError};
use crate::observe::{Observation, answer_of, next_record};
use crate::op::{Op, Place, Sequence, Setup};
use crate::profile::Profile;
use crate::remote::OPS_MAX;
use crate::shrink::shrink;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long a step may take before vmalab counts as hung: at first, and while
/// candidates are tried.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_SHRINKING: Duration = Duration::from_millis(1500);
/// How long a shrink may take: in the crowded place a candidate takes 50 ms.
const SHRINK_TIME: Duration = Duration::from_secs(60);

/// A lock scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// The mmap lock alone.
    Mmap,
    /// Linux 6.4's.
    Rcu,
    /// The seed's.
    TypeSafe,
    /// Linux 6.15's.
    RefCount,
}

impl Lock {
    /// All of them.
    pub const ALL: [Lock; 4] = [Lock::Mmap, Lock::Rcu, Lock::TypeSafe, Lock::RefCount];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Lock::Mmap => "mmap",
            Lock::Rcu => "rcu",
            Lock::TypeSafe => "typesafe",
            Lock::RefCount => "refcount",
        }
    }
}

impl FromStr for Lock {
    type Err = ();

    fn from_str(name: &str) -> Result<Lock, ()> {
        Lock::ALL.into_iter().find(|lock| lock.name() == name).ok_or(())
    }
}

/// How vmalab's faults arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// On the faulting thread.
    Sigbus,
    /// Through a handler thread.
    Queue,
}

impl Delivery {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Delivery::Sigbus => "sigbus",
            Delivery::Queue => "queue",
        }
    }
}

/// A fault put into vmalab's side, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// `munmap` gives ENOMEM in place of EINVAL.
    Errno,
    /// Mappings made with MAP_FIXED do not merge with others.
    NoMerge,
    /// `mremap` panics.
    Panic,
}

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// vmalab's lock scheme.
    pub lock: Lock,
    /// How its faults arrive.
    pub delivery: Delivery,
    /// Of the random choices.
    pub seed: u64,
    /// Steps of a sequence.
    pub sequence_length: usize,
    /// Divergences that are shrunk. Those of one kind are shown once, so fewer
    /// may be shown.
    pub shrink_max: usize,
    /// For the self-test.
    pub sabotage: Option<Sabotage>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            lock: Lock::TypeSafe,
            delivery: Delivery::Sigbus,
            seed: 1,
            sequence_length: 120,
            shrink_max: 1,
            sabotage: None,
        }
    }
}

/// Why a run could not be made.
#[derive(Debug)]
pub enum Error {
    /// The host's side.
    Host(HostError),
    /// vmalab's side.
    Emulated(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Host(error) => error.fmt(f),
            Error::Emulated(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<HostError> for Error {
    fn from(error: HostError) -> Error {
        Error::Host(error)
    }
}

/// Where the sides differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The sequence.
    pub sequence: Sequence,
    /// Number of the step; the sequence's length for the state at the end.
    pub step: usize,
    /// What the host shows there.
    pub host: String,
    /// What vmalab shows.
    pub vmalab: String,
}

impl Divergence {
    /// The step, as `strace` would write it.
    pub fn call(&self) -> String {
        self.sequence.ops.get(self.step).map_or_else(|| "(at the end)".to_owned(), Op::to_string)
    }

    /// Divergences of one kind: the same calls, and something of the same sort
    /// differs.
    fn kind(&self) -> String {
        let calls: Vec<&str> = self.sequence.ops.iter().map(|op| op.call().name()).collect();
        let sort = |text: &str| text.split([':', '0']).next().unwrap_or_default().to_owned();
        format!("{} {} {}", calls.join(" "), sort(&self.host), sort(&self.vmalab))
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "step {}: {}", self.step, self.call())?;
        writeln!(f, "  host:   {}", self.host)?;
        writeln!(f, "  vmalab: {}", self.vmalab)?;
        write!(f, "{}", self.sequence.source("shrunk"))
    }
}

/// The first divergence, in a report.
#[derive(Clone, Debug, Serialize)]
pub struct First {
    /// Number of the step in the shrunk sequence.
    pub step: usize,
    /// The step.
    pub call: String,
    /// What the host shows.
    pub host: String,
    /// What vmalab shows.
    pub vmalab: String,
    /// The shrunk sequence, as `strace` would write it.
    pub shrunk: Vec<String>,
    /// The shrunk sequence as a Rust test.
    pub test: String,
}

impl From<&Divergence> for First {
    fn from(divergence: &Divergence) -> First {
        First {
            step: divergence.step,
            call: divergence.call(),
            host: divergence.host.clone(),
            vmalab: divergence.vmalab.clone(),
            shrunk: divergence.sequence.ops.iter().map(Op::to_string).collect(),
            test: divergence.sequence.source("shrunk"),
        }
    }
}

/// What a run found; the object of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// 1
    pub schema: u32,
    /// `conform`
    pub command: &'static str,
    /// Steps run.
    pub ops: u64,
    /// The seed.
    pub seed: u64,
    /// vmalab's lock scheme.
    pub lock: &'static str,
    /// vmalab's delivery.
    pub delivery: &'static str,
    /// The kernel's profile.
    pub profile: String,
    /// Sequences run.
    pub sequences: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Ended early, by the user.
    pub interrupted: bool,
    /// Sequences in which the sides differ.
    pub divergences: u64,
    /// The host's answers.
    pub by_call: BTreeMap<&'static str, CallCount>,
    /// The errno table of the kernel lineage §4.
    pub errors: Vec<Reached>,
    /// Errors that the host gave and §4 does not list: call and error.
    pub unlisted_errors: Vec<(&'static str, String)>,
    /// What is left out, and why.
    pub exclusions: Vec<(String, String)>,
    /// The first divergence.
    pub first: Option<First>,
    /// Divergences of other kinds that were shrunk.
    pub more: Vec<First>,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Steps run.
    pub ops: u64,
    /// Divergences.
    pub divergences: u64,
    /// The first divergence is being shrunk.
    pub shrinking: bool,
    /// Since the start.
    pub elapsed: Duration,
}

/// Both sides, ready to run sequences.
pub struct Runner {
    config: Config,
    hosts: Vec<Host>,
    emulated: Emulated,
    patience: Duration,
    coverage: Coverage,
}

impl Runner {
    /// Makes the host's side for the small window. The others follow when they
    /// are needed.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(config: Config) -> Result<Runner, Error> {
        assert!((1..=OPS_MAX).contains(&config.sequence_length));
        let emulated = Emulated::new(config).map_err(|(call, errno)| Error::Emulated(format!("{call}: {errno}")))?;
        let (hosts, patience, coverage) = (Vec::new(), PATIENCE, Coverage::default());
        let mut runner = Runner { config, hosts, emulated, patience, coverage };
        runner.host(Place::Small)?;
        Ok(runner)
    }

    fn host(&mut self, place: Place) -> Result<usize, HostError> {
        if let Some(at) = self.hosts.iter().position(|host| host.place() == place) {
            return Ok(at);
        }
        self.hosts.push(Host::new(place)?);
        Ok(self.hosts.len() - 1)
    }

    /// Runs a sequence on both sides. The number of steps that the host ran,
    /// and the divergence, if there is one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn compare(&mut self, sequence: &Sequence) -> Result<(usize, Option<Divergence>), Error> {
        let at = self.host(sequence.setup.place)?;
        let host = &mut self.hosts[at];
        let room = host.map_count_room();
        host.start(sequence);
        // Meanwhile, on another CPU:
        self.emulated.start(sequence, room);
        let host_words = host.finish()?;
        let (own_words, stopped) = self.emulated.finish(self.patience);
        let failure = match stopped {
            None => None,
            Some(Stopped::Failed(how)) => Some(how),
            Some(Stopped::Cannot(why)) => return Err(Error::Emulated(why)),
        };
        let mut steps = 0;
        let (mut host_rest, mut own_rest) = (host_words, &own_words[..]);
        let mut found = None;
        while let Some((theirs, rest)) = next_record(host_rest) {
            host_rest = rest;
            if let Some(op) = sequence.ops.get(steps) {
                self.coverage.count(op.call(), answer_of(theirs));
            }
            let Some((ours, rest)) = next_record(own_rest) else {
                let vmalab = failure.clone().unwrap_or_else(|| "nothing".to_owned());
                found = Some((Observation::decode(theirs).answer.to_string(), vmalab));
                break;
            };
            own_rest = rest;
            if theirs != ours {
                found = Observation::decode(theirs).difference(&Observation::decode(ours));
                if found.is_some() {
                    break;
                }
            }
            steps += 1;
        }
        // It may fail after the last record.
        let found = found.or_else(|| failure.map(|how| ("goes on".to_owned(), how)));
        let step = steps.min(sequence.ops.len());
        let divergence = found.map(|(host, vmalab)| Divergence { sequence: sequence.clone(), step, host, vmalab });
        Ok((step, divergence))
    }

    /// Shrinks a divergence. `go_on` is asked now and then.
    ///
    /// # Errors
    /// [`Error`].
    pub fn shrink(&mut self, found: Divergence, go_on: &mut dyn FnMut() -> bool) -> Result<Divergence, Error> {
        self.patience = PATIENCE_SHRINKING;
        let result = self.shrink_it(found, go_on);
        self.patience = PATIENCE;
        result
    }

    fn shrink_it(&mut self, found: Divergence, go_on: &mut dyn FnMut() -> bool) -> Result<Divergence, Error> {
        let (mut best, mut error, start_time) = (found.clone(), None, Instant::now());
        // With everything compared after every step it may show earlier; if it
        // shows at all.
        let mut start = found.sequence.clone();
        start.setup = Setup { place: start.setup.place, ..Setup::THOROUGH };
        if start.setup.place == Place::Crowded {
            start.setup.flags_every = 0;
        }
        match self.compare(&start)? {
            (_, Some(divergence)) => best = divergence,
            (_, None) => start.setup = found.sequence.setup,
        }
        start.ops.truncate(best.step + 1);
        shrink(start, |candidate| {
            if error.is_some() || start_time.elapsed() > SHRINK_TIME || !go_on() {
                return None;
            }
            match self.compare(candidate) {
                Ok((_, None)) => None,
                Ok((_, Some(divergence))) => {
                    let step = divergence.step;
                    best = divergence;
                    Some(step)
                }
                Err(e) => {
                    error = Some(e);
                    None
                }
            }
        });
        best.sequence.ops.truncate(best.step + 1);
        error.map_or(Ok(best), Err)
    }

    /// Runs random sequences until `ops` steps are done. `go_on` hears where
    /// the run stands, and ends it with `false`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn run(&mut self, ops: u64, go_on: &mut dyn FnMut(Progress) -> bool) -> Result<Report, Error> {
        let start = Instant::now();
        self.coverage = Coverage::default();
        let places = self.places();
        let brk = self.hosts.iter().all(Host::has_brk);
        let mut generator = Generator::new(self.config.seed, self.config.sequence_length, &places, brk);
        let mut progress = Progress { ops: 0, divergences: 0, shrinking: false, elapsed: Duration::ZERO };
        let (mut sequences, mut shrunk, mut interrupted) = (0, Vec::<Divergence>::new(), false);
        while progress.ops < ops {
            progress.elapsed = start.elapsed();
            if !go_on(progress) {
                interrupted = true;
                break;
            }
            let mut sequence = generator.sequence();
            sequence.ops.truncate((ops - progress.ops).min(OPS_MAX as u64) as usize);
            let (_, divergence) = self.compare(&sequence)?;
            progress.ops += sequence.ops.len() as u64;
            sequences += 1;
            if let Some(divergence) = divergence {
                progress.divergences += 1;
                if progress.divergences <= self.config.shrink_max as u64 {
                    // Shrinking must not count.
                    let coverage = self.coverage.clone();
                    let mut ask = || go_on(Progress { shrinking: true, elapsed: start.elapsed(), ..progress });
                    let small = self.shrink(divergence, &mut ask)?;
                    self.coverage = coverage;
                    if shrunk.iter().all(|other| other.kind() != small.kind()) {
                        shrunk.push(small);
                    }
                }
            }
        }
        Ok(Report {
            schema: 1,
            command: "conform",
            ops: progress.ops,
            seed: self.config.seed,
            lock: self.config.lock.name(),
            delivery: self.config.delivery.name(),
            profile: Profile::running().to_string(),
            sequences,
            seconds: start.elapsed().as_secs_f64(),
            interrupted,
            divergences: progress.divergences,
            by_call: self.coverage.by_call(),
            errors: self.coverage.errors(|call| self.why_absent(call)),
            unlisted_errors: self.coverage.unexpected(),
            exclusions: (crate::coverage::EXCLUSIONS.iter().chain(emulated::KNOWN))
                .map(|(what, why)| ((*what).to_owned(), (*why).to_owned()))
                .collect(),
            first: shrunk.first().map(First::from),
            more: shrunk.iter().skip(1).map(First::from).collect(),
        })
    }

    /// The places that this machine and user can have.
    fn places(&mut self) -> Vec<Place> {
        Place::ALL.into_iter().filter(|&place| self.host(place).is_ok()).collect()
    }

    fn why_absent(&self, call: crate::op::Call) -> Option<String> {
        let made = self.coverage.by_call().contains_key(call.name());
        (!made).then(|| "not in vmalab yet, so not generated".to_owned())
    }
}

/// Runs the steps in the small window on the host and under every lock scheme
/// and delivery, and compares after each. For tests.
///
/// # Panics
/// At a difference, or if this machine cannot do it.
#[track_caller]
pub fn check(ops: &[Op]) {
    check_in(Setup::THOROUGH, ops);
}

/// [`check`] with another set-up.
///
/// # Panics
/// As `check`.
#[track_caller]
pub fn check_in(setup: Setup, ops: &[Op]) {
    for op in ops {
        assert!(crate::safe::is_safe(op, setup.place), "{op} would leave the window on the host");
    }
    for delivery in [Delivery::Sigbus, Delivery::Queue] {
        for lock in Lock::ALL {
            let mut runner =
                Runner::new(Config { lock, delivery, ..Config::default() }).unwrap_or_else(|e| panic!("{e}"));
            let sequence = Sequence { setup, ops: ops.to_vec() };
            let (_, divergence) = runner.compare(&sequence).unwrap_or_else(|e| panic!("{e}"));
            if let Some(divergence) = divergence {
                panic!("{} lock, {} delivery: {divergence}", lock.name(), delivery.name());
            }
        }
    }
}
