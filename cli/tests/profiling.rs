//! `stress --timeline` and `profile`: the files that they leave.

mod common;

use common::{assert_usage, vmalab};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

/// A folder of the test's own, gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("vmalab-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_timeline_is_a_chrome_trace() {
    let folder = Folder::new("timeline");
    let file = folder.file("trace.json");
    let run = ["stress", "app-start", "--lock", "mmap", "--ops", "2000", "--no-floor", "--json", "-"];
    let out = vmalab(&[&run[..], &["--timeline", &file, "--timeline-events", "4096"]].concat());
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert!(out.stderr.starts_with("timeline: ") && out.stderr.contains("threads in"), "{}", out.stderr);
    assert!(out.json()["attribution"]["phases"].as_array().is_some_and(|phases| phases.len() == 6));
    let trace: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let has = |name: &str| events.iter().any(|event| event["name"] == name);
    for name in ["fault", "install", "mmap_lock (read)", "mmap_lock (write)", "munmap", "thread_name"] {
        assert!(has(name), "nothing called {name}");
    }
    assert!(trace["otherData"]["dropped"].is_u64());
}

#[test]
fn a_timeline_that_cannot_be_is_refused_before_the_run() {
    assert_usage(&["stress", "page-fault", "--timeline", "/there/is/no/such/folder/x.json"], "--timeline");
    let folder = Folder::new("native");
    let file = folder.file("trace.json");
    assert_usage(&["stress", "page-fault", "--backend", "native", "--timeline", &file], "native");
}

/// Where perf may be used; elsewhere the command must say what would help.
#[test]
fn a_profile_shows_the_phases_of_a_fault_by_name() {
    let folder = Folder::new("profile");
    let out = vmalab(&["profile", "page-fault", "--duration", "2", "--out", &folder.file("out")]);
    if out.status == 3 {
        let helps = ["install it", "perf_event_paranoid", "vmalab doctor"];
        assert!(helps.iter().any(|help| out.stderr.contains(help)), "{}", out.stderr);
        return;
    }
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert!(out.stdout.lines().all(|line| line.chars().count() <= 80), "{}", out.stdout);
    assert!(out.stdout.contains("delivery") && out.stdout.contains("install"), "{}", out.stdout);
    let graph = fs::read_to_string(folder.file("out/flamegraph.svg")).unwrap();
    for phase in ["[delivery]", "[lookup]", "[lock]", "[install]", "[return]", "handle_mm_fault"] {
        assert!(graph.contains(phase), "the flame graph has no {phase}");
    }
    // (Wherever the line is broken.)
    let said = out.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let named = said.split_once(" in user space, ").and_then(|(_, rest)| rest.split_once('%'));
    let named: f64 = named.expect("user space is told of").0.trim().parse().unwrap();
    assert!(named >= 95.0, "{named} % of the samples in user space have names");
    let stress: Value = serde_json::from_str(&fs::read_to_string(folder.file("out/stress.json")).unwrap()).unwrap();
    assert_eq!(stress["workload"], "page-fault");
}

#[test]
fn what_stress_refuses_is_refused_before_recording() {
    assert_usage(&["profile", "no-such-workload"], "workload");
    assert_usage(&["profile", "page-fault", "--lock", "spin"], "lock");
}
