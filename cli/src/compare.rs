//! `vmalab compare`: subjects in turn, ratios round by round.

use crate::args::CompareArgs;
use crate::calibrate::{self, Calibration};
use crate::drive::Driver;
use crate::failure::{Failure, status};
use crate::output::Json;
use crate::plan::{self, Comparison};
use crate::statistics::{RESAMPLES, ROUNDS_TO_JUDGE, Ratio, median};
use crate::stress::{number_of, outcome};
use crate::table::{facts, numbers};
use crate::units::{nanoseconds, rate};
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use vmalab_workloads::{Rwsem, StressConfig, StressReport};

/// What `--json` writes.
#[derive(Serialize)]
struct CompareReport {
    schema: u32,
    command: &'static str,
    workload: String,
    baseline: String,
    rounds: u32,
    rounds_completed: usize,
    interrupted: bool,
    /// The algorithm of the mmap lock, in all subjects.
    rwsem: Rwsem,
    /// If it was chosen by short runs: what each algorithm gave under the lock
    /// `mmap`, in the unit of `throughput_of`.
    rwsem_calibration: Option<BTreeMap<&'static str, f64>>,
    /// What `throughput_ratio` is a ratio of: a key of the runs.
    throughput_of: &'static str,
    /// What `p99_ratio` is a ratio of: a key of the runs.
    p99_of: &'static str,
    interval: Interval,
    subjects: Vec<SubjectReport>,
}

/// How the intervals were made.
#[derive(Serialize)]
struct Interval {
    method: &'static str,
    confidence: f64,
    resamples: usize,
}

#[derive(Serialize)]
struct SubjectReport {
    name: String,
    runs: Vec<StressReport>,
    throughput_ratio: Ratio,
    p99_ratio: Ratio,
    verdict: String,
}

/// What a workload is compared by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// Faults a second and their latency.
    Faults,
    /// Calls a second and mmap's latency, where a subject has no faults or cannot count them.
    Calls,
}

impl Measure {
    fn of(runs: &[Vec<StressReport>]) -> Measure {
        let faulted = |report: &StressReport| report.faults.is_some_and(|faults| faults > 0);
        if runs.iter().flatten().all(faulted) { Measure::Faults } else { Measure::Calls }
    }

    fn throughput(self, report: &StressReport) -> Option<f64> {
        match self {
            Measure::Faults => report.faults_per_s,
            Measure::Calls => Some(report.ops_per_s),
        }
    }

    fn percentiles(self, report: &StressReport) -> Option<(u64, u64)> {
        let distribution = match self {
            Measure::Faults => report.fault_ns.as_ref(),
            Measure::Calls => report.op_ns.get("mmap"),
        };
        distribution.map(|d| (d.p50, d.p99))
    }

    /// Names in a table, and as keys of the runs.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Measure::Faults => ("faults/s", "faults_per_s", "fault_ns.p99"),
            Measure::Calls => ("calls/s", "ops_per_s", "op_ns.mmap.p99"),
        }
    }
}

/// Why the rounds ended.
enum End {
    /// All were run, or Ctrl-C came, or a run found a violation.
    Report,
    /// A run could not be made.
    Failed(Failure),
}

/// Runs it.
pub fn run(args: &CompareArgs) -> Result<u8, Failure> {
    let mut comparison = plan::compare(args)?;
    let json = Json::open(args.json.as_deref())?;
    let driver = Driver::new()?;
    for subject in &comparison.subjects {
        // A subject that cannot run must not be found after minutes of others.
        driver.rehearse(&subject.config).map_err(|failure| failure.in_subject(&subject.name))?;
    }
    let calibration = if args.run.rwsem.is_none() { choose_rwsem(&mut comparison, &driver)? } else { None };
    let mut runs: Vec<Vec<StressReport>> = comparison.subjects.iter().map(|_| Vec::new()).collect();
    let end = run_rounds(&comparison, args.rounds, &driver, &mut runs);
    let config = comparison.subjects[comparison.baseline].config.clone();
    if runs.iter().any(|runs| !runs.is_empty()) {
        let report = summarise(comparison, runs, args.rounds, driver.interrupted(), calibration.as_ref());
        json.write(&report, || table(&report, &config, calibration.as_ref()))?;
        let reports: Vec<&StressReport> = report.subjects.iter().flat_map(|subject| &subject.runs).collect();
        let status = outcome(&reports, driver.interrupted());
        if status == status::VIOLATION {
            return Ok(status);
        }
    }
    match end {
        End::Failed(failure) => Err(failure),
        End::Report if driver.interrupted() => Ok(status::INTERRUPTED),
        End::Report => Ok(status::DONE),
    }
}

/// Gives every subject the rwsem that is best for the lock `mmap`, if that is
/// one of them: what differs between them is then not the rwsem.
fn choose_rwsem(comparison: &mut Comparison, driver: &Driver) -> Result<Option<Calibration>, Failure> {
    let Some(mmap) = comparison.subjects.iter().find(|subject| calibrate::is_for(&subject.config)) else {
        return Ok(None);
    };
    let calibration = calibrate::calibrate(&mmap.config, driver)?;
    if let Some(calibration) = &calibration {
        comparison.subjects.iter_mut().for_each(|subject| subject.config.rwsem = calibration.rwsem);
    }
    Ok(calibration)
}

/// Every subject once a round, the first of them another one each round.
fn run_rounds(comparison: &Comparison, rounds: u32, driver: &Driver, runs: &mut [Vec<StressReport>]) -> End {
    let subjects = &comparison.subjects;
    for round in 0..rounds {
        for turn in 0..subjects.len() {
            if driver.interrupted() {
                return End::Report;
            }
            let which = (round as usize + turn) % subjects.len();
            let subject = &subjects[which];
            let label = format!("round {}/{rounds} {}", round + 1, subject.name);
            match driver.run(&subject.config, &label) {
                Ok(report) => {
                    let passed = report.passed();
                    runs[which].push(report);
                    if !passed {
                        return End::Report;
                    }
                }
                Err(failure) => return End::Failed(failure.in_subject(&subject.name)),
            }
        }
    }
    End::Report
}

fn summarise(
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
    let ratios: Vec<(Ratio, Ratio)> = runs
        .iter()
        .map(|subject| {
            let p99 = |report: &StressReport| measure.percentiles(report).map(|(_, p99)| p99 as f64);
            (ratio(subject, &|report| measure.throughput(report)), ratio(subject, &p99))
        })
        .collect();
    let subjects = comparison
        .subjects
        .iter()
        .zip(runs)
        .zip(ratios)
        .enumerate()
        .map(|(i, ((subject, runs), (throughput_ratio, p99_ratio)))| {
            let verdict = if !sound {
                "not judged: a run found a violation".to_owned()
            } else if i == comparison.baseline {
                "the baseline".to_owned()
            } else {
                verdict(baseline, measure, rounds_completed, &throughput_ratio, &p99_ratio)
            };
            SubjectReport { name: subject.name.clone(), runs, throughput_ratio, p99_ratio, verdict }
        })
        .collect();
    CompareReport {
        schema: 1,
        command: "compare",
        workload: comparison.subjects[0].config.workload.clone(),
        baseline: baseline.clone(),
        rounds,
        rounds_completed,
        interrupted,
        rwsem: comparison.subjects[0].config.rwsem,
        rwsem_calibration: calibration.map(|calibration| calibration.per_s.clone()),
        throughput_of,
        p99_of,
        interval: Interval { method: "percentile bootstrap of the median", confidence: 0.95, resamples: RESAMPLES },
        subjects,
    }
}

/// One sentence, which names a winner only when the rounds do.
fn verdict(baseline: &str, measure: Measure, rounds: usize, throughput: &Ratio, p99: &Ratio) -> String {
    let (throughput_name, ..) = measure.names();
    let Some(times) = throughput.median else {
        return "not judged: no round was completed".to_owned();
    };
    if rounds < ROUNDS_TO_JUDGE {
        return format!(
            "{times:.2} times the {throughput_name} of {baseline} in {rounds} round{}: too few to call, take --rounds \
             {ROUNDS_TO_JUDGE} or more",
            if rounds == 1 { "" } else { "s" }
        );
    }
    let first = match throughput.direction() {
        Some(Ordering::Greater) => format!("more {throughput_name} than {baseline}"),
        Some(Ordering::Less) => format!("fewer {throughput_name} than {baseline}"),
        _ => format!("no difference in {throughput_name} from {baseline} shown, the interval holds 1"),
    };
    let second = match p99.direction() {
        Some(Ordering::Greater) => "a higher p99",
        Some(Ordering::Less) => "a lower p99",
        _ if p99.median.is_none() => "p99 not measured",
        _ => "no difference in p99 shown",
    };
    format!("{first}; {second}")
}

fn table(report: &CompareReport, config: &StressConfig, calibration: Option<&Calibration>) -> String {
    let measure = if report.throughput_of == "faults_per_s" { Measure::Faults } else { Measure::Calls };
    let (throughput_name, ..) = measure.names();
    let mut text = heading(report, config);
    text.push_str(&calibration.map_or_else(|| format!("rwsem {}\n", report.rwsem), Calibration::text));
    let header = ["subject", throughput_name, "p50", "p99", &format!("{throughput_name} ratio"), "p99 ratio"];
    let rows = report.subjects.iter().map(|subject| row(report, subject, measure)).collect();
    text.push('\n');
    text.push_str(&numbers(Some(header.map(str::to_owned).to_vec()), rows));
    text.push_str(&format!(
        "\nRatios to {}, paired round by round: median [95 % bootstrap interval].\n\n",
        report.baseline
    ));
    let judged = report.subjects.iter().filter(|subject| subject.name != report.baseline);
    let verdicts: Vec<_> = judged.map(|subject| (subject.name.clone(), subject.verdict.clone())).collect();
    let width = verdicts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    text.push_str(&facts(u16::try_from(width).expect("names are short"), verdicts));
    text.push_str(&verification(report));
    text
}

fn heading(report: &CompareReport, config: &StressConfig) -> String {
    let mut parts = vec![format!("{} delivery", config.delivery)];
    let first = report.subjects.iter().find_map(|subject| subject.runs.first());
    if let Some(run) = first {
        parts.push(number_of(run.threads, "thread"));
        parts.push(number_of(run.mutators, "mutator"));
        if run.address_spaces > 1 {
            parts.push(number_of(run.address_spaces, "address space"));
        }
    }
    if config.adversary {
        parts.push("adversary".to_owned());
    }
    parts.push(format!("seed {}", config.seed));
    let each = config.effective_duration().map_or_else(
        || config.ops.map_or_else(String::new, |ops| format!(" of {ops} operations")),
        |duration| format!(" of {:.3} s", duration.as_secs_f64()),
    );
    let rounds = if report.rounds_completed < report.rounds as usize {
        format!("{} of {} rounds, partial results", report.rounds_completed, report.rounds)
    } else {
        number_of(report.rounds, "round")
    };
    format!("{}: {rounds}, runs{each}\n{}\n", report.workload, parts.join(", "))
}

fn row(report: &CompareReport, subject: &SubjectReport, measure: Measure) -> Vec<String> {
    let whole = || subject.runs.iter().filter(|run| !run.interrupted);
    let middle = |values: Vec<f64>, show: fn(f64) -> String| {
        let mut values = values;
        if values.is_empty() { "-".to_owned() } else { show(median(&mut values)) }
    };
    let ratio = |ratio: &Ratio| match (ratio.median, ratio.low, ratio.high) {
        _ if subject.name == report.baseline => "baseline".to_owned(),
        (Some(median), Some(low), Some(high)) => format!("{median:.2} [{low:.2}, {high:.2}]"),
        (Some(median), ..) => format!("{median:.2}"),
        _ => "-".to_owned(),
    };
    let percentile = |which: fn((u64, u64)) -> u64| {
        middle(whole().filter_map(|run| measure.percentiles(run)).map(|p| which(p) as f64).collect(), nanoseconds)
    };
    vec![
        subject.name.clone(),
        middle(whole().filter_map(|run| measure.throughput(run)).collect(), rate),
        percentile(|p| p.0),
        percentile(|p| p.1),
        ratio(&subject.throughput_ratio),
        ratio(&subject.p99_ratio),
    ]
}

fn verification(report: &CompareReport) -> String {
    let verified: Vec<_> = report.subjects.iter().flat_map(|s| &s.runs).filter_map(|run| run.verify.as_ref()).collect();
    if verified.is_empty() {
        return "\nverify: off (--verify checks every access)\n".to_owned();
    }
    let checked: u64 = verified.iter().map(|verify| verify.checked).sum();
    let violations: u64 = verified.iter().map(|verify| verify.violations).sum();
    let mut text = match violations {
        0 => format!("\nverify: {} accesses checked, no violation\n", crate::units::count(checked)),
        n => format!("\nverify: {n} VIOLATION(S) in {} accesses checked\n", crate::units::count(checked)),
    };
    for violation in verified.iter().filter_map(|verify| verify.first.as_ref()) {
        text.push_str(&format!("\n{violation}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::stress::tests::{sample, violated};
    use clap::Parser;

    fn comparison(options: &[&str]) -> Comparison {
        let args = ["vmalab", "compare", "app-start"].iter().chain(options);
        let Command::Compare(args) = Cli::parse_from(args).command else { unreachable!() };
        plan::compare(&args).expect("sound options")
    }

    fn report(mmap: &[f64], typesafe: &[f64]) -> CompareReport {
        let runs = |lock: &str, rates: &[f64]| rates.iter().map(|&rate| sample(lock, rate)).collect();
        let comparison = comparison(&["--locks", "mmap,typesafe"]);
        summarise(comparison, vec![runs("mmap", mmap), runs("typesafe", typesafe)], 5, false, None)
    }

    #[test]
    fn subjects_and_baseline() {
        let names = |options: &[&str]| {
            let comparison = comparison(options);
            let names: Vec<String> = comparison.subjects.iter().map(|subject| subject.name.clone()).collect();
            (names.join(","), comparison.subjects[comparison.baseline].name.clone())
        };
        let expect = |names: &str, baseline: &str| (names.to_owned(), baseline.to_owned());
        assert_eq!(names(&[]), expect("mmap,rcu,typesafe,refcount", "mmap"));
        assert_eq!(names(&["--lock", "typesafe"]), expect("mmap,typesafe", "mmap"));
        assert_eq!(names(&["--locks", "typesafe,mmap"]), expect("typesafe,mmap", "mmap"));
        assert_eq!(names(&["--locks", "native,typesafe"]), expect("native,typesafe", "native"));
        assert_eq!(names(&["--locks", "mmap,typesafe", "--baseline", "typesafe"]), expect("mmap,typesafe", "typesafe"));
        assert_eq!(names(&["--locks", "typesafe", "--baseline", "native"]), expect("native,typesafe", "native"));
    }

    #[test]
    fn a_winner_in_every_round_is_named() {
        let report = report(&[100.0, 102.0, 98.0, 100.0, 101.0], &[150.0, 149.0, 151.0, 150.0, 160.0]);
        let ratio = report.subjects[1].throughput_ratio;
        assert!(ratio.low > Some(1.4) && ratio.high < Some(1.6), "{ratio:?}");
        assert!(report.subjects[1].verdict.starts_with("more faults/s than mmap"), "{}", report.subjects[1].verdict);
        assert_eq!(report.subjects[0].throughput_ratio.median, Some(1.0));
        let text = table(&report, &StressConfig::new("app-start"), None);
        assert!(text.contains("baseline") && text.contains("1.50 ["), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn an_interval_that_holds_1_names_no_winner() {
        let report = report(&[100.0; 5], &[150.0, 160.0, 170.0, 180.0, 99.0]);
        let verdict = &report.subjects[1].verdict;
        assert!(verdict.starts_with("no difference in faults/s from mmap shown"), "{verdict}");
    }

    #[test]
    fn too_few_rounds_name_no_winner() {
        let report = report(&[100.0; 3], &[150.0; 3]);
        let verdict = &report.subjects[1].verdict;
        assert!(verdict.contains("3 rounds: too few to call"), "{verdict}");
        assert_eq!(report.rounds_completed, 3);
    }

    #[test]
    fn a_violation_leaves_nothing_to_judge() {
        let comparison = comparison(&["--locks", "mmap,typesafe"]);
        let runs = vec![vec![sample("mmap", 1.0)], vec![violated(sample("typesafe", 9.0))]];
        let report = summarise(comparison, runs, 5, false, None);
        assert_eq!(report.subjects[1].verdict, "not judged: a run found a violation");
        let text = table(&report, &StressConfig::new("app-start"), None);
        assert!(text.contains("1 VIOLATION(S)") && text.contains("incarnation seen"), "{text}");
    }

    #[test]
    fn an_interrupted_run_is_no_pair() {
        let comparison = comparison(&["--locks", "mmap,typesafe"]);
        let mut partial = sample("typesafe", 9.0);
        partial.interrupted = true;
        let report = summarise(comparison, vec![vec![sample("mmap", 1.0)], vec![partial]], 5, true, None);
        assert_eq!(report.subjects[1].throughput_ratio.median, None);
        let text = table(&report, &StressConfig::new("app-start"), None);
        assert!(text.contains("0 of 5 rounds, partial results"), "{text}");
    }

    #[test]
    fn workloads_without_faults_are_compared_by_calls() {
        let comparison = comparison(&["--locks", "mmap,typesafe"]);
        let calls = |lock: &str, per_s: f64| {
            let mut report = sample(lock, 0.0);
            (report.faults, report.fault_ns, report.ops_per_s) = (Some(0), None, per_s);
            report
        };
        let report =
            summarise(comparison, vec![vec![calls("mmap", 10.0)], vec![calls("typesafe", 20.0)]], 1, false, None);
        assert_eq!(report.subjects[1].throughput_ratio.median, Some(2.0));
        assert_eq!((report.throughput_of, report.p99_of), ("ops_per_s", "op_ns.mmap.p99"));
        assert_eq!(report.subjects[1].p99_ratio.median, Some(1.0));
    }
}
