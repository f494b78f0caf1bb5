//! `page-fault-shared`: all threads store to every page of one mapping, each
//! from a page of its own on, then the next thread maps it anew. Faults race
//! for the same pages, as in will-it-scale's `page_fault3` and the high
//! contention runs of CortenMM's `pf` (SOSP'25): one of them installs the
//! page, the others must find it, not replace it. With `--verify` every
//! thread's store to every page is looked for: a second installation loses it.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::owned::Owned;
use crate::verify::word_of;
use std::sync::Mutex;
use vmalab::addr::PAGE_SIZE;

const PAGES: usize = 512;
const BYTES: usize = PAGES * PAGE_SIZE;

pub(super) struct PageFaultShared {
    /// The mapping of this round; changed by one thread between meetings.
    table: Mutex<Option<Owned>>,
}

impl PageFaultShared {
    fn table(&self) -> Owned {
        self.table.lock().expect("nobody panics with it").expect("the leader has mapped it")
    }
}

impl Workload for PageFaultShared {
    fn region_bytes(plan: &Plan) -> usize {
        BYTES + plan.mutators * background::BYTES
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<PageFaultShared, Fail> {
        Ok(PageFaultShared { table: Mutex::new(None) })
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let threads = ctx.shared.plan.threads;
        for round in 0.. {
            let leads = round % threads == ctx.index;
            ctx.meet(true)?;
            if leads {
                let mapping = ctx.map(0, 0, BYTES, RW, ANON)?;
                *self.table.lock().expect("nobody panics with it") = Some(Owned::new(0, mapping, BYTES));
            }
            ctx.meet(false)?;
            let table = self.table();
            let first = ctx.index * PAGES / threads;
            let value = |worker: usize, page: usize| ((round * threads + worker) * PAGES + page) as u64 + 1;
            for page in (first..PAGES).chain(0..first) {
                let addr = table.page(page) + word_of(ctx.worker);
                let result = ctx.first_store(0, addr, value(ctx.worker, page));
                ctx.owned_ok(&table, addr, "store", result)?;
            }
            ctx.meet(false)?;
            if ctx.verify {
                let neighbour = (ctx.worker + 1) % threads;
                for page in 0..PAGES {
                    for worker in [ctx.worker, neighbour] {
                        ctx.expect_word(&table, table.page(page) + word_of(worker), value(worker, page))?;
                    }
                    ctx.owned_stamp(&table, table.page(page))?;
                }
                ctx.meet(false)?;
            }
            if leads {
                ctx.munmap(0, table.range.start(), BYTES)?;
            }
        }
        Ok(())
    }
}
