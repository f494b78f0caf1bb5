//! The workloads and their table. One file each: a description and the
//! functions its threads run; the [`runner`](crate::runner) owns everything else.

mod alloc_churn;
mod app_start;
mod background;
mod file_shared;
mod fork_cow;
mod map_unmap;
mod mapbench;
mod maps_reader;
mod mremap_move;
mod page_fault;
mod page_fault_shared;
mod protect;
mod reuse_storm;
mod stack_growth;

use crate::ctx::{Ctx, Fail, Flow};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::grid::{Grid, Memory, Shape};
use serde::Serialize;
use vmalab::addr::PageRange;

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
    /// Mutators that it needs at least.
    pub min_mutators: u32,
}

const fn info(name: &'static str, summary: &'static str, source: &'static str) -> WorkloadInfo {
    WorkloadInfo { name, summary, source, native: true, min_address_spaces: 1, mutators: 0, min_mutators: 0 }
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
        min_mutators: 1,
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
        min_mutators: 1,
        native: false,
        min_address_spaces: 2,
        ..info(
            "reuse-storm",
            "address spaces trade VMA objects while readers race them on addresses that come and go",
            "the seed's cases 1 to 3",
        )
    },
    WorkloadInfo {
        native: false,
        ..info("fork-cow", "threads fork the address space, then parent and child store", "fork snapshots (Redis), R22")
    },
    info(
        "mremap-move",
        "each thread moves, grows and shrinks a mapping with its pages",
        "kernel selftest mremap_test, moving collectors",
    ),
    WorkloadInfo {
        native: false,
        ..info("file-shared", "all threads map one file shared and store to it", "databases' buffers, msync")
    },
    WorkloadInfo {
        native: false,
        ..info("stack-growth", "each thread grows a stack by touching it, down to the guard gap", "MAP_GROWSDOWN, R17")
    },
    WorkloadInfo {
        mutators: 1,
        min_mutators: 1,
        native: false,
        ..info(
            "maps-reader",
            "threads list mappings that mutators split, shrink and move",
            "kernel selftest proc-maps-race",
        )
    },
    info("alloc-churn", "an allocator's pattern of sizes and lifetimes", "malloc's mmap threshold and arena growth"),
];

/// One workload. A value of it is what its threads share.
pub(crate) trait Workload: Send + Sync + Sized + 'static {
    /// Bytes that each address space must have at least.
    fn region_bytes(plan: &Plan) -> usize;

    /// Before the threads start.
    fn new<T: Target>(shared: &Shared<T>) -> Result<Self, Fail>;

    /// A thread of `--threads`, until the run is over.
    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow;

    /// A thread of `--mutators`, until the run is over.
    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        background::run(ctx, background::Place::Anywhere)
    }
}

/// A workload as its threads see it: the one dynamic call of a thread's life, so
/// that the runner is compiled once for each target and not for each workload too.
pub(crate) trait Threads<T>: Send + Sync {
    /// See [`Workload::fault_thread`].
    fn fault_thread(&self, ctx: &mut Ctx<T>) -> Flow;
    /// See [`Workload::mutator`].
    fn mutator(&self, ctx: &mut Ctx<T>) -> Flow;
}

impl<T: Target, W: Workload> Threads<T> for W {
    fn fault_thread(&self, ctx: &mut Ctx<T>) -> Flow {
        Workload::fault_thread(self, ctx)
    }

    fn mutator(&self, ctx: &mut Ctx<T>) -> Flow {
        Workload::mutator(self, ctx)
    }
}

/// What is done with a workload once its name has become a type.
pub(crate) trait Visit {
    /// What comes of it.
    type Out;
    /// Does it.
    fn visit<W: Workload>(self) -> Self::Out;
}

/// Calls `visitor` with the type of the workload.
pub(crate) fn with_type<V: Visit>(workload: &WorkloadInfo, visitor: V) -> V::Out {
    match workload.name {
        "page-fault" => visitor.visit::<page_fault::PageFault>(),
        "page-fault-shared" => visitor.visit::<page_fault_shared::PageFaultShared>(),
        "map-unmap" => visitor.visit::<map_unmap::MapUnmap>(),
        "app-start" => visitor.visit::<app_start::AppStart>(),
        "protect" => visitor.visit::<protect::Protect>(),
        "local" => visitor.visit::<mapbench::Local>(),
        "pipeline" => visitor.visit::<mapbench::Pipeline>(),
        "global" => visitor.visit::<mapbench::Global>(),
        "reuse-storm" => visitor.visit::<reuse_storm::ReuseStorm>(),
        "fork-cow" => visitor.visit::<fork_cow::ForkCow>(),
        "mremap-move" => visitor.visit::<mremap_move::MremapMove>(),
        "file-shared" => visitor.visit::<file_shared::FileShared>(),
        "stack-growth" => visitor.visit::<stack_growth::StackGrowth>(),
        "maps-reader" => visitor.visit::<maps_reader::MapsReader>(),
        "alloc-churn" => visitor.visit::<alloc_churn::AllocChurn>(),
        name => unreachable!("{name} is in the table"),
    }
}

/// The grids of a workload whose mutators change slots under the eyes of all.
pub(crate) struct Grids {
    /// By mutator.
    grids: Vec<Vec<Grid>>,
}

impl Grids {
    /// One for each mutator, in its own address space.
    fn one_each<T: Target>(shared: &Shared<T>, shape: Shape) -> Grids {
        let Plan { threads, mutators, address_spaces, .. } = shared.plan;
        let grid = |mutator: usize| {
            let mm = mutator % address_spaces;
            Grid::new(mm, shared.area(mm, threads + mutator), shape)
        };
        Grids { grids: (0..mutators).map(|mutator| vec![grid(mutator)]).collect() }
    }

    /// Grids of these shapes for each mutator in every address space, at the
    /// same offsets; a mutator's come address space by address space.
    fn in_each_mm<T: Target>(shared: &Shared<T>, shapes: &[Shape]) -> Grids {
        let Plan { threads, mutators, address_spaces, .. } = shared.plan;
        let of_mutator = |mutator: usize| {
            let mut grids = Vec::new();
            for mm in 0..address_spaces {
                let mut area = shared.area(mm, threads + mutator);
                for &shape in shapes {
                    grids.push(Grid::new(mm, area, shape));
                    area = PageRange::new(area.start() + shape.bytes(), area.end());
                }
            }
            grids
        };
        Grids { grids: (0..mutators).map(of_mutator).collect() }
    }

    fn of_mutator(&self, mutator: usize) -> &[Grid] {
        &self.grids[mutator]
    }

    /// A fault thread: random accesses to all grids.
    fn access_until_stopped<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        /// Accesses between two looks at the phase.
        const BATCH: usize = 32;
        let grids: Vec<&Grid> = self.grids.iter().flatten().collect();
        let mut memories: Vec<Memory> = grids.iter().map(|grid| Memory::of(grid)).collect();
        while ctx.go() {
            for _ in 0..BATCH {
                let n = ctx.rng.below(grids.len());
                ctx.access_some(grids[n], &mut memories[n])?;
            }
        }
        Ok(())
    }
}

/// Every workload.
pub fn list() -> &'static [WorkloadInfo] {
    LIST
}

/// The workload of that name.
pub fn find(name: &str) -> Option<&'static WorkloadInfo> {
    LIST.iter().find(|workload| workload.name == name)
}
