//! What a comparison found: the object of `compare --json`, and how it comes
//! from the runs.

use super::verdict::{self, Call};
use crate::calibrate::Calibration;
use crate::machine::{Build, Machine};
use crate::plan::Comparison;
use crate::statistics::{RESAMPLES, Ratio};
use serde::Serialize;
use std::collections::BTreeMap;
use vmalab_workloads::{Distribution, FloorReport, Rwsem, StressReport};

/// What `--json` writes.
#[derive(Serialize)]
pub struct CompareReport {
    pub schema: u32,
    pub command: &'static str,
    pub workload: String,
    pub baseline: String,
    pub rounds: u32,
    pub rounds_completed: usize,
    pub interrupted: bool,
    /// Runs before the first round that count for nothing.
    pub runs_thrown_away: usize,
    /// The algorithm of the mmap lock, in all subjects.
    pub rwsem: Rwsem,
    /// If it was chosen by short runs: what each algorithm gave under the lock
    /// `mmap`, in the unit of `throughput_of`.
    pub rwsem_calibration: Option<BTreeMap<&'static str, f64>>,
    /// What `throughput_ratio` is a ratio of: a key of the runs.
    pub throughput_of: &'static str,
    /// What `p99_ratio` is a ratio of: a key of the runs.
    pub p99_of: &'static str,
    pub interval: Interval,
    /// Of all subjects' runs together.
    pub slices: SliceCount,
    /// The bare mechanism of a fault, measured after the rounds, in the page.
    pub floor: Option<FloorReport>,
    pub subjects: Vec<SubjectReport>,
    pub machine: Machine,
    pub build: Build,
    /// The command that repeats it.
    pub repeat: String,
}

/// How the intervals were made.
#[derive(Serialize)]
pub struct Interval {
    pub method: &'static str,
    pub confidence: f64,
    pub resamples: usize,
}

/// Slices of time of some runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SliceCount {
    /// In which others took too much of the machine.
    pub disturbed: u64,
    pub all: u64,
}

impl SliceCount {
    fn of<'a>(runs: impl Iterator<Item = &'a StressReport>) -> SliceCount {
        runs.filter_map(|run| run.slices.as_ref()).fold(SliceCount::default(), |sum, slices| SliceCount {
            disturbed: sum.disturbed + slices.disturbed,
            all: sum.all + slices.each.len() as u64,
        })
    }
}

#[derive(Serialize)]
pub struct SubjectReport {
    pub name: String,
    pub runs: Vec<StressReport>,
    pub throughput_ratio: Ratio,
    pub p99_ratio: Ratio,
    /// Of `mutator_ops_per_s`, where mutators ran beside the faults that are compared:
    /// faults and calls share the CPUs.
    pub calls_ratio: Option<Ratio>,
    /// As `throughput_ratio`, of the slices that were not disturbed.
    pub throughput_ratio_undisturbed: Ratio,
    pub slices: SliceCount,
    pub verdict: String,
    /// Whichever has the higher throughput, it or the baseline, if the rounds show it.
    pub winner: Option<String>,
    /// More rounds that would likely show who has.
    pub more_rounds: Option<usize>,
    /// What the verdict says of the throughput; `None` of the baseline, or
    /// after a violation.
    #[serde(skip)]
    pub call: Option<Call>,
}

impl SubjectReport {
    /// Its runs that came to their end.
    pub fn whole_runs(&self) -> impl Iterator<Item = &StressReport> {
        self.runs.iter().filter(|run| !run.interrupted)
    }
}

impl CompareReport {
    /// What it compares by.
    pub fn measure(&self) -> Measure {
        if self.throughput_of == "faults_per_s" { Measure::Faults } else { Measure::Calls }
    }

    /// All but the baseline.
    pub fn judged(&self) -> impl Iterator<Item = &SubjectReport> {
        self.subjects.iter().filter(|subject| subject.name != self.baseline)
    }
}

/// What a workload is compared by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Faults a second and their latency.
    Faults,
    /// Calls a second and mmap's latency, where a subject has no faults or cannot count them.
    Calls,
}

impl Measure {
    pub fn of(runs: &[Vec<StressReport>]) -> Measure {
        let faulted = |report: &StressReport| report.faults.is_some_and(|faults| faults > 0);
        if runs.iter().flatten().all(faulted) { Measure::Faults } else { Measure::Calls }
    }

    pub fn throughput(self, report: &StressReport) -> Option<f64> {
        match self {
            Measure::Faults => report.faults_per_s,
            Measure::Calls => Some(report.ops_per_s),
        }
    }

    pub fn distribution(self, report: &StressReport) -> Option<&Distribution> {
        match self {
            Measure::Faults => report.fault_ns.as_ref(),
            Measure::Calls => report.op_ns.get("mmap"),
        }
    }

    pub fn percentiles(self, report: &StressReport) -> Option<(u64, u64)> {
        self.distribution(report).map(|d| (d.p50, d.p99))
    }

    /// Throughput in the slices that were not disturbed.
    pub fn undisturbed(self, report: &StressReport) -> Option<f64> {
        let slices = report.slices.as_ref()?;
        match self {
            Measure::Faults => slices.undisturbed_faults_per_s,
            Measure::Calls => slices.undisturbed_ops_per_s,
        }
    }

    /// Key of `cdf_ns`.
    pub fn cdf(self) -> &'static str {
        match self {
            Measure::Faults => "fault",
            Measure::Calls => "mmap",
        }
    }

    /// Names in a table, and as keys of the runs.
    pub fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Measure::Faults => ("faults/s", "faults_per_s", "fault_ns.p99"),
            Measure::Calls => ("calls/s", "ops_per_s", "op_ns.mmap.p99"),
        }
    }
}

/// From the runs, in the order of the subjects, to what they say.
pub fn summarise(
    comparison: Comparison,
    runs: Vec<Vec<StressReport>>,
    rounds: u32,
    interrupted: bool,
    calibration: Option<&Calibration>,
) -> CompareReport {
    let measure = Measure::of(&runs);
    let (_, throughput_of, p99_of) = measure.names();
    let baseline = &comparison.subjects[comparison.baseline].name;
    let whole = |report: &&StressReport| !report.interrupted;
    let sound = runs.iter().flatten().all(StressReport::passed);
    let rounds_completed = runs.iter().map(|runs| runs.iter().filter(whole).count()).min().unwrap_or(0);
    let ratio = |subject: &[StressReport], value: &dyn Fn(&StressReport) -> Option<f64>| {
        let pairs = subject.iter().zip(&runs[comparison.baseline]);
        Ratio::of_pairs(
            pairs
                .filter(|(subject, baseline)| !subject.interrupted && !baseline.interrupted)
                .map(|(subject, baseline)| (value(subject), value(baseline))),
        )
    };
    let p99 = |report: &StressReport| measure.percentiles(report).map(|(_, p99)| p99 as f64);
    let mutated = measure == Measure::Faults && runs.iter().flatten().any(|run| run.mutators > 0);
    let calls = |report: &StressReport| report.mutator_ops_per_s;
    let ratios: Vec<verdict::Ratios> = runs
        .iter()
        .map(|subject| verdict::Ratios {
            throughput: ratio(subject, &|report| measure.throughput(report)),
            undisturbed: ratio(subject, &|report| measure.undisturbed(report)),
            p99: ratio(subject, &p99),
            calls: mutated.then(|| ratio(subject, &calls)),
            slices: SliceCount::of(subject.iter().chain(&runs[comparison.baseline])),
        })
        .collect();
    let slices = SliceCount::of(runs.iter().flatten());
    let subjects =
        comparison.subjects.iter().zip(runs).zip(ratios).enumerate().map(|(i, ((subject, runs), ratios))| {
            let is_baseline = i == comparison.baseline;
            let call = (sound && !is_baseline).then(|| verdict::call(&ratios));
            let winner = match call {
                Some(Call::More) => Some(subject.name.clone()),
                Some(Call::Fewer) => Some(baseline.clone()),
                _ => None,
            };
            SubjectReport {
                name: subject.name.clone(),
                slices: SliceCount::of(runs.iter()),
                runs,
                verdict: if !sound {
                    "not judged: a run found a violation".to_owned()
                } else if is_baseline {
                    "the baseline".to_owned()
                } else {
                    verdict::sentence(baseline, measure, &ratios)
                },
                winner,
                more_rounds: call.and_then(|_| verdict::more_rounds(&ratios)),
                call,
                throughput_ratio: ratios.throughput,
                p99_ratio: ratios.p99,
                calls_ratio: ratios.calls,
                throughput_ratio_undisturbed: ratios.undisturbed,
            }
        });
    let subjects = subjects.collect();
    let rwsem = comparison.subjects[0].config.rwsem;
    CompareReport {
        schema: 1,
        command: "compare",
        workload: comparison.subjects[0].config.workload.clone(),
        baseline: baseline.clone(),
        rounds,
        rounds_completed,
        interrupted,
        runs_thrown_away: comparison.subjects.len(),
        rwsem,
        rwsem_calibration: calibration.map(|calibration| calibration.per_s.clone()),
        throughput_of,
        p99_of,
        interval: Interval { method: "percentile bootstrap of the median", confidence: 0.95, resamples: RESAMPLES },
        slices,
        floor: None,
        subjects,
        machine: Machine::read(),
        build: Build::of_this(),
        repeat: crate::machine::repeat(std::env::args(), rwsem),
    }
}
