//! Changes of flags over a range: what `mprotect`, `mlock`, `madvise` and
//! `mseal` share. VMAs are split where the range begins and ends, and merge
//! with neighbours that have become equal (`vma_modify_flags`).

use super::Mm;
use super::core::{Affected, MmCore, Touched};
use crate::addr::{PageRange, VirtAddr};
use crate::lock::LockScheme;
use crate::mmu::{Mmu, PageAccess};
use crate::pager::Pager;
use crate::vma::plan::Layout;
use crate::vma::{Segment, VmaFlags};
use nix::errno::Errno;
use smallvec::SmallVec;
use std::ops::Range;

/// Everything up to `addr`.
pub(super) fn before(addr: VirtAddr) -> PageRange {
    PageRange::new(VirtAddr(0), addr)
}

/// Everything from `addr` on.
pub(super) fn from(addr: VirtAddr) -> PageRange {
    PageRange::new(addr, VirtAddr(usize::MAX).page())
}

/// Pages whose hardware protection changes.
pub(super) struct PageChange {
    range: PageRange,
    file: bool,
    from: PageAccess,
    to: PageAccess,
}

/// A range of VMAs that is being laid out anew, VMA by VMA.
pub(super) struct Modify<'a, 'm, S: LockScheme> {
    core: &'a MmCore<S>,
    affected: &'a Affected<'m, S>,
    pub(super) layout: Layout,
    pub(super) changes: SmallVec<[PageChange; 4]>,
}

impl<'a, 'm, S: LockScheme> Modify<'a, 'm, S> {
    /// Lays out the VMAs `affected`, of which those numbered `overlap` share a
    /// page with `range`: `judge` says what the flags of each become, from left
    /// to right, or why all ends before it. Returns the error that did.
    ///
    /// With `hole`, one between the VMAs ends it: what comes before it is
    /// changed all the same. Without, holes are passed over.
    pub(super) fn lay_out(
        core: &'a MmCore<S>,
        affected: &'a Affected<'m, S>,
        overlap: Range<usize>,
        range: PageRange,
        hole: Option<Errno>,
        mut judge: impl FnMut(&Segment, PageRange) -> Result<VmaFlags, Errno>,
    ) -> (Modify<'a, 'm, S>, Result<(), Errno>) {
        let mut modify = Modify { core, affected, layout: Layout::new(), changes: SmallVec::new() };
        let mut stopped = Ok(());
        let mut at = range.start();
        for (place, vma) in affected.iter().enumerate() {
            let old = vma.segment();
            if !overlap.contains(&place) || stopped.is_err() {
                modify.layout.keep(place, old);
                continue;
            }
            if let Some(errno) = hole
                && old.range.start() > at
            {
                stopped = Err(errno);
                modify.layout.keep(place, old);
                continue;
            }
            let piece = old.part(range);
            stopped = match judge(&old, piece.range) {
                Ok(flags) => modify.change(place, &old, &Segment { flags, ..piece }),
                Err(errno) => {
                    modify.layout.keep(place, old);
                    Err(errno)
                }
            };
            at = piece.range.end();
        }
        if let Some(errno) = hole
            && stopped.is_ok()
            && at < range.end()
        {
            stopped = Err(errno);
        }
        (modify, stopped)
    }

    /// Lays out VMA `old`, number `place`, of which `piece` gets new flags.
    fn change(&mut self, place: usize, old: &Segment, piece: &Segment) -> Result<(), Errno> {
        if piece.flags == old.flags {
            self.layout.keep(place, *old);
            return Ok(());
        }
        let head = piece.range.start() != old.range.start();
        let tail = piece.range.end() != old.range.end();
        let next = self.affected.get(place + 1).map(|vma| vma.segment());
        let merges = !head && self.layout.planned().last().is_some_and(|left| left.segment.can_merge(piece))
            || !tail && next.is_some_and(|right| piece.can_merge(&right));
        // Old VMAs before this one have become what is laid out so far. Each
        // split needs room for one more.
        let count = self.core.map_count() + self.layout.planned().len() - place;
        let room = self.core.map_count_max().saturating_sub(count);
        let splits = usize::from(head) + usize::from(tail);
        if !merges && splits > room {
            // The first of two splits is made, and stays.
            let cut = if room == 1 { piece.range.start() } else { old.range.start() };
            self.layout.keep(place, old.part(before(cut)));
            self.layout.keep(place, old.part(from(cut)));
            return Err(Errno::ENOMEM);
        }
        self.layout.keep(place, old.part(before(piece.range.start())));
        self.layout.change(Some(place), *piece);
        self.layout.keep(place, old.part(from(piece.range.end())));
        let (from, to) = (old.flags.page_access(), piece.flags.page_access());
        if from != to {
            // Where the first store must still be seen, pages stay protected: in
            // a mapping that was never written, which has no `anon_vma` yet, and
            // where a page may be a file's.
            let first_store_faults = to == PageAccess::ReadWrite && (old.anon_vma == 0 || old.file.is_some());
            if !first_store_faults {
                self.changes.push(PageChange { range: piece.range, file: old.file.is_some(), from, to });
            }
        }
        Ok(())
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// Tells the hardware; `touched` is where pages may be. On failure what was
    /// changed is put back, so that pages and VMAs agree.
    pub(super) fn change_protection(
        &self,
        changes: &[PageChange],
        touched: impl Fn(PageRange) -> Option<Touched>,
    ) -> Result<(), Errno> {
        let mut done: SmallVec<[(PageRange, &PageChange); 4]> = SmallVec::new();
        for change in changes {
            let Some(pages) = touched(change.range) else { continue };
            let range = pages.span.intersect(change.range);
            if change.file && change.to == PageAccess::None {
                // A file's pages are not hidden: they can be had again.
                self.release_files(&pages);
            }
            done.push((range, change));
            if self.mmu().protect(range, change.from, change.to).is_err() {
                for (range, undo) in done.iter().rev() {
                    // Only widening can be left undone, and the fault path
                    // widens page by page.
                    let _ = self.mmu().protect(*range, undo.to, undo.from);
                }
                return Err(Errno::ENOMEM);
            }
        }
        Ok(())
    }

    /// Takes the files' pages out, written back where the store is behind.
    pub(super) fn release_files(&self, touched: &Touched) {
        for &(range, file, index) in &touched.files {
            // SAFETY: a VMA of the operation keeps it until its pages are gone.
            let inode = unsafe { file.get() }.inode();
            self.mmu().release_file(range, crate::file::FilePage { inode, index });
        }
    }

    /// Removes every page. What was stored to a shared mapping is in the file
    /// afterwards, even if another mapping has the page by now.
    pub(super) fn zap_touched(&self, touched: &Touched) {
        for &(range, file, index) in &touched.files {
            // SAFETY: as in `release_files`.
            let inode = unsafe { file.get() }.inode();
            // What cannot be written is lost, as with the kernel's.
            let _ = self.mmu().sync_file(range, crate::file::FilePage { inode, index });
        }
        self.release_files(touched);
        self.mmu().zap(touched.span);
    }
}
