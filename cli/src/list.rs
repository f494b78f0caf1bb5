//! `vmalab list`: the names that the other commands take.

use crate::args::{ListArgs, Listed};
use crate::failure::{Failure, status};
use crate::output::{print, print_json};
use crate::table;
use serde::Serialize;
use serde_json::json;
use vmalab_races::{CATALOGUE, Race};
use vmalab_workloads::Lock;

#[derive(Serialize)]
struct LockInfo {
    name: &'static str,
    summary: &'static str,
    source: &'static str,
}

fn info(lock: Lock) -> LockInfo {
    let (summary, source) = match lock {
        Lock::Mmap => ("every fault takes the mmap lock for reading: the baseline", "Linux up to 6.3"),
        Lock::Rcu => ("a fault read-locks its VMA; VMAs are freed after a grace period", "Linux 6.4"),
        Lock::RefCount => (
            "a fault takes a reference to its VMA; VMAs are reused at once",
            "Linux 6.15 and later, with the fix of CVE-2025-38554",
        ),
        Lock::TypeSafe => (
            "a fault read-locks its VMA; VMAs are reused at once (SLAB_TYPESAFE_BY_RCU)",
            "'move per-vma lock into vm_area_struct', v3, November 2024",
        ),
    };
    LockInfo { name: lock.name(), summary, source }
}

#[derive(Serialize)]
struct RaceInfo {
    name: &'static str,
    title: &'static str,
    source: &'static str,
    story: &'static str,
    check: &'static str,
    mutant: &'static str,
    oracle: &'static str,
    oracle_title: &'static str,
    locks: Vec<&'static str>,
    executors: Vec<&'static str>,
}

impl RaceInfo {
    fn of(race: &Race) -> RaceInfo {
        RaceInfo {
            name: race.name,
            title: race.title,
            source: race.source,
            story: race.story,
            check: race.check,
            mutant: race.mutant.name(),
            oracle: race.oracle.name(),
            oracle_title: race.oracle.title(),
            locks: race.locks.iter().map(|lock| lock.name()).collect(),
            executors: race.executors.iter().map(|executor| executor.name()).collect(),
        }
    }

    fn summary(&self) -> String {
        let RaceInfo { title, oracle, oracle_title, locks, executors, .. } = self;
        let (locks, executors) = (locks.join(", "), executors.join(", "));
        format!("{title}\nlocks: {locks}\nexecutors: {executors}\noracle: {oracle} ({oracle_title})")
    }
}

/// Lists.
pub fn run(args: &ListArgs) -> Result<u8, Failure> {
    let (key, entries, text) = match args.what {
        Listed::Workloads => {
            let all = vmalab_workloads::list();
            let rows = all.iter().map(|w| (w.name, w.summary, w.source));
            ("workloads", json!(all), table::listing(rows))
        }
        Listed::Locks => {
            let all: Vec<LockInfo> = Lock::ALL.iter().map(|&lock| info(lock)).collect();
            let rows = all.iter().map(|lock| (lock.name, lock.summary, lock.source));
            ("locks", json!(all), table::listing(rows))
        }
        Listed::Races => {
            let all: Vec<RaceInfo> = CATALOGUE.iter().map(|race| RaceInfo::of(race)).collect();
            let summaries: Vec<String> = all.iter().map(RaceInfo::summary).collect();
            let rows = all.iter().zip(&summaries).map(|(race, summary)| (race.name, summary.as_str(), race.source));
            ("races", json!(all), table::listing(rows))
        }
    };
    if args.json {
        print_json(&json!({ "schema": 1, "command": "list", key: entries }))?;
    } else {
        print(&text)?;
    }
    Ok(status::DONE)
}
