//! `msync`: stores to shared file mappings reach the file.

use super::Mm;
use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
use crate::file::FilePage;
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::vma::VmaFlags;
use nix::errno::Errno;

/// MS_ASYNC, MS_INVALIDATE, MS_SYNC.
const ASYNC: u32 = 1;
const INVALIDATE: u32 = 2;
const SYNC: u32 = 4;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `msync(2)`: MS_ASYNC 1, MS_INVALIDATE 2, MS_SYNC 4. Whatever the flags,
    /// the file has what was stored before when the call returns; with SYNC it
    /// is on the medium, too.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.6). EINVAL: unknown flags, ASYNC with
    /// SYNC, an unaligned address. ENOMEM: the range wraps, or part of it is not
    /// mapped (ASYNC alone stops there). EBUSY: INVALIDATE of a locked mapping.
    /// The file's own error.
    pub fn msync(&self, addr: usize, len: usize, flags: u32) -> Result<(), Errno> {
        let start = VirtAddr(addr);
        let both = flags & ASYNC != 0 && flags & SYNC != 0;
        if flags & !(ASYNC | INVALIDATE | SYNC) != 0 || !start.is_page_aligned() || both {
            return Err(Errno::EINVAL);
        }
        let len = len.wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1);
        let end = addr.checked_add(len).ok_or(Errno::ENOMEM)?;
        let range = PageRange::new(start, VirtAddr(end));
        if range.is_empty() {
            return Ok(());
        }
        // Pages stay, so readers of the mmap lock may go on; faults, too.
        let read = self.core().mmap_read();
        let mut result = Ok(());
        let mut at = start;
        for entry in read.snapshot().overlapping(range) {
            let vma = read.vma(entry).segment();
            if vma.range.start() > at {
                result = Err(Errno::ENOMEM);
                if flags == ASYNC {
                    return result;
                }
            }
            if flags & INVALIDATE != 0 && vma.flags.contains(VmaFlags::LOCKED) {
                return Err(Errno::EBUSY);
            }
            if let Some(file) = vma.file.filter(|_| vma.flags.contains(VmaFlags::SHARED)) {
                let part = vma.range.intersect(range);
                // SAFETY: the VMA, attached while the mmap lock is held, keeps it.
                let inode = unsafe { file.get() }.inode();
                self.mmu().sync_file(part, FilePage { inode, index: vma.pgoff_at(part) })?;
                if flags & SYNC != 0 {
                    inode.store().sync()?;
                }
            }
            at = vma.range.end();
        }
        if at < range.end() { Err(Errno::ENOMEM) } else { result }
    }
}
