//! A [`Grid`] of slots at fixed addresses: mutators change theirs
//! ([`Owner`]), fault threads access all of them ([`Memory`]).
//!
//! Slots lie in cells: neighbours whose mappings merge when they are alike and
//! split when one of them changes. Beside each cell lies a guard page that
//! nobody ever maps.
//!
//! # Contents
//! A fault thread remembers what it last stored to its own word of each page,
//! and during which generations of the slot. Nobody else writes that word, so
//! a later load in the same generation must give exactly this value, one in a
//! later generation 0. The mutator's word carries the generation it was stored
//! in, and is stored between changes, so it can never appear in another.

use super::shadow::{Slot, State, Window};
use super::{Oracle, VALUE, word_of};
use crate::ctx::{ANON, Ctx, Flow};
use crate::target::Target;
use crossbeam::utils::CachePadded;
use std::ops::Range;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::mm::MapFlags;

/// Sizes of a grid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) cells: usize,
    pub(crate) slots_per_cell: usize,
    pub(crate) pages_per_slot: usize,
}

impl Shape {
    pub(crate) const fn cell_bytes(&self) -> usize {
        (self.slots_per_cell * self.pages_per_slot + 1) * PAGE_SIZE
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.cells * self.cell_bytes()
    }
}

/// The slots of one mutator in one address space.
pub(crate) struct Grid {
    pub(crate) mm: usize,
    pub(crate) shape: Shape,
    start: VirtAddr,
    slots: Vec<CachePadded<Slot>>,
}

impl Grid {
    /// Unmapped slots from the start of `area`.
    pub(crate) fn new(mm: usize, area: PageRange, shape: Shape) -> Grid {
        assert!(shape.bytes() <= area.bytes(), "the configuration was checked");
        let slot_bytes = shape.pages_per_slot * PAGE_SIZE;
        let slots = (0..shape.cells * shape.slots_per_cell).map(|slot| {
            let (cell, within) = (slot / shape.slots_per_cell, slot % shape.slots_per_cell);
            let start = area.start() + (cell * shape.cell_bytes() + within * slot_bytes);
            CachePadded::new(Slot::new(PageRange::sized(start, slot_bytes)))
        });
        Grid { mm, shape, start: area.start(), slots: slots.collect() }
    }

    fn guard(&self, cell: usize) -> VirtAddr {
        self.start + ((cell + 1) * self.shape.cell_bytes() - PAGE_SIZE)
    }

    fn page(&self, slot: usize, page: usize) -> VirtAddr {
        self.slots[slot].range.start() + page * PAGE_SIZE
    }
}

/// A store that a fault thread remembers.
#[derive(Clone, Copy, Default)]
struct Last {
    value: u64,
    /// Generations of the slot during the store; `first > last` never.
    first: u64,
    last: u64,
}

/// What a fault thread remembers of one grid: its last store to each page.
pub(crate) struct Memory(Vec<Last>);

impl Memory {
    pub(crate) fn of(grid: &Grid) -> Memory {
        Memory(vec![Last::default(); grid.slots.len() * grid.shape.pages_per_slot])
    }
}

impl<T: Target> Ctx<T> {
    /// A fault thread's access to some page of the grid.
    pub(crate) fn access_some(&mut self, grid: &Grid, memory: &mut Memory) -> Flow {
        let slot = self.rng.below(grid.slots.len());
        let page = self.rng.below(grid.shape.pages_per_slot);
        let draw = self.rng.below(32);
        if !self.verify {
            let addr = grid.page(slot, page) + word_of(self.worker);
            let result = if draw < 16 { self.store(grid.mm, addr, 1) } else { self.load(grid.mm, addr).map(drop) };
            return self.not_bus(addr, result).map(drop);
        }
        let last = &mut memory.0[slot * grid.shape.pages_per_slot + page];
        match draw {
            0 => self.check_unmapped(grid.mm, grid.guard(slot / grid.shape.slots_per_cell)),
            1..16 => self.store_own_word(grid, slot, page, last),
            16..24 => self.load_own_word(grid, slot, page, last),
            24..28 => self.load_owners_word(grid, slot, page),
            _ => self.load_stamp(grid, slot, page),
        }
    }

    fn store_own_word(&mut self, grid: &Grid, slot: usize, page: usize, last: &mut Last) -> Flow {
        let addr = grid.page(slot, page) + word_of(self.worker);
        let value = self.value();
        let opened = grid.slots[slot].open();
        let result = self.store(grid.mm, addr, value);
        let window = grid.slots[slot].close(opened);
        self.check_outcome(grid, slot, addr, true, result, window.as_ref())?;
        if result.is_ok() {
            let known = window.and_then(|window| window.generations(true));
            let (first, last_one) = known.map_or((0, u64::MAX), |(first, last, _)| (first, last));
            *last = Last { value, first, last: last_one };
        }
        Ok(())
    }

    fn load_own_word(&mut self, grid: &Grid, slot: usize, page: usize, last: &Last) -> Flow {
        let addr = grid.page(slot, page) + word_of(self.worker);
        let opened = grid.slots[slot].open();
        let result = self.load(grid.mm, addr);
        let window = grid.slots[slot].close(opened);
        self.check_outcome(grid, slot, addr, false, result, window.as_ref())?;
        let Ok(seen) = result else { return Ok(()) };
        let generations = window.and_then(|window| window.generations(false));
        let (may_be_fresh, may_be_kept) = match generations {
            None => (true, true),
            Some((first, until, _)) => {
                let same = first == until && last.first == last.last && first == last.first;
                (!same || last.value == 0, first <= last.last)
            }
        };
        if (seen == 0 && may_be_fresh) || (seen == last.value && may_be_kept) {
            return Ok(());
        }
        let said = match seen {
            0 => format!("the word is 0, but this thread stored {:#x} to it in the same mapping", last.value),
            _ if seen == last.value => format!("the word is {seen:#x}, stored before the address was mapped anew"),
            _ => format!("the word is {seen:#x}, but only this thread stores to it, last {:#x}", last.value),
        };
        let message = format!("{said} (slot: {})", grid.slots[slot].history());
        Err(self.violation(Oracle::Contents, grid.mm, addr, message))
    }

    fn load_owners_word(&mut self, grid: &Grid, slot: usize, page: usize) -> Flow {
        let addr = grid.page(slot, page) + VALUE;
        let opened = grid.slots[slot].open();
        let result = self.load(grid.mm, addr);
        let window = grid.slots[slot].close(opened);
        self.check_outcome(grid, slot, addr, false, result, window.as_ref())?;
        if let (Ok(seen), Some((first, last, _))) = (result, window.and_then(|window| window.generations(false))) {
            let stored_in = seen >> GENERATION_SHIFT;
            if seen != 0 && !(first..=last).contains(&stored_in) {
                let message = format!(
                    "the word {seen:#x} was stored in mapping {stored_in}, this is mapping {first} to {last} (slot: {})",
                    grid.slots[slot].history()
                );
                return Err(self.violation(Oracle::Contents, grid.mm, addr, message));
            }
        }
        Ok(())
    }

    fn load_stamp(&mut self, grid: &Grid, slot: usize, page: usize) -> Flow {
        let page = grid.page(slot, page);
        let opened = grid.slots[slot].open();
        let result = self.target(grid.mm).stamp(page);
        let window = grid.slots[slot].close(opened);
        self.check_outcome(grid, slot, page, false, result, window.as_ref())?;
        let Ok(stamp) = result else { return Ok(()) };
        let incarnation =
            window.and_then(|window| window.generations(false)).map_or(0, |(.., incarnation)| incarnation);
        self.check_stamp(grid.mm, page, stamp, incarnation)
    }

    fn check_outcome<V: Copy>(
        &self,
        grid: &Grid,
        slot: usize,
        addr: VirtAddr,
        write: bool,
        result: Result<V, Signal>,
        window: Option<&Window>,
    ) -> Flow {
        let outcome = self.not_bus(addr, result)?.map(drop);
        self.checked();
        let Some(window) = window else {
            self.unchecked_state();
            return Ok(());
        };
        if window.explains(write, outcome) {
            return Ok(());
        }
        let what = if write { "store" } else { "load" };
        let states: Vec<State> = window.moments().iter().map(|moment| moment.state).collect();
        let orphan = outcome.is_ok() && states.iter().all(|&state| state == State::Unmapped);
        let oracle = if orphan { Oracle::Orphan } else { Oracle::Outcome };
        let ended = outcome.map_or_else(|signal| format!("ended in {signal:?}"), |()| "succeeded".to_owned());
        let message = format!("{what} {ended} while the slot was {states:?} (slot: {})", grid.slots[slot].history());
        let seen = if write { None } else { self.target(grid.mm).stamp(addr.page()).ok() };
        let expected = window.moments().last().map(|moment| moment.incarnation).filter(|&number| number > 0);
        Err(self.violation_of(oracle, grid.mm, addr, message, expected, seen.map(|stamp| stamp.incarnation)))
    }
}

/// The owner's word is `generation << GENERATION_SHIFT | counter`.
const GENERATION_SHIFT: u32 = 16;

/// A mutator's side of its grid.
pub(crate) struct Owner<'a> {
    pub(crate) grid: &'a Grid,
    states: Vec<State>,
    /// What the owner's word of each page must be (with `--verify`).
    words: Vec<u64>,
    counter: u64,
}

/// A change of some slots of one cell, made by one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// mmap with MAP_FIXED, over whatever is there.
    Map(State),
    /// munmap.
    Unmap,
    /// mprotect; all slots are mapped.
    Protect(State),
}

impl<'a> Owner<'a> {
    pub(crate) fn new(grid: &'a Grid) -> Owner<'a> {
        let slots = grid.slots.len();
        Owner {
            grid,
            states: vec![State::Unmapped; slots],
            words: vec![0; slots * grid.shape.pages_per_slot],
            counter: 0,
        }
    }

    /// The states of the slots, cell by cell.
    pub(crate) fn states(&self) -> &[State] {
        &self.states
    }

    /// Some slots of one cell.
    pub(crate) fn some_slots<T: Target>(&self, ctx: &mut Ctx<T>) -> Range<usize> {
        let per_cell = self.grid.shape.slots_per_cell;
        let cell = ctx.rng.below(self.grid.shape.cells) * per_cell;
        let (a, b) = (ctx.rng.below(per_cell), ctx.rng.below(per_cell));
        cell + a.min(b)..cell + a.max(b) + 1
    }

    /// Makes the change, and then checks one of its pages.
    pub(crate) fn change<T: Target>(&mut self, ctx: &mut Ctx<T>, slots: Range<usize>, change: Change) -> Flow {
        let grid = self.grid;
        let (state, fresh) = match change {
            Change::Map(state) => (state, true),
            Change::Unmap => (State::Unmapped, false),
            Change::Protect(state) => (state, false),
        };
        let touched = &grid.slots[slots.clone()];
        if ctx.verify {
            touched.iter().for_each(|slot| slot.begin(state, fresh));
        }
        let (addr, end) = (touched[0].range.start(), touched[touched.len() - 1].range.end());
        let len = end - addr;
        let mut incarnation = None;
        match change {
            Change::Map(_) => {
                let mapping = ctx.map(grid.mm, addr.get(), len, state.prot(), ANON | MapFlags::FIXED)?;
                incarnation = Some(mapping.incarnation);
            }
            Change::Unmap => ctx.munmap(grid.mm, addr, len)?,
            Change::Protect(_) => ctx.mprotect(grid.mm, addr, len, state.prot())?,
        }
        if ctx.verify {
            touched.iter().for_each(|slot| slot.end(incarnation));
            if fresh || state == State::Unmapped {
                let pages = grid.shape.pages_per_slot;
                self.words[slots.start * pages..slots.end * pages].fill(0);
            }
        }
        self.states[slots.clone()].fill(state);
        if ctx.verify {
            let slot = slots.start + ctx.rng.below(slots.len());
            self.check(ctx, slot)?;
        }
        Ok(())
    }

    /// Looks at one page of a slot, whose state and contents the owner knows.
    fn check<T: Target>(&mut self, ctx: &mut Ctx<T>, slot: usize) -> Flow {
        let grid = self.grid;
        let page = ctx.rng.below(grid.shape.pages_per_slot);
        let addr = grid.page(slot, page);
        let moment = grid.slots[slot].now();
        let word = slot * grid.shape.pages_per_slot + page;

        let loaded = ctx.load(grid.mm, addr + VALUE);
        self.expect(ctx, slot, addr + VALUE, false, loaded)?;
        if let Ok(seen) = loaded {
            if seen != self.words[word] {
                let message = format!(
                    "the word is {seen:#x}, but its owner left {:#x} (slot: {})",
                    self.words[word],
                    grid.slots[slot].history()
                );
                return Err(ctx.violation(Oracle::Contents, grid.mm, addr + VALUE, message));
            }
            let stamp = ctx.target(grid.mm).stamp(addr);
            self.expect(ctx, slot, addr, false, stamp)?;
            if let Ok(stamp) = stamp {
                ctx.check_stamp(grid.mm, addr, stamp, moment.incarnation)?;
            }
        }

        self.counter += 1;
        let value = moment.generation << GENERATION_SHIFT | (self.counter & 0xffff);
        let stored = ctx.store(grid.mm, addr + VALUE, value);
        self.expect(ctx, slot, addr + VALUE, true, stored)?;
        if stored.is_ok() {
            self.words[word] = value;
        }
        Ok(())
    }

    fn expect<T: Target, V: Copy>(
        &self,
        ctx: &Ctx<T>,
        slot: usize,
        addr: VirtAddr,
        write: bool,
        result: Result<V, Signal>,
    ) -> Flow {
        let slot_ref = &self.grid.slots[slot];
        let window = slot_ref.close(slot_ref.open());
        debug_assert!(window.as_ref().is_some_and(|window| window.moments().len() == 1));
        ctx.check_outcome(self.grid, slot, addr, write, result, window.as_ref())
    }

    /// Maps every slot, a cell with each call.
    pub(crate) fn map_all<T: Target>(&mut self, ctx: &mut Ctx<T>, state: State) -> Flow {
        let per_cell = self.grid.shape.slots_per_cell;
        for cell in 0..self.grid.shape.cells {
            self.change(ctx, cell * per_cell..(cell + 1) * per_cell, Change::Map(state))?;
        }
        Ok(())
    }
}
