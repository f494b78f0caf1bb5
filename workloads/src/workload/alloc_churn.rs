//! `alloc-churn`: what an allocator asks of the kernel. Large blocks come and
//! go as mappings of their own (malloc's mmap threshold, 128 KiB; sizes
//! log-uniform, most of them short-lived, touched in full or in part); arenas
//! are reserved without access and grow by mprotect, a step at a time, until
//! they are given back whole (glibc's `malloc/arena.c`, 64 MiB there).

use super::Workload;
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::owned::Owned;
use vmalab::addr::PAGE_SIZE;
use vmalab::mm::Prot;

/// Blocks are 32 pages (128 KiB) times 1 to 2^5.
const THRESHOLD_PAGES: usize = 32;
const BLOCK_BITS: u32 = 5;
/// Blocks that a thread holds at most.
const BLOCKS: usize = 16;
/// Pages of an arena, and of a step of its growth (132 KiB, as brk grows).
const ARENA_PAGES: usize = 33 * 32;
const STEP_PAGES: usize = 33;
/// Every how many blocks an arena grows by a step.
const BLOCKS_PER_STEP: usize = 4;

pub(super) struct AllocChurn;

/// An arena that grows; no step is unmapped before the whole is.
struct Arena {
    owned: Owned,
    grown: usize,
    /// One page of the last step, and its value.
    sample: Option<(usize, u64)>,
}

/// A block with one page to look at again.
struct Block {
    owned: Owned,
    sample: (usize, u64),
}

impl Workload for AllocChurn {
    fn region_bytes(plan: &Plan) -> usize {
        2 * PAGE_SIZE * plan.workers() * (BLOCKS * (THRESHOLD_PAGES << BLOCK_BITS) + ARENA_PAGES)
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<AllocChurn, Fail> {
        Ok(AllocChurn)
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let mut blocks: Vec<Block> = Vec::with_capacity(BLOCKS);
        let mut arena: Option<Arena> = None;
        let mut round = 0;
        while ctx.go() {
            round += 1;
            // The newest dies first, most of the time: short lives, few long ones.
            while blocks.len() == BLOCKS || (!blocks.is_empty() && ctx.rng.one_in(2)) {
                let newest = blocks.len() - 1;
                let victim = if ctx.rng.one_in(4) { ctx.rng.below(blocks.len()) } else { newest };
                free(ctx, blocks.swap_remove(victim))?;
            }
            blocks.push(allocate(ctx)?);
            if round % BLOCKS_PER_STEP == 0 {
                arena = grow(ctx, arena.take())?;
            }
        }
        if let Some(arena) = arena {
            ctx.munmap(ctx.mm, arena.owned.range.start(), ARENA_PAGES * PAGE_SIZE)?;
        }
        blocks.into_iter().try_for_each(|block| free(ctx, block))
    }
}

fn allocate<T: Target>(ctx: &mut Ctx<T>) -> Flow<Block> {
    let pages = THRESHOLD_PAGES * ctx.rng.log_uniform(BLOCK_BITS);
    let len = pages * PAGE_SIZE;
    let owned = Owned::new(ctx.mm, ctx.map(ctx.mm, 0, len, RW, ANON)?, len);
    // The header always, the rest in full or up to somewhere.
    let used = if ctx.rng.one_in(2) { pages } else { 1 + ctx.rng.below(pages) };
    let sampled = ctx.rng.below(used);
    let mut sample = (sampled, 0);
    for n in 0..used {
        let value = ctx.first_touch(&owned, owned.page(n))?;
        if n == sampled {
            sample.1 = value;
        }
    }
    Ok(Block { owned, sample })
}

fn free<T: Target>(ctx: &mut Ctx<T>, Block { owned, sample: (page, value) }: Block) -> Flow {
    if ctx.verify {
        ctx.owned_check(&owned, owned.page(page), value)?;
    }
    ctx.munmap(owned.mm, owned.range.start(), owned.range.bytes())
}

/// Grows the arena by a step, or gives it back when it is full.
fn grow<T: Target>(ctx: &mut Ctx<T>, arena: Option<Arena>) -> Flow<Option<Arena>> {
    let len = ARENA_PAGES * PAGE_SIZE;
    let mut arena = match arena {
        Some(arena) => arena,
        None => {
            let mapping = ctx.map(ctx.mm, 0, len, Prot::empty(), ANON)?;
            Arena { owned: Owned::new(ctx.mm, mapping, len), grown: 0, sample: None }
        }
    };
    if let (Some((page, value)), true) = (arena.sample, ctx.verify) {
        ctx.owned_check(&arena.owned, arena.owned.page(page), value)?;
    }
    if arena.grown == ARENA_PAGES {
        ctx.munmap(ctx.mm, arena.owned.range.start(), len)?;
        return Ok(None);
    }
    ctx.mprotect(ctx.mm, arena.owned.page(arena.grown), STEP_PAGES * PAGE_SIZE, RW)?;
    for n in arena.grown..arena.grown + STEP_PAGES {
        let value = ctx.first_touch(&arena.owned, arena.owned.page(n))?;
        arena.sample = Some((n, value));
    }
    arena.grown += STEP_PAGES;
    Ok(Some(arena))
}
