//! Making pages present ahead of their use: `mm_populate`, for MAP_POPULATE
//! and `mlock`, and MADV_POPULATE_READ and _WRITE.

use super::Mm;
use crate::addr::{PageRange, VirtAddr};
use crate::fault::{Access, Outcome, Signal};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::vma::{Segment, VmaFlags};
use nix::errno::Errno;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// What is mapped at `addr` or, if nothing is, next above it.
    pub(super) fn segment_from(&self, addr: VirtAddr) -> Option<Segment> {
        let read = self.core().mmap_read();
        let entry = read.snapshot().next(addr)?;
        Some(read.vma(entry).segment())
    }

    /// Makes every page of `range` present, for writing where that is
    /// permitted (`mm_populate`). What is not mapped is passed over.
    ///
    /// # Errors
    /// The signal that the first page which cannot be had would earn; the
    /// pages before it are present.
    pub fn populate(&self, range: PageRange) -> Result<(), Signal> {
        self.mm_populate(range, false)
    }

    /// `populate`; with `ignore_errors` a VMA whose pages cannot be had is
    /// passed over (`__mm_populate`).
    pub(super) fn mm_populate(&self, range: PageRange, ignore_errors: bool) -> Result<(), Signal> {
        let mut at = range.start();
        while at < range.end()
            && let Some(vma) = self.segment_from(at).filter(|vma| vma.range.start() < range.end())
        {
            let part = vma.range.intersect(range);
            let part = PageRange::new(part.start().max(at), part.end());
            let result = self.populate_vma(&vma, part);
            if !ignore_errors {
                result?;
            }
            at = part.end();
        }
        Ok(())
    }

    /// `populate_vma_page_range`
    fn populate_vma(&self, vma: &Segment, range: PageRange) -> Result<(), Signal> {
        if vma.flags.contains(VmaFlags::LOCKONFAULT) {
            return Ok(());
        }
        let write = vma.flags & (VmaFlags::WRITE | VmaFlags::SHARED) == VmaFlags::WRITE;
        range.iter_pages().try_for_each(|page| self.fault_in(page, write))
    }

    /// Makes one page present, for a load or a store (`handle_mm_fault` as
    /// `get_user_pages` calls it: under the mmap lock).
    fn fault_in(&self, page: VirtAddr, write: bool) -> Result<(), Signal> {
        // A page that is there already, and is to be written, may be protected.
        let faults = [Access { write, present: false }, Access { write, present: true }];
        for access in &faults[..1 + usize::from(write)] {
            if let Outcome::Signal(signal) = self.mmap_lock_fault(page, *access) {
                return Err(signal);
            }
        }
        Ok(())
    }

    /// `madvise_populate`
    pub(super) fn madvise_populate(&self, range: PageRange, write: bool) -> Result<(), Errno> {
        let mut at = range.start();
        while at < range.end() {
            let vma = self.segment_from(at).filter(|vma| vma.range.contains(at)).ok_or(Errno::ENOMEM)?;
            if !vma.flags.contains(if write { VmaFlags::WRITE } else { VmaFlags::READ }) {
                return Err(Errno::EINVAL);
            }
            let end = vma.range.end().min(range.end());
            for page in PageRange::new(at, end).iter_pages() {
                self.fault_in(page, write).map_err(|_| Errno::EFAULT)?;
            }
            at = end;
        }
        Ok(())
    }
}
