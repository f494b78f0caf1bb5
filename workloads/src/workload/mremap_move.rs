//! `mremap-move`: each thread moves a mapping to and fro between two places,
//! grows and shrinks it, and makes parts of it read-only, with its pages
//! populated here and there: a garbage collector's or an allocator's
//! `realloc`. With `--verify` every page must arrive with what was stored to
//! it, new pages must be zero, what is read-only must refuse stores, and
//! nothing may be left where the mapping was.

use super::{Workload, background};
use crate::ctx::{ANON, Ctx, Fail, Flow, RW};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::{Oracle, VALUE};
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::Signal;
use vmalab::mm::{MapFlags, Prot, RemapFlags};

/// Pages of a mapping at most, and room between the two places.
const PAGES: usize = 16;
const PLACE: usize = (PAGES + 1) * PAGE_SIZE;

pub(super) struct MremapMove;

/// What a page holds, as its thread knows.
#[derive(Clone, Copy)]
struct Page {
    value: u64,
    writable: bool,
}

const FRESH: Page = Page { value: 0, writable: true };

/// A thread's mapping.
struct Moving {
    places: [VirtAddr; 2],
    at: usize,
    pages: Vec<Page>,
}

impl Moving {
    fn start(&self) -> VirtAddr {
        self.places[self.at]
    }

    fn bytes(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    /// Everything to the other place (MREMAP_FIXED).
    fn change_place<T: Target>(&mut self, ctx: &mut Ctx<T>) -> Flow {
        let (from, to) = (self.start(), self.places[1 - self.at]);
        // Several VMAs in one call, since Linux 6.17.
        let flags = RemapFlags::MAYMOVE | RemapFlags::FIXED;
        ctx.mremap(ctx.mm, from, self.bytes(), self.bytes(), flags, to)?;
        self.at = 1 - self.at;
        if ctx.verify {
            let old = ctx.rng.below(self.pages.len());
            ctx.check_unmapped(ctx.mm, from + old * PAGE_SIZE)?;
        }
        Ok(())
    }

    /// Grows or shrinks in place, at its end.
    fn resize<T: Target>(&mut self, ctx: &mut Ctx<T>) -> Flow {
        let new = 1 + ctx.rng.below(PAGES);
        let old = self.pages.len();
        if new < old {
            // What is cut off may be several VMAs.
            ctx.mremap(ctx.mm, self.start(), self.bytes(), new * PAGE_SIZE, RemapFlags::empty(), VirtAddr(0))?;
        } else if new > old {
            // The last page is surely one VMA's.
            let last = self.start() + (old - 1) * PAGE_SIZE;
            let grown = (new - old + 1) * PAGE_SIZE;
            ctx.mremap(ctx.mm, last, PAGE_SIZE, grown, RemapFlags::empty(), VirtAddr(0))?;
        }
        let writable = self.pages[old - 1].writable;
        self.pages.resize(new, Page { value: 0, writable });
        Ok(())
    }

    fn protect<T: Target>(&mut self, ctx: &mut Ctx<T>) -> Flow {
        let first = ctx.rng.below(self.pages.len());
        let pages = 1 + ctx.rng.below(self.pages.len() - first);
        let writable = ctx.rng.one_in(2);
        let prot = if writable { RW } else { Prot::READ };
        ctx.mprotect(ctx.mm, self.start() + first * PAGE_SIZE, pages * PAGE_SIZE, prot)?;
        self.pages[first..first + pages].iter_mut().for_each(|page| page.writable = writable);
        Ok(())
    }

    /// Stores to a page, or finds that it must not.
    fn touch<T: Target>(&mut self, ctx: &mut Ctx<T>) -> Flow {
        let n = ctx.rng.below(self.pages.len());
        let addr = self.start() + n * PAGE_SIZE + VALUE;
        let value = ctx.value();
        if !self.pages[n].writable && !ctx.target(ctx.mm).checked() {
            return Ok(());
        }
        let result = ctx.store(ctx.mm, addr, value);
        let permitted = self.pages[n].writable;
        match ctx.not_bus(addr, result)? {
            Ok(()) if permitted => self.pages[n].value = value,
            Err(Signal::AccErr) if !permitted => {}
            other => {
                let message = format!("a store ended in {other:?}, the page is writable: {permitted}");
                return Err(ctx.violation(Oracle::Outcome, ctx.mm, addr, message));
            }
        }
        Ok(())
    }

    fn check<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        for (n, page) in self.pages.iter().enumerate() {
            let addr = self.start() + n * PAGE_SIZE + VALUE;
            let seen = ctx.load(ctx.mm, addr);
            ctx.checked();
            if ctx.not_bus(addr, seen)? != Ok(page.value) {
                let message = format!("page {n} of {} holds {seen:x?}, not {:#x}", self.pages.len(), page.value);
                return Err(ctx.violation(Oracle::Contents, ctx.mm, addr, message));
            }
        }
        Ok(())
    }
}

impl Workload for MremapMove {
    fn region_bytes(plan: &Plan) -> usize {
        plan.workers() * 2 * PLACE.max(background::BYTES)
    }

    fn new<T: Target>(_: &Shared<T>) -> Result<MremapMove, Fail> {
        Ok(MremapMove)
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let start = ctx.area().start();
        let mut moving = Moving { places: [start, start + PLACE], at: 0, pages: vec![FRESH; PAGES / 2] };
        ctx.map(ctx.mm, start.get(), moving.bytes(), RW, ANON | MapFlags::FIXED_NOREPLACE)?;
        while ctx.go() {
            match ctx.rng.below(8) {
                0 | 1 => moving.change_place(ctx)?,
                2 => moving.resize(ctx)?,
                3 => moving.protect(ctx)?,
                _ => moving.touch(ctx)?,
            }
            if ctx.verify {
                moving.check(ctx)?;
            }
        }
        ctx.munmap(ctx.mm, moving.start(), moving.bytes())
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        background::run(ctx, background::Place::Area)
    }
}
