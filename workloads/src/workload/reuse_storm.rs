//! `reuse-storm`: each mutator has slots at the same offsets in every address
//! space, frees one in one of them and at once maps one in the next: the VMA
//! object goes with it, while fault threads that found it by its old address
//! are still about to lock it. These are the seed's cases 1 to 3: an object
//! found in one address space and locked in another, one that came back with
//! another range, and one whose readers must be waited for when it is attached
//! again. One change in eight splits, merges, replaces (MAP_FIXED) or protects.

use super::{Grids, Workload};
use crate::ctx::{Ctx, Fail, Flow};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::grid::{Change, Owner, Shape};
use crate::verify::shadow::State;
use std::ops::Range;

const SHAPE: Shape = Shape { cells: 4, slots_per_cell: 4, pages_per_slot: 1 };

pub(super) struct ReuseStorm(Grids);

impl Workload for ReuseStorm {
    fn region_bytes(plan: &Plan) -> usize {
        plan.workers() * SHAPE.bytes()
    }

    fn new<T: Target>(shared: &Shared<T>) -> Result<ReuseStorm, Fail> {
        Ok(ReuseStorm(Grids::in_each_mm(shared, SHAPE)))
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        self.0.access_until_stopped(ctx)
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let mut owners: Vec<Owner<'_>> = self.0.of_mutator(ctx.index).iter().map(Owner::new).collect();
        // Slots alternate between address spaces, so that there is always one to trade.
        for (mm, owner) in owners.iter_mut().enumerate() {
            for slot in (0..owner.states().len()).filter(|slot| slot % 2 == mm % 2) {
                owner.change(ctx, slot..slot + 1, Change::Map(State::ReadWrite))?;
            }
        }
        let mut from = 0;
        while ctx.go() {
            let to = (from + 1) % owners.len();
            if ctx.rng.one_in(8) {
                disturb(ctx, &mut owners[from])?;
            } else if let Some(slot) = pick(ctx, &owners[from], |state| state != State::Unmapped) {
                owners[from].change(ctx, slot..slot + 1, Change::Unmap)?;
                // The same numeric offset if it is free there, so that a stale
                // pointer finds the object at the very address it looked for.
                let free = owners[to].states()[slot] == State::Unmapped;
                let slot = if free { Some(slot) } else { pick(ctx, &owners[to], |state| state == State::Unmapped) };
                if let Some(slot) = slot {
                    owners[to].change(ctx, slot..slot + 1, Change::Map(State::ReadWrite))?;
                }
            }
            from = to;
        }
        Ok(())
    }
}

/// Some slot in such a state.
fn pick<T: Target>(ctx: &mut Ctx<T>, owner: &Owner<'_>, wanted: impl Fn(State) -> bool) -> Option<usize> {
    let states = owner.states();
    let first = ctx.rng.below(states.len());
    (first..states.len()).chain(0..first).find(|&slot| wanted(states[slot]))
}

/// A change of several slots: one VMA over all of them, a hole, or a protection.
fn disturb<T: Target>(ctx: &mut Ctx<T>, owner: &mut Owner<'_>) -> Flow {
    let slots: Range<usize> = owner.some_slots(ctx);
    let mapped = owner.states()[slots.clone()].iter().all(|&state| state != State::Unmapped);
    let change = match ctx.rng.below(4) {
        0 | 1 if mapped => Change::Protect([State::Read, State::None, State::ReadWrite][ctx.rng.below(3)]),
        0 | 1 | 2 => Change::Map([State::ReadWrite, State::ReadWrite, State::Read][ctx.rng.below(3)]),
        _ => Change::Unmap,
    };
    owner.change(ctx, slots, change)
}
