//! `vmalab stress`: one run and its report.

use crate::args::StressArgs;
use crate::drive::Driver;
use crate::failure::{Failure, status};
use crate::limits;
use crate::output::Json;
use crate::plan;
use crate::table::{facts, numbers};
use crate::units::{count, nanoseconds, rate, size};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use vmalab_workloads::{
    AdversaryReport, AttributionReport, Distribution, StressReport, TIMELINE_EVENTS, Timeline, VerifyReport,
    VmaLockReport,
};

/// Width of the names at the left of a report.
const NAMES: u16 = 16;

/// Runs it.
pub fn run(args: &StressArgs) -> Result<u8, Failure> {
    let config = plan::stress(args)?;
    let json = Json::open(args.json.as_deref())?;
    let file = args.timeline.as_deref().map(timeline_file).transpose()?;
    let driver = Driver::new()?;
    let mut report = match file {
        None => driver.run(&config, &config.workload)?,
        Some(file) => {
            let events = args.timeline_events.map_or(TIMELINE_EVENTS, |events| events as usize);
            let (report, timeline) = driver.run_recorded(&config, &config.workload, events)?;
            write_timeline(&timeline, file)?;
            report
        }
    };
    if !args.no_floor && !driver.interrupted() {
        report.floor = limits::floor_of(&report);
    }
    json.write(&report, || table(&report))?;
    Ok(outcome(&[&report], driver.interrupted()))
}

/// Opened before the run, so that a bad path costs nobody a measurement.
fn timeline_file(path: &Path) -> Result<(File, &Path), Failure> {
    let file = File::create(path).map_err(|error| {
        Failure::usage(format!("cannot write --timeline {}: {error}; name a file that you may write", path.display()))
    })?;
    Ok((file, path))
}

fn write_timeline(timeline: &Timeline, (file, path): (File, &Path)) -> Result<(), Failure> {
    let mut out = BufWriter::new(file);
    timeline
        .write_chrome(&mut out)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::cannot(format!("cannot write {}: {error}", path.display())))?;
    let dropped = match timeline.dropped() {
        0 => String::new(),
        n => format!(", the latest ({} older ones: --timeline-events keeps more)", count(n)),
    };
    eprintln!(
        "timeline: {} events of {} threads in {}{dropped}; open it in ui.perfetto.dev",
        count(timeline.events() as u64),
        timeline.threads(),
        path.display()
    );
    Ok(())
}

/// The exit status, and on standard error what went wrong.
pub fn outcome(reports: &[&StressReport], interrupted: bool) -> u8 {
    for report in reports {
        if let Some(verify) = report.verify.as_ref().filter(|verify| verify.violations > 0) {
            let first = verify.first.as_ref().map_or_else(String::new, |first| {
                format!(": {} at {}: {}", first.oracle, first.address, first.message)
            });
            eprintln!("error: {} violation(s) in {} on {}{first}", verify.violations, report.workload, report.lock);
        }
    }
    if reports.iter().any(|report| !report.passed()) {
        status::VIOLATION
    } else if interrupted {
        status::INTERRUPTED
    } else {
        status::DONE
    }
}

/// `2 threads`.
pub fn number_of(n: u32, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `2 mutators (at most 20 k calls/s each)`.
pub fn mutators(report: &StressReport) -> String {
    let number = number_of(report.mutators, "mutator");
    let each = if report.mutators == 1 { "" } else { " each" };
    report
        .mutator_rate
        .map_or(number.clone(), |limit| format!("{number} (at most {} calls/s{each})", rate(f64::from(limit))))
}

/// The report for people.
pub fn table(report: &StressReport) -> String {
    let mut text = heading(report);
    text.push('\n');
    text.push_str(&facts(NAMES, throughput(report)));
    let latencies = latencies(report);
    if !latencies.is_empty() {
        let header = ["latency", "p50", "p90", "p99", "p99.9", "max", "count"].map(str::to_owned).to_vec();
        text.push('\n');
        text.push_str(&numbers(Some(header), latencies));
    }
    if let Some(floor) = &report.floor {
        text.push('\n');
        let fact =
            format!("p50 is {:.2} of its floor ({}: {})", floor.ratio, floor.title, nanoseconds(floor.ns as f64));
        text.push_str(&facts(NAMES, vec![("floor".to_owned(), fact)]));
    }
    if let Some(attribution) = &report.attribution {
        text.push('\n');
        text.push_str(&attributed(attribution));
    }
    let inside = inside(report);
    if !inside.is_empty() {
        text.push('\n');
        text.push_str(&facts(NAMES, inside));
    }
    if let Some(adversary) = &report.adversary {
        text.push('\n');
        text.push_str(&facts(NAMES, deeds(adversary)));
    }
    text.push('\n');
    text.push_str(&facts(NAMES, vec![("verify".to_owned(), verification(report.verify.as_ref()))]));
    if let Some(violation) = report.verify.as_ref().and_then(|verify| verify.first.as_ref()) {
        text.push_str(&format!("\n{violation}\n"));
    }
    text
}

fn heading(report: &StressReport) -> String {
    let native = report.backend == "native";
    let how = if native { "the host's own mmap".to_owned() } else { format!("{} delivery", report.delivery) };
    let mut parts = vec![number_of(report.threads, "thread"), mutators(report)];
    if let Some(handlers) = report.handlers {
        parts.push(number_of(handlers, "handler"));
    }
    parts.push(format!("{} of {}", number_of(report.address_spaces, "address space"), size(report.region_bytes)));
    let partial = if report.interrupted { ", interrupted: partial results" } else { "" };
    format!(
        "{} on {}, {how}\n{}\n{:.2} s measured, seed {}{partial}\n",
        report.workload,
        report.lock,
        parts.join(", "),
        report.seconds,
        report.seed
    )
}

fn throughput(report: &StressReport) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    if let (Some(faults), Some(per_s)) = (report.faults, report.faults_per_s) {
        let pages = report.pages.map_or_else(String::new, |pages| format!(", {} pages", count(pages)));
        rows.push(("faults".to_owned(), format!("{}/s ({} faults{pages})", rate(per_s), count(faults))));
    }
    let calls: Vec<String> =
        report.ops.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{} {name}", count(*n))).collect();
    if !calls.is_empty() {
        rows.push(("calls".to_owned(), format!("{}/s ({})", rate(report.ops_per_s), calls.join(", "))));
    }
    rows
}

fn latencies(report: &StressReport) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut add = |name: &str, distribution: Option<&Distribution>| {
        if let Some(d) = distribution {
            let mut row = vec![name.to_owned()];
            row.extend([d.p50, d.p90, d.p99, d.p999, d.max].map(|ns| nanoseconds(ns as f64)));
            row.push(count(d.count));
            rows.push(row);
        }
    };
    add("fault", report.fault_ns.as_ref());
    for (name, distribution) in &report.op_ns {
        add(name, Some(distribution));
    }
    if let Some(mmap_lock) = &report.mmap_lock {
        add("mmap_lock read wait", mmap_lock.read_wait_ns.as_ref());
        add("mmap_lock write wait", mmap_lock.write_wait_ns.as_ref());
    }
    rows
}

/// Where the faults' time went.
fn attributed(attribution: &AttributionReport) -> String {
    let header = ["where a fault's time goes", "mean", "share", "p50", "p99"].map(str::to_owned).to_vec();
    let row = |name: &str, share: f64, mean: f64, whole: Option<&Distribution>| {
        let percentile = |of: fn(&Distribution) -> u64| whole.map_or_else(String::new, |d| nanoseconds(of(d) as f64));
        vec![
            name.to_owned(),
            nanoseconds(mean),
            format!("{:.1}%", 100.0 * share),
            percentile(|d| d.p50),
            percentile(|d| d.p99),
        ]
    };
    let mut rows: Vec<Vec<String>> =
        attribution.phases.iter().map(|phase| row(&phase.phase, phase.share, phase.ns.mean, Some(&phase.ns))).collect();
    let whole = &attribution.whole_ns;
    rows.push(row("sum", attribution.sum_ns / whole.mean, attribution.sum_ns, None));
    rows.push(row("whole", 1.0, whole.mean, Some(whole)));
    let left_out = match attribution.discarded {
        0 => String::new(),
        n => format!(", {} left out", count(n)),
    };
    let fact = format!(
        "one access in {}: {} faults{left_out}; sum and whole differ by {:.3}%; a reading of the clock takes {}",
        attribution.one_in,
        count(attribution.faults),
        100.0 * attribution.error.abs(),
        nanoseconds(attribution.clock_ns)
    );
    numbers(Some(header), rows) + &facts(NAMES, vec![("sampled".to_owned(), fact)])
}

/// What the address spaces counted.
fn inside(report: &StressReport) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let mut add = |name: &str, fact: String| rows.push((name.to_owned(), fact));
    if let Some(vma_lock) = &report.vma_lock {
        if report.lock == "mmap" {
            add("vma_lock", "not used by this lock".to_owned());
        } else {
            add("vma_lock", vma_lock_counts(vma_lock));
        }
    }
    if let Some(mmap_lock) = &report.mmap_lock {
        let waits = |wait: Option<&Distribution>| wait.map_or_else(|| "none".to_owned(), |wait| count(wait.count));
        add(
            "mmap_lock",
            format!(
                "read {} ({} waited), write {} ({} waited){}",
                count(mmap_lock.read),
                waits(mmap_lock.read_wait_ns.as_ref()),
                count(mmap_lock.write),
                waits(mmap_lock.write_wait_ns.as_ref()),
                report.rwsem.as_ref().map_or_else(String::new, |rwsem| format!("; rwsem {rwsem}"))
            ),
        );
    }
    if let Some(slab) = &report.slab {
        let held = match (slab.slabs, slab.object_bytes) {
            (Some(slabs), Some(bytes)) => {
                format!("; {} slab{} of {bytes}-byte objects", count(slabs), if slabs == 1 { "" } else { "s" })
            }
            _ => String::new(),
        };
        add(
            "slab",
            format!(
                "{} allocated, {} reused ({} from another mm){held}",
                count(slab.allocated),
                count(slab.reused),
                count(slab.reused_other_mm)
            ),
        );
    }
    if let Some(host) = &report.host_calls {
        let calls = [
            ("uffd", host.uffd),
            ("madvise", host.madvise),
            ("mmap", host.mmap),
            ("munmap", host.munmap),
            ("mprotect", host.mprotect),
            ("mremap", host.mremap),
        ];
        add("host calls", listed(&calls));
    }
    if let Some(number) = report.userfaultfds {
        let of = number_of(number, "userfaultfd");
        let how = if number > 1 { ", its region in stripes" } else { "" };
        add("address space", format!("{of}{how}"));
    }
    if let Some(shootdowns) = report.tlb_shootdowns {
        let faults = report.faults.filter(|faults| *faults > 0);
        let share = faults.map(|faults| format!(", {:.1} for 100 faults", 100.0 * shootdowns as f64 / faults as f64));
        add("shootdowns", format!("{} on this machine{}", count(shootdowns), share.unwrap_or_default()));
    }
    if let Some(rcu) = &report.rcu {
        add("RCU", format!("{} grace periods, backlog {}", count(rcu.grace_periods), count(rcu.backlog)));
    }
    if let Some(ends) = &report.fault_outcomes {
        let ends = [("page was there", ends.exists), ("SIGSEGV", ends.segv), ("SIGBUS", ends.bus)];
        if ends.iter().any(|(_, n)| *n > 0) {
            add("other faults", listed(&ends));
        }
    }
    rows
}

/// What the adversary did.
fn deeds(adversary: &AdversaryReport) -> Vec<(String, String)> {
    let points: Vec<(&str, u64)> = adversary.points.iter().map(|(name, hits)| (name.as_str(), *hits)).collect();
    let delays = &adversary.delays;
    let facts = [
        ("adversary", format!("{} points: {}", count(points.iter().map(|(_, hits)| hits).sum()), listed(&points))),
        (
            "delays",
            listed(&[
                ("spin", delays.spins),
                ("yield", delays.yields),
                ("sleep", delays.sleeps),
                ("await", delays.awaits),
            ]),
        ),
        (
            "forced reuse",
            format!(
                "{} VMA objects ({} in another mm), {} poisoned",
                count(adversary.reused),
                count(adversary.reused_other_mm),
                count(adversary.poisoned)
            ),
        ),
        (
            "same address",
            format!(
                "{} mappings, {} more in twins ({} of them died), {} ghost accesses",
                count(adversary.same_address),
                count(adversary.twin_mappings),
                count(adversary.twin_deaths),
                count(adversary.ghosts)
            ),
        ),
    ];
    facts.map(|(name, fact)| (name.to_owned(), fact)).into()
}

fn vma_lock_counts(vma_lock: &VmaLockReport) -> String {
    let all = vma_lock.success + vma_lock.abort + vma_lock.retry;
    let share = if all > 0 { 100.0 * vma_lock.success as f64 / all as f64 } else { 0.0 };
    let reasons = &vma_lock.abort_reasons;
    let reasons = [
        ("no VMA", reasons.no_vma),
        ("write-locked early", reasons.write_locked_early),
        ("contended", reasons.contended),
        ("write-locked late", reasons.write_locked_late),
        ("other mm", reasons.other_mm),
        ("other range", reasons.other_range),
        ("miss limit", reasons.miss_limit),
    ];
    let reasons = if vma_lock.abort > 0 { format!("\nabort: {}", listed(&reasons)) } else { String::new() };
    format!(
        "success {} ({share:.2}%), abort {}, retry {}, miss {}{reasons}",
        count(vma_lock.success),
        count(vma_lock.abort),
        count(vma_lock.retry),
        count(vma_lock.miss)
    )
}

/// `uffd 12, madvise 3` of those that are not 0.
fn listed(counts: &[(&str, u64)]) -> String {
    let some: Vec<String> =
        counts.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {}", count(*n))).collect();
    if some.is_empty() { "none".to_owned() } else { some.join(", ") }
}

fn verification(verify: Option<&VerifyReport>) -> String {
    match verify {
        None => "off (--verify checks every access)".to_owned(),
        Some(verify) if verify.violations == 0 => format!("{} accesses checked, no violation", count(verify.checked)),
        Some(verify) => {
            format!("{} VIOLATION(S) in {} accesses checked", count(verify.violations), count(verify.checked))
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// A report as a run would give it, so many faults a second.
    pub fn sample(lock: &str, faults_per_s: f64) -> StressReport {
        let latency = json!({"count": 123_456_789, "mean": 5640.5, "p50": 5640, "p90": 61_000, "p99": 115_000,
            "p999": 998_000, "max": 12_345_678_901_u64});
        let report = json!({
            "schema": 1, "command": "stress", "workload": "page-fault-shared", "lock": lock, "backend": "emulated",
            "delivery": "queue", "handlers": 2, "threads": 512, "mutators": 256, "address_spaces": 256,
            "region_bytes": 137_438_953_472_u64, "userfaultfds": 7, "seed": u64::MAX, "seconds": 5.0, "interrupted": false,
            "faults": 123_456_789_012_u64, "faults_per_s": faults_per_s, "pages": 123_456_789_012_u64,
            "touches": 1, "fault_ns": latency,
            "attribution": {"one_in": 127, "faults": 999_999_999, "discarded": 1_000, "sum_ns": 12_345.6,
                "whole_ns": latency, "error": 1e-9, "clock_ns": 9.5,
                "phases": [{"phase": "delivery", "share": 0.5, "ns": latency}]},
            "ops": {"mmap": 123_456_789, "munmap": 123_456_789, "mprotect": 123_456_789}, "ops_per_s": 4210.0,
            "op_ns": {"mmap": latency, "munmap": latency, "mprotect": latency},
            "vma_lock": {"success": 999_999_999, "abort": 1_000_000, "retry": 1_000_000, "miss": 1_000_000,
                "abort_reasons": {"no_vma": 1_000_000, "write_locked_early": 1_000_000, "contended": 1_000_000,
                    "write_locked_late": 1_000_000, "other_mm": 1_000_000, "other_range": 1_000_000,
                    "miss_limit": 0}},
            "mmap_lock": {"read": 1_000_000_000, "write": 1_000_000_000, "read_wait_ns": null,
                "write_wait_ns": latency},
            "slab": {"allocated": 1_000_000_000, "reused": 1_000_000_000, "reused_other_mm": 1_000_000_000,
                "slabs": 100_000, "object_bytes": 192},
            "host_calls": {"mmap": 0, "munmap": 0, "mprotect": 0, "mremap": 0, "madvise": 1_000_000_000,
                "uffd": 1_000_000_000},
            "tlb_shootdowns": 123_456_789_012_u64,
            "rcu": {"grace_periods": 1_000_000_000, "backlog": 1_000_000_000},
            "fault_outcomes": {"exists": 1_000_000_000, "segv": 1, "bus": 0},
            "verify": {"checked": 1_000_000_000, "unchecked_state": 0, "violations": 0, "first": null}
        });
        serde_json::from_value(report).expect("as the runner writes it")
    }

    /// The same with a violation.
    pub fn violated(mut report: StressReport) -> StressReport {
        report.verify = Some(
            serde_json::from_value(json!({"checked": 12, "unchecked_state": 0, "violations": 1, "first": {
                "oracle": "O1", "message": "contents of an earlier mapping", "address": "0x7f0000001000",
                "address_space": 0, "incarnation_expected": 12, "incarnation_seen": 11,
                "events": ["mmap 0x7f0000001000"], "thread": "fault-0"}}))
            .expect("as the runner writes it"),
        );
        report
    }

    #[test]
    fn the_largest_numbers_fit_80_columns() {
        for lock in ["mmap", "typesafe"] {
            let text = table(&sample(lock, 212_999.0));
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            assert!(text.contains("213 k/s (123,456,789,012 faults"), "{text}");
            assert!(text.contains("no violation"), "{text}");
        }
        let text = table(&sample("typesafe", 1.0));
        assert!(text.contains("contended 1,000,000") && !text.contains("miss limit"), "{text}");
        assert!(text.contains("read 1,000,000,000 (none waited)"), "{text}");
    }

    #[test]
    fn a_violation_shows_both_incarnations_and_the_events() {
        let text = table(&violated(sample("typesafe", 1.0)));
        for part in ["1 VIOLATION(S)", "incarnation expected: 12", "incarnation seen:     11", "mmap 0x7f0000001000"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(outcome(&[&violated(sample("typesafe", 1.0))], true), status::VIOLATION);
        assert_eq!(outcome(&[&sample("typesafe", 1.0)], true), status::INTERRUPTED);
        assert_eq!(outcome(&[&sample("typesafe", 1.0)], false), status::DONE);
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let mut report = sample("native", 5.0);
        report.backend = "native".to_owned();
        (report.vma_lock, report.mmap_lock, report.slab) = (None, None, None);
        (report.host_calls, report.rcu, report.fault_outcomes, report.verify) = (None, None, None, None);
        report.interrupted = true;
        let text = table(&report);
        assert!(!text.contains("slab") && !text.contains("mmap_lock"), "{text}");
        assert!(text.contains("verify            off") && text.contains("partial results"), "{text}");
    }
}
