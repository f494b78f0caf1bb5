//! The listing of mappings, as in `/proc/PID/maps`.

use super::{Mm, Prot};
use crate::addr::PageRange;
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use std::fmt;

/// One mapping; displays as a line of `/proc/PID/maps`, without its newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapsEntry {
    /// The addresses.
    pub range: PageRange,
    /// The protection.
    pub prot: Prot,
    /// The VMA's incarnation (not displayed).
    pub incarnation: u64,
}

impl fmt::Display for MapsEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |bit, c| if self.prot.contains(bit) { c } else { '-' };
        write!(
            f,
            "{:08x}-{:08x} {}{}{}p 00000000 00:00 0 ",
            self.range.start().get(),
            self.range.end().get(),
            bit(Prot::READ, 'r'),
            bit(Prot::WRITE, 'w'),
            bit(Prot::EXEC, 'x'),
        )
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// Every mapping, ascending, all as of one moment.
    pub fn maps(&self) -> Vec<MapsEntry> {
        let read = self.core.mmap_read();
        let entry = |entry| {
            let vma = read.vma(entry);
            let segment = vma.segment();
            MapsEntry { range: segment.range, prot: segment.flags.prot(), incarnation: vma.incarnation() }
        };
        read.snapshot().iter().map(entry).collect()
    }
}
