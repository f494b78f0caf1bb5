//! `typesafe`: the seed. Per-VMA locks embedded in objects of a type-safe slab.
//!
//! # State
//!
//! | field | meaning | written | read |
//! |---|---|---|---|
//! | `mm.mm_lock_seq` | odd while the mmap lock is held for writing; going even releases every VMA write lock at once | mmap write holder | anybody, Acquire |
//! | `lock.sem` | reader count, writer bit, sleeper bit | readers add and subtract; the owner sets and clears the bits | - |
//! | `lock.vm_lock_seq` | equal to `mm_lock_seq`: write-locked | the owner, holding `sem` exclusively | anybody; reliable while holding `sem` |
//! | `lock.detached` | not in a tree | the owner, holding `sem` exclusively | while holding `sem` |
//!
//! The constructor initialises them, and nothing ever initialises them again:
//! not allocation, not duplication, not free. The *owner* of an object is
//! whoever allocated it: one mutator of one address space, with its mmap lock
//! held for writing.
//!
//! # Reader
//!
//! In an RCU section: walk the tree; compare the numbers (cheap early out);
//! trylock `sem`; compare the numbers again; then `detached`, `vm_mm`, range.
//! From there on the VMA cannot change until `vma_end_read`.
//!
//! # What each step is for
//!
//! - *The caller's mm, never `vma->vm_mm`, supplies the number* (the seed's
//!   case 2): the object may belong to another address space by now, perhaps
//!   to a dying one. Nothing of a foreign mm is ever dereferenced.
//! - *The second comparison*: a writer drains the readers that hold `sem`,
//!   leaves its number, and lets go of `sem`. Who locks `sem` after that reads
//!   the number (Acquire of `sem`). If it still equals `mm_lock_seq` the write
//!   section goes on. If not, the Acquire load of `mm_lock_seq` pairs with the
//!   Release increment that ended the section, or with a later one: those that
//!   begin a section are Release as well, because a plain store would hide the
//!   one before it. So the section's changes are visible.
//! - *`detached`* (case 1, not yet attached; and free objects). It changes
//!   only under exclusive `sem`, in both directions. So a reader that holds
//!   `sem` and finds it false holds an object that is in use, and that stays
//!   in use by the same owner until the reader lets go.
//! - *`vm_mm`, then the range* (case 1, reused elsewhere): fixed while the
//!   object is attached and we hold `sem`, as far as our own mm is concerned.
//! - *Attach takes `sem` exclusively* (case 3): a reader that locked the object
//!   in its former life is waited for before the object can be seen attached.
//!
//! # The seed's open windows, and how they are closed here
//!
//! - S-A, duplication copies `detached = false` before it is reset: nothing is
//!   ever copied into the lock, and a new object stays detached while it is
//!   filled in ([`VmaNew`](crate::vma::VmaNew) has no other way).
//! - S-B and R4, the number lost at free or reuse: nothing resets it, and no
//!   check of a free object relies on it; `detached` is what says "free".
//! - S-C, `detached` as a plain store that pairs with nothing: it is under `sem`.
//! - One more, found while arguing this file: the seed sets `detached` while
//!   merely write-locked *by number*. A reader of another mm passes both
//!   comparisons (its own number differs), finds `detached` still false, and
//!   may then watch the owner detach and free the object and this reader's own
//!   mm allocate it and write `vm_mm` and range: all checks pass on a VMA that
//!   is not attached. Detach therefore drains `sem` as well, as the counter of
//!   6.15 does.
//! - S-D, the exit path: teardown detaches like everybody else and waits for
//!   stale foreign readers (I15).
//! - S-E and R2, double attach: attach consumes the `VmaNew`.
//! - R12, wrapped numbers: an accidental equality refuses readers (they fall
//!   back), and is never taken as leave to skip draining.

use super::{Abort, LockScheme, Refused, find_and_lock, number_of};
use crate::addr::VirtAddr;
use crate::mm::MmCore;
use crate::races::{self, Mutant, Oracle, Point, mutant, point};
use crate::rcu;
use crate::slab::{PageReturn, Slab};
use crate::sync::{AtomicBool, AtomicU32, Ordering, SPINS, const_fn, futex_wait, futex_wake, spin_loop, statics};
use crate::vma::Vma;
use std::ptr::{self, NonNull};

/// The seed's scheme; see the file's documentation.
pub enum TypeSafe {}

statics! {
    static VM_AREA_CACHEP: Slab<Vma<TypeSafe>> = Slab::new(Vma::construct, PageReturn::AfterGracePeriod);
}

/// The lock embedded in a VMA object.
pub struct VmaLock {
    vm_lock_seq: AtomicU32,
    sem: VmaSem,
    detached: AtomicBool,
}

// SAFETY: `lock_vma_under_rcu` returns objects that it found attached while it
// held `sem`, and still holds; detaching waits for `sem`, and freeing comes after.
unsafe impl LockScheme for TypeSafe {
    const NAME: &'static str = "typesafe";
    const PER_VMA: bool = true;
    type VmaLock = VmaLock;

    /// `vm_area_ctor()`: the only initialisation, once for each slot.
    fn new_vma_lock() -> VmaLock {
        VmaLock { vm_lock_seq: AtomicU32::new(u32::MAX), sem: VmaSem::new(), detached: AtomicBool::new(true) }
    }

    fn slab() -> &'static Slab<Vma<Self>> {
        &VM_AREA_CACHEP
    }

    #[inline]
    fn lock_vma_under_rcu(mm: &MmCore<Self>, addr: VirtAddr) -> Result<NonNull<Vma<Self>>, Abort> {
        find_and_lock(mm, addr, lock_found)
    }

    #[inline]
    unsafe fn vma_end_read(vma: NonNull<Vma<Self>>) {
        // Once the count is down the owner may free the object, and its page:
        // the section keeps the memory for the wake-up that may follow.
        let _section = rcu::read();
        // SAFETY: read-locked, so attached until the count falls; then the section.
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
        let wait = !mutant(Mutant::AttachDoesNotWait);
        if wait {
            vma.lock.sem.down_write();
        }
        if !vma.lock.detached.load(Ordering::Relaxed) {
            races::violation(Oracle::O4, "VMA attached twice");
        }
        if !mutant(Mutant::AttachUnlocked) {
            // Attached means write-locked, until the mmap lock is released (R23).
            vma.lock.vm_lock_seq.store(mm.mm_lock_seq.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        vma.lock.detached.store(false, Ordering::Relaxed);
        if wait {
            vma.lock.sem.up_write();
        }
    }

    fn vma_mark_detached(vma: &Vma<Self>) {
        let drain = !mutant(Mutant::DetachDoesNotDrain) && !mutant(Mutant::NumberResetAtFree);
        if drain {
            vma.lock.sem.down_write();
        }
        if vma.lock.detached.load(Ordering::Relaxed) {
            races::violation(Oracle::O4, "VMA detached twice");
        }
        vma.lock.detached.store(true, Ordering::Relaxed);
        if drain {
            vma.lock.sem.up_write();
        }
    }

    /// Nothing: the constructor has initialised the lock, once and for all.
    fn vma_init(vma: &Vma<Self>) {
        if mutant(Mutant::DupCopiesLock) {
            vma.lock.detached.store(false, Ordering::Relaxed);
        }
        point(Point::H6);
        if mutant(Mutant::DupCopiesLock) {
            vma.lock.detached.store(true, Ordering::Relaxed);
        }
        if mutant(Mutant::LockInitialisedAtReuse) {
            vma.lock.sem.word.store(0, Ordering::Relaxed);
            vma.lock.vm_lock_seq.store(u32::MAX, Ordering::Relaxed);
        }
    }

    unsafe fn vma_free(vma: NonNull<Vma<Self>>) {
        if mutant(Mutant::NumberResetAtFree) {
            // SAFETY: the caller's, and slab memory.
            unsafe { vma.as_ref() }.lock.vm_lock_seq.store(u32::MAX, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { Self::slab().free(vma) };
        point(Point::Freed);
    }

    fn is_attached(vma: &Vma<Self>) -> bool {
        !vma.lock.detached.load(Ordering::Relaxed)
    }

    fn is_write_locked(mm: &MmCore<Self>, vma: &Vma<Self>) -> bool {
        vma.lock.vm_lock_seq.load(Ordering::Relaxed) == mm.mm_lock_seq.load(Ordering::Relaxed)
    }

    fn readers(vma: &Vma<Self>) -> u32 {
        vma.lock.sem.readers()
    }
}

/// Everything after the walk: read-locks `vma` for a fault of `mm` at `addr`
/// (`vma_start_read(mm, vma)` and what `lock_vma_under_rcu` checks then). It may
/// say "locked" falsely, never "unlocked" falsely.
#[inline(always)]
fn lock_found(mm: &MmCore<TypeSafe>, vma: &Vma<TypeSafe>, addr: VirtAddr) -> Result<(), Refused> {
    // Nothing relies on this comparison but speed: a VMA that is being changed
    // is left alone.
    if vma.lock.vm_lock_seq.load(Ordering::Relaxed) == number_of(mm, vma).mm_lock_seq.load(Ordering::Relaxed) {
        return Err(Refused::For(Abort::WriteLockedEarly));
    }
    point(Point::H2);
    if !vma.lock.sem.try_down_read() {
        return Err(Refused::For(Abort::Contended));
    }
    point(Point::H3);
    let verdict = check_locked(mm, vma, addr);
    if verdict.is_err() {
        vma.lock.sem.up_read();
    }
    verdict
}

/// Whether `vma`, of which `sem` is held for reading, is what a fault of `mm`
/// at `addr` was looking for, and not write-locked.
#[inline(always)]
fn check_locked(mm: &MmCore<TypeSafe>, vma: &Vma<TypeSafe>, addr: VirtAddr) -> Result<(), Refused> {
    // Acquire: pairs with the Release in `MmCore::end_write_all` (and in
    // `MmCore::mmap_write`, which passes it on); see the file's documentation.
    // Must come after the lock.
    if vma.lock.vm_lock_seq.load(Ordering::Relaxed) == mm.mm_lock_seq.load(Ordering::Acquire) {
        return Err(Refused::For(Abort::WriteLockedLate));
    }
    point(Point::Numbers);
    if vma.lock.detached.load(Ordering::Relaxed) && !mutant(Mutant::NoDetachedCheck) {
        return Err(Refused::Detached);
    }
    point(Point::Attached);
    if !ptr::eq(vma.vm_mm(), mm) && !mutant(Mutant::NoMmCheck) {
        return Err(Refused::For(Abort::OtherMm));
    }
    point(Point::Checks);
    if !vma.range_now_contains(addr) && !mutant(Mutant::NoRangeCheck) {
        return Err(Refused::For(Abort::OtherRange));
    }
    Ok(())
}

/// The rwsem of a VMA: readers never wait, and there is at most one writer,
/// the object's owner. Outlives its object: stale readers may add and subtract
/// at any time.
pub(super) struct VmaSem {
    /// Bits 0..30: readers. Bit 30: the writer sleeps until they are gone.
    /// Bit 31: a writer drains or holds.
    word: AtomicU32,
}

impl VmaSem {
    const READERS: u32 = (1 << 30) - 1;
    const SLEEPER: u32 = 1 << 30;
    const WRITER: u32 = 1 << 31;

    const_fn! {
    pub(super) const fn new() -> VmaSem {
        VmaSem { word: AtomicU32::new(0) }
    }
    }

    /// Readers inside, at this moment.
    pub(super) fn readers(&self) -> u32 {
        self.word.load(Ordering::Relaxed) & Self::READERS
    }

    #[inline]
    pub(super) fn try_down_read(&self) -> bool {
        // Acquire: pairs with the Release in `up_write`. Adding first and
        // looking afterwards costs one locked instruction, as in the kernel;
        // a writer that drains sees at worst a guest that leaves at once.
        let before = self.word.fetch_add(1, Ordering::Acquire);
        if before & Self::WRITER == 0 {
            return true;
        }
        self.up_read();
        false
    }

    #[inline]
    pub(super) fn up_read(&self) {
        // Release: pairs with the Acquire in `down_write`.
        point(Point::H4);
        let before = self.word.fetch_sub(1, Ordering::Release);
        if races::POISON && before & Self::READERS == 0 {
            races::violation(Oracle::O4, "a VMA's lock was given back that nobody held");
        }
        if before & !Self::READERS == Self::WRITER | Self::SLEEPER && before & Self::READERS == 1 {
            point(Point::H5);
            futex_wake(&self.word, 1);
        }
    }

    /// Keeps readers out and waits until those inside have left.
    pub(super) fn down_write(&self) {
        // Relaxed: the look that ends the wait acquires.
        let before = self.word.fetch_or(Self::WRITER, Ordering::Relaxed);
        assert!(before & Self::WRITER == 0, "VMA with two owners");
        point(Point::H11);
        let mut spins = SPINS;
        loop {
            // Acquire: pairs with the Release in `up_read`.
            let word = self.word.load(Ordering::Acquire);
            if word & Self::READERS == 0 {
                return;
            }
            if spins > 0 {
                spins -= 1;
                spin_loop();
            } else if word & Self::SLEEPER == 0 {
                self.word.fetch_or(Self::SLEEPER, Ordering::Relaxed);
            } else {
                point(Point::Doze);
                // Sleeps only if no reader came or went since the look.
                futex_wait(&self.word, word);
            }
        }
    }

    pub(super) fn up_write(&self) {
        // Release: pairs with the Acquire in `try_down_read`.
        self.word.fetch_and(!(Self::WRITER | Self::SLEEPER), Ordering::Release);
    }
}

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
