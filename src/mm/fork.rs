//! `fork` of an address space, inside the process.

use super::Mm;
use crate::addr::{PAGE_SHIFT, PageRange, VirtAddr};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::rcu;
use crate::trace::{Event, Operation};
use crate::vma::plan::{INHERITED, Layout};
use crate::vma::{Segment, VmaFlags};
use nix::errno::Errno;

impl<S: LockScheme, M: Mmu, P: Pager + Clone> Mm<S, M, P> {
    /// `fork(2)`: a child address space over `mmu`, which is of the same size and
    /// may lie elsewhere (mappings keep their distance from its start). Mappings
    /// are copied but for those marked DONTFORK; private pages are shared until
    /// one of the two is stored to; those of WIPEONFORK mappings are zero again;
    /// nothing is locked. Limits and the heap are inherited.
    ///
    /// The parent's VMAs stay write-locked until the child is complete: no fault
    /// can slip between the copy of a VMA and that of its pages (R22).
    ///
    /// # Errors
    /// ENOMEM: out of memory; the parent is as before.
    ///
    /// # Panics
    /// If `mmu` has another size.
    pub fn fork(&self, mmu: M) -> Result<Mm<S, M, P>, Errno> {
        assert_eq!(mmu.range().bytes(), self.range().bytes(), "the child's region has another size");
        let _op = Operation::begin(Event::Fork, Event::ForkReturn, self.range().start().get(), self.range().bytes());
        let child = Mm::new(mmu, self.pager().clone());
        let result = self.dup_mmap(&child);
        rcu::poll();
        result.map(|()| child)
    }

    /// `dup_mmap`
    fn dup_mmap(&self, child: &Self) -> Result<(), Errno> {
        let delta = child.range().start().get().wrapping_sub(self.range().start().get());
        let moved = |range: PageRange| {
            let place = |addr: VirtAddr| VirtAddr(addr.get().wrapping_add(delta));
            PageRange::new(place(range.start()), place(range.end()))
        };
        let write = self.core().mmap_write();
        let (vmas, _) = write.affected(self.range());
        self.settle_contents(&write, &vmas);
        let drained = write.drain(&vmas);
        child.core().usage.inherit(&self.core().usage, delta as u64);
        child.core().set_map_count_max(self.core().map_count_max());
        let mut child_write = child.core().mmap_write();
        let mut layout = Layout::new();
        for vma in &vmas {
            let old = vma.segment();
            if old.flags.contains(VmaFlags::DONTCOPY) {
                continue;
            }
            let mut new = Segment { range: moved(old.range), ..old };
            new.flags -= VmaFlags::LOCK;
            if old.is_anonymous() {
                new.pgoff = old.pgoff.wrapping_add((delta.cast_signed() >> PAGE_SHIFT) as u64);
            }
            let wiped = old.flags.contains(VmaFlags::WIPEONFORK);
            new.anon_vma = if old.anon_vma == 0 || wiped { 0 } else { child.core().next_anon_vma() | INHERITED };
            layout.add(new);
        }
        let none = Default::default();
        let Some(prepared) = child_write.prepare(&none, &layout, None)? else {
            return Ok(());
        };
        drop(child_write.commit(prepared));
        for vma in &vmas {
            let old = vma.segment();
            let Some(touched) = drained.touched_in(old.range) else { continue };
            // What a fault can find again is not copied (`vma_needs_copy`).
            let needed = old.anon_vma != 0 || self.mmu().first_guarded(old.range).is_some();
            if !needed || old.flags.intersects(VmaFlags::DONTCOPY | VmaFlags::WIPEONFORK) {
                continue;
            }
            self.release_files(&touched);
            let range = touched.span.intersect(old.range);
            let to = moved(range);
            let (new, overlap) = child_write.affected(to);
            for vma in &new[overlap] {
                let Ok(vma) = vma.start_write(&child_write, None) else { unreachable!("nobody kills it") };
                vma.set_touched(to);
            }
            self.mmu().fork_range(child.mmu(), range, to.start()).map_err(|_| Errno::ENOMEM)?;
        }
        Ok(())
    }
}
