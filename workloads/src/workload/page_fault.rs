//! `page-fault`: each thread maps 2 MiB, stores to every page, unmaps. The
//! shape of will-it-scale's `page_fault1` (there 128 MiB): anonymous faults of
//! threads that share nothing but the address space.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::owned::Owned;
use vmalab::addr::PAGE_SIZE;

const PAGES: usize = 512;
const BYTES: usize = PAGES * PAGE_SIZE;

pub(super) struct PageFault;

impl Workload for PageFault {
    fn region_bytes(plan: &Plan) -> usize {
        plan.threads * BYTES + plan.mutators * background::BYTES
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<PageFault, Fail> {
        Ok(PageFault)
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        while ctx.go() {
            let mapping = ctx.map(ctx.mm, 0, BYTES, RW, ANON)?;
            let owned = Owned::new(ctx.mm, mapping, BYTES);
            for page in owned.range.iter_pages() {
                ctx.first_touch(&owned, page)?;
            }
            ctx.munmap(ctx.mm, mapping.addr, BYTES)?;
        }
        Ok(())
    }
}
