//! `app-start`: threads fault in mappings of many sizes and keep some of them,
//! while mutators map, protect and unmap others in the same address space. It
//! imitates an Android application's start, the case that per-VMA locks were
//! made for ("Per-VMA locks", S. Baghdasaryan, 2023, cover letter): dozens of
//! threads page in code, heaps and stacks while the linker maps libraries
//! segment by segment and every new thread maps a stack with a guard.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::owned::Owned;
use vmalab::addr::PAGE_SIZE;
use vmalab::mm::Prot;

/// Largest mapping of a fault thread: 2^8 pages, 1 MiB.
const PAGES_BITS: u32 = 8;
/// Mappings that a fault thread keeps.
const KEPT: usize = 8;
/// Pages of a "library": text, read-only data, data.
const LIBRARY_PAGES: usize = 64;
/// Libraries and stacks that a mutator keeps.
const LIBRARIES: usize = 16;

pub(super) struct AppStart;

/// A mapping, with the value stored to each page touched: every `step`th.
struct Kept {
    owned: Owned,
    step: usize,
    values: Vec<u64>,
}

impl Workload for AppStart {
    fn region_bytes(plan: &Plan) -> usize {
        // Holes between mappings of many sizes: room for twice as much.
        2 * PAGE_SIZE * (plan.threads * (KEPT << PAGES_BITS) + plan.mutators * LIBRARIES * LIBRARY_PAGES)
            + plan.mutators * background::BYTES
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<AppStart, Fail> {
        Ok(AppStart)
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let mut kept: Vec<Kept> = Vec::with_capacity(KEPT);
        while ctx.go() {
            if kept.len() == KEPT {
                let victim = ctx.rng.below(KEPT);
                release(ctx, kept.swap_remove(victim))?;
            }
            let len = ctx.rng.log_uniform(PAGES_BITS) * PAGE_SIZE;
            let owned = Owned::new(ctx.mm, ctx.map(ctx.mm, 0, len, RW, ANON)?, len);
            // Heaps are touched densely, libraries here and there.
            let step = if ctx.rng.one_in(3) { 1 + ctx.rng.below(8) } else { 1 };
            let mut values = Vec::with_capacity(if ctx.verify { owned.range.pages() } else { 0 });
            for n in (0..owned.range.pages()).step_by(step) {
                let value = ctx.first_touch(&owned, owned.page(n))?;
                if ctx.verify {
                    values.push(value);
                }
            }
            kept.push(Kept { owned, step, values });
        }
        kept.into_iter().try_for_each(|one| release(ctx, one))
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let mut kept = Vec::with_capacity(LIBRARIES);
        let len = LIBRARY_PAGES * PAGE_SIZE;
        while ctx.go() {
            if kept.len() == LIBRARIES {
                let victim = ctx.rng.below(LIBRARIES);
                let addr = kept.swap_remove(victim);
                ctx.munmap(ctx.mm, addr, len)?;
            }
            let addr = if ctx.rng.one_in(3) {
                // A thread's stack: no access first, then all but the guard.
                let addr = ctx.map(ctx.mm, 0, len, Prot::empty(), ANON)?.addr;
                ctx.mprotect(ctx.mm, addr + PAGE_SIZE, len - PAGE_SIZE, RW)?;
                addr
            } else {
                // A library: relocations are written, then text and constants sealed.
                let addr = ctx.map(ctx.mm, 0, len, RW, ANON)?.addr;
                ctx.mprotect(ctx.mm, addr, len / 2, Prot::READ | Prot::EXEC)?;
                ctx.mprotect(ctx.mm, addr + len / 2, len / 4, Prot::READ)?;
                addr
            };
            kept.push(addr);
        }
        kept.into_iter().try_for_each(|addr| ctx.munmap(ctx.mm, addr, len))
    }
}

fn release<T: Target>(ctx: &mut Ctx<T>, Kept { owned, step, values }: Kept) -> Flow {
    // Without --verify there are no values and nothing is looked at.
    for (n, &value) in values.iter().enumerate() {
        ctx.owned_check(&owned, owned.page(n * step), value)?;
    }
    ctx.munmap(owned.mm, owned.range.start(), owned.range.bytes())
}
