//! The workloads and their table. One file each: a description and the
//! functions its threads run; the [`runner`](crate::runner) owns everything else.

use serde::Serialize;

/// A workload, as `vmalab list workloads` tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkloadInfo {
    /// Name on the command line.
    pub name: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// Whose shape it has.
    pub source: &'static str,
    /// Whether it makes sense on the host's own mmap: it touches nothing that
    /// it must not.
    pub native: bool,
    /// Address spaces that it needs at least.
    pub min_address_spaces: u32,
    /// Mutators unless the configuration says otherwise.
    pub mutators: u32,
}

const fn info(name: &'static str, summary: &'static str, source: &'static str) -> WorkloadInfo {
    WorkloadInfo { name, summary, source, native: true, min_address_spaces: 1, mutators: 0 }
}

const LIST: &[WorkloadInfo] = &[
    info("page-fault", "each thread maps, touches every page, unmaps", "will-it-scale page_fault1"),
    info(
        "page-fault-shared",
        "all threads touch every page of one mapping, which is then mapped anew",
        "will-it-scale page_fault3, CortenMM pf",
    ),
    info("map-unmap", "each thread maps and unmaps without a touch", "will-it-scale mmap1"),
    WorkloadInfo {
        mutators: 1,
        ..info(
            "app-start",
            "threads fault in mappings of many sizes while mutators map, protect and unmap others",
            "Android application start (per-VMA lock series)",
        )
    },
    WorkloadInfo {
        mutators: 1,
        native: false,
        ..info(
            "protect",
            "mutators flip protections under threads that load and store",
            "garbage collectors' and JITs' mprotect",
        )
    },
    info("local", "each thread maps, writes and unmaps at its private base", "RadixVM mapbench local"),
    info("pipeline", "a thread maps and writes, its neighbour touches and unmaps", "RadixVM mapbench pipeline"),
    info("global", "each thread maps a slice of one table, all write random pages of it", "RadixVM mapbench global"),
    WorkloadInfo {
        mutators: 1,
        native: false,
        min_address_spaces: 2,
        ..info(
            "reuse-storm",
            "address spaces trade VMA objects while readers race them on addresses that come and go",
            "the seed's cases 1 to 3",
        )
    },
    info("alloc-churn", "an allocator's pattern of sizes and lifetimes", "malloc's mmap threshold and arena growth"),
];

/// Every workload.
pub fn list() -> &'static [WorkloadInfo] {
    LIST
}

/// The workload of that name.
pub fn find(name: &str) -> Option<&'static WorkloadInfo> {
    LIST.iter().find(|workload| workload.name == name)
}
