//! What must not be shared, pair by pair: these tests keep it so.
#![cfg(feature = "conflicts")]

use vmalab_conflicts::report::{Pair, PairsRequest, Shared};
use vmalab_conflicts::{Answer, Op, Relation, Request, answer};
use vmalab_workloads::Lock;

const PER_VMA: [Lock; 3] = [Lock::Rcu, Lock::TypeSafe, Lock::RefCount];
const FAULTS: [Op; 2] = [Op::FaultRead, Op::FaultWrite];
/// Work that is put off (freed nodes, half a magazine) comes up once in so many
/// operations or less often.
const RARELY: u64 = 16;

fn record(locks: &[Lock], pairs: Vec<(Op, Op)>, repetitions: u32) -> Vec<Pair> {
    let request = Request::Pairs(PairsRequest { locks: locks.to_vec(), pairs, repetitions, seed: 1 });
    match answer(&request) {
        Ok(Answer::Pairs(pairs)) => pairs,
        other => panic!("{other:?}"),
    }
}

/// Lines that were found in more than a few repetitions.
fn often(pair: &Pair) -> Vec<&Shared> {
    pair.shared.iter().filter(|shared| shared.found > u64::from(pair.repetitions) / RARELY).collect()
}

#[test]
fn faults_in_different_vmas_share_no_written_line() {
    let pairs = vec![(FAULTS[0], FAULTS[0]), (FAULTS[0], FAULTS[1]), (FAULTS[1], FAULTS[1])];
    for pair in record(&PER_VMA, pairs, 64) {
        assert!(pair.accesses.iter().all(|&accesses| accesses > 30.0), "little was recorded: {pair:?}");
        assert_eq!(pair.lines.max, 0, "{:#?}", pair.shared);
    }
}

#[test]
fn under_the_mmap_lock_every_fault_writes_its_word() {
    for pair in record(&[Lock::Mmap], vec![(Op::FaultWrite, Op::FaultWrite)], 8) {
        let lines = if pair.relation == Relation::SameMm { 1 } else { 0 };
        assert_eq!((pair.lines.min, pair.lines.max), (lines, lines), "{:#?}", pair.shared);
        let locks = |file: &str| file.ends_with("mmap_lock/futex.rs");
        assert!(pair.shared.iter().flat_map(|shared| &shared.touches).all(|touch| locks(&touch.file)));
    }
}

#[test]
fn a_fault_reads_what_others_change_and_writes_nothing_of_theirs() {
    let pairs = FAULTS.iter().flat_map(|&fault| Op::ALL[2..].iter().map(move |&op| (fault, op))).collect();
    for pair in record(&PER_VMA, pairs, 32) {
        let fault = pair.ops[0].name();
        let often = often(&pair);
        // (A grace period reads every thread's RCU word: rarely.)
        let written = often.iter().flat_map(|s| &s.touches).find(|touch| touch.op == fault && touch.write);
        assert_eq!(written, None, "{pair:#?}");
        if pair.relation == Relation::OtherMm {
            assert!(often.is_empty(), "{fault} and {} elsewhere: {often:#?}", pair.ops[1]);
        }
    }
}

#[test]
fn what_a_fault_shares_with_an_mmap_beside_it_is_explained() {
    for pair in record(&PER_VMA, vec![(Op::FaultWrite, Op::Mmap)], 32) {
        if pair.relation == Relation::OtherMm {
            continue;
        }
        // The sequence number and the root, and where the tree's path is common its new nodes.
        let names: Vec<_> = often(&pair).iter().map(|shared| shared.object.clone()).collect();
        assert_eq!(pair.lines.min, 1, "{names:?}");
        assert!(names.iter().all(Option::is_some) && names.len() == 2, "{names:?}");
        assert!(often(&pair).iter().all(|shared| !shared.false_sharing), "{:#?}", pair.shared);
    }
}

#[test]
fn operations_in_different_address_spaces_meet_in_allocators_only() {
    let ops = [Op::Mmap, Op::Munmap, Op::Mprotect, Op::Dontneed, Op::Maps];
    let pairs = ops.iter().flat_map(|&a| ops.iter().map(move |&b| (a, b))).collect();
    for pair in record(Lock::ALL, pairs, 16) {
        if pair.relation == Relation::SameMm {
            continue;
        }
        assert_eq!(pair.lines.median, 0, "{:?} under {}: {:#?}", pair.ops, pair.lock, pair.shared);
        let allocators = ["src/slab.rs", "src/rcu.rs", "src/tree/node.rs"];
        for touch in pair.shared.iter().flat_map(|shared| &shared.touches).filter(|touch| touch.write) {
            assert!(allocators.contains(&touch.file.as_str()), "{:?}: {touch:?}", pair.ops);
        }
    }
}
