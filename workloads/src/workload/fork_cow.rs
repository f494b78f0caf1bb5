//! `fork-cow`: threads store to their own pages while, again and again, one of
//! them forks the whole address space and then both sides store: a snapshot,
//! as databases take it. With `--verify` the child must show what was there at
//! the fork, and from then on neither side may see the other's stores.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::{Oracle, VALUE};
use vmalab::addr::{PAGE_SIZE, VirtAddr};

/// Pages of each thread's mapping.
const PAGES: usize = 16;
const BYTES: usize = PAGES * PAGE_SIZE;

pub(super) struct ForkCow;

/// A thread's mapping, and what it holds.
struct Own {
    start: VirtAddr,
    values: [u64; PAGES],
}

impl Own {
    fn addr(&self, page: usize) -> VirtAddr {
        self.start + page * PAGE_SIZE + VALUE
    }

    /// A store by the parent.
    fn store<T: Target>(&mut self, ctx: &mut Ctx<T>, page: usize) -> Flow {
        let value = ctx.value();
        let result = ctx.store(ctx.mm, self.addr(page), value);
        self.outcome(ctx, page, "a store", result.map(|()| value), value)?;
        self.values[page] = value;
        Ok(())
    }

    fn check<T: Target>(&self, ctx: &mut Ctx<T>, page: usize) -> Flow {
        let seen = ctx.load(ctx.mm, self.addr(page));
        self.outcome(ctx, page, "the parent's load", seen, self.values[page])
    }

    fn outcome<T: Target>(
        &self,
        ctx: &Ctx<T>,
        page: usize,
        what: &str,
        seen: Result<u64, vmalab::fault::Signal>,
        expected: u64,
    ) -> Flow {
        ctx.checked();
        let addr = self.addr(page);
        if ctx.not_bus(addr, seen)? == Ok(expected) {
            return Ok(());
        }
        let message = format!("{what} of page {page} gave {seen:x?}, not {expected:#x}");
        Err(ctx.violation(Oracle::Contents, ctx.mm, addr, message))
    }

    /// Stores of both sides after a fork, in random order; `child` has the
    /// mapping at `delta` from here.
    fn diverge<T: Target>(&mut self, ctx: &mut Ctx<T>, child: &T, delta: usize) -> Flow {
        let mut inherited = self.values;
        let there = |addr: VirtAddr| VirtAddr(addr.get().wrapping_add(delta));
        for _ in 0..2 * PAGES {
            let page = ctx.rng.below(PAGES);
            match ctx.rng.below(4) {
                0 => self.store(ctx, page)?,
                1 => {
                    let value = ctx.value();
                    let result = child.store(there(self.addr(page)), value);
                    self.outcome(ctx, page, "the child's store", result.map(|()| value), value)?;
                    inherited[page] = value;
                }
                2 => self.check(ctx, page)?,
                _ => {
                    let seen = child.load(there(self.addr(page)));
                    self.outcome(ctx, page, "the child's load", seen, inherited[page])?;
                }
            }
        }
        for (page, &value) in inherited.iter().enumerate() {
            let seen = child.load(there(self.addr(page)));
            self.outcome(ctx, page, "the child's last load", seen, value)?;
        }
        Ok(())
    }
}

impl Workload for ForkCow {
    fn region_bytes(plan: &Plan) -> usize {
        plan.threads * BYTES + plan.mutators * background::BYTES
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<ForkCow, Fail> {
        Ok(ForkCow)
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let start = ctx.map(ctx.mm, 0, BYTES, RW, ANON)?.addr;
        let mut own = Own { start, values: [0; PAGES] };
        while ctx.go() {
            for _ in 0..8 {
                let page = ctx.rng.below(PAGES);
                own.store(ctx, page)?;
            }
            let child = ctx.fork(ctx.mm)?;
            let delta = child.range().start().get().wrapping_sub(ctx.target(ctx.mm).range().start().get());
            own.diverge(ctx, &child, delta)?;
            if ctx.verify {
                child.validate();
            }
            drop(child);
            for page in 0..PAGES {
                own.check(ctx, page)?;
            }
        }
        ctx.munmap(ctx.mm, start, BYTES)
    }
}
