use super::*;
use crate::args::{Cli, Command};
use crate::compare::report::summarise;
use crate::stress::tests::{sample, violated};
use clap::Parser;
use scraper::{Html, Selector};
use serde_json::json;

/// A report of two rounds as the runner writes it: ten slices, two disturbed.
fn run(lock: &str, per_s: f64) -> StressReport {
    let mut report = sample(lock, per_s);
    let slice = |n: u64| {
        json!({"start_ns": 50_000_000 * n, "ns": 50_000_000, "faults": (per_s / 20.0) as u64 + n, "ops": 7, "by_thread": [1, 2],
            "taken_ns": if n < 2 { 9_000_000 } else { 0 }, "stolen_ns": 0, "involuntary_switches": 3, "disturbed": n < 2})
    };
    let slices = json!({"disturbed": 2, "undisturbed_faults_per_s": per_s, "undisturbed_ops_per_s": 140.0,
        "each": (0..10).map(slice).collect::<Vec<_>>()});
    report.slices = Some(serde_json::from_value(slices).expect("as the runner writes it"));
    let cdf = (0..=80).map(|i| (1.0 - 10_f64.powf(f64::from(-i) / 20.0), 2000 + 100 * i as u64)).collect();
    report.cdf_ns.insert("fault".to_owned(), cdf);
    let phase = |name: &str, mean: f64| {
        json!({"phase": name, "share": mean / 6000.0,
            "ns": {"count": 10, "mean": mean, "p50": 1, "p90": 1, "p99": 1, "p999": 1, "max": 1}})
    };
    let phases = [phase("delivery", 2500.0), phase("lookup", 150.0), phase("lock", 50.0), phase("wait", 0.0)];
    let attribution = json!({"one_in": 64, "faults": 10, "discarded": 0, "sum_ns": 6000.0, "error": 0.0, "clock_ns": 10.0,
        "phases": phases.into_iter().chain([phase("install", 2300.0), phase("return", 1000.0)]).collect::<Vec<_>>(),
        "whole_ns": phase("", 6000.0)["ns"]});
    report.attribution = Some(serde_json::from_value(attribution).expect("as the runner writes it"));
    report
}

fn compare(subjects: &str, rounds: &[&[f64]]) -> CompareReport {
    let args = ["vmalab", "compare", "app-start", "--locks", subjects];
    let Command::Compare(args) = Cli::parse_from(args).command else { unreachable!() };
    let comparison = crate::plan::compare(&args).expect("sound options");
    let runs = comparison.subjects.iter().zip(rounds);
    let runs = runs.map(|(subject, rates)| rates.iter().map(|&rate| run(&subject.name, rate)).collect()).collect();
    summarise(comparison, runs, rounds[0].len() as u32, false, None)
}

fn rendered(report: &CompareReport) -> String {
    page(report, &StressConfig::new("app-start"))
}

fn two() -> CompareReport {
    compare("mmap,typesafe", &[&[100.0; 5], &[150.0; 5]])
}

#[test]
fn the_page_is_well_formed() {
    for report in [two(), compare("mmap,rcu,typesafe,refcount,native", &[&[100.0, 101.0, 99.0][..]; 5])] {
        let text = rendered(&report);
        let page = Html::parse_document(&text);
        assert_eq!(page.errors, Vec::<String>::new());
        let count = |selector: &str| page.select(&Selector::parse(selector).unwrap()).count();
        // Ratios, latency, throughput over time, attribution: each for a wide page and a narrow one.
        assert_eq!((count("figure"), count("svg.wide"), count("svg.narrow")), (5, 5, 5));
        assert_eq!(count("figure > figcaption"), 5, "every chart has its title");
        assert!(!text.contains("NaN") && !text.contains("inf\""), "a mark is nowhere");
    }
}

#[test]
fn the_page_needs_nothing_else() {
    let text = rendered(&two());
    let page = Html::parse_document(&text);
    let loads =
        Selector::parse("script, link, img, iframe, object, embed, [src], [href], [onload], image, use").unwrap();
    assert_eq!(page.select(&loads).count(), 0);
    for loaded in ["http:", "https:", "//", "@import", "url("] {
        assert!(!text.contains(loaded), "{loaded}");
    }
    assert!(text.contains("default-src 'none'"), "and the browser is told so");
}

#[test]
fn whatever_is_shown_is_escaped() {
    let mut report = two();
    let evil = "<script>alert('&')</script>\"";
    report.workload = evil.to_owned();
    report.baseline = evil.to_owned();
    report.repeat = format!("vmalab compare {evil}");
    report.machine.cpu = Some(evil.to_owned());
    report.machine.mitigations.insert(evil.to_owned(), evil.to_owned());
    report.subjects[0].name = evil.to_owned();
    report.subjects[1].verdict = evil.to_owned();
    let text = rendered(&report);
    let page = Html::parse_document(&text);
    assert_eq!(page.errors, Vec::<String>::new());
    assert!(!text.contains("<script") && text.contains("&lt;script&gt;"));
    assert_eq!(page.select(&Selector::parse("script").unwrap()).count(), 0);
}

#[test]
fn the_heading_is_the_verdict() {
    let of = |report: &CompareReport| verdict(report);
    assert_eq!(of(&two()), "typesafe has 1.50 [1.50, 1.50] times the faults/s of mmap.");
    let open = compare("mmap,typesafe", &[&[100.0; 5], &[90.0, 110.0, 105.0, 95.0, 102.0]]);
    assert_eq!(of(&open), "No winner between typesafe and mmap: 1.02 [0.90, 1.10] times the faults/s.");
    let many = compare("mmap,rcu,typesafe,refcount", &[&[100.0; 5], &[90.0; 5], &[120.0; 5], &[130.0; 5]]);
    assert_eq!(of(&many), "typesafe and refcount have more faults/s than mmap; rcu has fewer faults/s than mmap.");
    let none = compare("mmap,rcu,typesafe", &[&[100.0; 5], &[100.0; 5], &[100.0; 5]]);
    assert_eq!(of(&none), "No difference from mmap is shown for rcu and typesafe.");
    let mut taken = two();
    taken.slices.disturbed = 60;
    taken.subjects[1].call = Some(Call::Busy);
    assert_eq!(of(&taken), "No verdict: others had the machine in 60 % of the slices of time.");
    let mut wrong = two();
    wrong.subjects[1].runs[0] = violated(wrong.subjects[1].runs[0].clone());
    assert_eq!(of(&wrong), "A run found a violation: nothing is compared.");
}

#[test]
fn what_the_reader_looks_for_is_there() {
    let text = rendered(&two());
    for part in [
        "more faults/s than mmap",
        "distribution (CDF) up to p99.99",
        "p99.99",
        "Throughput over time: faults/s",
        "20 of 100",
        "write-locked early",
        "delivery 2.50 us",
        "6.00 us",
        "cargo run --release -- ",
        "A busy machine: in 20 % of the slices",
        "kernel",
        "compiler",
    ] {
        assert!(text.contains(part), "{part}");
    }
}

#[test]
fn a_page_of_nothing_measured_is_still_a_page() {
    let mut report = two();
    for run in report.subjects.iter_mut().flat_map(|subject| &mut subject.runs) {
        (run.slices, run.vma_lock, run.attribution) = (None, None, None);
        run.cdf_ns.clear();
    }
    let text = rendered(&report);
    let page = Html::parse_document(&text);
    assert_eq!(page.errors, Vec::<String>::new());
    assert_eq!(page.select(&Selector::parse("figure").unwrap()).count(), 2, "the ratios remain");
}
