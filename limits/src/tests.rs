//! Every floor is measured once, shortly.

use super::*;
use std::collections::HashSet;

#[test]
fn keys_are_unique_and_hold_those_of_the_contract() {
    let keys: Vec<String> = Floor::all().iter().flat_map(|floor| [floor.key(1), floor.key(2)]).collect();
    let unique: HashSet<&String> = keys.iter().collect();
    assert_eq!(unique.len(), keys.len());
    for key in [
        "syscall",
        "native_fault",
        "signal_round_trip",
        "sigbus_zeropage",
        "sigbus_copy",
        "sigbus_move",
        "queue_copy",
        "lookup",
    ] {
        assert!(keys.iter().any(|k| k == key), "{key}");
    }
    assert!(keys.iter().any(|key| key == "sigbus_continue_64_2t"));
}

#[test]
fn every_floor_is_measured_or_says_why_not() {
    for floor in Floor::all() {
        for threads in [1, 2] {
            if !floor.takes(threads) {
                continue;
            }
            match floor.measure(threads, Duration::from_millis(2)) {
                Ok(samples) => {
                    let p50 = samples.value_at_quantile(0.5);
                    assert!((1..1_000_000).contains(&p50), "{}: {p50} ns", floor.key(threads));
                }
                // What an old kernel or a container does not have.
                Err(reason) => assert!(!reason.to_string().is_empty(), "{}", floor.key(threads)),
            }
        }
    }
}

#[test]
fn too_many_threads_are_refused() {
    let reason = Floor::find("syscall").unwrap().measure(cpus() + 1, Duration::ZERO).unwrap_err();
    assert!(reason.to_string().contains("need as many CPUs"), "{reason}");
}

/// On a kernel that has everything (this project's machines).
#[test]
fn a_copy_costs_more_than_its_signal() {
    let budget = Duration::from_millis(20);
    let p50 = |base| Some(Floor::find(base)?.measure(1, budget).ok()?.value_at_quantile(0.5));
    if let (Some(signal), Some(copy)) = (p50("sigbus_round_trip"), p50("sigbus_copy")) {
        assert!(copy > signal, "{copy} <= {signal}");
    }
}
