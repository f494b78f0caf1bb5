//! `mmap`: private anonymous mappings.

use super::core::{MmapWrite, page_range};
use super::{MapFlags, Mapping, Mm, Prot};
use crate::addr::{PAGE_SIZE, PageRange, VirtAddr, page_align_up};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::races::{Mutant, Point, mutant, point};
use crate::rcu;
use crate::tree::Snapshot;
use crate::vma::plan::Layout;
use crate::vma::{Segment, Vma, VmaFlags};
use nix::errno::Errno;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `mmap(2)` of anonymous memory. `addr` is a hint, or the place itself
    /// with FIXED or FIXED_NOREPLACE; 0 is no hint.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.1). EINVAL: length 0, an unaligned fixed
    /// address, neither SHARED nor PRIVATE. ENOMEM: no room, the map count, a
    /// fixed range beyond the end, no memory. EPERM: a fixed address below the
    /// region. EEXIST: NOREPLACE and something is there. EBADF: not anonymous
    /// (there is no file to map). EOPNOTSUPP: kinds that vmalab does not emulate
    /// yet (SHARED, LOCKED, HUGETLB).
    pub fn mmap(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<VirtAddr, Errno> {
        Ok(self.map(addr, len, prot, flags)?.addr)
    }

    /// [`mmap`](Mm::mmap), telling the incarnation as well.
    ///
    /// # Errors
    /// As `mmap`.
    pub fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        let result = self.do_mmap(addr, len, prot, flags);
        rcu::poll();
        let mapping = result?;
        if flags.contains(MapFlags::POPULATE) {
            // Errors are not mmap's to report.
            let len = page_align_up(len).expect("checked by do_mmap");
            let _ = self.populate(PageRange::sized(mapping.addr, len));
        }
        Ok(mapping)
    }

    fn do_mmap(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        if !flags.contains(MapFlags::ANONYMOUS) {
            return Err(Errno::EBADF);
        }
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        let len = page_align_up(len).ok_or(Errno::ENOMEM)?;
        if mutant(Mutant::FixedAsTwoCalls) && flags.contains(MapFlags::FIXED) {
            self.munmap(addr, len)?;
        }
        if flags.contains(MapFlags::FIXED) {
            point(Point::Replace);
        }
        let mut write = self.core.mmap_write();
        if self.core.map_count() > self.core.map_count_max() {
            return Err(Errno::ENOMEM);
        }
        let range = if fixed { self.fixed_range(addr, len)? } else { self.get_unmapped_area(&write, addr, len)? };
        if flags.contains(MapFlags::FIXED_NOREPLACE) && !write.snapshot().is_free(range) {
            return Err(Errno::EEXIST);
        }
        check_type(flags)?;
        self.mmap_region(&mut write, range, VmaFlags::for_mmap(prot, flags))
    }

    /// Judges a fixed place (`__get_unmapped_area`).
    fn fixed_range(&self, addr: usize, len: usize) -> Result<PageRange, Errno> {
        let bounds = self.range();
        if len > bounds.end().get() || addr > bounds.end().get() - len {
            return Err(Errno::ENOMEM);
        }
        let range = page_range(VirtAddr(addr), len).ok_or(Errno::EINVAL)?;
        if range.start() < bounds.start() {
            return Err(Errno::EPERM);
        }
        Ok(range)
    }

    /// Finds a place: the hint's, if it is free, else the highest gap that is
    /// large enough, at its upper end (`arch_get_unmapped_area_topdown`).
    fn get_unmapped_area(&self, write: &MmapWrite<'_, S>, hint: usize, len: usize) -> Result<PageRange, Errno> {
        let bounds = self.range();
        if len > bounds.bytes() {
            return Err(Errno::ENOMEM);
        }
        let snapshot = write.snapshot();
        // Rounded down first: a hint inside the first page is none (`round_hint_to_min`).
        let hint = VirtAddr(hint).page();
        if hint != VirtAddr(0) {
            // Raised to the lowest address there is.
            let hint = hint.max(bounds.start());
            if let Some(range) = page_range(hint, len)
                && bounds.covers(range)
                && snapshot.is_free(range)
            {
                return Ok(range);
            }
        }
        let place = |start: VirtAddr| PageRange::sized(start, len);
        if hint == VirtAddr(0)
            && let Some(start) = huge_aligned(&snapshot, len, bounds)
        {
            return Ok(place(start));
        }
        snapshot.gap_top_down(len, bounds.start(), bounds.end()).map(place).ok_or(Errno::ENOMEM)
    }

    /// Puts the mapping in place of whatever was there (`mmap_region`).
    fn mmap_region(&self, write: &mut MmapWrite<'_, S>, range: PageRange, flags: VmaFlags) -> Result<Mapping, Errno> {
        let (affected, overlap) = write.affected(range);
        let mut layout = Layout::new();
        let mut cut = false;
        for (place, vma) in affected.iter().enumerate().take(overlap.end) {
            let old = vma.segment();
            layout.keep(place, old.part(PageRange::new(VirtAddr(0), range.start())));
            if overlap.contains(&place) {
                cut |= old.range.start() < range.start() && old.range.end() > range.end();
            }
        }
        // Clearing the range by a cut in the middle of one VMA needs room for one more.
        if cut && self.core.map_count() >= self.core.map_count_max() {
            return Err(Errno::ENOMEM);
        }
        // (The mutant publishes a mapping that may be written, and finishes it later.)
        let first = if mutant(Mutant::AttachUnlocked) { flags | VmaFlags::READ | VmaFlags::WRITE } else { flags };
        layout.change(None, Segment::unfaulted(range, first));
        for (place, vma) in affected.iter().enumerate().skip(overlap.start) {
            layout.keep(place, vma.segment().part(PageRange::new(range.end(), VirtAddr(usize::MAX).page())));
        }
        let prepared = write.prepare(&affected, &layout, None)?.expect("a mapping is added");
        // The old VMAs are drained, and nobody finds the new one before the
        // commit: no fault can bring a page back in between (I10).
        if let Some(touched) = prepared.touched_in(range) {
            point(Point::H9);
            self.mmu.zap(touched);
        }
        point(Point::H10);
        let (detached, incarnation) = write.commit(prepared);
        drop(detached);
        if mutant(Mutant::AttachUnlocked) {
            write.finish_late(range.start(), flags);
        }
        Ok(Mapping { addr: range.start(), incarnation })
    }
}

/// Kinds of mappings (`do_mmap`, in its order).
fn check_type(flags: MapFlags) -> Result<(), Errno> {
    // MAP_TYPE is 0x0f: SHARED 1, PRIVATE 2, SHARED_VALIDATE 3, DROPPABLE 8.
    match flags.bits() & 0x0f {
        1 | 8 => Err(Errno::EOPNOTSUPP),
        2 => {
            let later = MapFlags::LOCKED | MapFlags::HUGETLB;
            if flags.intersects(later) { Err(Errno::EOPNOTSUPP) } else { Ok(()) }
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Anonymous mappings of whole huge pages are aligned to one, if there is room
/// (`thp_get_unmapped_area`).
fn huge_aligned<S: LockScheme>(snapshot: &Snapshot<'_, Vma<S>>, len: usize, bounds: PageRange) -> Option<VirtAddr> {
    const PMD_SIZE: usize = 2 << 20;
    if len < PMD_SIZE || !len.is_multiple_of(PMD_SIZE) {
        return None;
    }
    let padded = len.checked_add(PMD_SIZE)?;
    let start = snapshot.gap_top_down(padded, bounds.start(), bounds.end())?;
    // The padded gap ends at its top: the highest aligned place inside it.
    Some(VirtAddr((start.get() + padded - len) & !(PMD_SIZE - 1)))
}

const _: () = assert!(PAGE_SIZE == 4096);
