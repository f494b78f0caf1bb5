//! `map-unmap`: each thread maps 128 KiB and unmaps it without a touch, as
//! will-it-scale's `mmap1` (there 128 MiB). No fault, no page: the price of
//! the mmap lock, the gap search, the tree and the slab.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use vmalab::addr::PAGE_SIZE;

const BYTES: usize = 32 * PAGE_SIZE;

pub(super) struct MapUnmap;

impl Workload for MapUnmap {
    fn region_bytes(plan: &Plan) -> usize {
        plan.threads * BYTES + plan.mutators * background::BYTES
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<MapUnmap, Fail> {
        Ok(MapUnmap)
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        while ctx.go() {
            let mapping = ctx.map(ctx.mm, 0, BYTES, RW, ANON)?;
            ctx.munmap(ctx.mm, mapping.addr, BYTES)?;
        }
        Ok(())
    }
}
