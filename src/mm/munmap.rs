//! `munmap`.

use super::Mm;
use super::core::{Detached, MmapWrite, Prepared, Touched, page_range};
use super::modify::{before, from};
use crate::addr::{PageRange, VirtAddr, page_align_up};
use crate::lock::{Kill, LockScheme};
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::races::{Mutant, Point, mutant, point};
use crate::rcu;
use crate::trace::{Event, Operation};
use crate::vma::plan::Layout;
use nix::errno::Errno;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `munmap(2)`: removes every mapping in the range, cutting those that
    /// reach out of it. A range with nothing in it is no error.
    ///
    /// # Errors
    /// As Linux 6.18 (kernel lineage §4.2). EINVAL: unaligned address, length 0,
    /// beyond the end. ENOMEM: a cut in the middle of one mapping at the map
    /// count limit, or no memory. EPERM: a sealed mapping in the range. Nothing
    /// is unmapped then.
    pub fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let _op = Operation::begin(Event::Munmap, Event::MunmapReturn, addr, len);
        let range = self.munmap_range(addr, len)?;
        let result = self.do_munmap(range, None);
        rcu::poll();
        result
    }

    /// The pages that the arguments name.
    fn munmap_range(&self, addr: usize, len: usize) -> Result<PageRange, Errno> {
        let end = self.range().end().get();
        if addr > end || len > end - addr {
            return Err(Errno::EINVAL);
        }
        let len = page_align_up(len).ok_or(Errno::EINVAL)?;
        page_range(VirtAddr(addr), len).filter(|r| !r.is_empty()).ok_or(Errno::EINVAL)
    }

    /// [`munmap`](Mm::munmap) that another thread can tell to give up with
    /// [`kill`](Mm::kill) while it waits for a fault that is busy in one of the
    /// VMAs (`vma_start_write_killable`, Linux 6.19). Under the older lock
    /// schemes it waits to the end.
    ///
    /// # Errors
    /// As `munmap`. EINTR: it was told to; nothing changed.
    pub fn munmap_killable(&self, addr: usize, len: usize, kill: &Kill) -> Result<(), Errno> {
        let _op = Operation::begin(Event::Munmap, Event::MunmapReturn, addr, len);
        let range = self.munmap_range(addr, len)?;
        let result = self.do_munmap(range, Some(kill));
        rcu::poll();
        result
    }

    /// Tells an operation of this address space that was given `kill` to give up.
    pub fn kill(&self, kill: &Kill) {
        kill.fire();
        self.core.wake_vma_writer();
    }

    /// `do_vmi_align_munmap`, with the lock downgraded for the pages.
    fn do_munmap(&self, range: PageRange, kill: Option<&Kill>) -> Result<(), Errno> {
        self.unmap_and_release(self.core().mmap_write(), range, kill)
    }

    /// The same, the mmap lock being held.
    pub(super) fn unmap_and_release(
        &self,
        mut write: MmapWrite<'_, S>,
        range: PageRange,
        kill: Option<&Kill>,
    ) -> Result<(), Errno> {
        let mut prepared = Prepared::default();
        if !self.prepare_unmap(&mut write, &mut prepared, range, kill)? {
            return Ok(());
        }
        let touched = touched_in(&prepared, range);
        let mut detached = Detached::new();
        write.commit_from(&mut prepared, &mut detached);
        // The VMAs are drained, detached and out of the tree, so no fault can
        // bring a page back; and no mmap can reuse the range before the read
        // lock goes (I10, B20). All VMA write locks end here. Without a page
        // there is nothing to keep the range for.
        let read = if touched.is_some() && !mutant(Mutant::ZapAfterUnlock) {
            Some(write.downgrade())
        } else {
            drop(write);
            None
        };
        point(Point::H9);
        if let Some(touched) = touched {
            self.zap_touched(&touched);
        }
        point(Point::H10);
        drop(read);
        drop(detached);
        Ok(())
    }

    /// Unmaps within an operation that goes on holding the mmap lock.
    pub(super) fn unmap_within(&self, write: &mut MmapWrite<'_, S>, range: PageRange) -> Result<(), Errno> {
        let mut prepared = Prepared::default();
        if self.prepare_unmap(write, &mut prepared, range, None)? {
            let touched = touched_in(&prepared, range);
            let mut detached = Detached::new();
            write.commit_from(&mut prepared, &mut detached);
            if let Some(touched) = touched {
                self.zap_touched(&touched);
            }
            drop(detached);
        }
        Ok(())
    }

    /// Lays out and prepares; `false`: nothing is mapped there.
    fn prepare_unmap<'w>(
        &self,
        write: &mut MmapWrite<'w, S>,
        prepared: &mut Prepared<'w, S>,
        range: PageRange,
        kill: Option<&Kill>,
    ) -> Result<bool, Errno> {
        let (affected, overlap) = write.affected(range);
        if overlap.is_empty() {
            return Ok(false);
        }
        // What is cut apart must know its identity first.
        for vma in affected[overlap.clone()].iter().filter(|vma| !range.covers(vma.range())) {
            self.settle_anon_vma(write, vma);
        }
        self.may_unmap(write, range, &affected, &overlap)?;
        let mut layout = Layout::new();
        for (place, vma) in affected.iter().enumerate() {
            let old = vma.segment();
            layout.keep(place, old.part(before(range.start())));
            layout.keep(place, old.part(from(range.end())));
        }
        if mutant(Mutant::ZapBeforeDrain) {
            self.mmu().zap(range);
        }
        let changes = write.prepare_in(prepared, &affected, &layout, kill)?;
        debug_assert!(changes, "a VMA overlaps");
        Ok(true)
    }
}

/// Where pages may be that are unmapped.
fn touched_in<S: LockScheme>(prepared: &Prepared<'_, S>, range: PageRange) -> Option<Touched> {
    prepared.touched_in(range).filter(|_| !mutant(Mutant::ZapBeforeDrain))
}
