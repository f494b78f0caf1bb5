//! `mprotect`.

use super::core::page_range;
use super::{Mm, Prot};
use crate::addr::{PageRange, VirtAddr, page_align_up};
use crate::lock::LockScheme;
use crate::mmu::{Mmu, PageAccess};
use crate::pager::Pager;
use crate::rcu;
use crate::vma::plan::Layout;
use crate::vma::{Segment, VmaFlags};
use nix::errno::Errno;
use smallvec::SmallVec;

/// Pages whose hardware protection changes.
struct PageChange {
    range: PageRange,
    from: PageAccess,
    to: PageAccess,
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `mprotect(2)`: splits and merges mappings as needed. When it has
    /// returned, no access that it forbids can succeed any more.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.3). EINVAL: unaligned address, GROWSDOWN
    /// with GROWSUP or on a mapping that does not grow, unknown bits. ENOMEM: the
    /// range wraps, or part of it is not mapped (what lies before the hole is
    /// changed all the same), the map count, or no memory. EACCES: a right that
    /// the mapping may never have.
    pub fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
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
        let mut write = self.core.mmap_write();
        let (affected, overlap) = write.affected(range);
        if let Some(first) = affected[overlap.clone()].first() {
            // No mapping here grows, in either direction.
            let hole = first.segment().range.start() > range.start();
            if prot.contains(Prot::GROWSDOWN) || prot.contains(Prot::GROWSUP) && !hole {
                return Err(Errno::EINVAL);
            }
        }
        let mut layout = Layout::new();
        let mut changes: SmallVec<[PageChange; 4]> = SmallVec::new();
        // How far the range has been dealt with, and the error that stopped it there.
        let mut at = range.start();
        let mut stopped = if overlap.is_empty() { Some(Errno::ENOMEM) } else { None };
        for (place, vma) in affected.iter().enumerate() {
            let old = vma.segment();
            if !overlap.contains(&place) || stopped.is_some() {
                layout.keep(place, old);
                continue;
            }
            let piece = old.part(range);
            let next = affected.get(place + 1).map(|v| v.segment());
            match self
                .judge(&old, at, prot)
                .and_then(|flags| self.judge_split(&old, &Segment { flags, ..piece }, next, &layout, place))
            {
                Err(errno) => {
                    stopped = Some(errno);
                    layout.keep(place, old);
                    continue;
                }
                Ok(flags) if flags == old.flags => layout.keep(place, old),
                Ok(flags) => {
                    layout.keep(place, old.part(PageRange::new(VirtAddr(0), piece.range.start())));
                    layout.change(Some(place), Segment { flags, ..piece });
                    layout.keep(place, old.part(PageRange::new(piece.range.end(), VirtAddr(usize::MAX).page())));
                    let (from, to) = (old.flags.page_access(), flags.page_access());
                    // In a mapping that was never written, pages stay protected,
                    // and the first store faults: it gives the VMA its `anon_vma`.
                    let first_store_faults = to == PageAccess::ReadWrite && old.anon_vma == 0;
                    if from != to && !first_store_faults {
                        changes.push(PageChange { range: piece.range, from, to });
                    }
                }
            }
            at = piece.range.end();
        }
        if stopped.is_none() && at < range.end() {
            stopped = Some(Errno::ENOMEM);
        }
        if let Some(prepared) = write.prepare(&affected, &layout, None)? {
            // Faults are drained from every VMA that changes, and kept out
            // until the write section ends: no page can be installed under the
            // old protection after this (I9, R26).
            for change in &mut changes {
                change.range = prepared.touched_in(change.range).unwrap_or_default();
            }
            changes.retain(|change| !change.range.is_empty());
            self.change_protection(&changes)?;
            drop(write.commit(prepared));
        }
        stopped.map_or(Ok(()), Err)
    }

    /// What one VMA's flags become, or why the call stops before it.
    fn judge(&self, old: &Segment, at: VirtAddr, prot: Prot) -> Result<VmaFlags, Errno> {
        if old.range.start() > at {
            return Err(Errno::ENOMEM);
        }
        let access = VmaFlags::from_prot(prot);
        // MAYREAD is READ << 4, and so on.
        if access.bits() & !(old.flags.bits() >> 4) != 0 {
            return Err(Errno::EACCES);
        }
        let mut flags = (old.flags - VmaFlags::ACCESS) | access;
        if flags == old.flags {
            return Ok(flags);
        }
        if flags.contains(VmaFlags::WRITE) {
            if !old.flags.intersects(VmaFlags::ACCOUNT | VmaFlags::WRITE | VmaFlags::NORESERVE) {
                flags |= VmaFlags::ACCOUNT;
            }
        } else if old.anon_vma == 0 {
            // Never written: its charge is given back.
            flags -= VmaFlags::ACCOUNT;
        }
        Ok(flags)
    }

    /// Whether the map count permits the splits that `piece` of VMA `old`,
    /// which is number `place`, needs. Passes the new flags on.
    fn judge_split(
        &self,
        old: &Segment,
        piece: &Segment,
        next: Option<Segment>,
        layout: &Layout,
        place: usize,
    ) -> Result<VmaFlags, Errno> {
        let head = piece.range.start() != old.range.start();
        let tail = piece.range.end() != old.range.end();
        let merges = !head && layout.planned().last().is_some_and(|left| left.segment.can_merge(piece))
            || !tail && next.is_some_and(|right| piece.can_merge(&right));
        // Old VMAs before this one have become what is laid out so far.
        let count = self.core.map_count() + layout.planned().len() - place;
        let splits = usize::from(head) + usize::from(tail);
        if piece.flags != old.flags && !merges && splits > 0 && count + splits > self.core.map_count_max() {
            return Err(Errno::ENOMEM);
        }
        Ok(piece.flags)
    }

    /// Tells the hardware. On failure what was changed is put back, so that
    /// pages and VMAs agree.
    fn change_protection(&self, changes: &[PageChange]) -> Result<(), Errno> {
        for (done, change) in changes.iter().enumerate() {
            if self.mmu.protect(change.range, change.from, change.to).is_err() {
                for undo in changes[..=done].iter().rev() {
                    // Only widening can be left undone, and the fault path
                    // widens page by page.
                    let _ = self.mmu.protect(undo.range, undo.to, undo.from);
                }
                return Err(Errno::ENOMEM);
            }
        }
        Ok(())
    }
}
