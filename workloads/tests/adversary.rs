//! Under the adversary, with the feature `races`: nothing breaks, and what it
//! promises to do it does. (A violation of an oracle in the core ends the
//! process: the test binary fails with it.)
#![cfg(feature = "races")]

use std::time::Duration;
use vmalab_workloads::{Control, Delivery, Lock, RunError, StressConfig, list, run};

fn config(workload: &str, lock: Lock, delivery: Delivery) -> StressConfig {
    StressConfig {
        lock,
        delivery,
        verify: true,
        adversary: true,
        duration: Some(Duration::from_millis(200)),
        warmup: Duration::ZERO,
        ..StressConfig::new(workload)
    }
}

#[test]
fn every_workload_passes_in_software() {
    for workload in list() {
        for &lock in Lock::ALL {
            let report = run(&config(workload.name, lock, Delivery::Software), &Control::new()).unwrap();
            if let Some(violation) = report.verify.unwrap().first {
                panic!("{} {lock}: {violation}", workload.name);
            }
        }
    }
}

#[test]
fn reuse_is_forced_poisoned_and_delayed_on_real_faults() {
    for &lock in Lock::ALL {
        let report = match run(&config("reuse-storm", lock, Delivery::Sigbus), &Control::new()) {
            Err(RunError::Unsupported(why)) => return eprintln!("skipped: {why}"),
            report => report.unwrap(),
        };
        assert!(report.passed(), "{lock}: {:?}", report.verify);
        let done = report.adversary.unwrap();
        assert!(done.points["H7"] > 0 && done.points["Section"] > 0, "{lock}: {done:?}");
        assert!(done.delays.spins > 0 && done.poisoned > 0 && done.ghosts > 0 && done.twin_mappings > 0, "{done:?}");
        // `rcu` reuses after a grace period only.
        assert!(lock == Lock::Rcu || done.reused_other_mm > done.reused / 4, "{lock}: {done:?}");
    }
}

#[test]
fn a_place_given_back_is_asked_for_again() {
    let report = run(&config("alloc-churn", Lock::TypeSafe, Delivery::Software), &Control::new()).unwrap();
    assert!(report.passed() && report.adversary.unwrap().same_address > 0);
}

#[test]
fn without_it_nothing_is_reported() {
    let quiet = StressConfig { adversary: false, ..config("reuse-storm", Lock::TypeSafe, Delivery::Software) };
    assert_eq!(run(&quiet, &Control::new()).unwrap().adversary, None);
}
