//! `vmalab limits`: what the bare mechanisms cost on this machine.

use crate::args::LimitsArgs;
use crate::failure::{Failure, status};
use crate::interrupt::Interrupt;
use crate::output::{print, print_json};
use crate::table::numbers;
use crate::units::nanoseconds;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;
use vmalab_limits::{Floor, Foreign, cpus};
use vmalab_workloads::{Distribution, FloorReport, StressReport};

/// How long everything takes if nothing else is said.
const DURATION: Duration = Duration::from_secs(4);

/// Share of the CPUs from which on others disturb.
const BUSY: f64 = 0.05;

/// What `--json` prints.
#[derive(Serialize)]
struct LimitsReport {
    schema: u32,
    command: &'static str,
    /// CPUs that this process may use.
    cpus: usize,
    /// What was measured with: one thread, two, and one for each CPU.
    threads: Vec<usize>,
    interrupted: bool,
    /// Share of the CPUs' time that others took meanwhile.
    foreign_cpu: Option<f64>,
    /// `null`: not measured.
    floors: BTreeMap<String, Option<Distribution>>,
}

/// Runs it.
pub fn run(args: &LimitsArgs) -> Result<u8, Failure> {
    let interrupt = Interrupt::install()?;
    let cpus = cpus();
    let mut threads = vec![1, 2];
    threads.extend((cpus > 2).then_some(cpus));
    let all = Floor::all();
    let plan: Vec<(&Floor, usize)> = threads
        .iter()
        .flat_map(|&threads| all.iter().map(move |floor| (floor, threads)))
        .filter(|(floor, threads)| floor.takes(*threads))
        .collect();
    let budget = args.duration.unwrap_or(DURATION) / u32::try_from(plan.len()).expect("there are some dozens");

    let foreign = Foreign::new();
    let bar = progress_bar(plan.len() as u64);
    let mut report = LimitsReport {
        schema: 1,
        command: "limits",
        cpus,
        threads,
        interrupted: false,
        foreign_cpu: None,
        floors: BTreeMap::new(),
    };
    let mut missing: Vec<(String, Vec<String>)> = Vec::new();
    for (floor, threads) in plan {
        let key = floor.key(threads);
        if interrupt.came() {
            report.interrupted = true;
            report.floors.insert(key, None);
            continue;
        }
        if let Some(bar) = &bar {
            bar.set_message(key.clone());
            bar.inc(1);
        }
        let measured = match floor.measure(threads, budget) {
            Ok(samples) => Distribution::of(&samples),
            Err(reason) => {
                let reason = reason.to_string();
                match missing.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, keys)) => keys.push(key.clone()),
                    None => missing.push((reason, vec![key.clone()])),
                }
                None
            }
        };
        report.floors.insert(key, measured);
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    report.foreign_cpu = foreign.share();
    if let Some(share) = report.foreign_cpu.filter(|&share| share > BUSY) {
        eprintln!(
            "warning: others used {:.0} % of the CPUs meanwhile, so that what threads cost each other is not all seen; \
             repeat on an idle machine",
            100.0 * share
        );
    }
    for (reason, keys) in &missing {
        eprintln!("not measured: {}: {reason}", keys.join(", "));
    }
    if args.json { print_json(&report) } else { print(&table(&all, &report)) }?;
    Ok(if report.interrupted { status::INTERRUPTED } else { status::DONE })
}

fn progress_bar(steps: u64) -> Option<ProgressBar> {
    let style = ProgressStyle::with_template("limits [{bar:12}] {wide_msg}").expect("the template is valid");
    std::io::stderr().is_terminal().then(|| ProgressBar::new(steps).with_style(style.progress_chars("=> ")))
}

fn table(all: &[Floor], report: &LimitsReport) -> String {
    let mut header = vec!["floor".to_owned(), "pages".to_owned()];
    header.extend(report.threads.iter().map(|&n| crate::stress::number_of(n as u32, "thread")));
    let rows = all.iter().map(|floor| {
        let mut row = vec![floor.title().to_owned(), floor.pages().map_or_else(String::new, |pages| pages.to_string())];
        row.extend(report.threads.iter().map(|&threads| {
            let measured = report.floors.get(&floor.key(threads)).copied().flatten();
            measured.map_or_else(|| "-".to_owned(), |d| nanoseconds(d.p50 as f64))
        }));
        row
    });
    let partial = if report.interrupted { ", interrupted: partial results" } else { "" };
    format!(
        "Bare mechanisms on this machine ({}){partial}\n\n{}\nMedians for each thread; where an operation brings \
         several pages, per page.\n--json prints the whole distributions.\n",
        crate::stress::number_of(report.cpus as u32, "CPU"),
        numbers(Some(header), rows.collect())
    )
}

/// How long the floor of a run may take: a tenth of the run.
fn floor_budget(seconds: f64) -> Duration {
    Duration::from_secs_f64((seconds / 10.0).clamp(0.02, 0.25))
}

/// The floor of what a run measured, if it served real faults: UFFDIO_COPY, in
/// its delivery, with its number of threads (or one for each CPU).
pub fn floor_of(report: &StressReport) -> Option<FloorReport> {
    let fault = report.fault_ns.as_ref().filter(|_| report.backend == "emulated" && report.passed())?;
    let floor = match report.delivery.as_str() {
        "sigbus" => Floor::find("sigbus_copy"),
        "queue" => Floor::find("queue_copy"),
        _ => None,
    }?;
    let threads = (report.threads as usize).min(cpus());
    let samples = match floor.measure(threads, floor_budget(report.seconds)) {
        Ok(samples) => samples,
        Err(reason) => {
            eprintln!("floor {} not measured: {reason}", floor.key(threads));
            return None;
        }
    };
    let ns = samples.value_at_quantile(0.5);
    let threads_text = crate::stress::number_of(threads as u32, "thread");
    Some(FloorReport {
        name: floor.key(threads),
        title: format!("{} copy, {threads_text}", report.delivery),
        ns,
        ratio: fault.p50 as f64 / ns as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_80_columns_and_shows_what_is_missing() {
        let all = Floor::all();
        let d = Distribution { count: 1, mean: 1.0, p50: 123_456, p90: 1, p99: 1, p999: 1, max: 1 };
        let threads = vec![1, 2, 512];
        let mut floors: BTreeMap<_, _> =
            threads.iter().flat_map(|&n| all.iter().map(move |floor| (floor.key(n), Some(d)))).collect();
        floors.insert("sigbus_move".to_owned(), None);
        let text = table(
            &all,
            &LimitsReport {
                schema: 1,
                command: "limits",
                cpus: 512,
                threads,
                interrupted: true,
                foreign_cpu: None,
                floors,
            },
        );
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.lines().any(|line| line.starts_with("sigbus MOVE") && line.contains("  -")), "{text}");
    }
}
