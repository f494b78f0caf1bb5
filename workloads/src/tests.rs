//! The workloads and their oracles, on a model: the correct one passes, each
//! planted bug is caught.

use crate::runner::{Driven, drive};
use crate::shared::Plan;
use crate::target::fake::{Bug, Fake};
use crate::{Backend, Control, RunError, StressConfig, find, list, run};
use std::time::Duration;

/// Workloads of calls that the model does not know: they run on [`Soft`], see
/// `family`.
const BEYOND_THE_MODEL: [&str; 5] = ["fork-cow", "mremap-move", "file-shared", "stack-growth", "maps-reader"];

fn modelled() -> impl Iterator<Item = &'static crate::WorkloadInfo> {
    list().iter().filter(|workload| !BEYOND_THE_MODEL.contains(&workload.name))
}

fn plan(name: &str, verify: bool) -> Plan {
    let info = find(name).unwrap();
    Plan {
        threads: 3,
        mutators: info.mutators.max(1) as usize,
        mutator_rate: None,
        address_spaces: info.min_address_spaces as usize,
        duration: Some(Duration::from_secs(20)),
        ops: Some(600),
        warmup: Duration::ZERO,
        seed: 7,
        verify,
        cpus: None,
    }
}

fn drive_fake(name: &str, plan: Plan, bug: Option<Bug>) -> Result<Driven, RunError> {
    let fakes = (0..plan.address_spaces).map(|_| Fake::new(1 << 30, bug)).collect();
    drive(find(name).unwrap(), fakes, plan, &Control::new(), Duration::from_secs(10))
}

#[test]
fn every_workload_passes_on_a_correct_address_space() {
    for workload in modelled() {
        for verify in [true, false] {
            // By time: mutators alone can use up a number of calls before others begin.
            let limits = Plan { duration: Some(Duration::from_millis(100)), ops: None, ..plan(workload.name, verify) };
            let driven = drive_fake(workload.name, limits, None).unwrap();
            let first = driven.violations.first().map(ToString::to_string).unwrap_or_default();
            assert!(driven.violations.is_empty(), "{}: {first}", workload.name);
            assert!(driven.recorder.ops.iter().any(|op| !op.is_empty()), "{}", workload.name);
            assert_eq!(driven.checked > 0, verify && workload.name != "map-unmap", "{}", workload.name);
            assert_eq!(driven.recorder.touches > 0, workload.name != "map-unmap", "{}", workload.name);
            assert!(!driven.interrupted && driven.seconds > 0.0);
        }
    }
}

#[test]
fn workloads_pass_with_more_threads_and_address_spaces_than_they_need() {
    for workload in modelled() {
        let more = Plan { threads: 5, mutators: 3, address_spaces: 3, ops: Some(2000), ..plan(workload.name, true) };
        let driven = drive_fake(workload.name, more, None).unwrap();
        let first = driven.violations.first().map(ToString::to_string).unwrap_or_default();
        assert!(driven.violations.is_empty(), "{}: {first}", workload.name);
    }
}

#[test]
fn one_thread_is_enough() {
    for workload in modelled() {
        let few =
            Plan { threads: 1, mutators: workload.min_mutators as usize, ops: Some(100), ..plan(workload.name, true) };
        assert!(drive_fake(workload.name, few, None).unwrap().violations.is_empty(), "{}", workload.name);
    }
}

#[test]
fn a_number_of_calls_ends_the_run() {
    for name in ["map-unmap", "pipeline", "global", "reuse-storm"] {
        let limits = Plan { duration: None, ..plan(name, false) };
        let driven = drive_fake(name, limits, None).unwrap();
        let calls: u64 = driven.recorder.ops.iter().map(|op| op.len()).sum();
        assert!((600..700).contains(&calls), "{name}: {calls}");
    }
}

/// Every planted bug, the workloads that must catch it, and the oracle.
const CATCHES: &[(Bug, &str, &[&str])] = &[
    (
        Bug::StaleContents,
        "O1",
        &["page-fault", "page-fault-shared", "app-start", "local", "pipeline", "global", "reuse-storm", "alloc-churn"],
    ),
    (Bug::StaleValues, "O1", &["page-fault", "local", "reuse-storm", "global", "alloc-churn"]),
    (Bug::StoreAfterProtect, "O3", &["protect", "reuse-storm"]),
    (Bug::ReadableAfterUnmap, "O2", &["reuse-storm", "local"]),
    (Bug::LostOverNone, "O1", &["protect", "reuse-storm"]),
    (
        Bug::ForeignStamp,
        "O1",
        &[
            "page-fault",
            "page-fault-shared",
            "app-start",
            "protect",
            "local",
            "pipeline",
            "global",
            "reuse-storm",
            "alloc-churn",
        ],
    ),
    (
        Bug::WrongAddress,
        "O1",
        &[
            "page-fault",
            "page-fault-shared",
            "app-start",
            "protect",
            "local",
            "pipeline",
            "global",
            "reuse-storm",
            "alloc-churn",
        ],
    ),
    (Bug::HoleInReplacement, "O3", &["reuse-storm"]),
    (Bug::DoubleInstall, "O1", &["page-fault-shared"]),
    (
        Bug::SpuriousSignal,
        "O3",
        &[
            "page-fault",
            "page-fault-shared",
            "app-start",
            "protect",
            "local",
            "pipeline",
            "global",
            "reuse-storm",
            "alloc-churn",
        ],
    ),
    (Bug::BrokenAtRest, "O4", &["map-unmap", "reuse-storm", "local"]),
];

#[test]
fn every_planted_bug_is_caught() {
    for &(bug, oracle, workloads) in CATCHES {
        for name in workloads {
            let long = Plan { ops: Some(200_000), ..plan(name, true) };
            let limit = if bug == Bug::BrokenAtRest { Plan { ops: Some(100), ..long } } else { long };
            let driven = drive_fake(name, limit, Some(bug)).unwrap();
            let first = driven.violations.first().unwrap_or_else(|| panic!("{name} misses {bug:?}"));
            assert_eq!(first.oracle, oracle, "{name} with {bug:?}: {first}");
            assert_eq!(first.events.is_empty(), bug == Bug::BrokenAtRest, "{first}");
        }
    }
}

#[test]
fn a_panic_an_error_and_a_hang_end_the_run() {
    for name in ["page-fault", "global", "pipeline", "page-fault-shared"] {
        let Err(RunError::Internal(text)) = drive_fake(name, plan(name, false), Some(Bug::Panic)) else {
            panic!("{name} did not fail")
        };
        assert!(text.contains("a planted panic"), "{text}");
        let Err(RunError::Internal(text)) = drive_fake(name, plan(name, false), Some(Bug::Errno)) else {
            panic!("{name} did not fail")
        };
        assert!(text.contains("munmap") && text.contains("ENOMEM"), "{text}");
    }
    let hang = Plan { duration: Some(Duration::from_millis(100)), ..plan("local", false) };
    let fakes = vec![Fake::new(1 << 30, Some(Bug::Hang))];
    let driven = drive(find("local").unwrap(), fakes, hang, &Control::new(), Duration::from_millis(300)).unwrap();
    assert_eq!(driven.violations[0].oracle, "O5");
    assert!(driven.violations[0].message.contains("fault-0"), "{}", driven.violations[0].message);
    // All of them: the run does not wait for its time to be over.
    let long = Plan { duration: Some(Duration::from_secs(600)), ops: None, ..plan("local", false) };
    let (began, fakes) = (std::time::Instant::now(), vec![Fake::new(1 << 30, Some(Bug::Hang))]);
    let driven = drive(find("local").unwrap(), fakes, long, &Control::new(), Duration::from_secs(3)).unwrap();
    assert_eq!(driven.violations[0].oracle, "O5");
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_stopped_run_is_partial() {
    let control = Control::new();
    let endless = Plan { duration: None, ops: None, warmup: Duration::from_millis(20), ..plan("protect", true) };
    let fakes = vec![Fake::new(1 << 30, None)];
    let (progress, driven) = std::thread::scope(|scope| {
        let running =
            scope.spawn(|| drive(find("protect").unwrap(), fakes, endless, &control, Duration::from_secs(10)));
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let mut progress = control.progress();
        while progress.stage != crate::Stage::Measure || progress.ops == 0 || progress.elapsed.as_millis() < 200 {
            if std::time::Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            progress = control.progress();
        }
        // Before anything can fail: the scope waits for the run.
        control.stop();
        (progress, running.join().unwrap().unwrap())
    });
    assert_eq!(progress.stage, crate::Stage::Measure);
    assert!(progress.ops > 0 && progress.checked > 0);
    assert!(driven.interrupted && driven.violations.is_empty());
    assert!((0.05..20.0).contains(&driven.seconds), "{}", driven.seconds);
    let slices = driven.slices.expect("there was a measured part");
    let counted: u64 = slices.each.iter().map(|slice| slice.ops).sum();
    assert!(!slices.each.is_empty() && counted > 0, "{slices:?}");
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let refused = |change: &dyn Fn(&mut StressConfig)| {
        let mut config = StressConfig::new("page-fault");
        change(&mut config);
        match run(&config, &Control::new()) {
            Err(RunError::Usage(text)) => text,
            other => panic!("not refused: {other:?}"),
        }
    };
    assert!(refused(&|config| config.workload = "nothing".into()).contains("reuse-storm"));
    assert!(refused(&|config| config.threads = 0).contains("--threads"));
    assert!(refused(&|config| config.fault_around = 12).contains("--fault-around"));
    assert!(refused(&|config| config.region = Some(4096)).contains("--region"));
    assert!(refused(&|config| config.threads = 100_000).contains("at most"));
    assert!(
        refused(&|config| {
            config.workload = "reuse-storm".into();
            config.backend = Backend::Native;
        })
        .contains("native")
    );
    assert!(
        refused(&|config| {
            config.workload = "protect".into();
            config.mutators = Some(0);
        })
        .contains("--mutators")
    );
    assert!(
        refused(&|config| {
            config.workload = "page-fault".into();
            config.mutator_rate = Some(100);
        })
        .contains("add --mutators")
    );
}

#[test]
fn native_workloads_run_and_report() {
    for workload in list().iter().filter(|workload| workload.native) {
        let config = StressConfig {
            backend: Backend::Native,
            ops: Some(200),
            warmup: Duration::from_millis(10),
            verify: true,
            mutators: Some(1),
            ..StressConfig::new(workload.name)
        };
        let report = run(&config, &Control::new()).unwrap();
        assert!(report.passed(), "{}: {:?}", workload.name, report.verify);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["command"], "stress");
        assert!(json["vma_lock"].is_null() && json["slab"].is_null());
        assert!(json["ops"]["mmap"].as_u64().unwrap() > 0);
        assert!(json["op_ns"]["mmap"]["p99"].as_u64().unwrap() > 0);
        assert_eq!(json["verify"]["violations"], 0);
        for key in ["faults", "faults_per_s", "pages", "fault_ns", "ops_per_s", "mmap_lock", "host_calls", "seconds"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(serde_json::from_value::<crate::StressReport>(json).unwrap().workload, workload.name);
    }
}

#[test]
fn mutators_keep_to_their_rate() {
    let run = |mutator_rate| {
        let config = StressConfig {
            delivery: crate::Delivery::Software,
            threads: 1,
            mutators: Some(2),
            mutator_rate,
            duration: Some(Duration::from_millis(300)),
            warmup: Duration::ZERO,
            ..StressConfig::new("app-start")
        };
        run(&config, &Control::new()).unwrap()
    };
    let report = run(Some(2_000));
    // Of each: what may be caught up with (5 ms: ten calls), a round begun at the end, 16 mappings then unmapped.
    let most = 2.0 * (2_000.0 * report.seconds + 10.0 + 4.0 + 16.0);
    let calls = |report: &crate::StressReport| report.mutator_ops_per_s.unwrap() * report.seconds;
    assert!(calls(&report) > 0.0 && calls(&report) < most, "{} calls, at most {most}", calls(&report));
    assert!(report.mutator_ops_per_s.unwrap() < report.ops_per_s, "fault threads map as well");
    assert_eq!(report.mutator_rate, Some(2_000));
    assert!(calls(&run(None)) > calls(&report), "no limit is no limit");
}

/// The workloads of the whole mmap family.
mod family {
    use super::*;
    use crate::target::sabotaged::{Sabotage, Sabotaged};

    fn drive_sabotaged(name: &str, plan: Plan, sabotage: Option<Sabotage>) -> Driven {
        let target = |_| Sabotaged::new(64 << 20, sabotage).known_to_children();
        let targets = (0..plan.address_spaces).map(target).collect();
        drive(find(name).unwrap(), targets, plan, &Control::new(), Duration::from_secs(10)).unwrap()
    }

    #[test]
    fn each_passes_on_the_software_mmu() {
        for name in BEYOND_THE_MODEL {
            for (threads, mutators, address_spaces) in [(1, 1, 1), (3, 2, 2)] {
                let duration = Some(Duration::from_millis(200));
                let plan = Plan { threads, mutators, address_spaces, duration, ops: None, ..plan(name, true) };
                let driven = drive_sabotaged(name, plan, None);
                let first = driven.violations.first().map(ToString::to_string).unwrap_or_default();
                assert!(driven.violations.is_empty(), "{name}: {first}");
                assert!(driven.checked > 0 && driven.recorder.touches > 0, "{name}");
            }
        }
    }

    #[test]
    fn every_sabotage_is_found_out() {
        for (sabotage, name, oracle) in [
            (Sabotage::LostInMove, "mremap-move", "O1"),
            (Sabotage::LeftBehind, "mremap-move", "O2"),
            (Sabotage::Unprotected, "mremap-move", "O3"),
            (Sabotage::SharedAfterFork, "fork-cow", "O1"),
            (Sabotage::ForkForgets, "fork-cow", "O1"),
            (Sabotage::StaleFile, "file-shared", "O1"),
            (Sabotage::NoSync, "file-shared", "O1"),
            (Sabotage::NoGuardGap, "stack-growth", "O3"),
            (Sabotage::NoGrowth, "stack-growth", "O3"),
            (Sabotage::Gap, "maps-reader", "O3"),
            (Sabotage::Mixed, "maps-reader", "O3"),
        ] {
            let plan = Plan { ops: Some(200_000), ..plan(name, true) };
            let driven = drive_sabotaged(name, plan, Some(sabotage));
            let first = driven.violations.first().unwrap_or_else(|| panic!("{name} misses {sabotage:?}"));
            assert_eq!(first.oracle, oracle, "{name} with {sabotage:?}: {first}");
        }
    }
}
