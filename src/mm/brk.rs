//! `brk`: the heap.

use super::Mm;
use super::core::MmapWrite;
use super::place::start_gap;
use super::{Prot, STACK_GUARD_PAGES};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr, page_align_up};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::rcu;
use crate::sync::plain::Ordering;
use crate::vma::plan::Layout;
use crate::vma::{Segment, VmaFlags};

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// Where the heap begins, and ends for now (`start_brk`, `brk`). Without,
    /// [`brk`](Mm::brk) never succeeds.
    pub fn set_brk(&self, start: VirtAddr) {
        let _write = self.core().mmap_write();
        self.core().usage.start_brk.store(start.get() as u64, Ordering::Relaxed);
        self.core().usage.brk.store(start.get() as u64, Ordering::Relaxed);
    }

    /// `brk(2)`, as the kernel answers: moves the end of the heap to `addr` and
    /// returns where it is then, which is the old place if that cannot be.
    pub fn brk(&self, addr: usize) -> VirtAddr {
        let result = self.do_brk(addr);
        rcu::poll();
        result
    }

    fn do_brk(&self, addr: usize) -> VirtAddr {
        let core = self.core();
        let mut write = core.mmap_write();
        let start = core.usage.start_brk.load(Ordering::Relaxed) as usize;
        let old = core.usage.brk.load(Ordering::Relaxed) as usize;
        let unchanged = VirtAddr(old);
        let over = |limit: u64| (addr - start) as u64 > limit;
        if start == 0 || addr < start || over(core.limits().data) {
            return unchanged;
        }
        let Some((new_end, old_end)) = page_align_up(addr).zip(page_align_up(old)) else {
            return unchanged;
        };
        let set = || core.usage.brk.store(addr as u64, Ordering::Relaxed);
        if new_end == old_end {
            set();
            return VirtAddr(addr);
        }
        if addr <= old {
            // Not if something that is not the heap begins there.
            let first = write.snapshot().next(VirtAddr(new_end));
            if first.is_none_or(|first| first.range.start().get() >= old_end) {
                return unchanged;
            }
            // (The kernel lets go of the lock for the pages; here the break and
            // the heap change together.)
            let range = PageRange::new(VirtAddr(new_end), VirtAddr(old_end));
            if self.unmap_within(&mut write, range).is_err() {
                return unchanged;
            }
            set();
            return VirtAddr(addr);
        }
        let range = PageRange::new(VirtAddr(old_end), VirtAddr(new_end));
        if self.grow_heap(&mut write, range).is_none() {
            return unchanged;
        }
        set();
        drop(write);
        if core.def_flags().contains(VmaFlags::LOCKED) {
            let _ = self.mm_populate(range, true);
        }
        VirtAddr(addr)
    }

    /// `check_brk_limits`, `do_brk_flags`
    fn grow_heap(&self, write: &mut MmapWrite<'_, S>, range: PageRange) -> Option<()> {
        let core = self.core();
        core.fixed_place(self.range(), range.start().get(), range.bytes()).ok()?;
        if !core.mlock_future_ok(core.def_flags(), range.bytes()) {
            return None;
        }
        // A page, and the guard gap of a stack, stay free before what comes next.
        let near = range.end() + PAGE_SIZE + STACK_GUARD_PAGES * PAGE_SIZE;
        if let Some(next) = write.snapshot().next(range.start()).filter(|next| next.range.start() < near)
            && range.end() + PAGE_SIZE > start_gap(next)
        {
            return None;
        }
        let flags =
            VmaFlags::from_prot(Prot::READ | Prot::WRITE) | VmaFlags::MAY | VmaFlags::ACCOUNT | core.def_flags();
        let pages = (range.bytes() >> PAGE_SHIFT) as u64;
        if !core.may_expand_vm(flags, pages) || core.map_count() > core.map_count_max() {
            return None;
        }
        let (affected, overlap) = write.affected(range);
        self.settle_anon_vmas(write, &affected);
        let mut layout = Layout::new();
        for (place, vma) in affected.iter().enumerate().take(overlap.start) {
            layout.keep(place, vma.segment());
        }
        // Only the VMA before it takes it in, if it is the heap's (`just_expand`).
        let start = core.usage.start_brk.load(Ordering::Relaxed) as usize;
        let heap_before = affected[..overlap.start].last().is_some_and(|vma| vma.segment().range.end().get() > start);
        if heap_before {
            layout.extend(Segment::unfaulted(range, flags));
        } else {
            layout.add(Segment::unfaulted(range, flags));
        }
        for (place, vma) in affected.iter().enumerate().skip(overlap.start) {
            layout.keep(place, vma.segment());
        }
        let prepared = write.prepare(&affected, &layout, None).ok()??;
        drop(write.commit(prepared));
        Some(())
    }
}
