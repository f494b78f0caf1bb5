//! `mprotect`.

use super::core::{MmapWrite, page_range};
use super::modify::Modify;
use super::{Mm, Prot};
use crate::addr::{PageRange, VirtAddr, page_align_up};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::rcu;
use crate::trace::{Event, Operation};
use crate::vma::{Segment, VmaFlags, VmaRef};
use nix::errno::Errno;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `mprotect(2)`: splits and merges mappings as needed. When it has
    /// returned, no access that it forbids can succeed any more.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.3). EINVAL: unaligned address, GROWSDOWN
    /// with GROWSUP or on a mapping that does not grow, unknown bits. ENOMEM: the
    /// range wraps, or part of it is not mapped (what lies before the hole is
    /// changed all the same), the map count, or no memory. EACCES: a right that
    /// the mapping may never have. EPERM: a sealed mapping (those before it are changed).
    pub fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        let _op = Operation::begin(Event::Mprotect, Event::MprotectReturn, addr, len);
        let grows = prot & (Prot::GROWSDOWN | Prot::GROWSUP);
        if grows == Prot::GROWSDOWN | Prot::GROWSUP || !VirtAddr(addr).is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let len = page_align_up(len).ok_or(Errno::ENOMEM)?;
        let range = page_range(VirtAddr(addr), len).filter(|r| !r.is_empty()).ok_or(Errno::ENOMEM)?;
        let known = Prot::READ | Prot::WRITE | Prot::EXEC | Prot::SEM;
        if !known.contains(prot - grows) {
            return Err(Errno::EINVAL);
        }
        let result = self.do_mprotect(range, prot);
        rcu::poll();
        result
    }

    /// `do_mprotect_pkey`
    fn do_mprotect(&self, range: PageRange, prot: Prot) -> Result<(), Errno> {
        let mut write = self.core().mmap_write();
        let range = self.grown_range(&write, range, prot)?;
        let (affected, overlap) = write.affected(range);
        let unlocks_writes = |old: &Segment| {
            let relevant = VmaFlags::WRITE | VmaFlags::SHARED | VmaFlags::LOCKED;
            prot.contains(Prot::WRITE) && old.flags & relevant == VmaFlags::LOCKED
        };
        if affected[overlap].iter().any(|vma| unlocks_writes(&vma.segment())) {
            drop(write);
            return self.protect_locked(range, prot);
        }
        self.protect_within(&mut write, range, prot)
    }

    /// Locked private memory that becomes writable has its pages to itself at
    /// once, so that no store to it has to wait; VMA by VMA, which decides what
    /// merges. (The kernel holds the mmap lock throughout; here pages are made
    /// present without it.)
    fn protect_locked(&self, range: PageRange, prot: Prot) -> Result<(), Errno> {
        let mut at = range.start();
        while at < range.end() {
            let mut write = self.core().mmap_write();
            let snapshot = write.snapshot();
            let next = snapshot.next(at).filter(|next| next.range.contains(at)).ok_or(Errno::ENOMEM)?;
            // SAFETY: in the tree, so attached, and the mmap lock is held.
            let old = unsafe { VmaRef::<S>::new(next.ptr) }.segment();
            let part = PageRange::new(at, next.range.end().min(range.end()));
            self.protect_within(&mut write, part, prot)?;
            drop(write);
            let relevant = VmaFlags::WRITE | VmaFlags::SHARED | VmaFlags::LOCKED;
            if old.flags & relevant == VmaFlags::LOCKED {
                let _ = self.mm_populate(part, true);
            }
            at = part.end();
        }
        Ok(())
    }

    fn protect_within(&self, write: &mut MmapWrite<'_, S>, range: PageRange, prot: Prot) -> Result<(), Errno> {
        let (affected, overlap) = write.affected(range);
        self.settle_anon_vmas(write, &affected);
        // Pages of this call's VMAs that become data.
        let mut data = 0;
        let judge = |old: &Segment, piece: PageRange| {
            let flags = self.judge(old, piece, prot, data)?;
            if flags.is_data() && !old.flags.is_data() {
                data += piece.pages() as u64;
            }
            Ok(flags)
        };
        let (modify, stopped) = Modify::lay_out(self.core(), &affected, overlap, range, Some(Errno::ENOMEM), judge);
        if let Some(prepared) = write.prepare(&affected, &modify.layout, None)? {
            // Faults are drained from every VMA that changes, and kept out
            // until the write section ends: no page can be installed under the
            // old protection after this (I9, R26).
            self.change_protection(&modify.changes, |range| prepared.touched_in(range))?;
            drop(write.commit(prepared));
        }
        stopped
    }

    /// The range that is meant, with PROT_GROWSDOWN from the start of the stack on.
    fn grown_range(&self, write: &MmapWrite<'_, S>, range: PageRange, prot: Prot) -> Result<PageRange, Errno> {
        let snapshot = write.snapshot();
        let first = snapshot.next(range.start()).ok_or(Errno::ENOMEM)?.ptr;
        // SAFETY: in the tree, so attached, and the mmap lock is held.
        let first = unsafe { VmaRef::<S>::new(first) }.segment();
        if prot.contains(Prot::GROWSDOWN) {
            if first.range.start() >= range.end() {
                return Err(Errno::ENOMEM);
            }
            if !first.flags.contains(VmaFlags::GROWSDOWN) {
                return Err(Errno::EINVAL);
            }
            return Ok(PageRange::new(first.range.start(), range.end()));
        }
        if first.range.start() > range.start() {
            return Err(Errno::ENOMEM);
        }
        // No mapping grows upwards on this machine.
        if prot.contains(Prot::GROWSUP) { Err(Errno::EINVAL) } else { Ok(range) }
    }

    /// What one VMA's flags become, or why the call stops before it
    /// (`mprotect_fixup`). `data` pages of those before it become data.
    fn judge(&self, old: &Segment, piece: PageRange, prot: Prot, data: u64) -> Result<VmaFlags, Errno> {
        let access = VmaFlags::from_prot(prot);
        // MAYREAD is READ << 4, and so on.
        if access.bits() & !(old.flags.bits() >> 4) != 0 {
            return Err(Errno::EACCES);
        }
        if old.flags.contains(VmaFlags::SEALED) {
            return Err(Errno::EPERM);
        }
        let mut flags = (old.flags - VmaFlags::ACCESS) | access;
        if flags == old.flags {
            return Ok(flags);
        }
        if flags.contains(VmaFlags::WRITE) {
            let (core, pages) = (self.core(), piece.pages() as u64);
            let may_expand = |flags| core.may_expand_vm_beside(data, flags, pages);
            if !may_expand(flags) && may_expand(old.flags) {
                return Err(Errno::ENOMEM);
            }
            let free = VmaFlags::ACCOUNT | VmaFlags::WRITE | VmaFlags::SHARED | VmaFlags::NORESERVE;
            if !old.flags.intersects(free) {
                flags |= VmaFlags::ACCOUNT;
            }
        } else if old.is_anonymous() && old.anon_vma == 0 {
            // Never written: its charge is given back.
            flags -= VmaFlags::ACCOUNT;
        }
        Ok(flags)
    }
}
