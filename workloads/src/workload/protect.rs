//! `protect`: mutators flip parts of their mappings between read-write,
//! read-only and no access, splitting and merging them, while fault threads
//! load and store there. Garbage collectors (read barriers by PROT_NONE), JITs
//! (W^X) and databases that guard their buffers do this. With `--verify`: no
//! store after the mprotect that forbids it has returned, and nothing is lost
//! while it is out of sight.

use super::{Grids, Workload};
use crate::ctx::{Ctx, Fail, Flow};
use crate::shared::{Plan, Shared};
use crate::target::Target;
use crate::verify::grid::{Change, Owner, Shape};
use crate::verify::shadow::State;

const SHAPE: Shape = Shape { cells: 4, slots_per_cell: 8, pages_per_slot: 2 };

pub(super) struct Protect(Grids);

impl Workload for Protect {
    fn region_bytes(plan: &Plan) -> usize {
        plan.workers() * SHAPE.bytes()
    }

    fn new<T: Target>(shared: &Shared<T>) -> Result<Protect, Fail> {
        Ok(Protect(Grids::one_each(shared, SHAPE)))
    }

    fn fault_thread<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        self.0.access_until_stopped(ctx)
    }

    fn mutator<T: Target>(&self, ctx: &mut Ctx<T>) -> Flow {
        let mut owner = Owner::new(&self.0.of_mutator(ctx.index)[0]);
        owner.map_all(ctx, State::ReadWrite)?;
        while ctx.go() {
            let slots = owner.some_slots(ctx);
            // Read-write half of the time: faults need pages that they may touch.
            let state = [State::ReadWrite, State::ReadWrite, State::Read, State::None][ctx.rng.below(4)];
            owner.change(ctx, slots, Change::Protect(state))?;
        }
        Ok(())
    }
}
