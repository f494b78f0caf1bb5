//! `mremap`: growing, shrinking and moving mappings with their pages.

use super::core::MmapWrite;
use super::place::Wanted;
use super::{MapFlags, Mm};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use crate::lock::LockScheme;
use crate::mmu::{Mmu, PageAccess};
use crate::pager::Pager;
use crate::rcu;
use crate::trace::{Event, Operation};
use crate::vma::plan::Layout;
use crate::vma::{Segment, VmaFlags, VmaRef};
use nix::errno::Errno;

/// The host's, of x86-64 with four levels of page tables. A length is judged by it;
/// addresses are by the region's end.
const TASK_SIZE: usize = (1 << 47) - PAGE_SIZE;

bitflags::bitflags! {
    /// MREMAP_* of `mremap`, with Linux's values. Unknown bits are kept
    /// ([`from_bits_retain`](RemapFlags::from_bits_retain)): the call judges them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct RemapFlags: u32 {
        /// MREMAP_MAYMOVE
        const MAYMOVE = 1;
        /// MREMAP_FIXED
        const FIXED = 2;
        /// MREMAP_DONTUNMAP
        const DONTUNMAP = 4;
    }
}

/// The call's arguments, lengths rounded up to pages (`struct vma_remap_struct`).
#[derive(Clone, Copy)]
struct Remap {
    addr: usize,
    old_len: usize,
    new_len: usize,
    flags: RemapFlags,
    new_addr: usize,
}

impl Remap {
    /// The caller says where to (`vrm_implies_new_addr`).
    fn implies_new_addr(&self) -> bool {
        self.flags.intersects(RemapFlags::FIXED | RemapFlags::DONTUNMAP)
    }

    fn delta(&self) -> usize {
        self.old_len.abs_diff(self.new_len)
    }

    fn overlaps(&self) -> bool {
        let old_end = self.addr.saturating_add(self.old_len);
        let new_end = self.new_addr.saturating_add(self.new_len);
        old_end > self.new_addr && new_end > self.addr
    }
}

/// What a call that succeeded leaves to do without the lock.
struct Remapped {
    addr: usize,
    /// A locked mapping has grown here: its pages are made present.
    populate: Option<PageRange>,
}

impl From<usize> for Remapped {
    fn from(addr: usize) -> Remapped {
        Remapped { addr, populate: None }
    }
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `mremap(2)`. `new_addr` matters with FIXED, and is a hint with DONTUNMAP.
    /// Pages move with their contents; none is copied where the `Mmu` can move.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.4). EINVAL: arguments. EFAULT: nothing
    /// mapped there, or the old range reaches beyond its mapping. ENOMEM: no
    /// room, the map count, a limit. EAGAIN: more locked than may be. EPERM: sealed.
    pub fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<VirtAddr, Errno> {
        let _op = Operation::begin(Event::Mremap, Event::MremapReturn, addr, old_len);
        let raw_lens_differ = old_len != new_len;
        let align = |len: usize| len.wrapping_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1);
        let remap = Remap { addr, old_len: align(old_len), new_len: align(new_len), flags, new_addr };
        self.check_params(&remap, raw_lens_differ)?;
        let result = self.do_mremap(remap);
        rcu::poll();
        let remapped = result?;
        if let Some(range) = remapped.populate {
            let _ = self.mm_populate(range, true);
        }
        Ok(VirtAddr(remapped.addr))
    }

    /// `check_mremap_params`
    fn check_params(&self, remap: &Remap, raw_lens_differ: bool) -> Result<(), Errno> {
        let Remap { addr, old_len, new_len, flags, new_addr } = *remap;
        let top = self.range().end().get();
        if !RemapFlags::all().contains(flags)
            || !VirtAddr(addr).is_page_aligned()
            || new_len == 0
            || new_len > TASK_SIZE
        {
            return Err(Errno::EINVAL);
        }
        if remap.implies_new_addr() {
            let lens_differ = if self.core().kernel().moves_several() { old_len != new_len } else { raw_lens_differ };
            if top.checked_sub(new_len).is_none_or(|most| new_addr > most)
                || !VirtAddr(new_addr).is_page_aligned()
                || !flags.contains(RemapFlags::MAYMOVE)
                || flags.contains(RemapFlags::DONTUNMAP) && lens_differ
                || remap.overlaps()
            {
                return Err(Errno::EINVAL);
            }
        }
        // Both places may be split in three before anything is unmapped.
        let count = self.core().map_count();
        let max = self.core().map_count_max();
        let kernel = self.core().kernel();
        let short = if kernel.remap_always_needs_room() {
            count + 4 + usize::from(flags.contains(RemapFlags::DONTUNMAP)) > max
        } else {
            remap.implies_new_addr() && count + 2 >= max.saturating_sub(3)
        };
        if short { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn do_mremap(&self, remap: Remap) -> Result<Remapped, Errno> {
        let mut write = self.core().mmap_write();
        let only_moves = remap.flags.contains(RemapFlags::FIXED) && remap.old_len == remap.new_len;
        if only_moves && self.core().kernel().moves_several() {
            return self.remap_move(&mut write, remap);
        }
        if !self.core().kernel().moves_several() && remap.flags.contains(RemapFlags::FIXED) {
            // The destination goes before anything is known about the source.
            self.unmap_within(&mut write, PageRange::sized(VirtAddr(remap.new_addr), remap.new_len))?;
        }
        let vma = self.check_source(&write, &remap)?;
        let mut remapped = if remap.implies_new_addr() {
            self.mremap_to(&mut write, remap)?.into()
        } else if remap.old_len == remap.new_len {
            remap.addr.into()
        } else if remap.old_len > remap.new_len {
            let tail = self.tail(&remap)?;
            self.unmap_and_release(write, tail, None)?;
            return Ok(remap.addr.into());
        } else {
            Remapped::from(self.expand(&mut write, remap, &vma)?)
        };
        if vma.flags.contains(VmaFlags::LOCKED) && remap.new_len > remap.old_len {
            let grown = VirtAddr(remapped.addr + remap.old_len);
            remapped.populate = Some(PageRange::sized(grown, remap.delta()));
        }
        Ok(remapped)
    }

    /// Moves everything that is mapped in the old range, gaps kept (`remap_move`).
    fn remap_move(&self, write: &mut MmapWrite<'_, S>, remap: Remap) -> Result<Remapped, Errno> {
        let range = match remap.addr.checked_add(remap.old_len) {
            Some(end) => PageRange::new(VirtAddr(remap.addr), VirtAddr(end)),
            None => return Err(Errno::EFAULT),
        };
        let mut result = Err(Errno::EFAULT);
        let mut target = remap.new_addr;
        let mut last_end = VirtAddr(0);
        let mut at = range.start();
        loop {
            // (What was moved may have merged with what it was moved from.)
            let more = Some(at).filter(|at| *at < range.end()).and_then(|at| write.snapshot().next(at));
            let next = more.filter(|next| next.range.start() < range.end());
            let Some(next) = next else { return result.map(Remapped::from) };
            if result.is_err() && next.range.start() > range.start() {
                return Err(Errno::EFAULT);
            }
            let part = next.range.intersect(range);
            let offset = if result.is_ok() { next.range.start() - last_end } else { 0 };
            last_end = next.range.end();
            at = next.range.end();
            let one = Remap {
                addr: part.start().get(),
                old_len: part.bytes(),
                new_len: part.bytes(),
                new_addr: target + offset,
                ..remap
            };
            self.check_source(write, &one)?;
            let moved = self.mremap_to(write, one)?;
            target = moved + one.new_len;
            if result.is_err() {
                result = Ok(moved);
            }
        }
    }

    /// `check_prep_vma`
    fn check_source(&self, write: &MmapWrite<'_, S>, remap: &Remap) -> Result<Segment, Errno> {
        let vma = self.source(write, remap.addr).ok_or(Errno::EFAULT)?;
        if vma.flags.contains(VmaFlags::SEALED) {
            return Err(Errno::EPERM);
        }
        if !remap.implies_new_addr() && remap.new_len <= remap.old_len {
            return Ok(vma);
        }
        if remap.old_len == 0 && !vma.flags.intersects(VmaFlags::SHARED | VmaFlags::MAYSHARE) {
            return Err(Errno::EINVAL);
        }
        // (What a shrinking move cuts off may reach further: it goes first.)
        if remap.old_len.min(remap.new_len) > vma.range.end().get() - remap.addr {
            return Err(Errno::EFAULT);
        }
        if remap.new_len <= remap.old_len {
            return Ok(vma);
        }
        let pgoff = vma.pgoff + ((remap.addr - vma.range.start().get()) >> PAGE_SHIFT) as u64;
        if pgoff.checked_add((remap.new_len >> PAGE_SHIFT) as u64).is_none() {
            return Err(Errno::EINVAL);
        }
        if !self.core().mlock_future_ok(vma.flags, remap.delta()) {
            return Err(Errno::EAGAIN);
        }
        if !self.core().may_expand_vm(vma.flags, (remap.delta() >> PAGE_SHIFT) as u64) {
            return Err(Errno::ENOMEM);
        }
        Ok(vma)
    }

    /// What a call that shrinks cuts off.
    fn tail(&self, remap: &Remap) -> Result<PageRange, Errno> {
        let start = remap.addr + remap.new_len;
        let top = self.range().end().get();
        // As `do_vmi_munmap` judges it.
        if start > top || remap.delta() > top - start {
            return Err(Errno::EINVAL);
        }
        Ok(PageRange::sized(VirtAddr(start), remap.delta()))
    }

    /// What is mapped at `addr`.
    fn source(&self, write: &MmapWrite<'_, S>, addr: usize) -> Option<Segment> {
        let vma = write.snapshot().lookup(VirtAddr(addr))?;
        // SAFETY: in the tree, so attached, and the mmap lock is held.
        Some(unsafe { VmaRef::<S>::new(vma) }.segment())
    }

    /// Grows, in place if there is room (`expand_vma`).
    fn expand(&self, write: &mut MmapWrite<'_, S>, remap: Remap, vma: &Segment) -> Result<usize, Errno> {
        let end = VirtAddr(remap.addr + remap.old_len);
        if end == vma.range.end() {
            let bounds = self.range();
            let grown = end.get().checked_add(remap.delta()).filter(|&end| end <= bounds.end().get());
            let room = grown.map(|grown| PageRange::new(end, VirtAddr(grown)));
            if let Some(room) = room.filter(|room| write.snapshot().is_free(*room)) {
                self.expand_in_place(write, room)?;
                return Ok(remap.addr);
            }
        }
        if !remap.flags.contains(RemapFlags::MAYMOVE) {
            return Err(Errno::ENOMEM);
        }
        self.move_vma(write, remap)
    }

    /// `vma_merge_extend`
    fn expand_in_place(&self, write: &mut MmapWrite<'_, S>, room: PageRange) -> Result<(), Errno> {
        let (affected, overlap) = write.affected(room);
        self.settle_anon_vmas(write, &affected);
        let mut layout = Layout::new();
        for (place, vma) in affected.iter().enumerate().take(overlap.start) {
            layout.keep(place, vma.segment());
        }
        let vma = affected[overlap.start - 1].segment();
        let added = Segment { range: room, pgoff: vma.pgoff + vma.range.pages() as u64, ..vma };
        layout.change(None, added);
        for (place, next) in affected.iter().enumerate().skip(overlap.start) {
            let next = next.segment();
            // Here an identity is given on even if it was inherited: `is_mergeable_anon_vma`
            // asks that of an existing VMA between the two, and there is none.
            let named = Segment { anon_vma: vma.anon_vma, ..next };
            let given = next.anon_vma == 0 && added.can_merge(&named);
            layout.keep(place, if given { named } else { next });
        }
        if let Some(prepared) = write.prepare(&affected, &layout, None)? {
            drop(write.commit(prepared));
        }
        Ok(())
    }

    /// Moves to where the caller says (`mremap_to`).
    fn mremap_to(&self, write: &mut MmapWrite<'_, S>, mut remap: Remap) -> Result<usize, Errno> {
        if remap.flags.contains(RemapFlags::FIXED) {
            self.unmap_within(write, PageRange::sized(VirtAddr(remap.new_addr), remap.new_len))?;
        }
        if remap.old_len > remap.new_len {
            let tail = self.tail(&remap)?;
            self.unmap_within(write, tail)?;
            remap.old_len = remap.new_len;
        }
        let vma = self.source(write, remap.addr).ok_or(Errno::EFAULT)?;
        if remap.flags.contains(RemapFlags::DONTUNMAP)
            && !self.core().may_expand_vm(vma.flags, (remap.old_len >> PAGE_SHIFT) as u64)
        {
            return Err(Errno::ENOMEM);
        }
        self.move_vma(write, remap)
    }

    /// `vrm_set_new_addr`
    fn new_place(&self, write: &MmapWrite<'_, S>, remap: &Remap, vma: &Segment) -> Result<PageRange, Errno> {
        let fixed = remap.flags.contains(RemapFlags::FIXED);
        let wanted = Wanted {
            addr: if remap.implies_new_addr() { remap.new_addr } else { 0 },
            len: remap.new_len,
            flags: if fixed { MapFlags::FIXED } else { MapFlags::empty() },
            anonymous: vma.is_anonymous(),
        };
        self.get_unmapped_area(write, wanted)
    }

    /// Makes the new mapping, moves the pages, and unmaps the old one (`move_vma`).
    fn move_vma(&self, write: &mut MmapWrite<'_, S>, remap: Remap) -> Result<usize, Errno> {
        let vma = self.source(write, remap.addr).ok_or(Errno::EFAULT)?;
        let to = self.new_place(write, &remap, &vma)?;
        if self.core().map_count() >= self.core().map_count_max().saturating_sub(3) {
            return Err(Errno::ENOMEM);
        }
        let old = PageRange::sized(VirtAddr(remap.addr), remap.old_len);
        self.settle_source(write, old);
        let vma = self.source(write, remap.addr).ok_or(Errno::EFAULT)?;
        // The copy first: nothing has happened yet if it cannot be had. Its
        // pages come before anybody can fault on it, as both VMAs are write-locked.
        self.copy_vma(write, &vma, old, to)?;
        if let Err(errno) = self.move_pages(write, &vma, old, to) {
            // Everything is where it was; the copy goes.
            self.unmap_within(write, to)?;
            return Err(errno);
        }
        if remap.flags.contains(RemapFlags::DONTUNMAP) {
            self.keep_source(write, old);
        } else if !old.is_empty() {
            // Without memory to split it the old mapping stays, and empty.
            let _ = self.unmap_within(write, old);
        }
        Ok(to.start().get())
    }

    /// As `settle_anon_vmas`, for the VMAs around the old range.
    fn settle_source(&self, write: &MmapWrite<'_, S>, old: PageRange) {
        let probe = PageRange::sized(old.start(), old.bytes().max(PAGE_SIZE));
        self.settle_anon_vmas(write, &write.affected(probe).0);
    }

    /// Lays the new mapping out, merged with its neighbours (`copy_vma`).
    fn copy_vma(
        &self,
        write: &mut MmapWrite<'_, S>,
        vma: &Segment,
        old: PageRange,
        to: PageRange,
    ) -> Result<(), Errno> {
        // Untouched anonymous memory takes the offset of its new place, where it can merge.
        let pgoff = if vma.is_anonymous() && vma.anon_vma == 0 {
            (to.start().get() >> PAGE_SHIFT) as u64
        } else {
            vma.pgoff_at(PageRange::new(old.start(), vma.range.end()))
        };
        let (affected, overlap) = write.affected(to);
        self.settle_anon_vmas(write, &affected);
        let mut layout = Layout::new();
        for (place, neighbour) in affected.iter().enumerate().take(overlap.start) {
            layout.keep(place, neighbour.segment());
        }
        layout.change(None, Segment { range: to, pgoff, ..*vma });
        for (place, neighbour) in affected.iter().enumerate().skip(overlap.start) {
            layout.keep(place, neighbour.segment());
        }
        let prepared = write.prepare(&affected, &layout, None)?.expect("a mapping is added");
        drop(write.commit(prepared));
        Ok(())
    }

    /// `move_page_tables`
    fn move_pages(&self, write: &MmapWrite<'_, S>, vma: &Segment, old: PageRange, to: PageRange) -> Result<(), Errno> {
        let (affected, overlap) = write.affected(old);
        let Some(touched) = write.drain(&affected[overlap]).touched_in(old) else {
            return Ok(());
        };
        // A file's pages are found again; only what belongs to the mapping moves.
        self.release_files(&touched);
        let span = touched.span.intersect(old);
        let dest = to.start() + (span.start() - old.start());
        let (new, overlap) = write.affected(to);
        for vma in &new[overlap] {
            let Ok(vma) = vma.start_write(write, None) else { unreachable!("nobody kills it") };
            vma.set_touched(PageRange::sized(dest, span.bytes()));
        }
        // Where a first store must be seen, pages arrive protected.
        let seen = vma.anon_vma == 0 || vma.file.is_some();
        let access = match vma.flags.page_access() {
            PageAccess::ReadWrite if seen => PageAccess::Read,
            access => access,
        };
        self.mmu().move_range(span, dest, access).map_err(|_| Errno::ENOMEM)
    }

    /// What MREMAP_DONTUNMAP leaves behind is not locked, and if it is a whole
    /// VMA, as good as new (`dontunmap_complete`).
    fn keep_source(&self, write: &MmapWrite<'_, S>, old: PageRange) {
        let (affected, overlap) = write.affected(old);
        for vma in &affected[overlap] {
            let whole = vma.segment().range == old;
            if vma.segment().flags.contains(VmaFlags::LOCKED) {
                self.core().still_counts_locked(vma.segment().range.pages() as u64);
            }
            write.set_flags(*vma, |segment| {
                segment.flags -= VmaFlags::LOCK;
                if whole {
                    segment.anon_vma = 0;
                }
            });
        }
    }
}
