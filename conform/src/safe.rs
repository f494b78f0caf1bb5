//! Which steps the host's child may run: those that stay in the window, or fail.
//!
//! Outside of the window lie, on the host, the child's own memory and the
//! mappings that fill its address space; in vmalab there is nothing. So a step
//! that reaches out would do harm, or at least find something else. What that
//! leaves out is listed in [`EXCLUSIONS`](crate::coverage::EXCLUSIONS).

use crate::PAGE;
use crate::op::{At, Base, Op, Place};
use vmalab::addr::page_align_up;

/// No address of user space, and no length that ends in it, is as large.
const HUGE: usize = 1 << 47;
/// A length so long that with any window it wraps.
const WRAPS: usize = usize::MAX - (1 << 46);
const FIXED: u32 = 0x10 | 0x10_0000;
/// MREMAP_FIXED and MREMAP_DONTUNMAP: the new address is looked at.
const MREMAP_TO: u32 = 2 | 4;

/// Whether the step may run.
pub fn is_safe(op: &Op, place: Place) -> bool {
    let bytes = place.bytes();
    match *op {
        // `get_unmapped_area` hands the address on, and a last one is taken for an errno.
        Op::Mmap { addr, flags, .. }
            if flags & FIXED != 0 && addr.base == Base::Abs && addr.offset > -4096 && addr.offset < 0 =>
        {
            false
        }
        Op::Mmap { addr, len, flags, .. } if flags & FIXED != 0 => {
            // Page 0 is below `vm.mmap_min_addr`.
            inside(addr, len, bytes) || beyond(addr, len) || addr.base == Base::Abs && addr.offset == 0 && len <= PAGE
        }
        // vmalab raises a low hint to the region's start, the host to `vm.mmap_min_addr`.
        Op::Mmap { addr, .. } => match addr.base {
            Base::Window => true,
            Base::Top => addr.offset >= 0,
            Base::Abs => !(PAGE..HUGE).contains(&(addr.offset as usize)),
        },
        Op::Munmap { addr, len } => inside(addr, len, bytes) || beyond(addr, len),
        Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
            let target = flags & MREMAP_TO == 0 || inside(new_addr, new_len, bytes) || beyond(new_addr, new_len);
            let hint = new_addr.base != Base::Abs || new_addr.offset as usize <= PAGE;
            // (A length of 0 still names the page at `addr`.)
            inside(addr, old_len.max(1), bytes) && target && hint
        }
        Op::Mprotect { addr, len, .. }
        | Op::Madvise { addr, len, .. }
        | Op::Msync { addr, len, .. }
        | Op::Mincore { addr, len }
        | Op::Mlock { addr, len }
        | Op::Mlock2 { addr, len, .. }
        | Op::Munlock { addr, len }
        | Op::Mseal { addr, len, .. } => inside(addr, len, bytes) || wraps(addr, len) || above(addr, len),
        // The mappings that fill the host's address space are over every limit.
        Op::Mlockall { flags } => flags & 1 == 0 || place == Place::Privileged,
        Op::Brk { to } => match to.base {
            // What the end of the region means to the last page differs.
            Base::Window => (0..=(bytes - 2 * PAGE) as i64).contains(&to.offset),
            Base::Top => to.offset > 0,
            Base::Abs => (to.offset as usize) <= PAGE,
        },
        Op::Load { addr } | Op::Store { addr, .. } => access_inside(addr, 8, bytes),
        Op::LoadByte { addr } | Op::StoreByte { addr, .. } => access_inside(addr, 1, bytes),
        Op::Munlockall | Op::Fork | Op::SetLimit { .. } => true,
    }
}

/// The pages of the range lie in the window, or it is no range and unaligned there.
fn inside(addr: At, len: usize, bytes: usize) -> bool {
    let (Ok(start), Some(len)) = (usize::try_from(addr.offset), page_align_up(len)) else { return false };
    addr.base == Base::Window && start.checked_add(len).is_some_and(|end| end <= bytes)
}

fn access_inside(addr: At, len: i64, bytes: usize) -> bool {
    addr.base == Base::Window && (0..=bytes as i64 - len).contains(&addr.offset)
}

/// Above user space's end, where nothing is; not so far that a sum wraps.
fn above(addr: At, len: usize) -> bool {
    match addr.base {
        Base::Top => addr.offset >= 0 && len <= HUGE,
        Base::Abs => addr.offset as usize >= HUGE || addr.offset as usize + len.min(HUGE) <= PAGE,
        Base::Window => false,
    }
}

/// Too long for user space, for calls that look at that first.
fn beyond(addr: At, len: usize) -> bool {
    match addr.base {
        Base::Window => addr.offset >= 0 && len >= HUGE,
        Base::Top => i64::try_from(len).map_or(true, |len| addr.offset.saturating_add(len) > 0),
        Base::Abs => above(addr, len),
    }
}

/// So long that the end comes before the start, or at it.
fn wraps(addr: At, len: usize) -> bool {
    addr.base == Base::Window && addr.offset >= 0 && len >= WRAPS
}
