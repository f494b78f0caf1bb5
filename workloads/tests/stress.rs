//! Each workload on vmalab itself, verified, for a moment: software delivery
//! everywhere, real faults where this machine has them.

use std::time::Duration;
use vmalab_workloads::{Control, Delivery, Lock, RunError, StressConfig, StressReport, list, run};

fn verified(name: &str, lock: Lock, delivery: Delivery) -> Option<StressReport> {
    let config = StressConfig {
        lock,
        delivery,
        verify: true,
        duration: Some(Duration::from_millis(150)),
        warmup: Duration::ZERO,
        ..StressConfig::new(name)
    };
    match run(&config, &Control::new()) {
        Ok(report) => Some(report),
        Err(RunError::Unsupported(why)) if delivery != Delivery::Software => {
            eprintln!("skipped: {why}");
            None
        }
        Err(error) => panic!("{name} {lock} {delivery}: {error}"),
    }
}

fn every_workload_passes(delivery: Delivery) {
    for workload in list() {
        for &lock in Lock::ALL {
            let Some(report) = verified(workload.name, lock, delivery) else { return };
            let verify = report.verify.as_ref().expect("asked for");
            if let Some(violation) = &verify.first {
                panic!("{} {lock} {delivery}: {violation}", workload.name);
            }
            let touches = workload.name != "map-unmap";
            assert_eq!(verify.checked > 0, touches, "{}", workload.name);
            assert_eq!(report.faults.unwrap() > 0, touches, "{}", workload.name);
            // In queue delivery a thread cannot tell whether an access of a
            // racing workload faulted.
            assert!(report.fault_ns.is_some() == touches || delivery == Delivery::Queue, "{}", workload.name);
            let slab = report.slab.expect("emulated");
            assert!(slab.object_bytes.unwrap() > 0 && slab.slabs.unwrap() > 0);
            let host = report.host_calls.expect("emulated");
            assert_eq!((host.mmap, host.munmap, host.mprotect, host.mremap), (0, 0, 0, 0), "{}", workload.name);
            if workload.name == "reuse-storm" {
                assert!(slab.reused_other_mm > 0 && report.address_spaces == 2);
            }
        }
    }
}

#[test]
fn software() {
    every_workload_passes(Delivery::Software);
}

#[test]
fn sigbus() {
    every_workload_passes(Delivery::Sigbus);
}

#[test]
fn queue() {
    every_workload_passes(Delivery::Queue);
}
