//! `vmalab compare`: subjects in turn, ratios round by round.

mod page;
mod report;
mod table;
mod verdict;

use crate::args::CompareArgs;
use crate::calibrate::{self, Calibration};
use crate::drive::Driver;
use crate::failure::{Failure, status};
use crate::limits;
use crate::output::{Html, Json};
use crate::plan::{self, Comparison};
use crate::stress::outcome;
use report::summarise;
use std::time::Duration;
use vmalab_workloads::{StressConfig, StressReport};

/// Longest run that is made to be thrown away.
const THROWN_AWAY: Duration = Duration::from_millis(500);

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
    let html = Html::open(args.html.as_deref())?;
    let driver = Driver::new()?;
    for subject in &comparison.subjects {
        // A subject that cannot run must not be found after minutes of others.
        driver.rehearse(&subject.config).map_err(|failure| failure.in_subject(&subject.name))?;
    }
    let calibration = if args.run.rwsem.is_none() { choose_rwsem(&mut comparison, &driver)? } else { None };
    throw_first_runs_away(&comparison, &driver)?;
    let mut runs: Vec<Vec<StressReport>> = comparison.subjects.iter().map(|_| Vec::new()).collect();
    let end = run_rounds(&comparison, args.rounds, &driver, &mut runs);
    let config = comparison.subjects[comparison.baseline].config.clone();
    if runs.iter().any(|runs| !runs.is_empty()) {
        let mut report = summarise(comparison, runs, args.rounds, driver.interrupted(), calibration.as_ref());
        if html.wanted() && !driver.interrupted() {
            report.floor = report.subjects.iter().flat_map(|subject| &subject.runs).find_map(limits::floor_of);
        }
        json.write(&report, || table::table(&report, &config, calibration.as_ref()))?;
        html.write(|| page::page(&report, &config))?;
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

/// One short run of each subject that counts for nothing but a violation: the
/// first one pays for memory and code that nobody has touched yet.
fn throw_first_runs_away(comparison: &Comparison, driver: &Driver) -> Result<(), Failure> {
    for subject in &comparison.subjects {
        let config = StressConfig {
            duration: Some(subject.config.effective_duration().unwrap_or(THROWN_AWAY).min(THROWN_AWAY)),
            warmup: Duration::ZERO,
            ..subject.config.clone()
        };
        let report = driver.run(&config, &format!("first run of {}", subject.name));
        let report = report.map_err(|failure| failure.in_subject(&subject.name))?;
        if !report.passed() {
            outcome(&[&report], false);
            return Err(Failure::with_status(
                status::VIOLATION,
                format!("a violation in the first run of {}", subject.name),
            ));
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::report::CompareReport;
    use super::table::table;
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
