//! `mincore`: which pages are in memory.

use super::Mm;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use nix::errno::Errno;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `mincore(2)`: sets a byte of `vec` to 1 for each page that is in memory:
    /// of private anonymous memory if it is present, of a file if the file has it.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.6). EINVAL: an unaligned address. ENOMEM:
    /// beyond the end, or part of the range is not mapped (the bytes before are
    /// set).
    ///
    /// # Panics
    /// If `vec` has fewer bytes than the range has pages.
    pub fn mincore(&self, addr: usize, len: usize, vec: &mut [u8]) -> Result<(), Errno> {
        let start = VirtAddr(addr);
        if !start.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let top = self.range().end().get();
        if len > top || addr > top - len {
            return Err(Errno::ENOMEM);
        }
        let range = PageRange::sized(start, len.next_multiple_of(PAGE_SIZE));
        let vec = &mut vec[..range.pages()];
        let place = |page: VirtAddr| (page - start) >> PAGE_SHIFT;
        let read = self.core().mmap_read();
        let mut at = start;
        for entry in read.snapshot().overlapping(range) {
            let vma = read.vma(entry).segment();
            if vma.range.start() > at {
                return Err(Errno::ENOMEM);
            }
            let part = vma.range.intersect(range);
            let bytes = &mut vec[place(part.start())..place(part.start()) + part.pages()];
            bytes.fill(0);
            if let Some(file) = vma.file {
                // SAFETY: the VMA, attached while the mmap lock is held, keeps it.
                let size = unsafe { file.get() }.inode().store().bytes();
                let has = size.div_ceil(PAGE_SIZE as u64).saturating_sub(vma.pgoff_at(part));
                let has = usize::try_from(has).unwrap_or(usize::MAX).min(bytes.len());
                bytes[..has].fill(1);
            }
            self.mmu().presence(part, &mut |run| {
                let run = run.intersect(part);
                vec[place(run.start())..place(run.start()) + run.pages()].fill(1);
            });
            at = vma.range.end();
        }
        if at < range.end() { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}
