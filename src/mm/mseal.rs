//! `mseal`: range and protection may not change any more.

use super::Mm;
use super::core::page_range;
use super::madvise::has_hole;
use super::modify::Modify;
use crate::addr::{VirtAddr, page_align_up};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::rcu;
use crate::vma::{Segment, VmaFlags};
use nix::errno::Errno;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `mseal(2)`. From then on munmap, mprotect, mremap and MAP_FIXED of the
    /// mappings are EPERM, as is giving up contents that cannot be written.
    ///
    /// # Errors
    /// As Linux 6.18. EINVAL: flags, an unaligned address, a range that wraps.
    /// ENOMEM: part of the range is not mapped, and nothing is sealed; or the
    /// map count.
    pub fn mseal(&self, addr: usize, len: usize, flags: u64) -> Result<(), Errno> {
        if flags != 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_align_up(len).ok_or(Errno::EINVAL)?;
        let range = page_range(VirtAddr(addr), len).ok_or(Errno::EINVAL)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut write = self.core().mmap_write();
        let (affected, overlap) = write.affected(range);
        if has_hole(&affected, &overlap, range) {
            return Err(Errno::ENOMEM);
        }
        self.settle_anon_vmas(&write, &affected);
        let judge = |old: &Segment, _| Ok(old.flags | VmaFlags::SEALED);
        let (modify, stopped) = Modify::lay_out(self.core(), &affected, overlap, range, None, judge);
        if let Some(prepared) = write.prepare(&affected, &modify.layout, None)? {
            drop(write.commit(prepared));
        }
        drop(write);
        rcu::poll();
        stopped
    }
}
