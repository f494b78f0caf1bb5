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

/// What is traded: slots that touch no other, so that each is a VMA of its own.
const TRADED: Shape = Shape { cells: 16, slots_per_cell: 1, pages_per_slot: 1 };
/// What is disturbed: neighbours.
const DISTURBED: Shape = Shape { cells: 2, slots_per_cell: 4, pages_per_slot: 1 };

pub(super) struct ReuseStorm(Grids);

impl Workload for ReuseStorm {
    fn region_bytes(plan: &Plan) -> usize {
        plan.workers() * (TRADED.bytes() + DISTURBED.bytes())
    }

    fn new<T: Target>(shared: &Shared<T>) -> Result<ReuseStorm, Fail> {
        Ok(ReuseStorm(Grids::in_each_mm(shared, &[TRADED, DISTURBED])))
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        self.0.access_until_stopped(ctx)
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let grids = self.0.of_mutator(ctx.index);
        let owners = |shape: usize| grids.iter().skip(shape).step_by(2).map(Owner::new).collect::<Vec<_>>();
        let (mut traded, mut disturbed) = (owners(0), owners(1));
        // Every slot is mapped in one address space and free in the others.
        for slot in 0..TRADED.cells {
            let mm = slot % traded.len();
            traded[mm].change(ctx, slot..slot + 1, Change::Map(State::ReadWrite))?;
        }
        let mut from = 0;
        while ctx.go() {
            let to = (from + 1) % traded.len();
            if ctx.rng.one_in(8) {
                disturb(ctx, &mut disturbed[from])?;
            } else if let Some(slot) = mapped_slot(ctx, &traded[from]) {
                traded[from].change(ctx, slot..slot + 1, Change::Unmap)?;
                // At the same offset, so that a stale pointer finds the object
                // under the very number it looked for.
                traded[to].change(ctx, slot..slot + 1, Change::Map(State::ReadWrite))?;
            }
            from = to;
        }
        Ok(())
    }
}

fn mapped_slot<T: Target>(ctx: &mut Ctx<T>, owner: &Owner<'_>) -> Option<usize> {
    let states = owner.states();
    let first = ctx.rng.below(states.len());
    (first..states.len()).chain(0..first).find(|&slot| states[slot] != State::Unmapped)
}

/// A change of several slots: one VMA over all of them, a hole, or a protection.
fn disturb<T: Target>(ctx: &mut Ctx<T>, owner: &mut Owner<'_>) -> Flow {
    let slots: Range<usize> = owner.some_slots(ctx);
    let mapped = owner.states()[slots.clone()].iter().all(|&state| state != State::Unmapped);
    let change = match ctx.rng.below(4) {
        0 | 1 if mapped => Change::Protect([State::Read, State::None, State::ReadWrite][ctx.rng.below(3)]),
        0..3 => Change::Map([State::ReadWrite, State::ReadWrite, State::Read][ctx.rng.below(3)]),
        _ => Change::Unmap,
    };
    owner.change(ctx, slots, change)
}
