//! `rcu`: Linux 6.4. A rwsem and two sequence numbers for each VMA, and VMAs
//! freed after a grace period.
//!
//! # Reader
//!
//! In an RCU section: walk the tree; compare the numbers (cheap early out);
//! trylock the rwsem; compare the numbers again; then `detached`, then the
//! range.
//!
//! # What is different from `typesafe`
//!
//! An object that a reader found under RCU stays the same object until the
//! reader's section ends: it is freed, and may be reused, only after a grace
//! period. So `vm_mm` never changes under a reader and is not checked; attach
//! waits for nobody; and `detached` may be set by a plain store: a reader that
//! gets past the second comparison has seen the write section end, and the
//! flag with it. The price is one deferred item for each VMA freed, and memory
//! that comes back late and cold.
//!
//! # What each step is for
//!
//! - *The second comparison*: a writer drains the readers, leaves its number,
//!   lets go of the rwsem. Acquire of `mm_lock_seq` pairs with the Release that
//!   ends the write section (R11).
//! - *`detached` and range after the lock*: between the walk and the lock the
//!   VMA may have been write-locked, changed or removed, and unlocked (R10).
//!   `detached` first: it is what says that the rest means anything (B5).
//! - *Leaving inside a section*: once the rwsem is free the VMA may be freed;
//!   the section keeps its memory for the wake-up.

use super::typesafe::VmaSem;
use super::{Abort, LockScheme, MISS_MAX, Walk, found_in};
use crate::addr::VirtAddr;
use crate::mm::MmCore;
use crate::races::{self, Mutant, Oracle, Point, mutant, point};
use crate::rcu;
use crate::slab::{PageReturn, Slab};
use crate::stats::{Counter, count};
use crate::sync::{AtomicBool, AtomicU32, Ordering, statics};
use crate::vma::Vma;
use std::ptr::NonNull;

/// Linux 6.4's scheme; see the file's documentation.
pub enum Rcu {}

statics! {
    /// Objects come back after a grace period, so pages may go at once.
    static VM_AREA_CACHEP: Slab<Vma<Rcu>> = Slab::new(Vma::construct, PageReturn::AtOnce);
}

/// The lock of a VMA.
pub struct VmaLock {
    vm_lock_seq: AtomicU32,
    sem: VmaSem,
    detached: AtomicBool,
}

// SAFETY: `lock_vma_under_rcu` returns objects that it found attached while it
// held `sem`, and still holds; a writer drains `sem` before it detaches, and
// freeing comes after that and a grace period.
unsafe impl LockScheme for Rcu {
    const NAME: &'static str = "rcu";
    const PER_VMA: bool = true;
    type VmaLock = VmaLock;

    fn new_vma_lock() -> VmaLock {
        VmaLock { vm_lock_seq: AtomicU32::new(u32::MAX), sem: VmaSem::new(), detached: AtomicBool::new(true) }
    }

    fn slab() -> &'static Slab<Vma<Self>> {
        &VM_AREA_CACHEP
    }

    #[inline]
    fn lock_vma_under_rcu(mm: &MmCore<Self>, addr: VirtAddr) -> Result<NonNull<Vma<Self>>, Abort> {
        let mut walk = Walk::default();
        for _ in 0..MISS_MAX {
            let section = rcu::read();
            let found = walk.find(mm, &section, addr)?;
            // SAFETY: found in this section.
            let vma = unsafe { found_in(&section, found) };
            start_read(mm, vma)?;
            point(Point::Checks);
            if vma.lock.detached.load(Ordering::Relaxed) && !mutant(Mutant::NoDetachedCheck) {
                vma.lock.sem.up_read();
                count(Counter::VmaLockMiss);
                drop(section);
                point(Point::H13);
                continue;
            }
            point(Point::Checks);
            if !vma.range_now_contains(addr) && !mutant(Mutant::NoRangeCheck) {
                vma.lock.sem.up_read();
                return Err(Abort::OtherRange);
            }
            return Ok(found);
        }
        Err(Abort::MissLimit)
    }

    #[inline]
    unsafe fn vma_end_read(vma: NonNull<Vma<Self>>) {
        let _section = rcu::read();
        // SAFETY: read-locked, so not freed until the count falls; then the section.
        unsafe { vma.as_ref() }.lock.sem.up_read();
    }

    fn vma_start_write(mm: &MmCore<Self>, vma: &Vma<Self>) {
        debug_assert!(mm.mmap_lock.is_write_held_by_me() && Self::is_attached(vma));
        let number = mm.mm_lock_seq.load(Ordering::Relaxed);
        if mutant(Mutant::EqualNumbersSkipDrain) && vma.lock.vm_lock_seq.load(Ordering::Relaxed) == number {
            return;
        }
        vma.lock.sem.down_write();
        point(Point::Drained);
        // Relaxed: read by whoever acquires `sem` after us.
        vma.lock.vm_lock_seq.store(number, Ordering::Relaxed);
        point(Point::H12);
        vma.lock.sem.up_write();
    }

    fn vma_mark_attached(mm: &MmCore<Self>, vma: &Vma<Self>) {
        debug_assert!(mm.mmap_lock.is_write_held_by_me());
        if !vma.lock.detached.load(Ordering::Relaxed) {
            races::violation(Oracle::O4, "VMA attached twice");
        }
        if vma.lock.sem.readers() != 0 {
            races::violation(Oracle::O6, "a reader outlived the grace period");
        }
        if !mutant(Mutant::AttachUnlocked) {
            // Nobody knows the object yet; the tree's root publishes it (Release).
            vma.lock.vm_lock_seq.store(mm.mm_lock_seq.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        vma.lock.detached.store(false, Ordering::Relaxed);
    }

    fn vma_mark_detached(vma: &Vma<Self>) {
        // Write-locked: readers are drained, and refuse it by number until the
        // end of the section publishes the flag.
        if vma.lock.detached.load(Ordering::Relaxed) {
            races::violation(Oracle::O4, "VMA detached twice");
        }
        vma.lock.detached.store(true, Ordering::Relaxed);
    }

    /// `call_rcu(&vma->vm_rcu, ..)`
    unsafe fn vma_free(vma: NonNull<Vma<Self>>) {
        unsafe fn free(vma: *mut ()) {
            // SAFETY: deferred below, once; no section can have found it since.
            unsafe { VM_AREA_CACHEP.free(NonNull::new_unchecked(vma.cast())) };
        }
        if mutant(Mutant::FreeWithoutGracePeriod) {
            // SAFETY: the caller's; that readers may be at it is the mutant.
            return unsafe { free(vma.as_ptr().cast()) };
        }
        // SAFETY: detached and out of the tree, so no section that begins now
        // can find it; the slab's `free` neither defers (its pages go at once)
        // nor enters a section.
        unsafe { rcu::defer(vma.as_ptr().cast(), free) };
    }

    fn is_attached(vma: &Vma<Self>) -> bool {
        !vma.lock.detached.load(Ordering::Relaxed)
    }

    #[cfg(feature = "races")]
    fn is_write_locked(mm: &MmCore<Self>, vma: &Vma<Self>) -> bool {
        vma.lock.vm_lock_seq.load(Ordering::Relaxed) == mm.mm_lock_seq.load(Ordering::Relaxed)
    }

    fn readers(vma: &Vma<Self>) -> u32 {
        vma.lock.sem.readers()
    }
}

/// Read-locks `vma` (`vma_start_read`). It may say "locked" falsely, never
/// "unlocked" falsely.
#[inline]
fn start_read(mm: &MmCore<Rcu>, vma: &Vma<Rcu>) -> Result<(), Abort> {
    // Nothing relies on this comparison but speed.
    if vma.lock.vm_lock_seq.load(Ordering::Relaxed) == mm.mm_lock_seq.load(Ordering::Relaxed) {
        return Err(Abort::WriteLockedEarly);
    }
    point(Point::H2);
    if !vma.lock.sem.try_down_read() {
        return Err(Abort::Contended);
    }
    point(Point::H3);
    // Acquire: pairs with the Release in `MmCore::end_write_all`. Must come
    // after the lock.
    if vma.lock.vm_lock_seq.load(Ordering::Relaxed) == mm.mm_lock_seq.load(Ordering::Acquire) {
        vma.lock.sem.up_read();
        return Err(Abort::WriteLockedLate);
    }
    Ok(())
}
