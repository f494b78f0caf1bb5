//! `mmap`: one lock for the whole address space, as up to Linux 6.3.
//!
//! A fault takes the mmap lock for reading, looks the VMA up and keeps the
//! lock until the page is installed. Nobody holds a pointer to a VMA without
//! the mmap lock, so VMAs need no lock, and objects and tree nodes are freed
//! at once.

use super::{Abort, LockScheme};
use crate::addr::VirtAddr;
use crate::mm::MmCore;
use crate::slab::{PageReturn, Slab};
use crate::sync::plain::{AtomicBool, Ordering};
use crate::sync::statics;
use crate::vma::Vma;
use std::ptr::NonNull;

/// The baseline; see the file's documentation.
pub enum MmapOnly {}

statics! {
    static VM_AREA_CACHEP: Slab<Vma<MmapOnly>> = Slab::new(Vma::construct, PageReturn::AtOnce);
}

/// Only what assertions need.
pub struct VmaLock {
    attached: AtomicBool,
}

// SAFETY: hands out no locked VMA.
unsafe impl LockScheme for MmapOnly {
    const NAME: &'static str = "mmap";
    const PER_VMA: bool = false;
    type VmaLock = VmaLock;

    fn new_vma_lock() -> VmaLock {
        VmaLock { attached: AtomicBool::new(false) }
    }

    fn slab() -> &'static Slab<Vma<Self>> {
        &VM_AREA_CACHEP
    }

    fn lock_vma_under_rcu(_: &MmCore<Self>, _: VirtAddr) -> Result<NonNull<Vma<Self>>, Abort> {
        unreachable!("faults take the mmap lock")
    }

    unsafe fn vma_end_read(_: NonNull<Vma<Self>>) {
        unreachable!("VMAs have no lock of their own")
    }

    fn vma_start_write(_: &MmCore<Self>, vma: &Vma<Self>) {
        debug_assert!(Self::is_attached(vma));
    }

    fn vma_mark_attached(_: &MmCore<Self>, vma: &Vma<Self>) {
        // Relaxed, here and below: under the mmap lock.
        assert!(!vma.lock.attached.swap(true, Ordering::Relaxed), "VMA attached twice");
    }

    fn vma_mark_detached(vma: &Vma<Self>) {
        assert!(vma.lock.attached.swap(false, Ordering::Relaxed), "VMA detached twice");
    }

    fn is_attached(vma: &Vma<Self>) -> bool {
        vma.lock.attached.load(Ordering::Relaxed)
    }

    fn readers(_: &Vma<Self>) -> u32 {
        0
    }
}
