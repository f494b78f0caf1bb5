//! `anon_vma`: the identity of a VMA's anonymous pages, which decides about
//! merges. A VMA gets one when it is first written to.

use super::Mm;
use super::core::{Affected, MmCore, MmapWrite};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::tree::Snapshot;
use crate::vma::plan::INHERITED;
use crate::vma::{Segment, Vma, VmaFlags, VmaRef};

impl<S: LockScheme> MmCore<S> {
    /// An identity for the pages of `segment`: a neighbour's, if the two could
    /// become one VMA but for their protection, else a new one
    /// (`find_mergeable_anon_vma`: next first, then prev). Needs the mmap lock.
    pub(crate) fn anon_vma_for(&self, snapshot: Snapshot<'_, Vma<S>>, segment: &Segment) -> u64 {
        let neighbour = |entry: crate::tree::Entry<Vma<S>>| {
            // SAFETY: in the tree, so attached, and the mmap lock is held.
            unsafe { VmaRef::<S>::new(entry.ptr) }.segment()
        };
        let next = snapshot.next(segment.range.end()).map(neighbour);
        let prev = snapshot.prev(segment.range.start()).map(neighbour);
        let reusable = |left: &Segment, right: &Segment, from: &Segment| {
            let alike = left.range.end() == right.range.start()
                && left.file == right.file
                && (left.flags ^ right.flags).difference(VmaFlags::ACCESS).is_empty()
                && left.pgoff.wrapping_add(left.range.pages() as u64) == right.pgoff;
            (alike && from.anon_vma & INHERITED == 0 && from.anon_vma != 0).then_some(from.anon_vma)
        };
        next.and_then(|next| reusable(segment, &next, &next))
            .or_else(|| prev.and_then(|prev| reusable(&prev, segment, &prev)))
            .unwrap_or_else(|| self.next_anon_vma())
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// Gives `vma` its identity, if it has none (`anon_vma_prepare`).
    pub(super) fn anon_vma_prepare(&self, write: &MmapWrite<'_, S>, vma: &VmaRef<'_, S>) {
        let segment = vma.segment();
        if segment.anon_vma == 0 {
            vma.set_anon_vma(self.core().anon_vma_for(write.snapshot(), &segment));
        }
    }

    /// Catches up with stores that no fault told of: the host lets the first
    /// store to its zero page pass. To be called before an operation decides
    /// about merges of these VMAs.
    pub(super) fn settle_anon_vmas(&self, write: &MmapWrite<'_, S>, vmas: &Affected<'_, S>) {
        for vma in vmas {
            self.settle_anon_vma(write, vma);
        }
    }

    /// The same for one of them; also before pages go that tell of such stores.
    pub(super) fn settle_anon_vma(&self, write: &MmapWrite<'_, S>, vma: &VmaRef<'_, S>) {
        if vma.is_touched() {
            let segment = vma.segment();
            let unsure = segment.is_anonymous() && segment.anon_vma == 0;
            if unsure && self.mmu().was_written(segment.range) {
                self.anon_vma_prepare(write, vma);
            }
        }
    }
    /// The same for a fork, which must not miss any. A store that passed after an
    /// operation had looked, and before it took the permission away, shows in
    /// the contents alone. (Those of another pager than that of zeros say nothing.)
    pub(super) fn settle_contents(&self, write: &MmapWrite<'_, S>, vmas: &Affected<'_, S>) {
        self.settle_anon_vmas(write, vmas);
        for vma in vmas.iter().filter(|_| self.pager().is_zero()) {
            let segment = vma.segment();
            let unsure = segment.is_anonymous() && segment.anon_vma == 0 && vma.is_touched();
            if unsure && self.mmu().has_contents(segment.range) {
                self.anon_vma_prepare(write, vma);
            }
        }
    }
}
