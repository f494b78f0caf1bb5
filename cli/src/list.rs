//! `vmalab list`: the names that the other commands take.

use crate::args::{ListArgs, Listed};
use crate::failure::{Failure, status};
use crate::output::{print, print_json};
use crate::table;
use serde::Serialize;
use serde_json::json;
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
        Listed::Races => ("races", json!([]), "no race entries in this build yet\n".to_owned()),
    };
    if args.json {
        print_json(&json!({ "schema": 1, "command": "list", key: entries }))?;
    } else {
        print(&text)?;
    }
    Ok(status::DONE)
}
