//! Where a mapping goes: `get_unmapped_area`.

use super::core::{MmCore, MmapWrite, page_range};
use super::{MapFlags, Mm, STACK_GUARD_PAGES};
use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::tree::{Entry, Snapshot};
use crate::vma::{Vma, VmaFlags, VmaRef};
use nix::errno::Errno;

const PMD_SIZE: usize = 2 << 20;

/// The window of MAP_32BIT, where it applies (`find_start_end`).
const LOW: (usize, usize) = (0x4000_0000, 0x8000_0000);

/// A place that is wanted.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// The hint, rounded; or the place itself with FIXED. 0: none.
    pub(super) addr: usize,
    /// Whole pages.
    pub(super) len: usize,
    pub(super) flags: MapFlags,
    /// Private anonymous memory: whole huge pages are aligned.
    pub(super) anonymous: bool,
}

/// Where a VMA's claim begins: a stack keeps its guard gap free (`vm_start_gap`).
pub(super) fn start_gap<S: LockScheme>(entry: Entry<Vma<S>>) -> VirtAddr {
    // SAFETY: in the tree, so attached, and callers hold the mmap lock.
    let segment = unsafe { VmaRef::<S>::new(entry.ptr) }.segment();
    let gap = if segment.flags.contains(VmaFlags::GROWSDOWN) { STACK_GUARD_PAGES * PAGE_SIZE } else { 0 };
    VirtAddr(segment.range.start().get().saturating_sub(gap))
}

/// The highest free place for `len` bytes (`unmapped_area_topdown`).
fn top_down<S: LockScheme>(snapshot: &Snapshot<'_, Vma<S>>, len: usize, bounds: PageRange) -> Option<VirtAddr> {
    let mut high = bounds.end();
    loop {
        let start = snapshot.gap_top_down(len, bounds.start(), high)?;
        // What ends the gap, if it is a mapping and not the window.
        match snapshot.next(start).map(start_gap) {
            Some(claim) if claim < start + len => high = claim.max(bounds.start()),
            _ => return Some(start),
        }
    }
}

/// The lowest (`unmapped_area`).
fn bottom_up<S: LockScheme>(snapshot: &Snapshot<'_, Vma<S>>, len: usize, bounds: PageRange) -> Option<VirtAddr> {
    let mut low = bounds.start();
    loop {
        let start = snapshot.gap_bottom_up(len, low, bounds.end())?;
        match snapshot.next(start) {
            Some(next) if start_gap(next) < start + len => low = next.range.end(),
            _ => return Some(start),
        }
    }
}

impl<S: LockScheme> MmCore<S> {
    /// Judges a fixed place.
    pub(super) fn fixed_place(&self, bounds: PageRange, addr: usize, len: usize) -> Result<PageRange, Errno> {
        if len > bounds.end().get() || addr > bounds.end().get() - len {
            return Err(Errno::ENOMEM);
        }
        let range = page_range(VirtAddr(addr), len).ok_or(Errno::EINVAL)?;
        if range.start() < bounds.start() {
            return Err(Errno::EPERM);
        }
        Ok(range)
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// Finds a place: the hint's, if it is free, else the highest gap that is
    /// large enough, at its upper end (`__get_unmapped_area`,
    /// `arch_get_unmapped_area_topdown`).
    pub(super) fn get_unmapped_area(&self, write: &MmapWrite<'_, S>, wanted: Wanted) -> Result<PageRange, Errno> {
        let bounds = self.range();
        let Wanted { addr, len, flags, .. } = wanted;
        if flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE) {
            return self.core().fixed_place(bounds, addr, len);
        }
        if len > bounds.bytes() {
            return Err(Errno::ENOMEM);
        }
        let snapshot = write.snapshot();
        let place = |start: VirtAddr| PageRange::sized(start, len);
        let free = |range: &PageRange| {
            bounds.covers(*range) && snapshot.next(range.start()).is_none_or(|next| range.end() <= start_gap(next))
        };
        let hint = page_range(VirtAddr(addr), len).filter(|_| addr != 0);
        if flags.contains(MapFlags::MAP_32BIT) {
            let window = PageRange::new(VirtAddr(LOW.0), VirtAddr(LOW.1)).intersect(bounds);
            if let Some(range) = hint.filter(|range| range.end().get() <= LOW.1 && free(range)) {
                return Ok(range);
            }
            return bottom_up(&snapshot, len, window).map(place).ok_or(Errno::ENOMEM);
        }
        if wanted.anonymous
            && addr == 0
            && self.core().kernel().aligns_huge(len.is_multiple_of(PMD_SIZE))
            && let Some(start) = huge_aligned(&snapshot, len, bounds)
        {
            return Ok(place(start));
        }
        if let Some(range) = hint.filter(free) {
            return Ok(range);
        }
        let start = top_down(&snapshot, len, bounds).or_else(|| bottom_up(&snapshot, len, bounds));
        start.map(place).ok_or(Errno::ENOMEM)
    }
}

/// A place that is aligned to a huge page, if there is room
/// (`__thp_get_unmapped_area`; the offset of anonymous memory is taken for 0).
fn huge_aligned<S: LockScheme>(snapshot: &Snapshot<'_, Vma<S>>, len: usize, bounds: PageRange) -> Option<VirtAddr> {
    // At least one whole huge page lies inside.
    if len < PMD_SIZE {
        return None;
    }
    let padded = len.checked_add(PMD_SIZE)?;
    if padded > bounds.bytes() {
        return None;
    }
    let start = top_down(snapshot, padded, bounds).or_else(|| bottom_up(snapshot, padded, bounds))?;
    // The place found ends at the top of its gap: as high as alignment permits.
    let up = start.get().wrapping_neg() & (PMD_SIZE - 1);
    Some(start + if up == 0 { PMD_SIZE } else { up })
}

const _: () = assert!(PAGE_SIZE == 4096);
