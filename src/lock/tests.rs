//! What holds of every scheme with a lock in each VMA.

use super::*;
use crate::addr::{PAGE_SIZE, PageRange};
use crate::mm::{MapFlags, Mm, Prot};
use crate::mmu::soft::SoftMmu;
use crate::pager::ZeroPager;

/// A fault that meets a write-locked VMA leaves its lock word alone.
fn a_write_locked_vma_is_refused_early<S: LockScheme>() {
    let mm: Mm<S, _, _> = Mm::new(SoftMmu::new(16 * PAGE_SIZE).unwrap(), ZeroPager);
    let addr = mm.mmap(0, PAGE_SIZE, Prot::READ, MapFlags::PRIVATE | MapFlags::ANONYMOUS).unwrap();
    let find = || S::lock_vma_under_rcu(mm.core(), addr);
    let write = mm.core().mmap_write();
    let (affected, _) = write.affected(PageRange::sized(addr, PAGE_SIZE));
    let _locked = affected[0].start_write(&write, None).unwrap();
    assert_eq!(find(), Err(Abort::WriteLockedEarly));
    drop(write);
    let vma = find().expect("nobody writes any more");
    // SAFETY: locked just now.
    unsafe { S::vma_end_read(vma) };
}

#[test]
fn write_locked_vmas_are_refused_early() {
    a_write_locked_vma_is_refused_early::<Rcu>();
    a_write_locked_vma_is_refused_early::<TypeSafe>();
    a_write_locked_vma_is_refused_early::<RefCount>();
}
