//! `--model`: throughput with many cores, and what this machine says to it.

use crate::args::{ConflictsArgs, Cores};
use crate::drive::Driver;
use crate::failure::Failure;
use crate::stress::number_of;
use crate::table::numbers;
use crate::units::{nanoseconds, rate};
use serde::Serialize;
use std::time::Duration;
use vmalab_conflicts::model::{Bound, Inputs, Visits};
use vmalab_conflicts::price;
use vmalab_conflicts::report::Recording;
use vmalab_workloads::{Delivery, StressConfig, StressReport};

/// The workload unless one is named.
pub const WORKLOAD: &str = "page-fault";

/// How long the price of a line is measured.
const PRICE: Duration = Duration::from_millis(300);
/// How long each measurement takes unless it is said.
const DURATION: Duration = Duration::from_millis(200);
const WARMUP: Duration = Duration::from_millis(50);
/// Measurements of each kind, in turn. The best counts: what others do on the
/// machine only ever makes it slower.
const ROUNDS: u32 = 5;
/// Threads that the prediction is compared with.
const CHECKED: [u32; 2] = [1, 2];
/// Calls that keep other writers from the mmap lock, as good as from beginning
/// to end: munmap also after its downgrade.
const WRITE_SECTIONS: [&str; 4] = ["mmap", "munmap", "mprotect", "mremap"];

/// The whole prediction.
#[derive(Debug, Serialize)]
pub struct Prediction {
    /// `faults/s`, or `calls/s`.
    unit: &'static str,
    /// A transfer of a line, ns, and whether it was measured here.
    line_ns: f64,
    line_ns_measured: bool,
    subjects: Vec<Subject>,
}

/// Under one lock.
#[derive(Debug, Serialize)]
struct Subject {
    lock: String,
    /// What the model was told, ns a unit.
    alone_ns: f64,
    exclusive_ns: f64,
    /// Lines shared with a write.
    lines: usize,
    /// By number of cores.
    predicted: Vec<Point>,
    /// With as many threads here.
    measured: Vec<Measured>,
    /// What bounds very many cores, and where.
    bound: String,
    bound_per_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Point {
    cores: u32,
    per_s: f64,
}

#[derive(Debug, Serialize)]
struct Measured {
    threads: u32,
    per_s: f64,
    predicted_per_s: f64,
    /// Predicted over measured, less 1.
    error: f64,
}

/// Measures and predicts. `None`: interrupted.
pub fn run(
    args: &ConflictsArgs,
    workload: &str,
    cores: Cores,
    recordings: &[Recording],
    driver: &Driver,
) -> Result<Option<Prediction>, Failure> {
    let line_ns = match args.line_ns {
        Some(ns) => ns,
        None => price::hand_over_ns(PRICE).ok_or_else(|| {
            Failure::cannot(
                "the price of a contended line needs two CPUs to be measured: give --line-ns NS, some 50 to 100 \
                 within a socket",
            )
        })?,
    };
    let mut subjects = Vec::new();
    let mut unit = "calls/s";
    for recording in recordings {
        let Some(reports) = measure(args, workload, recording, driver)? else { return Ok(None) };
        if faults(&reports[0]) {
            unit = "faults/s";
        }
        subjects.push(subject(recording, line_ns, args.address_spaces, cores, &reports));
    }
    Ok(Some(Prediction { unit, line_ns, line_ns_measured: args.line_ns.is_none(), subjects }))
}

/// The best report for each of [`CHECKED`]. `None`: interrupted.
fn measure(
    args: &ConflictsArgs,
    workload: &str,
    recording: &Recording,
    driver: &Driver,
) -> Result<Option<Vec<StressReport>>, Failure> {
    let mut best: Vec<Option<StressReport>> = vec![None; CHECKED.len()];
    for round in 1..=ROUNDS {
        for (best, threads) in best.iter_mut().zip(CHECKED) {
            let config = StressConfig {
                workload: workload.to_owned(),
                lock: recording.lock,
                delivery: Delivery::Software,
                threads,
                mutators: args.mutators,
                address_spaces: args.address_spaces,
                duration: Some(args.duration.unwrap_or(DURATION)),
                warmup: WARMUP,
                seed: args.seed,
                pin: true,
                ..StressConfig::default()
            };
            let label = format!("{workload} on {}, round {round}, {}", recording.lock, number_of(threads, "thread"));
            let report = driver.run(&config, &label)?;
            if driver.interrupted() {
                return Ok(None);
            }
            if best.as_ref().is_none_or(|best| per_s(best) < per_s(&report)) {
                *best = Some(report);
            }
        }
    }
    Ok(Some(best.into_iter().map(|report| report.expect("there were rounds")).collect()))
}

/// Whether the workload faults.
fn faults(report: &StressReport) -> bool {
    report.faults.is_some_and(|faults| faults > 0)
}

/// Faults, or calls where there are none.
fn units(report: &StressReport) -> f64 {
    let calls = report.ops.values().sum();
    report.faults.filter(|&faults| faults > 0).unwrap_or(calls) as f64
}

/// The same a second, while nobody disturbed the run if there was enough of that.
fn per_s(report: &StressReport) -> f64 {
    let slices = report.slices.as_ref();
    let undisturbed = if faults(report) {
        slices.and_then(|slices| slices.undisturbed_faults_per_s)
    } else {
        slices.and_then(|slices| slices.undisturbed_ops_per_s)
    };
    undisturbed.unwrap_or(units(report) / report.seconds)
}

fn subject(
    recording: &Recording,
    line_ns: f64,
    address_spaces: u32,
    cores: Cores,
    reports: &[StressReport],
) -> Subject {
    let alone = &reports[0];
    let each = units(alone).max(1.0);
    let exclusive: f64 = WRITE_SECTIONS
        .iter()
        .filter_map(|&op| alone.op_ns.get(op))
        .map(|distribution| distribution.mean * distribution.count as f64)
        .sum();
    let inputs = Inputs {
        alone_ns: 1e9 / per_s(alone),
        exclusive_ns: exclusive / each,
        address_spaces,
        line_ns,
        lines: Visits::of(recording),
    };
    let measured = CHECKED.iter().zip(reports).map(|(&threads, report)| {
        let (per_s, predicted) = (per_s(report), inputs.throughput(threads));
        Measured { threads, per_s, predicted_per_s: predicted, error: predicted / per_s - 1.0 }
    });
    let (bound, per_s) = inputs.bound();
    Subject {
        lock: recording.lock.to_string(),
        alone_ns: inputs.alone_ns,
        exclusive_ns: inputs.exclusive_ns,
        lines: inputs.lines.len(),
        predicted: points(cores).map(|cores| Point { cores, per_s: inputs.throughput(cores) }).collect(),
        measured: measured.collect(),
        bound: match bound {
            Bound::None => "nothing that it knows of".to_owned(),
            Bound::MmapLock => "the mmap lock's writers, one at a time".to_owned(),
            Bound::Line(i) => {
                let object = recording.lines[i].object.clone();
                format!("the line {}", object.unwrap_or_else(|| "without a name".to_owned()))
            }
        },
        bound_per_s: per_s.is_finite().then_some(per_s),
    }
}

/// The first, the last and the powers of two between.
fn points(cores: Cores) -> impl Iterator<Item = u32> {
    let between = (0..32).map(|bit| 1u32 << bit).filter(move |n| (cores.from + 1..cores.to).contains(n));
    let last = (cores.to > cores.from).then_some(cores.to);
    std::iter::once(cores.from).chain(between).chain(last)
}

impl Prediction {
    /// For people.
    pub fn text(&self, workload: &str) -> String {
        let whence = if self.line_ns_measured { "measured here" } else { "as given" };
        let mut text = format!(
            "{workload}, software delivery: {} by number of cores, as a model predicts\na contended line costs {} ({whence})\n\n",
            self.unit,
            nanoseconds(self.line_ns)
        );
        let header = ["cores"].into_iter().map(str::to_owned).chain(self.subjects.iter().map(|s| s.lock.clone()));
        let header: Vec<String> = header.collect();
        let cores = self.subjects[0].predicted.iter().enumerate().map(|(i, point)| {
            let cells = self.subjects.iter().map(|subject| rate(subject.predicted[i].per_s));
            [point.cores.to_string()].into_iter().chain(cells).collect()
        });
        text += &numbers(Some(header.clone()), cores.collect());
        text += "\nmeasured here, the best of 5, and by how much the prediction is off\n(1 thread is its input)\n";
        let header: Vec<String> = ["threads".to_owned()].into_iter().chain(header.into_iter().skip(1)).collect();
        let checks = CHECKED.iter().enumerate().map(|(i, threads)| {
            let cell = |subject: &Subject| {
                let measured = &subject.measured[i];
                format!("{} {:+.0} %", rate(measured.per_s), measured.error * 100.0)
            };
            [threads.to_string()].into_iter().chain(self.subjects.iter().map(cell)).collect()
        });
        text += &numbers(Some(header), checks.collect());
        text += "\nwhat bounds very many cores\n";
        for subject in &self.subjects {
            let at =
                subject.bound_per_s.map_or_else(String::new, |per_s| format!(", at {} {}", rate(per_s), self.unit));
            text += &format!("  {:<9} {}{at}\n", subject.lock, subject.bound);
        }
        text + "\ndocs/conflicts.md says how, and what it leaves out.\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_and_the_ends() {
        let of = |from, to| points(Cores { from, to }).collect::<Vec<_>>();
        assert_eq!(of(1, 256), [1, 2, 4, 8, 16, 32, 64, 128, 256]);
        assert_eq!(of(3, 20), [3, 4, 8, 16, 20]);
        assert_eq!(of(2, 2), [2]);
    }
}
