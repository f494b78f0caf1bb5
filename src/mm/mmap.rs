//! `mmap`: private and shared, anonymous memory and files.

use super::core::{Affected, Detached, MmapWrite, Prepared};
use super::modify::{before, from};
use super::place::Wanted;
use super::{MapFlags, Mapping, Mm, Prot};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr, page_align_up};
use crate::file::{File, FileRef, Inode};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::races::{Mutant, Point, mutant, point};
use crate::rcu;
use crate::trace::{Event, Operation};
use crate::vma::plan::Layout;
use crate::vma::{Segment, VmaFlags};
use nix::errno::Errno;
use std::ops::Range;
use std::sync::Arc;

/// LEGACY_MAP_MASK: all that SHARED_VALIDATE knows.
const LEGACY: u32 =
    0x01 | 0x02 | 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x800 | 0x1000 | 0x7_e000 | 0x400_0000 | 0xfc00_0000;
/// MAX_LFS_FILESIZE: bytes that a file's offsets can name.
const FILE_BYTES_MAX: u64 = i64::MAX as u64;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `mmap(2)` of anonymous memory. `addr` is a hint, or the place itself
    /// with FIXED or FIXED_NOREPLACE; 0 is no hint.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.1). EINVAL: length 0, an unaligned fixed
    /// address, a type of mapping that there is not. ENOMEM: no room, the map
    /// count, a limit, a fixed range beyond the end, no memory. EPERM: a fixed
    /// address below the region, a sealed mapping in the way, LOCKED where
    /// nothing may be locked. EAGAIN: more locked than may be. EEXIST: NOREPLACE
    /// and something is there. EBADF: not anonymous. EOPNOTSUPP: HUGETLB.
    pub fn mmap(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<VirtAddr, Errno> {
        Ok(self.map(addr, len, prot, flags)?.addr)
    }

    /// [`mmap`](Mm::mmap), telling the incarnation as well.
    ///
    /// # Errors
    /// As `mmap`.
    pub fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        if !flags.contains(MapFlags::ANONYMOUS) {
            return Err(Errno::EBADF);
        }
        self.map_and_populate(addr, len, prot, flags, None, 0)
    }

    /// `mmap(2)` of `file` from byte `offset` on, a multiple of the page size.
    /// What lies beyond the end of the file is SIGBUS. With ANONYMOUS the file
    /// is ignored.
    ///
    /// # Errors
    /// As `mmap`, and EINVAL: an unaligned offset, GROWSDOWN. EACCES: not opened
    /// for reading; SHARED and writable, and not opened for writing. ENODEV: what
    /// cannot be mapped. EPERM:
    /// likewise, of a file sealed against writing. EOVERFLOW: an offset that is
    /// too large. EOPNOTSUPP: SHARED_VALIDATE with unknown flags.
    pub fn mmap_file(
        &self,
        addr: usize,
        len: usize,
        prot: Prot,
        flags: MapFlags,
        file: &Arc<File>,
        offset: u64,
    ) -> Result<VirtAddr, Errno> {
        if !offset.is_multiple_of(PAGE_SIZE as u64) {
            return Err(Errno::EINVAL);
        }
        let file = (!flags.contains(MapFlags::ANONYMOUS)).then_some(file);
        Ok(self.map_and_populate(addr, len, prot, flags, file, offset)?.addr)
    }

    fn map_and_populate(
        &self,
        addr: usize,
        len: usize,
        prot: Prot,
        flags: MapFlags,
        file: Option<&Arc<File>>,
        offset: u64,
    ) -> Result<Mapping, Errno> {
        let _op = Operation::begin(Event::Mmap, Event::MmapReturn, addr, len);
        let result = self.do_mmap(addr, len, prot, flags, file, offset);
        rcu::poll();
        let (mapping, vm_flags) = result?;
        let populate = flags & (MapFlags::POPULATE | MapFlags::NONBLOCK) == MapFlags::POPULATE;
        if populate || vm_flags.contains(VmaFlags::LOCKED) {
            // Errors are not mmap's to report.
            let len = page_align_up(len).expect("checked by do_mmap");
            let _ = self.mm_populate(PageRange::sized(mapping.addr, len), true);
        }
        Ok(mapping)
    }

    fn do_mmap(
        &self,
        addr: usize,
        len: usize,
        prot: Prot,
        flags: MapFlags,
        file: Option<&Arc<File>>,
        offset: u64,
    ) -> Result<(Mapping, VmaFlags), Errno> {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        let addr = if fixed { addr } else { self.round_hint_to_min(addr) };
        let len = page_align_up(len).ok_or(Errno::ENOMEM)?;
        let (pgoff, pages) = (offset >> PAGE_SHIFT, (len >> PAGE_SHIFT) as u64);
        if mutant(Mutant::FixedAsTwoCalls) && flags.contains(MapFlags::FIXED) {
            self.munmap(addr, len)?;
        }
        if flags.contains(MapFlags::FIXED) {
            point(Point::Replace);
        }
        // Before the lock: it takes memory and descriptors. Wasted if the call fails.
        let shared = flags.bits() & 0x0f == MapFlags::SHARED.bits();
        let wanted = file.is_none() && shared && !flags.contains(MapFlags::GROWSDOWN) && len <= self.range().bytes();
        let shmem = if wanted {
            let store = self.mmu().shmem(len as u64)?;
            Some(File::open(Inode::try_new(store, len as u64).ok_or(Errno::ENOMEM)?, true, true))
        } else {
            None
        };
        let mut write = self.core().mmap_write();
        if pgoff.checked_add(pages).is_none() {
            return Err(Errno::EOVERFLOW);
        }
        if self.core().map_count() > self.core().map_count_max() {
            return Err(Errno::ENOMEM);
        }
        let anonymous = file.is_none() && !shared;
        let range = self.get_unmapped_area(&write, Wanted { addr, len, flags, anonymous })?;
        if flags.contains(MapFlags::FIXED_NOREPLACE) && !write.snapshot().is_free(range) {
            return Err(Errno::EEXIST);
        }
        if flags.contains(MapFlags::LOCKED) && !self.core().can_do_mlock() {
            return Err(Errno::EPERM);
        }
        let asked_for = VmaFlags::asked_for(prot, flags) | self.core().def_flags();
        if !self.core().mlock_future_ok(asked_for, len) {
            return Err(Errno::EAGAIN);
        }
        let vm_flags = match file {
            Some(file) => judge_file(asked_for, flags, file, pgoff, len)?,
            None => judge_anonymous(asked_for, flags)?,
        };
        let file = file.or(shmem.as_ref());
        let segment = match file {
            Some(file) => {
                let pgoff = if shmem.is_some() { 0 } else { pgoff };
                Segment { file: Some(FileRef::of(file)), pgoff, ..Segment::unfaulted(range, vm_flags) }
            }
            None => Segment::unfaulted(range, vm_flags),
        };
        let mapping = self.mmap_region(&mut write, segment)?;
        if vm_flags.contains(VmaFlags::DROPPABLE) && vm_flags.intersects(VmaFlags::LOCK) {
            // Not locked after all (`vma_supports_mlock`), but populated.
            let (affected, overlap) = write.affected(range);
            for vma in &affected[overlap] {
                write.set_flags(*vma, |segment| segment.flags -= VmaFlags::LOCK);
            }
        }
        Ok((mapping, vm_flags))
    }

    /// A hint inside the first page is none; one below the region means its start.
    fn round_hint_to_min(&self, hint: usize) -> usize {
        let hint = VirtAddr(hint).page();
        if hint == VirtAddr(0) { 0 } else { hint.max(self.range().start()).get() }
    }

    /// Puts the mapping in place of whatever was there (`mmap_region`).
    pub(super) fn mmap_region(&self, write: &mut MmapWrite<'_, S>, mut segment: Segment) -> Result<Mapping, Errno> {
        let range = segment.range;
        let (affected, overlap) = write.affected(range);
        self.settle_anon_vmas(write, &affected);
        self.may_unmap(write, range, &affected, &overlap)?;
        let replaced = affected[overlap.clone()].iter().map(|vma| vma.segment().part(range).range.pages() as u64);
        let more = (range.pages() as u64).wrapping_sub(replaced.sum());
        if !self.core().may_expand_vm(segment.flags, more) {
            // What was split to be unmapped stays split.
            self.split(write, &affected, overlap, &[range.start(), range.end()]);
            return Err(Errno::ENOMEM);
        }
        segment.flags = segment.flags.accounted();
        let mut layout = Layout::new();
        for (place, vma) in affected.iter().enumerate().take(overlap.end) {
            layout.keep(place, vma.segment().part(before(range.start())));
        }
        // (The mutant publishes a mapping that may be written, and finishes it later.)
        let flags = segment.flags;
        if mutant(Mutant::AttachUnlocked) {
            segment.flags |= VmaFlags::READ | VmaFlags::WRITE;
        }
        layout.change(None, segment);
        for (place, vma) in affected.iter().enumerate().skip(overlap.start) {
            layout.keep(place, vma.segment().part(from(range.end())));
        }
        let mut prepared = Prepared::default();
        let changes = write.prepare_in(&mut prepared, &affected, &layout, None)?;
        debug_assert!(changes, "a mapping is added");
        // The old VMAs are drained, and nobody finds the new one before the
        // commit: no fault can bring a page back in between (I10).
        if let Some(touched) = prepared.touched_in(range) {
            point(Point::H9);
            self.zap_touched(&touched);
        }
        point(Point::H10);
        let mut detached = Detached::new();
        let incarnation = write.commit_from(&mut prepared, &mut detached);
        drop(detached);
        if mutant(Mutant::AttachUnlocked) {
            write.finish_late(range.start(), flags);
        }
        Ok(Mapping { addr: range.start(), incarnation })
    }

    /// Whether everything in `range` may be unmapped: nothing sealed, and room
    /// for one mapping more where the middle of one is cut out
    /// (`vms_gather_munmap_vmas`).
    pub(super) fn may_unmap<'m>(
        &self,
        write: &mut MmapWrite<'m, S>,
        range: PageRange,
        affected: &Affected<'m, S>,
        overlap: &Range<usize>,
    ) -> Result<(), Errno> {
        for (n, vma) in affected[overlap.clone()].iter().enumerate() {
            let old = vma.segment();
            let head = old.range.start() < range.start();
            if head && old.range.end() > range.end() && self.core().map_count() >= self.core().map_count_max() {
                return Err(Errno::ENOMEM);
            }
            if old.flags.contains(VmaFlags::SEALED) {
                if n > 0 {
                    // What was split on the way here stays split.
                    self.split(write, affected, overlap.clone(), &[range.start()]);
                }
                return Err(Errno::EPERM);
            }
        }
        Ok(())
    }

    /// Splits the VMAs numbered `which` at `cuts`, in ascending order; the parts
    /// would merge, but do not.
    fn split<'m>(
        &self,
        write: &mut MmapWrite<'m, S>,
        affected: &Affected<'m, S>,
        which: Range<usize>,
        cuts: &[VirtAddr],
    ) {
        let mut layout = Layout::new();
        for (place, vma) in affected.iter().enumerate() {
            let mut rest = vma.segment();
            for &cut in cuts.iter().filter(|_| which.contains(&place)) {
                if rest.range.start() < cut && cut < rest.range.end() {
                    layout.keep(place, rest.part(before(cut)));
                    rest = rest.part(from(cut));
                }
            }
            layout.keep(place, rest);
        }
        // Without memory it is not split; nobody is told.
        if let Ok(Some(prepared)) = write.prepare(affected, &layout, None) {
            drop(write.commit(prepared));
        }
    }
}

/// The flags of a file mapping, or what forbids it (`do_mmap`, in its order).
fn judge_file(vm: VmaFlags, flags: MapFlags, file: &File, pgoff: u64, len: usize) -> Result<VmaFlags, Errno> {
    if len as u64 > FILE_BYTES_MAX || pgoff > (FILE_BYTES_MAX - len as u64) >> PAGE_SHIFT {
        return Err(Errno::EOVERFLOW);
    }
    let mut vm = vm;
    match flags.bits() & 0x0f {
        kind @ (1 | 3) => {
            if kind == 3 && flags.bits() & !LEGACY != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            if vm.contains(VmaFlags::WRITE) && !file.writable() {
                return Err(Errno::EACCES);
            }
            vm |= VmaFlags::SHARED | VmaFlags::MAYSHARE;
            if !file.writable() {
                vm -= VmaFlags::MAYWRITE | VmaFlags::SHARED;
            }
        }
        2 => {}
        _ => return Err(Errno::EINVAL),
    }
    if !file.readable() {
        return Err(Errno::EACCES);
    }
    if !file.mappable() {
        return Err(Errno::ENODEV);
    }
    if vm.contains(VmaFlags::GROWSDOWN) {
        return Err(Errno::EINVAL);
    }
    if file.write_sealed() && vm.contains(VmaFlags::SHARED) {
        if vm.contains(VmaFlags::WRITE) {
            return Err(Errno::EPERM);
        }
        vm -= VmaFlags::MAYWRITE;
    }
    Ok(vm)
}

/// The flags of an anonymous mapping.
fn judge_anonymous(vm: VmaFlags, flags: MapFlags) -> Result<VmaFlags, Errno> {
    if flags.contains(MapFlags::HUGETLB) && matches!(flags.bits() & 0x0f, 1 | 2) {
        return Err(Errno::EOPNOTSUPP);
    }
    match flags.bits() & 0x0f {
        1 if vm.contains(VmaFlags::GROWSDOWN) => Err(Errno::EINVAL),
        1 => Ok(vm | VmaFlags::SHARED | VmaFlags::MAYSHARE),
        2 => Ok(vm),
        8 if flags.intersects(MapFlags::LOCKED | MapFlags::HUGETLB | MapFlags::GROWSDOWN) => Err(Errno::EINVAL),
        8 => Ok(vm | VmaFlags::DROPPABLE | VmaFlags::NORESERVE | VmaFlags::WIPEONFORK | VmaFlags::DONTDUMP),
        _ => Err(Errno::EINVAL),
    }
}
