//! From a divergence to the shortest sequence that still shows one.
//!
//! First everything after the divergence goes, then steps are left out, in
//! large pieces and then one by one (delta debugging), then operands become
//! simpler. Any divergence counts, not only the first one found: it may be a
//! simpler sign of the same fault.

use crate::PAGE;
use crate::emulated::supports;
use crate::op::{At, Base, Op, Sequence, Slot};
use crate::safe::is_safe;

/// Shrinks `sequence`. `diverges` runs a candidate and says at which step it
/// differs, if it does.
pub fn shrink(sequence: Sequence, mut diverges: impl FnMut(&Sequence) -> Option<usize>) -> Sequence {
    let mut best = sequence;
    let mut attempt = |best: &mut Sequence, ops: Vec<Op>| {
        let mut candidate = Sequence { setup: best.setup, ops };
        match diverges(&candidate) {
            Some(step) => {
                candidate.ops.truncate(step + 1);
                *best = candidate;
                true
            }
            None => false,
        }
    };
    loop {
        let before = best.clone();
        let mut piece = best.ops.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < best.ops.len() {
                let mut ops = best.ops.clone();
                ops.drain(at..(at + piece).min(best.ops.len()));
                if !attempt(&mut best, ops) {
                    at += piece;
                }
            }
            if piece == 1 {
                break;
            }
            piece = piece.div_ceil(2);
        }
        for at in 0..best.ops.len() {
            // What was found may be shorter than what we began with.
            let mut tried = 0;
            while let Some(&op) = best.ops.get(at)
                && let Some(simpler) =
                    simpler(op).into_iter().filter(|op| is_safe(op, best.setup.place) && supports(op)).nth(tried)
            {
                let mut ops = best.ops.clone();
                ops[at] = simpler;
                if attempt(&mut best, ops) { tried = 0 } else { tried += 1 }
            }
        }
        if best == before {
            return best;
        }
    }
}

/// Simpler operands, the simplest first; each is smaller in some order, so
/// that this ends.
fn simpler(op: Op) -> Vec<Op> {
    let mut all = Vec::new();
    match op {
        Op::Mmap { addr, len, prot, flags, file, offset } => {
            all.extend(addrs(addr).map(|addr| Op::Mmap { addr, len, prot, flags, file, offset }));
            all.extend(lens(len).map(|len| Op::Mmap { addr, len, prot, flags, file, offset }));
            all.extend(bits(flags).map(|flags| Op::Mmap { addr, len, prot, flags, file, offset }));
            all.extend(bits(prot).map(|prot| Op::Mmap { addr, len, prot, flags, file, offset }));
            if file != Slot::NoFile {
                all.push(Op::Mmap { addr, len, prot, flags, file: Slot::NoFile, offset });
            }
            if offset != 0 {
                all.push(Op::Mmap { addr, len, prot, flags, file, offset: 0 });
            }
        }
        Op::Munmap { addr, len } => ranges(addr, len, |addr, len| all.push(Op::Munmap { addr, len })),
        Op::Mprotect { addr, len, prot } => {
            ranges(addr, len, |addr, len| all.push(Op::Mprotect { addr, len, prot }));
            all.extend(bits(prot).map(|prot| Op::Mprotect { addr, len, prot }));
        }
        Op::Mremap { addr, old_len, new_len, flags, new_addr } => {
            ranges(addr, old_len, |addr, old_len| all.push(Op::Mremap { addr, old_len, new_len, flags, new_addr }));
            all.extend(lens(new_len).map(|new_len| Op::Mremap { addr, old_len, new_len, flags, new_addr }));
            if old_len == new_len {
                all.extend(lens(new_len).map(|len| Op::Mremap { addr, old_len: len, new_len: len, flags, new_addr }));
            }
            all.extend(bits(flags).map(|flags| Op::Mremap { addr, old_len, new_len, flags, new_addr }));
            all.extend(addrs(new_addr).map(|new_addr| Op::Mremap { addr, old_len, new_len, flags, new_addr }));
        }
        Op::Madvise { addr, len, advice } => {
            ranges(addr, len, |addr, len| all.push(Op::Madvise { addr, len, advice }));
        }
        Op::Msync { addr, len, flags } => {
            ranges(addr, len, |addr, len| all.push(Op::Msync { addr, len, flags }));
            all.extend(bits(flags).map(|flags| Op::Msync { addr, len, flags }));
        }
        Op::Mincore { addr, len } => ranges(addr, len, |addr, len| all.push(Op::Mincore { addr, len })),
        Op::Mlock { addr, len } => ranges(addr, len, |addr, len| all.push(Op::Mlock { addr, len })),
        Op::Mlock2 { addr, len, flags } => {
            ranges(addr, len, |addr, len| all.push(Op::Mlock2 { addr, len, flags }));
            all.push(Op::Mlock { addr, len });
        }
        Op::Munlock { addr, len } => ranges(addr, len, |addr, len| all.push(Op::Munlock { addr, len })),
        Op::Mlockall { flags } => all.extend(bits(flags).map(|flags| Op::Mlockall { flags })),
        Op::Mseal { addr, len, flags } => ranges(addr, len, |addr, len| all.push(Op::Mseal { addr, len, flags })),
        Op::Brk { to } => all.extend(addrs(to).map(|to| Op::Brk { to })),
        Op::Load { addr } => all.extend(addrs(addr).map(|addr| Op::Load { addr })),
        Op::LoadByte { addr } => all.push(Op::Load { addr: page(addr) }),
        Op::Store { addr, value } => {
            all.extend(addrs(addr).map(|addr| Op::Store { addr, value }));
            if value != 1 {
                all.push(Op::Store { addr, value: 1 });
            }
        }
        Op::StoreByte { addr, value } => all.push(Op::Store { addr: page(addr), value: u64::from(value) }),
        Op::Munlockall | Op::Fork | Op::SetLimit { .. } => {}
    }
    all
}

fn page(at: At) -> At {
    At { offset: at.offset & !(PAGE as i64 - 1), ..at }
}

/// Addresses nearer to the window's start.
fn addrs(at: At) -> impl Iterator<Item = At> {
    let page_size = PAGE as i64;
    let inside = at.base == Base::Window && at.offset > 0;
    let lower = [0, at.offset / 2, at.offset - page_size].map(|offset| page(At { offset: offset.max(0), ..at }));
    lower.into_iter().chain([page(at)]).filter(move |lower| inside && lower.offset < at.offset)
}

fn lens(len: usize) -> impl Iterator<Item = usize> {
    [PAGE, (len / 2) & !(PAGE - 1), len.saturating_sub(PAGE) & !(PAGE - 1)]
        .into_iter()
        .filter(move |l| 0 < *l && *l < len)
}

/// `value` without one of its bits.
fn bits(value: u32) -> impl Iterator<Item = u32> {
    (0..32).rev().map(move |bit| value & !(1 << bit)).filter(move |fewer| *fewer != value)
}

fn ranges(addr: At, len: usize, mut each: impl FnMut(At, usize)) {
    addrs(addr).for_each(|addr| each(addr, len));
    lens(len).for_each(|len| each(addr, len));
    // From the left.
    if addr.base == Base::Window && len > PAGE && len < 1 << 40 {
        each(At { offset: addr.offset + PAGE as i64, ..addr }, len - PAGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Setup, win};

    #[test]
    fn keeps_what_is_needed_and_no_more() {
        let store = |page: usize| Op::Store { addr: win(page * PAGE), value: 9 };
        let ops = (0..40).map(|i| if i == 23 { Op::Fork } else { store(i) }).collect();
        let small = shrink(Sequence { setup: Setup::THOROUGH, ops }, |s| {
            let fork = s.ops.iter().position(|op| *op == Op::Fork)?;
            s.ops[..fork].iter().any(|op| matches!(op, Op::Store { .. })).then_some(fork)
        });
        assert_eq!(small.ops, [Op::Store { addr: win(0), value: 1 }, Op::Fork]);
    }
}
