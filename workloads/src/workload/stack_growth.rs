//! `stack-growth`: each thread maps a stack of one page (MAP_GROWSDOWN) and
//! touches its way down, so that faults grow the mapping; then it maps
//! something below and finds the guard gap. With `--verify` growth must
//! succeed down to the gap, contents must stay, and a touch inside the gap
//! must be SIGSEGV.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::{Oracle, VALUE};
use vmalab::addr::PAGE_SIZE;
use vmalab::fault::Signal;
use vmalab::mm::{MapFlags, STACK_GUARD_PAGES};

/// Pages that a stack grows by.
const PAGES: usize = 32;
/// A floor below, the guard gap, and the stack.
const BYTES: usize = (1 + STACK_GUARD_PAGES + PAGES) * PAGE_SIZE;

pub(super) struct StackGrowth;

impl Workload for StackGrowth {
    fn region_bytes(plan: &Plan) -> usize {
        // A stack's claim reaches beyond its area otherwise.
        plan.workers() * (BYTES + STACK_GUARD_PAGES * PAGE_SIZE).max(background::BYTES)
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<StackGrowth, Fail> {
        Ok(StackGrowth)
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let floor = ctx.area().start();
        let top = floor + BYTES;
        let fixed = ANON | MapFlags::FIXED_NOREPLACE;
        while ctx.go() {
            ctx.map(ctx.mm, floor.get(), PAGE_SIZE, RW, fixed)?;
            let last_page = top.get() - PAGE_SIZE;
            ctx.map(ctx.mm, last_page, PAGE_SIZE, RW, fixed | MapFlags::GROWSDOWN)?;
            let mut values = Vec::with_capacity(PAGES);
            let mut page = 0;
            while page < PAGES {
                let addr = floor + (BYTES - (page + 1) * PAGE_SIZE + VALUE);
                let value = ctx.value();
                let result = ctx.first_store(ctx.mm, addr, value);
                if let Err(signal) = ctx.not_bus(addr, result)? {
                    let message =
                        format!("a store to page {page} of a stack that may have {PAGES} ended in {signal:?}");
                    return Err(ctx.violation(Oracle::Outcome, ctx.mm, addr, message));
                }
                values.push((addr, value));
                // Some pages are jumped over: growth takes them in.
                page += 1 + ctx.rng.below(3);
            }
            if ctx.verify {
                for &(addr, value) in &values {
                    let seen = ctx.load(ctx.mm, addr);
                    ctx.checked();
                    if ctx.not_bus(addr, seen)? != Ok(value) {
                        let message = format!("the stack holds {seen:x?}, not {value:#x}");
                        return Err(ctx.violation(Oracle::Contents, ctx.mm, addr, message));
                    }
                }
                self.check_gap(ctx)?;
            }
            ctx.munmap(ctx.mm, floor, BYTES)?;
        }
        Ok(())
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        background::run(ctx, background::Place::Area)
    }
}

impl StackGrowth {
    /// A touch that leaves less than the guard gap above the floor is refused.
    fn check_gap<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let page = 1 + ctx.rng.below(STACK_GUARD_PAGES - 1);
        let addr = ctx.area().start() + page * PAGE_SIZE;
        let result = ctx.load(ctx.mm, addr);
        ctx.checked();
        match ctx.not_bus(addr, result)? {
            Err(Signal::MapErr) => Ok(()),
            other => {
                let message = format!("a load inside the guard gap, {page} pages above the floor, ended in {other:x?}");
                Err(ctx.violation(Oracle::Outcome, ctx.mm, addr, message))
            }
        }
    }
}
