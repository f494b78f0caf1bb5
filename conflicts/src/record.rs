//! Answers a [`Request`]: runs pairs, or a workload, and sums up.

use crate::lines::{Groups, Lines, Operation};
use crate::op::{Op, Relation};
use crate::report::{Answer, Pair, PairsRequest, Recording, Request, Spread, WorkloadRequest};
use crate::stage::{PLACES, Stage};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab_workloads::{Lock, StressConfig};

/// Records what is asked for.
///
/// # Errors
/// What a workload cannot do.
pub fn answer(request: &Request) -> Result<Answer, String> {
    Ok(match request {
        Request::Pairs(request) => {
            Answer::Pairs(request.locks.iter().flat_map(|&lock| pairs_under(lock, request)).collect())
        }
        Request::Workload(request) => {
            let recordings: Result<_, String> = request.locks.iter().map(|&lock| workload(lock, request)).collect();
            Answer::Workload(recordings?)
        }
    })
}

fn pairs_under(lock: Lock, request: &PairsRequest) -> Vec<Pair> {
    match lock {
        Lock::Mmap => pairs(&Stage::<MmapOnly>::new(), lock, request),
        Lock::Rcu => pairs(&Stage::<Rcu>::new(), lock, request),
        Lock::TypeSafe => pairs(&Stage::<TypeSafe>::new(), lock, request),
        Lock::RefCount => pairs(&Stage::<RefCount>::new(), lock, request),
    }
}

fn pairs<S: LockScheme>(stage: &Stage<S>, lock: Lock, request: &PairsRequest) -> Vec<Pair> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(request.seed);
    let mut pairs = Vec::new();
    for relation in Relation::ALL {
        for &(a, b) in &request.pairs {
            pairs.push(pair(stage, lock, [a, b], relation, request.repetitions, &mut rng));
        }
    }
    pairs
}

/// Two places: of every four repetitions two with neighbours, which mostly are
/// in one leaf of the tree, and two anywhere.
fn places(repetition: u32, rng: &mut Xoshiro256PlusPlus) -> [usize; 2] {
    let first = rng.random_range(0..PLACES - 1);
    if repetition & 2 == 0 {
        return [first, first + 1];
    }
    let second = (first + rng.random_range(1..PLACES)) % PLACES;
    [first, second]
}

fn pair<S: LockScheme>(
    stage: &Stage<S>,
    lock: Lock,
    ops: [Op; 2],
    relation: Relation,
    repetitions: u32,
    rng: &mut Xoshiro256PlusPlus,
) -> Pair {
    let (mut lines, mut false_sharing, mut groups) = (Vec::new(), Vec::new(), Groups::default());
    let mut accesses = [0; 2];
    for repetition in 0..repetitions {
        let touched = stage.pair(ops, relation, places(repetition, rng), repetition % 2 == 1);
        (0..2).for_each(|who| accesses[who] += touched[who].len());
        let operation = |who: usize| Operation { thread: who as u64, name: ops[who].name(), accesses: &touched[who] };
        let shared = Lines::of([operation(0), operation(1)]);
        lines.push(shared.len() as u64);
        false_sharing.push(shared.false_sharing() as u64);
        groups.add(&shared);
    }
    let per = f64::from(repetitions);
    let mut shared = groups.report(per);
    shared.iter_mut().for_each(|shared| shared.lines /= per);
    Pair {
        ops,
        relation,
        lock,
        repetitions,
        lines: Spread::of(lines),
        false_sharing: Spread::of(false_sharing),
        accesses: accesses.map(|n| n as f64 / per),
        shared,
    }
}

fn workload(lock: Lock, request: &WorkloadRequest) -> Result<Recording, String> {
    let config = StressConfig {
        workload: request.workload.clone(),
        lock,
        threads: request.threads,
        mutators: request.mutators,
        address_spaces: request.address_spaces,
        seed: request.seed,
        warmup: std::time::Duration::ZERO,
        // Until there is enough.
        duration: Some(std::time::Duration::from_secs(60)),
        ..StressConfig::default()
    };
    let most = usize::try_from(request.ops).unwrap_or(usize::MAX);
    let operations = vmalab_workloads::record_accesses(&config, most).map_err(|error| error.to_string())?;
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    operations.iter().for_each(|operation| *by_name.entry(operation.name).or_default() += 1);
    let threads: BTreeSet<u64> = operations.iter().map(|operation| operation.thread).collect();
    let faults = by_name.get("fault").copied().unwrap_or(0);
    let units = if faults > 0 { faults } else { operations.len() as u64 };
    let accesses: usize = operations.iter().map(|operation| operation.accesses.len()).sum();
    let lines = Lines::of(operations.iter().map(|operation| Operation {
        thread: operation.thread,
        name: operation.name,
        accesses: &operation.accesses,
    }));
    let mut groups = Groups::default();
    groups.add(&lines);
    Ok(Recording {
        lock,
        threads: threads.len() as u64,
        units,
        accesses: accesses as f64 / operations.len().max(1) as f64,
        shared: groups.report(units as f64),
        lines: lines.each(units as f64, threads.len()),
        operations: by_name.into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
    })
}
