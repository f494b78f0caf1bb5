//! The binary as a user or a script meets it: exit statuses, what goes where,
//! and the errors. Nothing here runs a workload.

mod common;

use common::{assert_usage, vmalab};

#[test]
fn help_fits_80_columns_and_shows_only_what_is_there() {
    for command in ["", "doctor", "limits", "list", "stress", "compare", "conform", "race"] {
        let mut args: Vec<&str> = command.split_whitespace().collect();
        args.push("--help");
        let out = vmalab(&args);
        assert_eq!((out.status, out.stderr.as_str()), (0, ""), "{args:?}");
        for line in out.stdout.lines() {
            assert!(line.chars().count() <= 80, "{args:?}: {line}");
        }
        // 'race' tells what needs the feature; the others have options with it.
        let workload = ["stress", "compare"].contains(&command);
        let races: &[&str] = if workload && !cfg!(feature = "races") { &["adversary", "mutant"] } else { &[] };
        for absent in ["replay"].iter().chain(races) {
            assert!(!out.stdout.contains(absent), "{args:?} shows {absent}");
        }
    }
    assert!(vmalab(&["stress", "--help"]).stdout.contains("Examples:"));
}

#[test]
fn no_command_is_bad_usage() {
    let out = vmalab(&[]);
    assert_eq!((out.status, out.stdout.as_str()), (2, ""));
    assert!(out.stderr.contains("Usage: vmalab"));
}

#[test]
fn commands_that_come_later_say_so() {
    for args in [&["record", "--", "ls", "-l"][..], &["replay", "trace"], &["run", "--", "ls"]] {
        let out = vmalab(args);
        assert_eq!((out.status, out.stdout.as_str()), (3, ""), "{args:?}");
        assert!(out.stderr.contains("not in this build yet"), "{args:?}: {}", out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{args:?}: {}", out.stderr);
    }
}

#[cfg(not(feature = "races"))]
#[test]
fn the_adversary_needs_a_feature_and_says_how_to_have_it() {
    for command in ["stress", "compare"] {
        let out = vmalab(&[command, "reuse-storm", "--adversary"]);
        assert_eq!((out.status, out.stdout.as_str()), (3, ""));
        let how = format!("cargo run --release --features races -- {command} reuse-storm --adversary");
        assert!(out.stderr.contains(&how), "{}", out.stderr);
        assert_eq!(out.stderr.lines().count(), 1, "{}", out.stderr);
    }
    assert_usage(&["stress", "reuse-storm", "--mutant", "NoMmCheck"], "--mutant");
}

#[cfg(feature = "races")]
#[test]
fn unknown_mutants_get_the_nearest_and_the_host_has_no_adversary() {
    assert_usage(&["stress", "reuse-storm", "--mutant", "NoMmChek"], "did you mean 'NoMmCheck'?");
    assert_usage(&["stress", "app-start", "--backend", "native", "--adversary"], "--backend native");
}

#[test]
fn lists_names() {
    let out = vmalab(&["list", "workloads"]);
    assert_eq!((out.status, out.stderr.as_str()), (0, ""));
    assert!(out.stdout.contains("app-start"));
    let locks = vmalab(&["list", "locks", "--json"]).json();
    assert_eq!(locks["schema"], 1);
    let names: Vec<_> = locks["locks"].as_array().unwrap().iter().map(|lock| &lock["name"]).collect();
    assert_eq!(names, ["mmap", "rcu", "typesafe", "refcount"]);
    assert!(vmalab(&["list", "workloads", "--json"]).json()["workloads"].as_array().unwrap().len() > 5);
}

#[test]
fn unknown_names_get_the_nearest() {
    assert_usage(&["stress", "appstart"], "did you mean 'app-start'?");
    assert_usage(&["stress", "app-start", "--lock", "typsafe"], "did you mean 'typesafe'?");
    assert_usage(&["compare", "app-start", "--locks", "mmap,nativ"], "unknown lock 'nativ'");
    assert_usage(&["compare", "app-start", "--locks", "mmap,"], "unknown lock ''");
    assert_usage(&["stress", "zzz"], "choose one of page-fault,");
    assert_usage(&["list", "rases"], "'races'");
    assert_usage(&["stres", "app-start"], "'stress'");
}

#[test]
fn senseless_numbers_are_refused() {
    for (option, value, says) in [
        ("--threads", "0", "0 is not in 1..="),
        ("--threads", "1000000", "is not in 1..="),
        ("--threads", "two", "invalid digit"),
        ("--mutators", "-1", "--mutators"),
        ("--address-spaces", "0", "is not in 1..="),
        ("--duration", "0", "longer than 0"),
        ("--duration", "5x", "for example 5, 500ms, 5s or 2m"),
        ("--duration", "999999999", "longer than a year"),
        ("--warmup", "soon", "for example 5, 500ms, 5s or 2m"),
        ("--ops", "0", "0 is not in 1.."),
        ("--seed", "-3", "--seed"),
        ("--region", "999T", "take 32T or less"),
        ("--region", "99999999T", "64 bits"),
        ("--region", "1000", "whole number of 4K pages"),
        ("--region", "0", "whole number of 4K pages"),
        ("--region", "12Q", "K, M, G or T"),
        ("--fault-around", "0", "is not in 1..="),
        ("--delivery", "pigeon", "sigbus, queue, software"),
        ("--backend", "both", "emulated, native"),
        ("--handlers", "2", "'--delivery queue'"),
        ("--mutator-rate", "0", "is not in 1..="),
    ] {
        assert_usage(&["stress", "app-start", option, value], says);
    }
    assert_usage(&["stress", "app-start", "--delivery", "queue", "--handlers", "0"], "0 is not in 1..=");
    assert_usage(&["stress", "app-start", "--region", "1T", "--address-spaces", "256"], "take 128G or less for each");
    assert_usage(&["compare", "app-start", "--rounds", "0"], "0 is not in 1..=");
}

#[test]
fn contradictions_are_refused() {
    assert_usage(&["stress", "app-start", "--ops", "5", "--duration", "3"], "cannot be used with");
    assert_usage(&["stress", "protect", "--backend", "native"], "cannot run natively");
    assert_usage(&["compare", "protect", "--locks", "mmap,native"], "cannot run natively");
    assert_usage(&["compare", "app-start", "--locks", "typesafe"], "only subject");
    assert_usage(&["compare", "app-start", "--locks", "mmap,typesafe,mmap"], "named twice");
    assert_usage(&["compare", "app-start", "--backend", "native"], "the subject 'native'");
    assert_usage(&["compare", "app-start", "--lock", "mmap", "--locks", "mmap,native"], "cannot be used with");
    assert_usage(&["stress"], "<WORKLOAD>");
    assert_usage(&["stress", "app-start", "--json"], "--json");
}

#[test]
fn a_file_that_cannot_be_written_is_found_before_the_run() {
    let started = std::time::Instant::now();
    for command in ["stress", "compare"] {
        let args = [command, "app-start", "--duration", "60", "--json", "/nonexistent/result.json"];
        assert_usage(&args, "cannot write --json /nonexistent/result.json: No such file or directory");
        assert_usage(&[command, "app-start", "--json", "/"], "Is a directory");
    }
    let page = |file| ["compare", "app-start", "--duration", "60", "--html", file];
    assert_usage(&page("/nonexistent/report.html"), "cannot write --html /nonexistent/report.html: No such file");
    assert_usage(&page("-"), "--html report.html");
    assert!(started.elapsed().as_secs() < 10);
}

#[test]
fn doctor_says_what_it_found() {
    let out = vmalab(&["doctor", "--json"]);
    let doctor = out.json();
    assert_eq!((&doctor["schema"], &doctor["command"]), (&1.into(), &"doctor".into()));
    assert!(doctor["kernel"].as_str().unwrap().contains('.'));
    let ready = doctor["ready"].as_bool().unwrap();
    assert_eq!(out.status, if ready { 0 } else { 3 });
    assert_eq!(out.stderr, "");
    let checks = doctor["checks"].as_array().unwrap();
    for check in checks {
        assert!(check["name"].is_string() && check["detail"].is_string(), "{check}");
        let ok = check["ok"].as_bool().unwrap();
        assert_eq!(ok, check["help"].is_null(), "help where it is needed: {check}");
    }
    for name in ["kernel", "userfaultfd", "/dev/userfaultfd", "feature SIGBUS", "membarrier", "overcommit", "perf"] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name} is not checked");
    }
    let text = vmalab(&["doctor"]);
    assert_eq!(text.status, out.status);
    assert!(text.stdout.lines().all(|line| line.chars().count() <= 80), "{}", text.stdout);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let bin = env!("CARGO_BIN_EXE_vmalab");
    let out = std::process::Command::new("sh")
        .args(["-c", &format!("{{ {bin} list workloads; echo $? >&2; }} | true")])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stderr), "0\n");
}
