//! The table of `compare`, for people.

use super::report::{CompareReport, Measure, SliceCount, SubjectReport};
use crate::calibrate::Calibration;
use crate::statistics::{Ratio, median};
use crate::stress::{mutators, number_of};
use crate::table::{facts, numbers};
use crate::units::{nanoseconds, rate};
use vmalab_workloads::StressConfig;

pub fn table(report: &CompareReport, config: &StressConfig, calibration: Option<&Calibration>) -> String {
    let measure = report.measure();
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
    let verdicts: Vec<_> = report.judged().map(|subject| (subject.name.clone(), subject.verdict.clone())).collect();
    let width = verdicts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    text.push_str(&facts(u16::try_from(width).expect("names are short"), verdicts));
    text.push_str(&calls(report));
    text.push_str(&disturbance(report));
    text.push_str(&verification(report));
    text
}

/// What mutators did beside the faults that are compared.
fn calls(report: &CompareReport) -> String {
    let subject = |subject: &SubjectReport| {
        let mut per_s: Vec<f64> = subject.whole_runs().filter_map(|run| run.mutator_ops_per_s).collect();
        if per_s.is_empty() {
            return None;
        }
        let ratio = subject.calls_ratio.filter(|_| subject.name != report.baseline);
        let times = ratio.map_or_else(String::new, |ratio| format!(" ({})", interval(&ratio)));
        Some(format!("{} {}{times}", subject.name, rate(median(&mut per_s))))
    };
    let known: Vec<String> =
        report.subjects.iter().filter(|subject| subject.calls_ratio.is_some()).filter_map(subject).collect();
    if known.is_empty() {
        return String::new();
    }
    let fact = format!("{} calls/s; they share the CPUs with the faults", known.join(", "));
    format!("\n{}", facts(9, vec![("mutators".to_owned(), fact)]))
}

/// How much of the time others took the machine, and what is left without it.
fn disturbance(report: &CompareReport) -> String {
    let count = report.slices;
    if count.disturbed == 0 {
        return String::new();
    }
    let ratios: Vec<String> = report
        .judged()
        .filter(|subject| subject.throughput_ratio_undisturbed.median.is_some())
        .map(|subject| format!("{} {}", subject.name, interval(&subject.throughput_ratio_undisturbed)))
        .collect();
    let (throughput, ..) = report.measure().names();
    let without = if ratios.is_empty() {
        "too few are left to say more".to_owned()
    } else {
        format!("{throughput} ratio in the others: {}", ratios.join(", "))
    };
    let share = percent(count);
    let fact = format!(
        "{} of {} slices of time ({share}), in which other programs or a hypervisor had the CPUs; {without}",
        count.disturbed, count.all
    );
    format!("\n{}", facts(9, vec![("disturbed".to_owned(), fact)]))
}

/// How many were disturbed, in percent; never rounded to none or to all.
pub fn percent(count: SliceCount) -> String {
    match 100.0 * count.disturbed as f64 / count.all.max(1) as f64 {
        share if share > 0.0 && share < 1.0 => "<1 %".to_owned(),
        share if share > 99.0 && share < 100.0 => ">99 %".to_owned(),
        share => format!("{share:.0} %"),
    }
}

/// `1.13 [0.98, 1.30]`.
pub fn interval(ratio: &Ratio) -> String {
    match (ratio.median, ratio.low, ratio.high) {
        (Some(median), Some(low), Some(high)) => format!("{median:.2} [{low:.2}, {high:.2}]"),
        (Some(median), ..) => format!("{median:.2}"),
        _ => "-".to_owned(),
    }
}

pub fn heading(report: &CompareReport, config: &StressConfig) -> String {
    let mut parts = vec![format!("{} delivery", config.delivery)];
    let first = report.subjects.iter().find_map(|subject| subject.runs.first());
    if let Some(run) = first {
        parts.push(number_of(run.threads, "thread"));
        parts.push(mutators(run));
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
    let whole = || subject.whole_runs();
    let middle = |values: Vec<f64>, show: fn(f64) -> String| {
        let mut values = values;
        if values.is_empty() { "-".to_owned() } else { show(median(&mut values)) }
    };
    let is_baseline = subject.name == report.baseline;
    let ratio = |ratio: &Ratio| if is_baseline { "baseline".to_owned() } else { interval(ratio) };
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
