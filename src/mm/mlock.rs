//! `mlock` and its family. Pages here are never swapped: locking a mapping
//! makes its pages present, counts them against the limit, and keeps them from
//! being given up.

use super::Mm;
use super::core::MmapWrite;
use super::modify::Modify;
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use crate::fault::Signal;
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::rcu;
use crate::vma::{Segment, VmaFlags};
use nix::errno::Errno;

/// MLOCK_ONFAULT of `mlock2`.
const MLOCK_ONFAULT: u32 = 1;
/// MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT of `mlockall`.
const MCL: [u32; 3] = [1, 2, 4];

/// Bytes rounded up to pages, wrapping as the kernel's arithmetic does.
fn page_align(bytes: usize) -> usize {
    bytes.wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1)
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `mlock(2)`
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.6). EPERM: nothing may be locked. ENOMEM:
    /// over the limit, part of the range not mapped (what lies before is locked),
    /// pages that cannot be had (the mapping is locked). EINVAL: the range wraps.
    pub fn mlock(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.do_mlock(addr, len, VmaFlags::LOCKED)
    }

    /// `mlock2(2)`: with MLOCK_ONFAULT (1) pages come as they are touched.
    ///
    /// # Errors
    /// As `mlock`, and EINVAL: unknown flags.
    pub fn mlock2(&self, addr: usize, len: usize, flags: u32) -> Result<(), Errno> {
        match flags {
            0 => self.do_mlock(addr, len, VmaFlags::LOCKED),
            MLOCK_ONFAULT => self.do_mlock(addr, len, VmaFlags::LOCK),
            _ => Err(Errno::EINVAL),
        }
    }

    fn do_mlock(&self, addr: usize, len: usize, flags: VmaFlags) -> Result<(), Errno> {
        let core = self.core();
        if !core.can_do_mlock() {
            return Err(Errno::EPERM);
        }
        let len = page_align(len.wrapping_add(addr % PAGE_SIZE));
        let start = VirtAddr(addr).page();
        {
            let mut write = core.mmap_write();
            if let Some(max) = core.memlock_pages() {
                let mut locked = (len >> PAGE_SHIFT) as u64 + core.locked_vm();
                if locked > max {
                    locked -= locked_in(&write, start, len);
                }
                if locked > max {
                    return Err(Errno::ENOMEM);
                }
            }
            self.apply_lock_flags(&mut write, start, len, flags)?;
        }
        rcu::poll();
        match self.mm_populate(PageRange::sized(start, len), false) {
            Ok(()) => Ok(()),
            // Out of memory is EAGAIN, and everything else out of memory.
            Err(Signal::Bus | Signal::AccErr | Signal::MapErr) => Err(Errno::ENOMEM),
        }
    }

    /// `munlock(2)`
    ///
    /// # Errors
    /// ENOMEM: part of the range not mapped. EINVAL: it wraps.
    pub fn munlock(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let len = page_align(len.wrapping_add(addr % PAGE_SIZE));
        let result =
            self.apply_lock_flags(&mut self.core().mmap_write(), VirtAddr(addr).page(), len, VmaFlags::empty());
        rcu::poll();
        result
    }

    /// `apply_vma_lock_flags`
    fn apply_lock_flags(
        &self,
        write: &mut MmapWrite<'_, S>,
        start: VirtAddr,
        len: usize,
        flags: VmaFlags,
    ) -> Result<(), Errno> {
        let end = start.get().checked_add(len).ok_or(Errno::EINVAL)?;
        if len == 0 {
            return Ok(());
        }
        let range = PageRange::new(start, VirtAddr(end));
        if !write.snapshot().next(start).is_some_and(|e| e.range.contains(start)) {
            return Err(Errno::ENOMEM);
        }
        self.modify_locks(write, range, Some(Errno::ENOMEM), flags)
    }

    /// Gives every VMA in `range` the lock flags `flags` (`mlock_fixup`).
    fn modify_locks(
        &self,
        write: &mut MmapWrite<'_, S>,
        range: PageRange,
        hole: Option<Errno>,
        flags: VmaFlags,
    ) -> Result<(), Errno> {
        let (affected, overlap) = write.affected(range);
        self.settle_anon_vmas(write, &affected);
        let judge = |old: &Segment, _| {
            let droppable = old.flags.contains(VmaFlags::DROPPABLE);
            Ok(if droppable { old.flags } else { (old.flags - VmaFlags::LOCK) | flags })
        };
        let (modify, stopped) = Modify::lay_out(self.core(), &affected, overlap, range, hole, judge);
        if let Some(prepared) = write.prepare(&affected, &modify.layout, None)? {
            drop(write.commit(prepared));
        }
        stopped
    }

    /// `mlockall(2)`: MCL_CURRENT 1, MCL_FUTURE 2, MCL_ONFAULT 4.
    ///
    /// # Errors
    /// EINVAL: no flags, unknown flags, ONFAULT alone. EPERM: nothing may be
    /// locked. ENOMEM: over the limit.
    pub fn mlockall(&self, flags: u32) -> Result<(), Errno> {
        let [current, future, onfault] = MCL.map(|bit| flags & bit != 0);
        if flags & !7 != 0 || !(current || future) {
            return Err(Errno::EINVAL);
        }
        let core = self.core();
        if !core.can_do_mlock() {
            return Err(Errno::EPERM);
        }
        {
            let mut write = core.mmap_write();
            if current && core.memlock_pages().is_some_and(|max| core.total_vm() > max) {
                return Err(Errno::ENOMEM);
            }
            let lock = if onfault { VmaFlags::LOCK } else { VmaFlags::LOCKED };
            core.set_def_flags(if future { lock } else { VmaFlags::empty() });
            if current {
                // Errors are ignored: what can be locked is.
                let _ = self.modify_locks(&mut write, self.range(), None, lock);
            }
        }
        rcu::poll();
        if current {
            let _ = self.mm_populate(self.range(), true);
        }
        Ok(())
    }

    /// `munlockall(2)`
    pub fn munlockall(&self) {
        let mut write = self.core().mmap_write();
        self.core().set_def_flags(VmaFlags::empty());
        let _ = self.modify_locks(&mut write, self.range(), None, VmaFlags::empty());
        drop(write);
        rcu::poll();
    }
}

/// Pages in the range that are locked already (`count_mm_mlocked_page_nr`).
fn locked_in<S: LockScheme>(write: &MmapWrite<'_, S>, start: VirtAddr, len: usize) -> u64 {
    let end = VirtAddr(start.get().saturating_add(len)).page();
    let (affected, overlap) = write.affected(PageRange::new(start, end.max(start)));
    let part = |vma: &crate::vma::VmaRef<'_, S>| {
        let segment = vma.segment();
        let locked = segment.flags.contains(VmaFlags::LOCKED);
        if locked { segment.range.intersect(PageRange::new(start, end)).pages() as u64 } else { 0 }
    };
    affected[overlap].iter().map(part).sum()
}
