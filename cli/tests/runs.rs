//! The binary running workloads: what it prints, writes and answers.

mod common;

use common::{Outcome, command, vmalab};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Short, and like a real run in everything else.
const SHORT: [&str; 4] = ["--duration", "300ms", "--warmup", "100ms"];

fn short(args: &[&str]) -> Outcome {
    vmalab(&[args, &SHORT].concat())
}

/// `path` (`a.b.c`) is there and `check` holds for it.
fn assert_key(value: &Value, path: &str, check: fn(&Value) -> bool) {
    let pointer = format!("/{}", path.replace('.', "/"));
    let found = value.pointer(&pointer).unwrap_or_else(|| panic!("{path} is missing in {value}"));
    assert!(check(found), "{path} is {found}");
}

fn distribution(value: &Value) -> bool {
    let number = |key: &str| value[key].as_f64().unwrap_or(-1.0);
    let ordered = ["p50", "p90", "p99", "p999", "max"];
    number("count") >= 1.0 && number("mean") > 0.0 && ordered.windows(2).all(|w| number(w[0]) <= number(w[1]))
}

fn distribution_or_null(value: &Value) -> bool {
    value.is_null() || distribution(value)
}

/// The keys that the contract names for an emulated run.
fn assert_stress(run: &Value) {
    assert_eq!((&run["schema"], &run["command"]), (&1.into(), &"stress".into()));
    for key in ["workload", "lock", "backend", "delivery"] {
        assert_key(run, key, Value::is_string);
    }
    for key in ["threads", "mutators", "address_spaces", "seed", "faults", "pages"] {
        assert_key(run, key, Value::is_u64);
    }
    for key in ["seconds", "faults_per_s", "ops_per_s"] {
        assert_key(run, key, |value| value.as_f64().is_some_and(|number| number > 0.0));
    }
    assert_key(run, "fault_ns", distribution);
    assert_key(run, "op_ns.mmap", distribution);
    for key in ["ops.mmap", "ops.munmap", "vma_lock.success", "vma_lock.abort", "vma_lock.retry", "vma_lock.miss"] {
        assert_key(run, key, Value::is_u64);
    }
    for key in ["mmap_lock.read", "mmap_lock.write", "slab.allocated", "slab.reused", "slab.reused_other_mm"] {
        assert_key(run, key, Value::is_u64);
    }
    for key in ["tlb_shootdowns", "mutator_rate", "userfaultfds"] {
        assert_key(run, key, |value| value.is_u64() || value.is_null());
    }
    for key in ["slab.slabs", "slab.object_bytes"] {
        assert_key(run, key, |value| value.is_u64() || value.is_null());
    }
    for key in ["mmap_lock.read_wait_ns", "mmap_lock.write_wait_ns"] {
        assert_key(run, key, distribution_or_null);
    }
    for key in ["mmap", "munmap", "mprotect", "mremap", "madvise", "uffd"] {
        assert_key(run, &format!("host_calls.{key}"), Value::is_u64);
    }
}

/// The slices follow each other, and hold no more than was counted.
fn assert_slices(run: &Value) {
    let slices = run["slices"]["each"].as_array().unwrap();
    let of = |key: &str| slices.iter().map(|slice| slice[key].as_u64().unwrap()).sum::<u64>();
    assert!(!slices.is_empty() && of("ns") as f64 <= 1.01e9 * run["seconds"].as_f64().unwrap(), "{run}");
    let [counted, faults] = [of("faults"), run["faults"].as_u64().unwrap()];
    // Natively each thread begins to count when it sees the warm-up's end.
    assert!(counted <= faults || run["backend"] == "native", "{counted} of {faults}");
    for (slice, next) in slices.iter().zip(&slices[1..]) {
        let end = slice["start_ns"].as_u64().unwrap() + slice["ns"].as_u64().unwrap();
        assert_eq!(next["start_ns"], end);
        assert_eq!(slice["by_thread"].as_array().unwrap().len() as u64, threads(run));
    }
}

fn threads(run: &Value) -> u64 {
    run["threads"].as_u64().unwrap() + run["mutators"].as_u64().unwrap()
}

#[test]
fn threads_are_pinned_when_asked() {
    for (command, options, pinned) in
        [("stress", &[][..], false), ("stress", &["--pin"], true), ("stress", &["--pin", "--no-pin"], false)]
    {
        let run = short(&[&[command, "app-start", "--json", "-"][..], options].concat()).json();
        assert_eq!(run["pinned"], pinned, "{options:?}");
        assert_slices(&run);
    }
}

#[test]
fn compare_writes_a_page() {
    let file = std::env::temp_dir().join(format!("vmalab-test-{}.html", std::process::id()));
    let args = ["compare", "app-start", "--lock", "typesafe", "--rounds", "1", "--html", file.to_str().unwrap()];
    let out = short(&args);
    let page = std::fs::read_to_string(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!((out.status, out.stderr.as_str()), (0, ""));
    assert!(out.stdout.contains("too few to call"), "the table is printed all the same: {}", out.stdout);
    let page = page.unwrap();
    for part in
        ["<!DOCTYPE html>", "Throughput over time", "up to p99.99", "floor: sigbus copy", "--rounds 1", "--rwsem "]
    {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn stress_prints_json_and_nothing_else() {
    for lock in ["mmap", "typesafe"] {
        let out = short(&["stress", "app-start", "--lock", lock, "--verify", "--seed", "7", "--json", "-"]);
        assert_eq!((out.status, out.stderr.as_str()), (0, ""));
        assert_eq!(out.stdout.lines().count(), 1);
        let run = out.json();
        assert_stress(&run);
        assert_eq!((&run["lock"], &run["seed"], &run["threads"]), (&lock.into(), &7.into(), &2.into()));
        assert_eq!(run["verify"]["violations"], 0);
        assert_key(&run, "verify.checked", |checked| checked.as_u64() > Some(0));
        for call in ["mmap", "munmap", "mprotect", "mremap"] {
            assert_eq!(run["host_calls"][call], 0, "the host's {call} was called on a region");
        }
    }
}

#[test]
fn stress_prints_a_table_and_writes_the_file() {
    let file = std::env::temp_dir().join(format!("vmalab-test-{}.json", std::process::id()));
    // A longer file from before must not show through.
    std::fs::write(&file, "x".repeat(100_000)).unwrap();
    let out = short(&["stress", "app-start", "--verify", "--json", file.to_str().unwrap()]);
    let written = std::fs::read_to_string(&file);
    std::fs::remove_file(&file).unwrap();
    assert_eq!((out.status, out.stderr.as_str()), (0, ""));
    assert_stress(&serde_json::from_str(&written.unwrap()).unwrap());
    for part in ["app-start on typesafe", "p99.9", "vma_lock", "mmap_lock", "slab", "host calls", "no violation"] {
        assert!(out.stdout.contains(part), "{part}: {}", out.stdout);
    }
    assert!(out.stdout.lines().all(|line| line.chars().count() <= 80), "{}", out.stdout);
    assert!(!out.stdout.contains('\x1b'), "no colours in a pipe");
}

#[test]
fn every_delivery_runs() {
    for delivery in ["sigbus", "queue", "software"] {
        let run = short(&["stress", "app-start", "--delivery", delivery, "--verify", "--json", "-"]).json();
        assert_eq!(run["delivery"], delivery);
        assert_eq!(run["verify"]["violations"], 0);
        assert_key(&run, "faults", |faults| faults.as_u64() > Some(0));
    }
}

#[test]
fn real_faults_are_a_multiple_of_their_floor() {
    let stress = |args: &[&str]| short(&[&["stress", "page-fault"], args].concat());
    for (delivery, name) in [("sigbus", "sigbus_copy"), ("queue", "queue_copy")] {
        let run = stress(&["--delivery", delivery, "--threads", "1", "--json", "-"]).json();
        assert_eq!(run["floor"]["name"], name);
        let [ns, ratio] = ["ns", "ratio"].map(|key| run["floor"][key].as_f64().unwrap());
        assert!((ratio - run["fault_ns"]["p50"].as_f64().unwrap() / ns).abs() < 1e-9, "{}", run["floor"]);
    }
    for without in [&["--no-floor"][..], &["--delivery", "software"], &["--backend", "native"]] {
        let run = stress(&[without, &["--json", "-"]].concat()).json();
        assert_key(&run, "floor", Value::is_null);
    }
    let out = stress(&[]);
    assert!(out.stdout.contains("of its floor (sigbus copy, "), "{}", out.stdout);
    assert!(!stress(&["--no-floor"]).stdout.contains("floor"));
}

#[test]
fn limits_measures_every_floor() {
    let out = vmalab(&["limits", "--duration", "300ms", "--json"]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    let report = out.json();
    assert_eq!((&report["schema"], &report["command"]), (&1.into(), &"limits".into()));
    let contract = ["syscall", "native_fault", "signal_round_trip", "lookup"];
    let userfault = ["sigbus_zeropage", "sigbus_copy", "sigbus_move", "queue_copy"];
    for key in contract.iter().chain(&userfault) {
        assert_key(&report, &format!("floors.{key}"), distribution_or_null);
    }
    for key in contract {
        assert_key(&report, &format!("floors.{key}"), distribution);
    }
    let floors = report["floors"].as_object().unwrap();
    let missing = floors.iter().filter(|(_, floor)| floor.is_null());
    for (key, _) in missing {
        assert!(out.stderr.contains(key), "{key} is null, and nothing says why: {}", out.stderr);
    }
    assert!(floors.keys().any(|key| key == "sigbus_copy_16_2t"));

    let out = vmalab(&["limits", "--duration", "300ms"]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert!(out.stdout.contains("\nsigbus COPY, store"), "{}", out.stdout);
    assert!(out.stdout.lines().all(|line| line.chars().count() <= 80), "{}", out.stdout);
}

#[test]
fn the_host_has_no_counters_of_ours() {
    let run = short(&["stress", "page-fault", "--backend", "native", "--json", "-"]).json();
    assert_eq!(run["backend"], "native");
    for key in ["vma_lock", "mmap_lock", "slab", "host_calls", "verify"] {
        assert_key(&run, key, Value::is_null);
    }
    assert_key(&run, "rwsem", Value::is_null);
    assert_key(&run, "fault_ns", distribution);
}

#[test]
fn every_rwsem_runs() {
    for rwsem in ["futex", "kernel", "std", "parking_lot"] {
        for delivery in ["sigbus", "software"] {
            let args = ["stress", "app-start", "--lock", "mmap", "--rwsem", rwsem, "--delivery", delivery];
            let out = short(&[&args[..], &["--mutators", "2", "--verify", "--no-floor", "--json", "-"]].concat());
            assert_eq!((out.status, out.stderr.as_str()), (0, ""), "{rwsem}");
            let run = out.json();
            assert_stress(&run);
            assert_eq!((&run["rwsem"], &run["verify"]["violations"]), (&rwsem.into(), &0.into()));
        }
    }
}

#[test]
fn ops_end_a_run() {
    let out = vmalab(&["stress", "app-start", "--ops", "200", "--warmup", "0", "--json", "-"]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    let calls: u64 = out.json()["ops"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert!((200..20_000).contains(&calls), "{calls}");
}

#[test]
fn compare_alternates_and_pairs() {
    let args = ["compare", "app-start", "--locks", "mmap,typesafe,native", "--rounds", "2", "--json", "-"];
    let out = short(&args);
    assert_eq!((out.status, out.stderr.as_str()), (0, ""));
    let report = out.json();
    assert_eq!((&report["schema"], &report["command"]), (&1.into(), &"compare".into()));
    assert_eq!((&report["workload"], &report["baseline"]), (&"app-start".into(), &"mmap".into()));
    assert_eq!(report["rounds"], 2);
    let calibration = report["rwsem_calibration"].as_object().unwrap();
    let per_s = |name: &str| calibration[name].as_f64().unwrap();
    let names = ["futex", "kernel", "std", "parking_lot"];
    let most = names.map(per_s).into_iter().fold(0.0, f64::max);
    let as_good = names.into_iter().find(|name| per_s(name) >= 0.9 * most).unwrap();
    assert_eq!((calibration.len(), &report["rwsem"]), (4, &Value::from(as_good)));
    let subjects = report["subjects"].as_array().unwrap();
    let names: Vec<_> = subjects.iter().map(|subject| &subject["name"]).collect();
    assert_eq!(names, ["mmap", "typesafe", "native"]);
    assert_eq!(report["runs_thrown_away"], 3);
    let slices = |value: &Value| value["slices"]["each"].as_array().unwrap().clone();
    let all = subjects.iter().flat_map(|subject| subject["runs"].as_array().unwrap()).flat_map(slices).count();
    assert_eq!(report["slices"]["all"], all);
    assert_key(&report, "machine.kernel", Value::is_string);
    assert_key(&report, "build.rustc", Value::is_string);
    assert_key(&report, "repeat", |repeat| repeat.as_str().is_some_and(|r| r.starts_with("vmalab compare app-start")));
    for subject in subjects {
        assert_eq!(subject["runs"].as_array().unwrap().len(), 2);
        assert_key(subject, "winner", Value::is_null);
        for run in subject["runs"].as_array().unwrap() {
            assert_slices(run);
            assert_eq!(run["pinned"], true);
        }
        for ratio in ["throughput_ratio", "p99_ratio"] {
            let [low, median, high] = ["low", "median", "high"].map(|key| subject[ratio][key].as_f64().unwrap());
            assert!(0.0 < low && low <= median && median <= high, "{}", subject[ratio]);
        }
    }
    assert_stress(&subjects[1]["runs"][0]);
    assert_eq!(subjects[0]["throughput_ratio"]["median"], 1.0);
    let pair = |i: usize| {
        let rate = |subject: usize| subjects[subject]["runs"][i]["faults_per_s"].as_f64().unwrap();
        rate(1) / rate(0)
    };
    let median = subjects[1]["throughput_ratio"]["median"].as_f64().unwrap();
    assert!((median - f64::midpoint(pair(0), pair(1))).abs() < 1e-9);
}

#[test]
fn compare_prints_a_row_for_each_subject() {
    let out = short(&["compare", "app-start", "--lock", "typesafe", "--verify", "--rounds", "1"]);
    assert_eq!((out.status, out.stderr.as_str()), (0, ""));
    for part in ["app-start: 1 round,", "\nmmap ", "\ntypesafe ", "baseline", "too few to call", "no violation"] {
        assert!(out.stdout.contains(part), "{part}: {}", out.stdout);
    }
    assert!(out.stdout.lines().all(|line| line.chars().count() <= 80), "{}", out.stdout);
}

#[cfg(feature = "races")]
mod races {
    use super::*;

    #[test]
    fn the_adversary_says_what_it_did() {
        let args = ["stress", "reuse-storm", "--adversary", "--verify"];
        let out = short(&[&args[..], &["--json", "-"]].concat());
        assert_eq!((out.status, out.stderr.as_str()), (0, ""));
        let run = out.json();
        assert_stress(&run);
        for key in ["points.H7", "points.Section", "delays.spins", "reused", "reused_other_mm", "poisoned", "ghosts"] {
            assert_key(&run, &format!("adversary.{key}"), |n| n.as_u64() > Some(0));
        }
        let out = short(&args);
        assert_eq!((out.status, out.stderr.as_str()), (0, ""));
        for part in ["adversary ", "delays ", "forced reuse ", "same address ", "no violation"] {
            assert!(out.stdout.contains(part), "{part}: {}", out.stdout);
        }
        assert!(out.stdout.lines().all(|line| line.chars().count() <= 80), "{}", out.stdout);
    }

    #[test]
    fn a_comparison_can_have_it_too() {
        let args = ["compare", "reuse-storm", "--lock", "typesafe", "--adversary", "--verify", "--rounds", "1"];
        let out = short(&[&args[..], &["--json", "-"]].concat());
        assert_eq!((out.status, out.stderr.as_str()), (0, ""));
        for subject in out.json()["subjects"].as_array().unwrap() {
            assert_key(&subject["runs"][0], "adversary.poisoned", |n| n.as_u64() > Some(0));
        }
    }

    /// Caught by an oracle in the core, perhaps in a signal handler: one line
    /// on standard error, and the process is over.
    #[test]
    fn a_mutant_that_is_caught_ends_with_status_1() {
        let args = ["stress", "reuse-storm", "--adversary", "--verify", "--mutant", "NoDetachedCheck", "--seed", "7"];
        let out = vmalab(&[&args[..], &["--duration", "60", "--warmup", "0"]].concat());
        assert_eq!(out.status, 1, "{}{}", out.stdout, out.stderr);
        assert!(out.stderr.starts_with("error: "), "{}", out.stderr);
    }
}

/// Sends Ctrl-C after a second of a run that would take a minute.
fn interrupted(args: &[&str]) -> Outcome {
    interrupted_after(Duration::from_secs(1), args)
}

fn interrupted_after(some_time: Duration, args: &[&str]) -> Outcome {
    let started = Instant::now();
    let child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(some_time);
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let out = Outcome::of(child.wait_with_output().unwrap());
    assert!(started.elapsed() < Duration::from_secs(20), "the run went on");
    out
}

#[test]
fn ctrl_c_prints_what_there_is() {
    let out = interrupted(&["stress", "app-start", "--duration", "60", "--warmup", "100ms"]);
    assert_eq!((out.status, out.stderr.as_str()), (130, ""));
    assert!(out.stdout.contains("partial results") && out.stdout.contains("faults"), "{}", out.stdout);

    let out = interrupted(&["stress", "app-start", "--duration", "60", "--warmup", "100ms", "--json", "-"]);
    assert_eq!((out.status, out.stderr.as_str()), (130, ""));
    let run = out.json();
    assert_stress(&run);
    assert_eq!(run["interrupted"], true);
    assert!(run["seconds"].as_f64().unwrap() < 20.0);
}

#[test]
fn ctrl_c_ends_a_comparison_with_the_rounds_it_has() {
    let options = ["--lock", "typesafe", "--duration", "100ms", "--warmup", "0", "--rounds", "900", "--rwsem", "std"];
    let out = interrupted_after(Duration::from_secs(3), &[&["compare", "app-start"][..], &options].concat());
    assert_eq!((out.status, out.stderr.as_str()), (130, ""));
    assert!(out.stdout.contains("of 900 rounds, partial results"), "{}", out.stdout);
}

#[test]
fn a_subject_that_cannot_run_is_found_before_the_first_round() {
    let started = Instant::now();
    let args = ["compare", "app-start", "--locks", "mmap,native", "--address-spaces", "2", "--duration", "60"];
    let out = vmalab(&args);
    assert_eq!((out.status, out.stdout.as_str()), (2, ""));
    assert!(out.stderr.starts_with("error: native: "), "{}", out.stderr);
    assert!(started.elapsed() < Duration::from_secs(20));
}
