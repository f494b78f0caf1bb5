//! `vmalab race` and `vmalab list races` as a user or a script meets them.

mod common;

use common::{Outcome, assert_usage, command, vmalab};
use serde_json::Value;

const RACE: &str = "reuse-other-mm";

#[test]
fn the_catalogue_is_listed() {
    let out = vmalab(&["list", "races"]);
    assert_eq!((out.status, out.stderr.as_str()), (0, ""));
    assert!(out.stdout.lines().all(|line| line.chars().count() <= 80), "{}", out.stdout);
    for part in
        [RACE, "locks: typesafe, refcount\n", "executors: faults, shuttle, loom\n", "oracle: O2 (no orphan)", "from: "]
    {
        assert!(out.stdout.contains(part), "{part}: {}", out.stdout);
    }
    let list = vmalab(&["list", "races", "--json"]).json();
    assert_eq!(list["schema"], 1);
    for race in list["races"].as_array().unwrap() {
        for key in ["name", "title", "source", "story", "check", "mutant", "oracle"] {
            assert!(race[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {race}");
        }
        for key in ["locks", "executors"] {
            assert!(!race[key].as_array().unwrap().is_empty(), "{key}: {race}");
        }
    }
}

#[test]
fn bad_usage_is_refused() {
    assert_usage(&["race", "reuse-othermm"], "did you mean 'reuse-other-mm'");
    assert_usage(&["race", "reuse-othermm"], "'vmalab list races' shows all");
    assert_usage(&["race", "zzz"], "unknown race 'zzz'");
    assert_usage(&["race"], "<NAME>");
    assert_usage(&["race", RACE, "--lock", "typsafe"], "did you mean 'typesafe'?");
    assert_usage(&["race", RACE, "--lock", "mmap"], "it has on typesafe, refcount");
    assert_usage(&["race", RACE, "--executor", "hardware"], "faults, shuttle, loom");
    assert_usage(&["race", RACE, "--iterations", "0"], "0 is not in 1..");
    assert_usage(&["race", RACE, "--duration", "5"], "faults takes --iterations");
    assert_usage(&["race", RACE, "--executor", "loom", "--duration", "0"], "longer than 0");
    assert_usage(&["race", RACE, "--executor", "shuttle", "--preemptions", "3"], "is for '--executor loom'");
    assert_usage(&["race-child", "zzz", "mmap", "mutant"], "no race is named 'zzz'");
}

/// Outside a checkout.
fn elsewhere(args: &[&str]) -> Outcome {
    Outcome::of(command(args).current_dir("/").output().unwrap())
}

#[test]
fn a_model_needs_a_checkout() {
    for executor in ["shuttle", "loom"] {
        for args in [&["race", RACE, "--executor", executor][..], &["race", RACE, "--executor", executor, "--mutant"]] {
            let out = elsewhere(args);
            assert_eq!((out.status, out.stdout.as_str()), (3, ""), "{args:?}");
            assert!(out.stderr.contains("inside a checkout of vmalab"), "{args:?}: {}", out.stderr);
            assert_eq!(out.stderr.lines().count(), 1, "{args:?}: {}", out.stderr);
        }
    }
}

#[cfg(not(feature = "races"))]
#[test]
fn without_the_feature_the_command_that_would_do_is_named() {
    for (args, says) in [
        (&["race", RACE, "--mutant"][..], "'cargo run --release --features races -- race reuse-other-mm --mutant'"),
        (&["race", RACE, "--mutant", "--json", "-"], "-- race reuse-other-mm --mutant'"),
        (&["race", RACE, "--executor", "faults"], "'cargo run --release --features races -- race reuse-other-mm'"),
        (&["race", RACE], "no schedule points"),
    ] {
        let out = elsewhere(args);
        assert_eq!((out.status, out.stdout.as_str()), (3, ""), "{args:?}");
        assert!(out.stderr.starts_with("error: ") && out.stderr.contains(says), "{args:?}: {}", out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{args:?}: {}", out.stderr);
    }
    // Nor does the process of a race pretend.
    let out = vmalab(&["race-child", RACE, "typesafe", "complete"]);
    assert_eq!((out.status, out.stdout.as_str()), (3, ""));
}

/// The keys of the contract.
#[cfg_attr(not(feature = "races"), allow(dead_code))]
fn assert_race(race: &Value, mutant: bool) {
    assert_eq!((&race["schema"], &race["command"], &race["name"]), (&1.into(), &"race".into(), &RACE.into()));
    assert_eq!(
        (&race["mutant"], &race["executor"], &race["caught"]),
        (&mutant.into(), &"faults".into(), &mutant.into())
    );
    assert_eq!(race["oracle"], "O2");
    assert!(race["iterations"].as_u64() > Some(0), "{race}");
    assert_eq!(race["ns_to_catch"].as_u64().is_some_and(|ns| ns > 0), mutant, "{race}");
    assert!(mutant || race["ns_to_catch"].is_null(), "{race}");
    let interleaving = race["interleaving"].as_array().unwrap();
    assert!(interleaving[0].as_str().unwrap().contains("H1"), "{race}");
    for lock in race["locks"].as_array().unwrap() {
        assert_eq!((&lock["caught"], &lock["passed"]), (&mutant.into(), &true.into()), "{lock}");
        assert_eq!((lock["oracle"].is_null(), lock["violation"].is_null()), (!mutant, !mutant), "{lock}");
    }
}

#[cfg(feature = "races")]
#[test]
fn the_mutant_is_caught_and_the_complete_code_passes() {
    for mutant in [true, false] {
        let flag = if mutant { &["--mutant"][..] } else { &[] };
        let out = elsewhere(&[&["race", RACE, "--json", "-"], flag].concat());
        assert_eq!((out.status, out.stderr.as_str()), (0, ""));
        assert_eq!(out.stdout.lines().count(), 1);
        let race = out.json();
        assert_race(&race, mutant);
        let names: Vec<_> = race["locks"].as_array().unwrap().iter().map(|lock| &lock["lock"]).collect();
        assert_eq!(names, ["typesafe", "refcount"]);

        let out = elsewhere(&[&["race", RACE, "--lock", "refcount", "--iterations", "7"], flag].concat());
        assert_eq!((out.status, out.stderr.as_str()), (0, ""));
        assert!(out.stdout.lines().all(|line| line.chars().count() <= 80), "{}", out.stdout);
        let verdict = if mutant { "the mutant is caught on refcount" } else { "the complete code passes on refcount" };
        for part in ["story ", "interleaving ", "1. fault: runs until H1", verdict] {
            assert!(out.stdout.contains(part), "{part}: {}", out.stdout);
        }
        assert!(!out.stdout.contains("typesafe"), "{}", out.stdout);
    }
}

#[cfg(feature = "races")]
#[test]
fn ctrl_c_ends_a_race() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::process::Stdio;
    let args = ["race", RACE, "--iterations", "100000000", "--json", "-"];
    let started = std::time::Instant::now();
    let child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    kill_process(Pid::from_raw(child.id().cast_signed()).unwrap(), Signal::INT).unwrap();
    let out = Outcome::of(child.wait_with_output().unwrap());
    assert!(started.elapsed().as_secs() < 20, "the run went on");
    assert_eq!((out.status, out.stderr.as_str()), (130, ""));
    let race = out.json();
    assert_eq!((&race["interrupted"], &race["caught"]), (&true.into(), &Value::Null));
}
