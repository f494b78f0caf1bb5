//! Workloads are recorded call by call.
#![cfg(feature = "conflicts")]

use vmalab_conflicts::report::{Recording, WorkloadRequest};
use vmalab_conflicts::{Answer, Request, answer};
use vmalab_workloads::Lock;

fn record(workload: &str, locks: &[Lock], address_spaces: u32, ops: u64) -> Vec<Recording> {
    let request = WorkloadRequest {
        locks: locks.to_vec(),
        workload: workload.to_owned(),
        threads: 2,
        mutators: Some(0),
        address_spaces,
        ops,
        seed: 1,
    };
    match answer(&Request::Workload(request)) {
        Ok(Answer::Workload(recordings)) => recordings,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_mmap_lock_is_the_hottest_line_of_faults_under_it() {
    let recording = &record("page-fault", &[Lock::Mmap], 1, 6_000)[0];
    assert_eq!(recording.threads, 2);
    assert!(recording.units > 5_000 && recording.accesses > 30.0, "{recording:?}");
    let hottest = &recording.lines[0];
    assert!(hottest.object.as_deref().is_some_and(|name| name.starts_with("MmCore<MmapOnly>")), "{hottest:?}");
    assert!(hottest.writes > 0.9 && hottest.write_transfers > 0.1, "{hottest:?}");
}

#[test]
fn faults_of_different_address_spaces_scale() {
    for recording in record("page-fault", Lock::ALL, 2, 6_000) {
        let transfers: f64 = recording.lines.iter().map(|line| line.write_transfers + line.read_transfers).sum();
        assert!(recording.units > 5_000 && transfers < 0.02, "{transfers} under {}", recording.lock);
    }
}

#[test]
fn a_workload_without_faults_counts_calls() {
    let recording = &record("map-unmap", &[Lock::TypeSafe], 2, 1_000)[0];
    assert_eq!(recording.units, recording.operations.iter().map(|(_, n)| n).sum::<u64>());
    assert_eq!(recording.units, 1_000);
}
