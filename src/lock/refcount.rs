//! `refcount`: one counter in place of rwsem and detached flag, as in Linux
//! 6.15 and later, with the fix of 2025 (CVE-2025-38554).
//!
//! # State
//!
//! | `vm_refcnt` | meaning |
//! |---|---|
//! | 0 | detached; a reader cannot raise it |
//! | 1 | attached, no reader; write-locked if the numbers are equal |
//! | 2 ..= [`REFCNT_LIMIT`] | attached, with readers |
//! | [`EXCLUDE_READERS`] set | a writer, or a detacher, waits for readers or has excluded them; the count can only fall |
//!
//! A writer or detacher waits on its *mm* (`vma_writer_wait`): one sleeper is
//! all there can be, as it holds the mmap lock for writing.
//!
//! # Reader
//!
//! In an RCU section: walk; compare the numbers (cheap early out); raise the
//! count unless it is zero or at the limit; compare `vm_mm`; compare the
//! numbers again; then the range. Zero means "detached, walk again" and is
//! another answer than "contended" (R6).
//!
//! # What each step is for
//!
//! - *Unless zero*: the one state that nothing but attach leaves (I1). A free
//!   object, or one being filled in, whatever else its fields hold, cannot be
//!   locked. Filling in never touches the count (R5).
//! - *Raising is Acquire*, attach is Release: the fields of the incarnation
//!   that made the count non-zero are visible (I3).
//! - *`vm_mm` before the numbers* (I6): the number of another mm means nothing.
//! - *The second comparison*: Acquire, pairs with the Release that ends the
//!   write section (R11).
//! - *A foreign mm is pinned before the count falls* (I7, R7). To let go of a
//!   foreign object is to perhaps wake its mm's writer. While we hold the count
//!   the object is attached to that mm, or draining in it, and the mm's exit
//!   waits for us; the moment the count falls it may be gone. So the reader
//!   takes a reference to the mm first, and drops it last. The drop may be the
//!   last one: the memory is then handed to the next mutator, as nothing is
//!   freed on the fault path.
//! - *The limit*: covers both the flag and an overflow (R13).

use super::{Abort, Kill, Killed, LockScheme, Refused, find_and_lock, named, number_of};
use crate::addr::VirtAddr;
use crate::mm::MmCore;
use crate::races::{self, Knob, Mutant, Oracle, Point, knob, mutant, point};
use crate::slab::{PageReturn, Slab};
use crate::sync::{AtomicU32, Ordering, SPINS, futex_wait, spin_loop, statics};
use crate::vma::Vma;
use std::ptr::{self, NonNull};

/// Linux 6.15's scheme; see the file's documentation.
pub enum RefCount {}

/// VM_REFCNT_EXCLUDE_READERS_FLAG, `VMA_LOCK_OFFSET` before 7.0.
const EXCLUDE_READERS: u32 = 0x4000_0000;
/// VM_REFCNT_LIMIT, `VMA_REF_LIMIT` before 7.0: highest count that a reader may make.
const REFCNT_LIMIT: u32 = EXCLUDE_READERS - 1;

/// [`REFCNT_LIMIT`], unless a knob says that two readers are many.
#[inline(always)]
fn refcnt_limit() -> u32 {
    if knob(Knob::TwoReaders) { 3 } else { REFCNT_LIMIT }
}

statics! {
    static VM_AREA_CACHEP: Slab<Vma<RefCount>> = Slab::new(Vma::construct, PageReturn::AfterGracePeriod);
}

/// The lock embedded in a VMA object.
pub struct VmaLock {
    vm_refcnt: AtomicU32,
    vm_lock_seq: AtomicU32,
}

// SAFETY: `lock_vma_under_rcu` returns objects whose count it raised from
// non-zero; detaching waits for the count, and freeing comes after.
unsafe impl LockScheme for RefCount {
    const NAME: &'static str = "refcount";
    const PER_VMA: bool = true;
    type VmaLock = VmaLock;

    fn new_vma_lock() -> VmaLock {
        VmaLock { vm_refcnt: AtomicU32::new(0), vm_lock_seq: AtomicU32::new(u32::MAX) }
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
        // SAFETY: read-locked, so attached, in memory that stays.
        let vma = unsafe { vma.as_ref() };
        // Copied first: after the decrement the object may be another's.
        // SAFETY: the fault that holds the VMA belongs to this mm and keeps it.
        let mm = unsafe { named(vma.vm_mm()) };
        put(vma, mm);
    }

    fn vma_start_write(mm: &MmCore<Self>, vma: &Vma<Self>) {
        start_write(mm, vma, None).expect("nobody can tell it to give up");
    }

    fn vma_start_write_killable(mm: &MmCore<Self>, vma: &Vma<Self>, kill: &Kill) -> Result<(), Killed> {
        start_write(mm, vma, Some(kill))
    }

    fn vma_mark_attached(mm: &MmCore<Self>, vma: &Vma<Self>) {
        debug_assert!(mm.mmap_lock.is_write_held_by_me());
        if vma.lock.vm_refcnt.load(Ordering::Relaxed) != 0 && !mutant(Mutant::AttachTwice) {
            races::violation(Oracle::O4, "VMA attached twice");
        }
        if !mutant(Mutant::AttachUnlocked) {
            // Attached means write-locked, until the mmap lock is released (R23).
            vma.lock.vm_lock_seq.store(mm.mm_lock_seq.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        // Release: pairs with the Acquire of a reader's increment (I3).
        vma.lock.vm_refcnt.store(1, Ordering::Release);
    }

    fn vma_mark_detached(vma: &Vma<Self>) {
        // SAFETY: attached to this mm, whose mmap lock the caller holds.
        let mm = unsafe { named(vma.vm_mm()) };
        debug_assert!(mm.mmap_lock.is_write_held_by_me());
        // Acquire: pairs with the Release of readers that have left.
        let before = vma.lock.vm_refcnt.fetch_sub(1, Ordering::Acquire);
        if before == 0 || before & EXCLUDE_READERS != 0 {
            races::violation(Oracle::O4, "VMA detached twice");
        }
        if before == 1 {
            return;
        }
        if mutant(Mutant::DetachDoesNotDrain) {
            return;
        }
        // Readers that raised the count after the number was set, and are about
        // to see it and leave; and readers of other mms.
        let left = vma.lock.vm_refcnt.fetch_add(EXCLUDE_READERS, Ordering::Relaxed);
        point(Point::H11);
        if left != 0 {
            wait_for_readers(mm, vma, EXCLUDE_READERS, None).expect("nobody can tell it to give up");
        }
        let before = vma.lock.vm_refcnt.fetch_sub(EXCLUDE_READERS, Ordering::Acquire);
        if before != EXCLUDE_READERS {
            races::violation(Oracle::O4, "reader on a detached VMA");
        }
    }

    /// `vm_area_alloc`, `vm_area_dup`: the number of a former life means nothing.
    fn vma_init(vma: &Vma<Self>) {
        if mutant(Mutant::DupCopiesLock) {
            vma.lock.vm_refcnt.store(1, Ordering::Relaxed);
        }
        point(Point::H6);
        if mutant(Mutant::DupCopiesLock) {
            vma.lock.vm_refcnt.store(0, Ordering::Relaxed);
        }
        debug_assert!(races::ENABLED || vma.lock.vm_refcnt.load(Ordering::Relaxed) == 0);
        // Relaxed: a count of zero keeps readers from it.
        vma.lock.vm_lock_seq.store(u32::MAX, Ordering::Relaxed);
    }

    unsafe fn vma_free(vma: NonNull<Vma<Self>>) {
        // SAFETY: the caller's promise.
        unsafe { Self::slab().free(vma) };
        point(Point::Freed);
    }

    fn is_attached(vma: &Vma<Self>) -> bool {
        vma.lock.vm_refcnt.load(Ordering::Relaxed) != 0
    }

    fn is_write_locked(mm: &MmCore<Self>, vma: &Vma<Self>) -> bool {
        vma.lock.vm_lock_seq.load(Ordering::Relaxed) == mm.mm_lock_seq.load(Ordering::Relaxed)
    }

    fn readers(vma: &Vma<Self>) -> u32 {
        (vma.lock.vm_refcnt.load(Ordering::Relaxed) & REFCNT_LIMIT).saturating_sub(1)
    }
}

/// Everything after the walk: read-locks `vma` for a fault of `mm` at `addr`.
#[inline(always)]
fn lock_found(mm: &MmCore<RefCount>, vma: &Vma<RefCount>, addr: VirtAddr) -> Result<(), Refused> {
    start_read(mm, vma)?;
    if vma.range_now_contains(addr) || mutant(Mutant::NoRangeCheck) {
        return Ok(());
    }
    put(vma, mm);
    Err(Refused::For(Abort::OtherRange))
}

/// Read-locks `vma` for a fault of `mm` (`vma_start_read`): everything but the
/// range.
#[inline]
fn start_read(mm: &MmCore<RefCount>, vma: &Vma<RefCount>) -> Result<(), Refused> {
    // Nothing relies on this comparison but speed.
    if vma.lock.vm_lock_seq.load(Ordering::Relaxed) == number_of(mm, vma).mm_lock_seq.load(Ordering::Relaxed) {
        return Err(Refused::For(Abort::WriteLockedEarly));
    }
    point(Point::H2);
    let mut refcnt = vma.lock.vm_refcnt.load(Ordering::Relaxed);
    loop {
        if refcnt == 0 && !mutant(Mutant::NoDetachedCheck) {
            return Err(Refused::Detached);
        }
        if refcnt >= refcnt_limit() && !mutant(Mutant::NoCountLimit) {
            return Err(Refused::For(Abort::Contended));
        }
        // Acquire: pairs with the Release of attach and of a writer's end.
        match vma.lock.vm_refcnt.compare_exchange_weak(refcnt, refcnt + 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => break,
            Err(now) => refcnt = now,
        }
    }
    point(Point::H3);
    point(Point::Attached);
    let vm_mm = vma.vm_mm();
    if !ptr::eq(vm_mm, mm) && !mutant(Mutant::NoMmCheck) {
        put_foreign(vma, vm_mm);
        return Err(Refused::For(Abort::OtherMm));
    }
    point(Point::Checks);
    // Acquire: pairs with the Release in `MmCore::end_write_all`.
    if vma.lock.vm_lock_seq.load(Ordering::Relaxed) == mm.mm_lock_seq.load(Ordering::Acquire) {
        put(vma, mm);
        return Err(Refused::For(Abort::WriteLockedLate));
    }
    point(Point::Numbers);
    Ok(())
}

/// Gives a count back and wakes the mm's writer if it was the last it waits
/// for (`vma_refcount_put`). `mm` is the VMA's, and stays while this runs.
#[inline]
fn put(vma: &Vma<RefCount>, mm: &MmCore<RefCount>) {
    point(Point::H4);
    // Release: pairs with the Acquire in `wait_for_readers`.
    let before = vma.lock.vm_refcnt.fetch_sub(1, Ordering::Release);
    if races::POISON && before & !EXCLUDE_READERS == 0 {
        races::violation(Oracle::O4, "a VMA's count was given back that nobody held");
    }
    let left = before.wrapping_sub(1);
    if left & EXCLUDE_READERS != 0 && left <= EXCLUDE_READERS + 1 {
        point(Point::H5);
        wake_writer(mm);
    }
}

/// Gives back a count of an object that turned out to belong to another mm.
#[cold]
fn put_foreign(vma: &Vma<RefCount>, vm_mm: *const MmCore<RefCount>) {
    // SAFETY: we hold the count, so the object is attached to, or draining in,
    // this mm, whose exit waits for us before it drops its reference.
    let mm = unsafe { named(vm_mm) };
    if mutant(Mutant::ForeignMmNotPinned) {
        return put(vma, mm);
    }
    // SAFETY: as above.
    let pinned = unsafe { MmCore::grab(mm) };
    put(vma, &pinned);
    // Dropped last, and on the fault path: the memory, if it was the last
    // reference, goes to a mutator.
}

#[cold]
fn wake_writer(mm: &MmCore<RefCount>) {
    mm.assert_alive();
    mm.wake_vma_writer();
}

/// `vma_start_write`, killable or not.
fn start_write(mm: &MmCore<RefCount>, vma: &Vma<RefCount>, kill: Option<&Kill>) -> Result<(), Killed> {
    debug_assert!(mm.mmap_lock.is_write_held_by_me() && RefCount::is_attached(vma));
    let number = mm.mm_lock_seq.load(Ordering::Relaxed);
    if mutant(Mutant::EqualNumbersSkipDrain) && vma.lock.vm_lock_seq.load(Ordering::Relaxed) == number {
        return Ok(());
    }
    // Relaxed: the wait below acquires.
    vma.lock.vm_refcnt.fetch_add(EXCLUDE_READERS, Ordering::Relaxed);
    point(Point::H11);
    if let Err(killed) = wait_for_readers(mm, vma, EXCLUDE_READERS + 1, kill) {
        if !mutant(Mutant::InterruptedWriterKeepsFlag) {
            // Relaxed: nothing was changed; readers may come again (R9).
            vma.lock.vm_refcnt.fetch_sub(EXCLUDE_READERS, Ordering::Relaxed);
        }
        return Err(killed);
    }
    point(Point::Drained);
    vma.lock.vm_lock_seq.store(number, Ordering::Relaxed);
    point(Point::H12);
    // Release: pairs with the Acquire of a reader's increment, which then
    // sees the number.
    vma.lock.vm_refcnt.fetch_sub(EXCLUDE_READERS, Ordering::Release);
    Ok(())
}

/// Waits until the count has fallen to `target`, or `kill` is fired.
fn wait_for_readers(
    mm: &MmCore<RefCount>,
    vma: &Vma<RefCount>,
    target: u32,
    kill: Option<&Kill>,
) -> Result<(), Killed> {
    let mut spins = SPINS;
    loop {
        // Read before the count: a wake-up after our look changes it, and the
        // futex will not sleep (R14). Acquire: keeps the order of the two.
        let mut turn = mm.vma_writer_wait.load(Ordering::Acquire);
        // Acquire: pairs with the Release in `put`. (The kernel has a plain
        // read here, ordered by what surrounds it.)
        if vma.lock.vm_refcnt.load(Ordering::Acquire) == target {
            return Ok(());
        }
        if kill.is_some_and(Kill::is_fired) {
            return Err(Killed);
        }
        if spins > 0 {
            spins -= 1;
            spin_loop();
        } else {
            point(Point::Doze);
            if mutant(Mutant::WakeWordReadLate) {
                turn = mm.vma_writer_wait.load(Ordering::Acquire);
            }
            futex_wait(&mm.vma_writer_wait, turn);
        }
    }
}

#[cfg(all(test, loom))]
mod models;
