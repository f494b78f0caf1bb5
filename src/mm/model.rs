//! [`Model`]: what the calls and accesses do, the slow, obvious way: a list of
//! VMAs that is split where a call begins and ends, changed, and merged piece
//! by piece; and the bytes of every page that was written. No lock, no tree,
//! no plan. For the property tests and the fuzzer (feature `model`), which
//! compare an [`Mm`] with it call by call.

use super::{AccessError, MapFlags, Mm, Prot};
use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
use crate::fault::Signal;
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::vma::VmaFlags;
use nix::errno::Errno;
use std::collections::BTreeMap;

/// One mapping, with everything that decides about merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelVma {
    /// First byte.
    pub start: usize,
    /// First byte after.
    pub end: usize,
    /// The flags.
    pub flags: VmaFlags,
    /// `anon_vma`: identity of the anonymous pages, 0 before the first store.
    pub anon: u64,
}

impl ModelVma {
    /// Every mapping of an address space, ascending, to compare with
    /// [`Model::vmas`].
    pub fn all_of<S: LockScheme, M: Mmu, P: Pager>(mm: &Mm<S, M, P>) -> Vec<ModelVma> {
        let read = mm.core().mmap_read();
        let vma = |entry| {
            let segment = read.vma(entry).segment();
            let (start, end) = (segment.range.start().get(), segment.range.end().get());
            ModelVma { start, end, flags: segment.flags, anon: segment.anon_vma }
        };
        read.snapshot().iter().map(vma).collect()
    }

    fn overlaps(&self, start: usize, end: usize) -> bool {
        self.start < end && start < self.end
    }

    fn mergeable(self, next: ModelVma) -> bool {
        self.end == next.start
            && self.flags == next.flags
            && (self.anon == 0 || next.anon == 0 || self.anon == next.anon)
    }
}

/// The model; see the module's documentation. Methods are those of [`Mm`].
pub struct Model {
    bounds: PageRange,
    vmas: Vec<ModelVma>,
    max_map_count: usize,
    anon_ids: u64,
    /// Contents of the pages that were written, by address; others are zero.
    pages: BTreeMap<usize, Vec<u8>>,
}

impl Model {
    /// An empty address space of the addresses `bounds`, with the default limit.
    pub fn new(bounds: PageRange) -> Model {
        Model { bounds, vmas: Vec::new(), max_map_count: super::MAP_COUNT_MAX, anon_ids: 0, pages: BTreeMap::new() }
    }

    /// [`Mm::set_max_map_count`]
    pub fn set_max_map_count(&mut self, max: usize) {
        self.max_map_count = max;
    }

    /// Every mapping, ascending.
    pub fn vmas(&self) -> &[ModelVma] {
        &self.vmas
    }

    /// [`Mm::mmap`]
    ///
    /// # Errors
    /// As there.
    pub fn mmap(&mut self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<VirtAddr, Errno> {
        if !flags.contains(MapFlags::ANONYMOUS) {
            return Err(Errno::EBADF);
        }
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        if self.vmas.len() > self.max_map_count {
            return Err(Errno::ENOMEM);
        }
        let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        let start = if fixed { self.fixed(addr, len)? } else { self.place(addr, len).ok_or(Errno::ENOMEM)? };
        if flags.contains(MapFlags::FIXED_NOREPLACE) && !self.is_free(start, len) {
            return Err(Errno::EEXIST);
        }
        // The model knows private memory, and nothing that is special about it.
        let special = MapFlags::LOCKED | MapFlags::GROWSDOWN | MapFlags::HUGETLB | MapFlags::MAP_32BIT;
        match flags.bits() & 0x0f {
            // MAP_PRIVATE
            2 if !flags.intersects(special) => {}
            1 | 2 | 8 => return Err(Errno::EOPNOTSUPP),
            _ => return Err(Errno::EINVAL),
        }
        let end = start + len;
        self.clear(start, end)?;
        let i = self.vmas.iter().position(|v| v.start >= end).unwrap_or(self.vmas.len());
        self.vmas.insert(i, ModelVma { start, end, flags: VmaFlags::for_mmap(prot, flags), anon: 0 });
        self.merge_around(i);
        if flags.contains(MapFlags::POPULATE) {
            let write = prot.contains(Prot::WRITE);
            let _ = (start..end).step_by(PAGE_SIZE).try_for_each(|page| self.access(page, write));
        }
        Ok(VirtAddr(start))
    }

    /// [`Mm::munmap`]
    ///
    /// # Errors
    /// As there.
    pub fn munmap(&mut self, addr: usize, len: usize) -> Result<(), Errno> {
        let end = self.bounds.end().get();
        if !addr.is_multiple_of(PAGE_SIZE) || addr > end || len > end - addr || len == 0 {
            return Err(Errno::EINVAL);
        }
        self.clear(addr, (addr + len).next_multiple_of(PAGE_SIZE))
    }

    /// [`Mm::mprotect`]
    ///
    /// # Errors
    /// As there.
    pub fn mprotect(&mut self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        let (down, up) = (prot.contains(Prot::GROWSDOWN), prot.contains(Prot::GROWSUP));
        if down && up || !addr.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let len = len.checked_next_multiple_of(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        let end = addr.checked_add(len).ok_or(Errno::ENOMEM)?;
        if !Prot::all().contains(prot) {
            return Err(Errno::EINVAL);
        }
        let first = *self.vmas.iter().find(|v| v.overlaps(addr, end)).ok_or(Errno::ENOMEM)?;
        if down || up && first.start <= addr {
            // No mapping here grows.
            return Err(Errno::EINVAL);
        }
        let mut at = addr;
        while at < end {
            at = self.protect_one(at, end, prot)?;
        }
        Ok(())
    }

    /// Protects what of `at..end` lies in the VMA at `at`; returns where it ends.
    fn protect_one(&mut self, at: usize, end: usize, prot: Prot) -> Result<usize, Errno> {
        let i = self.covering(at).ok_or(Errno::ENOMEM)?;
        let old = self.vmas[i];
        let stop = old.end.min(end);
        let mut flags = (old.flags - VmaFlags::ACCESS) | VmaFlags::from_prot(prot);
        if flags == old.flags {
            return Ok(stop);
        }
        if flags.contains(VmaFlags::WRITE) {
            if !old.flags.intersects(VmaFlags::ACCOUNT | VmaFlags::WRITE | VmaFlags::NORESERVE) {
                flags |= VmaFlags::ACCOUNT;
            }
        } else if old.anon == 0 {
            flags -= VmaFlags::ACCOUNT;
        }
        let new = ModelVma { start: at, end: stop, flags, ..old };
        let left = at == old.start && i > 0 && self.vmas[i - 1].mergeable(new);
        let right = stop == old.end && self.vmas.get(i + 1).is_some_and(|&next| new.mergeable(next));
        let splits = usize::from(at != old.start) + usize::from(stop != old.end);
        if !left && !right && splits > 0 && self.vmas.len() + splits > self.max_map_count {
            if self.vmas.len() < self.max_map_count && splits == 2 {
                // There is room for the first of the two.
                self.split_at(at);
            }
            return Err(Errno::ENOMEM);
        }
        self.split_at(at);
        self.split_at(stop);
        let i = self.covering(at).expect("as before");
        self.vmas[i].flags = flags;
        self.merge_around(i);
        Ok(stop)
    }

    /// [`Mm::read`]
    ///
    /// # Errors
    /// As there.
    pub fn read(&mut self, addr: VirtAddr, buf: &mut [u8]) -> Result<(), AccessError> {
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = self.access_byte(addr, i, false)?;
            *byte = self.pages.get(&at.page().get()).map_or(0, |page| page[at.get() % PAGE_SIZE]);
        }
        Ok(())
    }

    /// [`Mm::write`]
    ///
    /// # Errors
    /// As there.
    pub fn write(&mut self, addr: VirtAddr, bytes: &[u8]) -> Result<(), AccessError> {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = self.access_byte(addr, i, true)?;
            let page = self.pages.entry(at.page().get()).or_insert_with(|| vec![0; PAGE_SIZE]);
            page[at.get() % PAGE_SIZE] = byte;
        }
        Ok(())
    }

    fn access_byte(&mut self, addr: VirtAddr, offset: usize, write: bool) -> Result<VirtAddr, AccessError> {
        let at = VirtAddr(addr.get().wrapping_add(offset));
        if !self.bounds.contains(at) {
            return Err(AccessError { addr: at, signal: Signal::MapErr });
        }
        match self.access(at.get(), write) {
            Ok(()) => Ok(at),
            Err(signal) => Err(AccessError { addr: at, signal }),
        }
    }

    /// One access, with the identity that a first store gives.
    fn access(&mut self, at: usize, write: bool) -> Result<(), Signal> {
        let i = self.covering(at).ok_or(Signal::MapErr)?;
        let vma = self.vmas[i];
        let permitted =
            if write { vma.flags.contains(VmaFlags::WRITE) } else { vma.flags.intersects(VmaFlags::ACCESS) };
        if !permitted {
            return Err(Signal::AccErr);
        }
        if write && vma.anon == 0 {
            let alike = |v: &ModelVma| (v.flags ^ vma.flags).difference(VmaFlags::ACCESS).is_empty() && v.anon != 0;
            let next = self.vmas.get(i + 1).filter(|v| v.start == vma.end && alike(v));
            let prev = i.checked_sub(1).map(|i| &self.vmas[i]).filter(|v| v.end == vma.start && alike(v));
            self.vmas[i].anon = match next.or(prev) {
                Some(neighbour) => neighbour.anon,
                None => {
                    self.anon_ids += 1;
                    self.anon_ids
                }
            };
        }
        Ok(())
    }

    /// Where a fixed mapping goes.
    fn fixed(&self, addr: usize, len: usize) -> Result<usize, Errno> {
        let end = self.bounds.end().get();
        if len > end || addr > end - len {
            return Err(Errno::ENOMEM);
        }
        if !addr.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        if addr < self.bounds.start().get() { Err(Errno::EPERM) } else { Ok(addr) }
    }

    /// Where any other goes: at the hint, if that is free; aligned, if it is
    /// made of huge pages and has no hint; else as high as can be.
    fn place(&self, hint: usize, len: usize) -> Option<usize> {
        const HUGE: usize = 2 << 20;
        let (low, high) = (self.bounds.start().get(), self.bounds.end().get());
        // A hint inside the first page is none (`round_hint_to_min`).
        let hint = hint & !(PAGE_SIZE - 1);
        if hint != 0 {
            let hint = hint.max(low);
            if len <= high && hint <= high - len && self.is_free(hint, len) {
                return Some(hint);
            }
        } else if len.is_multiple_of(HUGE)
            && let Some(padded) = self.highest(len.checked_add(HUGE)?)
        {
            return Some((padded + HUGE) & !(HUGE - 1));
        }
        self.highest(len)
    }

    /// The highest page at which `len` bytes are free.
    fn highest(&self, len: usize) -> Option<usize> {
        let (low, high) = (self.bounds.start().get(), self.bounds.end().get());
        let last = high.checked_sub(len)?;
        (low..=last).rev().step_by(PAGE_SIZE).find(|&start| self.is_free(start, len))
    }

    fn is_free(&self, start: usize, len: usize) -> bool {
        !self.vmas.iter().any(|v| v.overlaps(start, start + len))
    }

    fn covering(&self, at: usize) -> Option<usize> {
        self.vmas.iter().position(|v| v.start <= at && at < v.end)
    }

    fn split_at(&mut self, at: usize) {
        if let Some(i) = self.covering(at)
            && self.vmas[i].start != at
        {
            let tail = ModelVma { start: at, ..self.vmas[i] };
            self.vmas[i].end = at;
            self.vmas.insert(i + 1, tail);
        }
    }

    /// Merges VMA `i` with what lies left of it, then with what lies right.
    fn merge_around(&mut self, mut i: usize) {
        for left in [true, false] {
            let (a, b) = if left { (i.wrapping_sub(1), i) } else { (i, i + 1) };
            if let (Some(&x), Some(&y)) = (self.vmas.get(a), self.vmas.get(b))
                && x.mergeable(y)
            {
                self.vmas[a] = ModelVma { end: y.end, anon: x.anon.max(y.anon), ..x };
                self.vmas.remove(b);
                i = a;
            }
        }
    }

    /// Removes mappings and pages. Cutting one mapping in two needs room for
    /// one more.
    fn clear(&mut self, start: usize, end: usize) -> Result<(), Errno> {
        let cut = self.vmas.iter().any(|v| v.start < start && v.end > end);
        if cut && self.vmas.len() >= self.max_map_count {
            return Err(Errno::ENOMEM);
        }
        self.split_at(start);
        self.split_at(end);
        self.vmas.retain(|v| !v.overlaps(start, end));
        self.pages.retain(|&page, _| page < start || page >= end);
        Ok(())
    }
}
