//! vmalab against the host kernel: the same random calls on both, compared
//! after each.
//!
//! A [`Sequence`](op::Sequence) of [`Op`](op::Op)s runs as real system calls in
//! a child process whose only free addresses are a scratch window ([`host`]),
//! and on a fresh address space whose region has the window's size
//! ([`emulated`]). After each step both sides note the answer or errno, the
//! VMA list, which pages are present, their contents, and the signal of an
//! access ([`observe`]). The first difference ends the sequence, is shrunk
//! ([`mod@shrink`]) and printed as a Rust test that can be pasted.
//!
//! | file | what |
//! |---|---|
//! | [`op`] | steps, operands, sequences |
//! | [`generate`] | random sequences, weighted towards edges |
//! | [`safe`] | which steps the host's child may run |
//! | [`host`] | the host's side |
//! | [`emulated`] | vmalab's side |
//! | [`observe`] | what is compared |
//! | [`remote`] | the processes in which both run |
//! | [`run`] | the loop |
//! | [`mod@shrink`] | from a divergence to the shortest sequence |
//! | [`concurrent`] | several threads at once, against all serial orders |
//! | [`coverage`] | which errnos were reached, and what is left out |

pub mod concurrent;
pub mod coverage;
pub mod emulated;
pub mod generate;
pub mod host;
mod names;
pub mod observe;
pub mod op;
mod pagemap;
pub mod profile;
pub mod remote;
pub mod run;
pub mod safe;
pub mod shrink;

pub use run::{Config, Delivery, Divergence, Error, Lock, Report, Runner, check, check_in};

/// For pasted tests.
pub mod prelude {
    pub use crate::op::Limit::*;
    pub use crate::op::Op::*;
    pub use crate::op::Place::*;
    pub use crate::op::Slot::*;
    pub use crate::op::{Setup, abs, top, win};
    pub use crate::{check, check_in};
}

/// Bytes of a page.
pub const PAGE: usize = vmalab::addr::PAGE_SIZE;

/// Pages that `mincore` may be asked about.
pub(crate) const MINCORE_MAX: usize = 2048;

/// A number for bytes: what `mincore` wrote, or a page.
pub(crate) fn fold(bytes: &[u8]) -> u64 {
    // FNV-1a, eight bytes at a time.
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_ne_bytes(*word));
    let all = words.chain(rest.iter().map(|&byte| u64::from(byte)));
    all.fold(0xcbf2_9ce4_8422_2325, |hash, word| {
        let hash = (hash ^ word).wrapping_mul(0x100_0000_01b3);
        // What only the upper bits tell must reach the lower ones.
        hash ^ hash >> 32
    })
}

#[cfg(test)]
mod tests {
    use super::fold;

    #[test]
    fn any_bit_changes_the_number() {
        let plain = [0x11u8; 21];
        for bit in 0..8 * plain.len() {
            let mut other = plain;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(fold(&plain), fold(&other), "bit {bit}");
        }
    }
}
