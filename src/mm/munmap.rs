//! `munmap`.

use super::Mm;
use super::core::page_range;
use crate::addr::{PageRange, VirtAddr, page_align_up};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::rcu;
use crate::vma::plan::Layout;
use nix::errno::Errno;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `munmap(2)`: removes every mapping in the range, cutting those that
    /// reach out of it. A range with nothing in it is no error.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.2). EINVAL: unaligned address, length 0,
    /// beyond the end. ENOMEM: a cut in the middle of one mapping at the map
    /// count limit, or no memory; nothing changed.
    pub fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let end = self.range().end().get();
        if addr > end || len > end - addr {
            return Err(Errno::EINVAL);
        }
        let len = page_align_up(len).ok_or(Errno::EINVAL)?;
        let range = page_range(VirtAddr(addr), len).filter(|r| !r.is_empty()).ok_or(Errno::EINVAL)?;
        let result = self.do_munmap(range);
        rcu::poll();
        result
    }

    /// `do_vmi_align_munmap`, with the lock downgraded for the pages.
    fn do_munmap(&self, range: PageRange) -> Result<(), Errno> {
        let mut write = self.core.mmap_write();
        let (affected, overlap) = write.affected(range);
        if overlap.is_empty() {
            return Ok(());
        }
        let mut layout = Layout::new();
        for (place, vma) in affected.iter().enumerate() {
            let old = vma.segment();
            let left = old.part(PageRange::new(VirtAddr(0), range.start()));
            let right = old.part(PageRange::new(range.end(), VirtAddr(usize::MAX).page()));
            if overlap.contains(&place) {
                let cut = !left.range.is_empty() && !right.range.is_empty();
                if cut && self.core.map_count() >= self.core.map_count_max() {
                    return Err(Errno::ENOMEM);
                }
            }
            layout.keep(place, left);
            layout.keep(place, right);
        }
        let prepared = write.prepare(&affected, &layout).ok_or(Errno::ENOMEM)?.expect("a VMA overlaps");
        let touched = prepared.touched_in(range);
        let (detached, _) = write.commit(prepared);
        // The VMAs are drained, detached and out of the tree, so no fault can
        // bring a page back; and no mmap can reuse the range before the read
        // lock goes (I10, B20). All VMA write locks end here.
        let read = write.downgrade();
        if let Some(touched) = touched {
            self.mmu.zap(touched);
        }
        drop(read);
        drop(detached);
        Ok(())
    }
}
