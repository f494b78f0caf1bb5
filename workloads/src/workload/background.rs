//! What mutators do beside workloads whose threads map for themselves, when
//! `--mutators` asks for any: map, protect and unmap mappings of their own, so
//! that the mmap lock is taken for writing while others fault.

use crate::ctx::{ANON, Ctx, Flow, RW};
use crate::target::Target;
use vmalab::addr::PAGE_SIZE;
use vmalab::mm::{MapFlags, Prot};

/// Pages of one such mapping.
const PAGES: usize = 16;

/// Bytes that one mutator needs.
pub(crate) const BYTES: usize = PAGES * PAGE_SIZE;

/// Where a thread's mappings go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// Where the address space has room: an address of 0.
    Anywhere,
    /// At the start of the thread's own area, for workloads with fixed addresses.
    Area,
}

/// Until the run ends.
pub(crate) fn run<T: Target>(ctx: &mut Ctx<T>, place: Place) -> Flow {
    let (addr, flags) = match place {
        Place::Anywhere => (0, ANON),
        Place::Area => (ctx.area().start().get(), ANON | MapFlags::FIXED_NOREPLACE),
    };
    while ctx.go() {
        let mapping = ctx.map(ctx.mm, addr, BYTES, RW, flags)?;
        if ctx.rng.one_in(4) {
            ctx.mprotect(ctx.mm, mapping.addr + BYTES / 4, BYTES / 2, Prot::READ)?;
        }
        ctx.munmap(ctx.mm, mapping.addr, BYTES)?;
    }
    Ok(())
}
