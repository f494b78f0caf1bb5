//! Growth of a stack: a fault just below a MAP_GROWSDOWN mapping extends it.
//!
//! Growth changes the tree and a VMA's range, so it takes the mmap lock for
//! *writing*: the fault lets go of its read lock, takes the write lock, looks
//! everything up again, extends the VMA, and goes on as a reader
//! (`lock_mm_and_find_vma`, `expand_downwards`). Linux 6.1 to 6.4 grew stacks
//! under the read lock; with a tree whose nodes are replaced that was StackRot
//! (CVE-2023-3269, R17).
//!
//! This is the one place where the fault path takes tree nodes and retires
//! some: from the thread's own magazines as a rule, from the slab's depot or
//! the system at worst. None of their locks is ever held by a thread that
//! touches the region, so this cannot wait for itself.

use super::Mm;
use super::core::{MmapRead, MmapWrite};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use crate::lock::LockScheme;
use crate::mmu::Mmu;
use crate::pager::Pager;
use crate::races::{Mutant, mutant};
use crate::vma::plan::Layout;
use crate::vma::{Segment, VmaFlags};

/// `stack_guard_gap`: pages that stay free below a stack that has grown.
pub const STACK_GUARD_PAGES: usize = 256;
/// RLIMIT_STACK's usual value: a stack grows to this many bytes.
pub const STACK_BYTES_MAX: usize = 8 << 20;

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// `addr`, at which nothing is mapped, has faulted. If a stack may grow
    /// there, makes it so and returns with the mmap lock held for reading.
    pub(crate) fn expand_stack<'m>(&'m self, read: MmapRead<'m, S>, addr: VirtAddr) -> Option<MmapRead<'m, S>> {
        let above = read.snapshot().next(addr)?;
        if !read.vma(above).segment().flags.contains(VmaFlags::GROWSDOWN) {
            return None;
        }
        if mutant(Mutant::GrowthUnderReadLock) {
            let mut write = self.core.pretend_write();
            self.expand_downwards(&mut write, addr)?;
            return Some(read);
        }
        drop(read);
        let mut write = self.core.mmap_write();
        // Another thread may have been faster, or all may have changed.
        if write.snapshot().lookup(addr).is_none() {
            self.expand_downwards(&mut write, addr)?;
        }
        Some(write.downgrade())
    }

    /// `expand_downwards`
    fn expand_downwards(&self, write: &mut MmapWrite<'_, S>, addr: VirtAddr) -> Option<()> {
        let page = PageRange::sized(addr.page(), PAGE_SIZE);
        let above = write.snapshot().next(addr)?.range;
        let (affected, overlap) = write.affected(PageRange::new(page.start(), above.end()));
        let stack = affected[overlap.start].segment();
        if !stack.flags.contains(VmaFlags::GROWSDOWN) || page.start() < self.range().start() {
            return None;
        }
        if let Some(below) = write.snapshot().prev(page.start()) {
            // SAFETY: attached, and the mmap lock is held.
            let below = unsafe { crate::vma::VmaRef::<S>::new(below.ptr) }.segment();
            let guarded = below.flags.intersects(VmaFlags::ACCESS) && !below.flags.contains(VmaFlags::GROWSDOWN);
            if guarded && page.start() - below.range.end() < STACK_GUARD_PAGES * PAGE_SIZE {
                return None;
            }
        }
        self.anon_vma_prepare(write, &affected[overlap.start]);
        let stack = affected[overlap.start].segment();
        let grow = (stack.range.start() - page.start()) >> PAGE_SHIFT;
        let grown = PageRange::new(page.start(), stack.range.end());
        let core = self.core();
        // `acct_stack_growth`
        if grow as u64 > stack.pgoff
            || !core.may_expand_vm(stack.flags, grow as u64)
            || grown.bytes() as u64 > core.limits().stack
            || !core.mlock_future_ok(stack.flags, grow << PAGE_SHIFT)
        {
            return None;
        }
        let grown = Segment { range: grown, pgoff: stack.pgoff - grow as u64, ..stack };
        let mut layout = Layout::new();
        for (place, vma) in affected.iter().enumerate() {
            layout.keep(place, if place == overlap.start { grown } else { vma.segment() });
        }
        let prepared = write.prepare(&affected, &layout, None).ok()??;
        drop(write.commit(prepared));
        Some(())
    }
}
