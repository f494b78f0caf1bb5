//! `vmalab conform`: vmalab against the host kernel.

use crate::args::{ConformArgs, FaultDeliveryArg};
use crate::failure::{Failure, status};
use crate::interrupt::Interrupt;
use crate::names::unknown;
use crate::output::Json;
use crate::table::{facts, numbers};
use crate::units::{count, rate};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Instant;
use vmalab_conform::concurrent;
use vmalab_conform::run::{First, Progress};
use vmalab_conform::{Config, Delivery, Lock, Report, Runner};

/// Width of the names at the left of a report.
const NAMES: u16 = 12;

/// Runs it.
pub fn run(args: &ConformArgs) -> Result<u8, Failure> {
    let config = config(args)?;
    let json = Json::open(args.json.as_deref())?;
    let interrupt = Interrupt::install()?;
    if args.concurrent {
        return at_once(args, config, json, &interrupt);
    }
    let mut runner = Runner::new(config).map_err(cannot)?;
    let bar = progress_bar(args.ops);
    let report = runner.run(args.ops, &mut |progress| {
        if let Some(bar) = &bar {
            show(bar, &progress);
        }
        !interrupt.came()
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let report = report.map_err(cannot)?;
    json.write(&report, || text(&report))?;
    Ok(outcome(&report))
}

/// `--concurrent`.
fn at_once(args: &ConformArgs, config: Config, json: Json, interrupt: &Interrupt) -> Result<u8, Failure> {
    let began = Instant::now();
    let report = concurrent::run(config.seed, args.ops, config.lock, config.delivery, &mut || !interrupt.came())
        .map_err(|error| Failure::cannot(format!("{error} ('vmalab doctor' checks this machine)")))?;
    let (found, seconds) = (report.unexplained.as_ref(), began.elapsed().as_secs_f64());
    let object = serde_json::json!({
        "schema": 1, "command": "conform", "concurrent": true, "ops": report.steps, "seed": config.seed,
        "lock": config.lock.name(), "delivery": config.delivery.name(), "seconds": seconds,
        "programs": report.programs, "outcomes": report.outcomes, "divergences": u64::from(found.is_some()),
        "by_call": {}, "first": found.map(|unexplained| serde_json::json!({ "program": unexplained.to_string() })),
    });
    json.write(&object, || {
        let per_program = report.outcomes as f64 / report.programs.max(1) as f64;
        format!(
            "calls and faults at once on {}, {} delivery\nseed {}, {seconds:.2} s\n\n{}",
            config.lock.name(),
            config.delivery.name(),
            config.seed,
            facts(
                NAMES,
                vec![
                    ("steps".to_owned(), format!("{} in {} programs", count(report.steps), count(report.programs))),
                    ("outcomes".to_owned(), format!("{per_program:.1} a program, each that of a serial order")),
                ]
            )
        )
    })?;
    if let Some(unexplained) = found {
        eprintln!("error: {unexplained}");
        return Ok(status::VIOLATION);
    }
    Ok(if interrupt.came() { status::INTERRUPTED } else { status::DONE })
}

fn config(args: &ConformArgs) -> Result<Config, Failure> {
    let defaults = Config::default();
    let lock = match &args.lock {
        None => defaults.lock,
        Some(name) => name.parse().map_err(|()| {
            let known: Vec<&str> = Lock::ALL.iter().map(|lock| lock.name()).collect();
            unknown("lock", name, &known)
        })?,
    };
    let delivery = match args.delivery {
        FaultDeliveryArg::Sigbus => Delivery::Sigbus,
        FaultDeliveryArg::Queue => Delivery::Queue,
    };
    let sequence_length = args.sequence_length as usize;
    let shrink_max = args.shrink as usize;
    Ok(Config { lock, delivery, seed: args.seed, sequence_length, shrink_max, ..defaults })
}

fn cannot(error: vmalab_conform::Error) -> Failure {
    Failure::cannot(format!("{error} ('vmalab doctor' checks this machine)"))
}

/// The exit status, and on standard error what went wrong.
fn outcome(report: &Report) -> u8 {
    if let Some(first) = &report.first {
        let n = report.divergences;
        eprintln!("error: {n} divergence(s); the first: {}: host {}, vmalab {}", first.call, first.host, first.vmalab);
        status::VIOLATION
    } else if report.interrupted {
        status::INTERRUPTED
    } else {
        status::DONE
    }
}

fn progress_bar(ops: u64) -> Option<ProgressBar> {
    let style = ProgressStyle::with_template("conform [{bar:12}] {wide_msg}").expect("the template is valid");
    std::io::stderr().is_terminal().then(|| ProgressBar::new(ops).with_style(style.progress_chars("=> ")))
}

fn show(bar: &ProgressBar, progress: &Progress) {
    let seconds = progress.elapsed.as_secs_f64();
    bar.set_position(progress.ops);
    let speed = if seconds > 0.0 { progress.ops as f64 / seconds } else { 0.0 };
    let doing = if progress.shrinking { ", shrinking the first" } else { "" };
    bar.set_message(format!("{seconds:.1} s, {} calls/s, {} divergence(s){doing}", rate(speed), progress.divergences));
}

/// The report for people.
fn text(report: &Report) -> String {
    let partial = if report.interrupted { ", interrupted: partial results" } else { "" };
    let heading = format!(
        "{} on {}, {} delivery\nseed {}, {:.2} s ({} calls/s){partial}\n\n",
        "vmalab against the host",
        report.lock,
        report.delivery,
        report.seed,
        report.seconds,
        rate(report.ops as f64 / report.seconds.max(1e-9)),
    );
    let result = match report.divergences {
        0 => "none".to_owned(),
        n => format!("{} in {} sequences", count(n), count(report.sequences)),
    };
    let summary = vec![
        ("calls".to_owned(), format!("{} in {} sequences", count(report.ops), count(report.sequences))),
        ("kernel".to_owned(), format!("profile {}", report.profile)),
        ("divergences".to_owned(), result),
    ];
    let mut text = heading + &facts(NAMES, summary);
    text.push('\n');
    text += &numbers(Some(["call", "calls", "errors"].map(str::to_owned).to_vec()), by_call(report));
    text += "\nerrors that the host gave (kernel lineage 4)\n";
    text += &facts(NAMES, errors(report));
    let gaps = gaps(report);
    if !gaps.is_empty() {
        text += "\nnot reached\n";
        text += &facts(NAMES + 8, gaps);
    }
    text += "\nleft out\n";
    for (what, why) in &report.exclusions {
        text += &facts(2, vec![(String::new(), format!("{what}: {why}"))]);
    }
    for (n, found) in report.first.iter().chain(&report.more).enumerate() {
        text += &divergence(n, found);
    }
    text
}

fn by_call(report: &Report) -> Vec<Vec<String>> {
    let row = |(name, counts): (&&str, &vmalab_conform::coverage::CallCount)| {
        vec![(*name).to_owned(), count(counts.calls), count(counts.errors)]
    };
    report.by_call.iter().map(row).collect()
}

/// What each call gave, and what the lineage does not list.
fn errors(report: &Report) -> Vec<(String, String)> {
    let given = |(name, counts): (&&str, &vmalab_conform::coverage::CallCount)| {
        let unlisted = |error: &str| report.unlisted_errors.iter().any(|(call, e)| call == name && e == error);
        let each: Vec<String> = (counts.by_error.iter())
            .map(|(error, n)| format!("{error}{} {}", if unlisted(error) { " (not listed)" } else { "" }, count(*n)))
            .collect();
        (!each.is_empty()).then(|| ((*name).to_owned(), each.join(", ")))
    };
    report.by_call.iter().filter_map(given).collect()
}

fn gaps(report: &Report) -> Vec<(String, String)> {
    let missing = report.errors.iter().filter(|error| error.times == 0);
    let row = |error: &vmalab_conform::coverage::Reached| {
        let why = error.gap.clone().unwrap_or_else(|| "not in this run: take more --ops, or another --seed".to_owned());
        (format!("{} {}", error.call, error.error), why)
    };
    missing.map(row).collect()
}

fn divergence(n: usize, first: &First) -> String {
    let mut text = format!("\ndivergence {}, shrunk to {} call(s)\n", n + 1, first.shrunk.len());
    for (step, call) in first.shrunk.iter().enumerate() {
        text += &format!("  {step}: {call}\n");
    }
    text += &format!("step {}: host   {}\n", first.step, first.host);
    text += &format!("step {}: vmalab {}\n\n{}", first.step, first.vmalab, first.test);
    text
}
