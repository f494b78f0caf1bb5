//! `local`, `pipeline`, `global`: the three modes of `mapbench`, RadixVM's
//! benchmark (Clements, Kaashoek, Zeldovich, EuroSys'13; `bin/mapbench.cc` of
//! sv6). Every later paper on scalable address spaces is compared with them.
//!
//! * `local`: each thread maps a page at its private base, writes it, unmaps.
//! * `pipeline`: a thread maps and writes, its neighbour touches the same pages
//!   and unmaps: every mapping lives on two processors.
//! * `global`: each thread maps its slice (16 pages) of one table, all write
//!   random pages of the whole table, then it is mapped anew.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Phase, Plan, Shared};
use crate::target::Target;
use crate::verify::owned::Owned;
use crate::verify::word_of;
use background::Place;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;
use vmalab::addr::PAGE_SIZE;
use vmalab::mm::MapFlags;

const AT: MapFlags = ANON.union(MapFlags::FIXED_NOREPLACE);

/// `local`.
pub(super) struct Local;

impl Workload for Local {
    fn region_bytes(plan: &Plan) -> usize {
        plan.workers() * background::BYTES
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<Local, Fail> {
        Ok(Local)
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let base = ctx.area().start();
        while ctx.go() {
            let owned = Owned::new(ctx.mm, ctx.map(ctx.mm, base.get(), PAGE_SIZE, RW, AT)?, PAGE_SIZE);
            ctx.first_touch(&owned, base)?;
            ctx.munmap(ctx.mm, base, PAGE_SIZE)?;
            if ctx.verify && ctx.rng.one_in(4) {
                ctx.check_unmapped(ctx.mm, base)?;
            }
        }
        Ok(())
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        background::run(ctx, Place::Area)
    }
}

/// A page in the pipe, and the value it holds.
struct Passed {
    owned: Owned,
    value: u64,
}

/// How often a thread that waits for its neighbour looks whether the run is over.
const PATIENCE: Duration = Duration::from_millis(20);

/// `pipeline`.
pub(super) struct Pipeline {
    pipes: Vec<(Sender<Passed>, Receiver<Passed>)>,
}

impl Workload for Pipeline {
    fn region_bytes(plan: &Plan) -> usize {
        plan.workers() * background::BYTES
    }

    fn new<T: Target>(shared: &Shared<T>) -> Result<Pipeline, Fail> {
        Ok(Pipeline { pipes: (0..shared.plan.threads).map(|_| bounded(2)).collect() })
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        // All stages share address space 0; two bases in turn, since the one of
        // the last round may not be unmapped yet.
        let area = ctx.shared.area(0, ctx.worker);
        let next = (ctx.index + 1) % self.pipes.len();
        for round in 0.. {
            if !ctx.go() {
                break;
            }
            let base = area.start() + (round % 4) * PAGE_SIZE;
            let owned = Owned::new(0, ctx.map(0, base.get(), PAGE_SIZE, RW, AT)?, PAGE_SIZE);
            let value = ctx.first_touch(&owned, base)?;
            let mut passed = Passed { owned, value };
            while let Err(error) = self.pipes[next].0.send_timeout(passed, PATIENCE) {
                passed = error.into_inner();
                if ctx.shared.phase() == Phase::Stop {
                    return Ok(());
                }
            }
            let Passed { owned, value } = loop {
                match self.pipes[ctx.index].1.recv_timeout(PATIENCE) {
                    Ok(passed) => break passed,
                    Err(RecvTimeoutError::Timeout) if ctx.shared.phase() != Phase::Stop => {}
                    Err(_) => return Ok(()),
                }
            };
            let page = owned.range.start();
            if ctx.verify {
                ctx.owned_check(&owned, page, value)?;
            }
            let result = ctx.store(0, page + word_of(ctx.worker), value);
            ctx.owned_ok(&owned, page, "store", result)?;
            ctx.munmap(0, page, PAGE_SIZE)?;
        }
        Ok(())
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        background::run(ctx, Place::Area)
    }
}

/// Pages that each thread maps of the table: what the paper used.
const SLICE_PAGES: usize = 16;
const SLICE_BYTES: usize = SLICE_PAGES * PAGE_SIZE;

/// `global`.
pub(super) struct Global {
    /// The slices of the table, each changed by its thread between meetings.
    slices: Vec<Mutex<Option<Owned>>>,
}

impl Workload for Global {
    fn region_bytes(plan: &Plan) -> usize {
        plan.workers() * background::BYTES.max(SLICE_BYTES)
    }

    fn new<T: Target>(shared: &Shared<T>) -> Result<Global, Fail> {
        Ok(Global { slices: (0..shared.plan.threads).map(|_| Mutex::new(None)).collect() })
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let base = ctx.shared.area(0, ctx.worker).start();
        let mut stored: HashMap<(usize, usize), u64> = HashMap::new();
        loop {
            ctx.meet(true)?;
            let owned = Owned::new(0, ctx.map(0, base.get(), SLICE_BYTES, RW, AT)?, SLICE_BYTES);
            *self.slices[ctx.index].lock().expect("nobody panics with it") = Some(owned);
            ctx.meet(false)?;
            let table: Vec<Owned> =
                self.slices.iter().map(|slice| slice.lock().expect("as above").expect("mapped")).collect();
            for _ in 0..table.len() * SLICE_PAGES {
                let (slice, page) = (ctx.rng.below(table.len()), ctx.rng.below(SLICE_PAGES));
                let (owned, addr) = (&table[slice], table[slice].page(page) + word_of(ctx.worker));
                if ctx.verify {
                    let expected = stored.get(&(slice, page)).copied().unwrap_or(0);
                    ctx.expect_word(owned, addr, expected)?;
                    ctx.owned_stamp(owned, owned.page(page))?;
                }
                let value = ctx.value();
                let result = ctx.store(0, addr, value);
                ctx.owned_ok(owned, addr, "store", result)?;
                if ctx.verify {
                    stored.insert((slice, page), value);
                }
            }
            stored.clear();
            ctx.meet(false)?;
            ctx.munmap(0, base, SLICE_BYTES)?;
        }
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        background::run(ctx, Place::Area)
    }
}
