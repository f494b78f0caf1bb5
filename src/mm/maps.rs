//! The listing of mappings, as in `/proc/PID/maps`.

use super::{Mm, Prot};
use crate::addr::{PAGE_SHIFT, PageRange, VirtAddr};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::vma::{Hold, Segment, VmaFlags, VmaRead};
use std::fmt;

/// One mapping; displays as a line of `/proc/PID/maps`, without its newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapsEntry {
    /// The addresses.
    pub range: PageRange,
    /// The protection.
    pub prot: Prot,
    /// All flags.
    pub flags: VmaFlags,
    /// Offset in the file, in bytes; 0 for private anonymous memory.
    pub offset: u64,
    /// What tells one file from another; 0: none.
    pub file: usize,
    /// The VMA's incarnation (not displayed).
    pub incarnation: u64,
}

impl fmt::Display for MapsEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bit = |bit, c| if self.prot.contains(bit) { c } else { '-' };
        write!(
            f,
            "{:08x}-{:08x} {}{}{}{} {:08x} 00:00 0 ",
            self.range.start().get(),
            self.range.end().get(),
            bit(Prot::READ, 'r'),
            bit(Prot::WRITE, 'w'),
            bit(Prot::EXEC, 'x'),
            if self.flags.contains(VmaFlags::MAYSHARE) { 's' } else { 'p' },
            self.offset,
        )
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// Every mapping, ascending, all as of one moment.
    pub fn maps(&self) -> Vec<MapsEntry> {
        let read = self.core.mmap_read();
        let entry = |entry| {
            let vma = read.vma(entry);
            MapsEntry::of(&vma.segment(), vma.incarnation())
        };
        read.snapshot().iter().map(entry).collect()
    }

    /// The mapping that holds `addr`, as of one moment (PROCMAP_QUERY). Takes the
    /// VMA's own lock where the scheme has one, like a fault, and the mmap lock
    /// if that does not work.
    pub fn query(&self, addr: VirtAddr) -> Option<MapsEntry> {
        if S::PER_VMA
            && let Ok(vma) = S::lock_vma_under_rcu(self.core(), addr)
        {
            // SAFETY: the scheme has read-locked it, attached to our mm.
            let vma = unsafe { VmaRead::new(self.core(), vma, Hold::Vma) };
            return Some(MapsEntry::of(&vma.segment(), vma.incarnation()));
        }
        let read = self.core.mmap_read();
        let vma = read.vma(read.snapshot().entry_at(addr)?);
        Some(MapsEntry::of(&vma.segment(), vma.incarnation()))
    }
}

impl MapsEntry {
    fn of(segment: &Segment, incarnation: u64) -> MapsEntry {
        MapsEntry {
            range: segment.range,
            prot: segment.flags.prot(),
            flags: segment.flags,
            offset: if segment.is_anonymous() { 0 } else { segment.pgoff << PAGE_SHIFT },
            file: segment.file.map_or(0, |file| file.as_ptr().addr()),
            incarnation,
        }
    }
}
