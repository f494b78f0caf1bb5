//! The lock schemes: how a fault gets a stable VMA.
//!
//! One file each, behind one trait, chosen by a type parameter of
//! [`Mm`](crate::mm::Mm), so that the fault path has no dynamic dispatch:
//!
//! | scheme | generation | a fault holds | a freed VMA is reused |
//! |---|---|---|---|
//! | [`MmapOnly`] | Linux <= 6.3, the baseline | the mmap lock, for reading | at once |
//! | [`Rcu`] | Linux 6.4 | the VMA's own lock | after a grace period |
//! | [`TypeSafe`] | the seed, November 2024 | the VMA's own lock | at once |
//! | [`RefCount`] | Linux 6.15 and later | a reference to the VMA | at once |
//!
//! Who calls what: the fault path ([`crate::fault`]) calls
//! [`lock_vma_under_rcu`](LockScheme::lock_vma_under_rcu) and
//! [`vma_end_read`](LockScheme::vma_end_read), in a signal handler; everything
//! else is called by mutators through the guards of [`crate::vma`], which
//! carry the rules (invariants I1-I15 of the kernel lineage) in their types.

mod mmap;
#[cfg(all(test, loom))]
pub(crate) mod models;
mod rcu;
mod refcount;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
mod typesafe;

pub use mmap::MmapOnly;
pub use rcu::Rcu;
pub use refcount::RefCount;
pub use typesafe::TypeSafe;

use crate::addr::VirtAddr;
use crate::mm::MmCore;
use crate::races::{self, Mutant, Oracle, Point, mutant, point};
use crate::rcu::ReadGuard;
use crate::slab::Slab;
use crate::stats::{Counter, count};
use crate::trace::{Event, hit, id_of};
use crate::tree::Snapshot;
use crate::vma::Vma;
use std::hint::cold_path;
use std::ptr::NonNull;

/// Walks repeated for detached VMAs before a fault takes the mmap lock.
const MISS_MAX: u32 = if crate::sync::MODEL { 2 } else { 16 };

/// Why a lookup gave no locked VMA. The fault falls back to the mmap lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// The tree has no VMA at the address.
    NoVma,
    /// The sequence numbers were equal before the lock attempt.
    WriteLockedEarly,
    /// A writer drains readers.
    Contended,
    /// The sequence numbers were equal after locking.
    WriteLockedLate,
    /// The object had been reused in another address space.
    OtherMm,
    /// The object covers another range now.
    OtherRange,
    /// The walk met detached VMAs too often.
    MissLimit,
}

impl Abort {
    /// Where the reason is counted.
    pub fn counter(self) -> Counter {
        match self {
            Abort::NoVma => Counter::AbortNoVma,
            Abort::WriteLockedEarly => Counter::AbortWriteLockedEarly,
            Abort::Contended => Counter::AbortContended,
            Abort::WriteLockedLate => Counter::AbortWriteLockedLate,
            Abort::OtherMm => Counter::AbortOtherMm,
            Abort::OtherRange => Counter::AbortOtherRange,
            Abort::MissLimit => Counter::AbortMissLimit,
        }
    }
}

/// Asks a writer that waits killably to give up; see [`Mm::kill`](crate::mm::Mm::kill).
#[derive(Debug, Default)]
pub struct Kill(crate::sync::AtomicBool);

impl Kill {
    /// Whether it was fired.
    pub fn is_fired(&self) -> bool {
        // Relaxed: a writer looks here after the wake-up word, which is raised
        // after the flag; and before it sleeps the word is compared again.
        self.0.load(crate::sync::Ordering::Relaxed)
    }

    /// Fires it; the caller then wakes the writer.
    pub(crate) fn fire(&self) {
        self.0.store(true, crate::sync::Ordering::Relaxed);
    }
}

/// The writer was told to give up (-EINTR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Killed;

/// How a fault finds and holds a VMA, and what mutators do so that it may.
///
/// Fields of a VMA are atomics and its memory is type-stable, so a scheme that
/// locks the wrong VMA, or lets it change, gives wrong answers, and a mutant of
/// it can be run. What it must not get wrong is below.
///
/// # Safety
/// What [`lock_vma_under_rcu`](LockScheme::lock_vma_under_rcu) returns points to
/// an object of [`slab`](LockScheme::slab) whose memory stays until
/// [`vma_end_read`](LockScheme::vma_end_read): the object is not freed before
/// (a mutant that breaks this can read a slab page that has been returned, if
/// the whole page fell free meanwhile).
pub unsafe trait LockScheme: Sized + Send + Sync + 'static {
    /// The name that `--lock` takes.
    const NAME: &'static str;
    /// Whether faults look VMAs up without the mmap lock. If not, tree nodes
    /// are freed at once and `lock_vma_under_rcu` is never called.
    const PER_VMA: bool;
    /// What the scheme keeps in each VMA object. Initialised only when the
    /// slab page is made.
    type VmaLock: Send + Sync + 'static;

    /// The lock of a slot whose object was never used: free, detached.
    fn new_vma_lock() -> Self::VmaLock;

    /// The slab of VMA objects, shared by all address spaces of the process.
    fn slab() -> &'static Slab<Vma<Self>>;

    /// Finds the VMA that holds `addr` and read-locks it, without waiting. On
    /// success the VMA is attached to `mm`, covers `addr`, and stays so until
    /// [`vma_end_read`](LockScheme::vma_end_read). Async-signal-safe.
    ///
    /// # Errors
    /// [`Abort`]: nothing is held.
    fn lock_vma_under_rcu(mm: &MmCore<Self>, addr: VirtAddr) -> Result<NonNull<Vma<Self>>, Abort>;

    /// Releases what `lock_vma_under_rcu` took. Async-signal-safe.
    ///
    /// # Safety
    /// `vma` comes from `lock_vma_under_rcu`, and is released once.
    unsafe fn vma_end_read(vma: NonNull<Vma<Self>>);

    /// Write-locks an attached VMA until the mmap lock is released or
    /// downgraded: waits for its readers and keeps new ones out. The caller
    /// holds `mm`'s mmap lock for writing.
    fn vma_start_write(mm: &MmCore<Self>, vma: &Vma<Self>);

    /// [`vma_start_write`](LockScheme::vma_start_write) that gives up when
    /// `kill` is fired (`vma_start_write_killable`, Linux 6.19). The older
    /// schemes have no such thing and wait to the end.
    ///
    /// # Errors
    /// [`Killed`]: the VMA is not write-locked, and readers may come again.
    fn vma_start_write_killable(mm: &MmCore<Self>, vma: &Vma<Self>, kill: &Kill) -> Result<(), Killed> {
        let _ = kill;
        Self::vma_start_write(mm, vma);
        Ok(())
    }

    /// Makes a finished VMA findable, write-locked. Waits for stale readers of
    /// the object's former lives. The caller holds the mmap lock for writing.
    fn vma_mark_attached(mm: &MmCore<Self>, vma: &Vma<Self>);

    /// Prepares the lock of a detached object for a new life, if the scheme
    /// keeps anything that must not last (`vma_lock_init`). The last step of
    /// filling it in; stale readers may be at it.
    fn vma_init(_vma: &Vma<Self>) {}

    /// Gives a detached object back (`vm_area_free`).
    ///
    /// # Safety
    /// The object came from [`slab`](LockScheme::slab), is detached, in no
    /// tree, and the caller's.
    unsafe fn vma_free(vma: NonNull<Vma<Self>>) {
        // SAFETY: the caller's promise.
        unsafe { Self::slab().free(vma) };
    }

    /// Takes a write-locked VMA out of use; afterwards no reader can lock it.
    fn vma_mark_detached(vma: &Vma<Self>);

    /// Whether the VMA is attached. Exact only for who may change it.
    fn is_attached(vma: &Vma<Self>) -> bool;

    /// Whether the numbers say that the VMA is write-locked in `mm`. Exact for
    /// who holds it, either way (oracle O3).
    fn is_write_locked(_mm: &MmCore<Self>, _vma: &Vma<Self>) -> bool {
        false
    }

    /// Readers that hold the VMA's own lock now (oracle O4, at rest).
    fn readers(vma: &Vma<Self>) -> u32;
}

/// The object that a walk found, for as long as the section lasts.
///
/// # Safety
/// A walk in this section found it: its memory stays a `Vma<S>` until the
/// section ends, whoever owns the object by then.
#[inline(always)]
pub(crate) unsafe fn found_in<S: LockScheme>(_section: &ReadGuard, vma: NonNull<Vma<S>>) -> &Vma<S> {
    <Slab<Vma<S>>>::looked_at(vma);
    // SAFETY: the caller's promise.
    unsafe { vma.as_ref() }
}

/// A fault's walk through the tree (`vma_lookup`). A function of its own, so
/// that a profile tells it from the locking.
#[inline(never)]
pub(crate) fn vma_lookup<S: LockScheme>(snapshot: &Snapshot<'_, Vma<S>>, addr: VirtAddr) -> Option<NonNull<Vma<S>>> {
    snapshot.lookup(addr)
}

/// One lookup's walks through the tree. Nothing of a walk outlives the RCU
/// section it was made in (I8, R8); the mutant that keeps its position is here.
#[derive(Default)]
struct Walk {
    /// The root that the mutant keeps.
    #[cfg(any(feature = "races", loom, shuttle))]
    kept: Option<crate::tree::Position>,
}

impl Walk {
    /// Walks from the root, or (the mutant) from where the walk before began.
    #[inline(always)]
    fn find<S: LockScheme>(
        &mut self,
        mm: &MmCore<S>,
        section: &ReadGuard,
        addr: VirtAddr,
    ) -> Result<NonNull<Vma<S>>, Abort> {
        let snapshot = mm.tree.snapshot(section);
        #[cfg(any(feature = "races", loom, shuttle))]
        let snapshot = if mutant(Mutant::TreePositionKept) {
            // SAFETY: there is none. That is the mutant; freed nodes are
            // poisoned and the walk reports it.
            unsafe { snapshot.at(*self.kept.get_or_insert_with(|| snapshot.position())) }
        } else {
            snapshot
        };
        point(Point::Walk);
        let found = vma_lookup(&snapshot, addr);
        hit(Event::Lookup, addr.get() as u64, found.map_or(0, |vma| id_of(vma.as_ptr())));
        point(Point::H1);
        found.ok_or(Abort::NoVma)
    }
}

/// Why an object that the walk found was not locked. Nothing is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// Not in use, or not yet (-EAGAIN): a new walk will find what is there now.
    Detached,
    /// The fault needs the mmap lock (NULL).
    For(Abort),
}

/// The lookup of every scheme with a lock in each VMA: walks, and has
/// `lock_found` lock what it found, until that is not a detached object.
#[inline(always)]
fn find_and_lock<S: LockScheme>(
    mm: &MmCore<S>,
    addr: VirtAddr,
    lock_found: impl Fn(&MmCore<S>, &Vma<S>, VirtAddr) -> Result<(), Refused>,
) -> Result<NonNull<Vma<S>>, Abort> {
    let mut walk = Walk::default();
    for _ in 0..MISS_MAX {
        // The section is left before the next walk: no tree position outlives
        // it (I8, R8).
        let section = crate::rcu::read();
        let found = walk.find(mm, &section, addr)?;
        // SAFETY: found in this section.
        match lock_found(mm, unsafe { found_in(&section, found) }, addr) {
            Ok(()) => return Ok(found),
            Err(Refused::For(abort)) => {
                cold_path();
                return Err(abort);
            }
            Err(Refused::Detached) => {
                cold_path();
                count(Counter::VmaLockMiss);
            }
        }
        drop(section);
        point(Point::H13);
    }
    Err(Abort::MissLimit)
}

/// The address space that some `vm_mm` names, to be looked into. A free object
/// may name none (the adversary's poison): to ask it is a violation of its own.
///
/// # Safety
/// The memory of the address space stays while the result is used.
#[inline(always)]
unsafe fn named<'a, S: LockScheme>(mm: *const MmCore<S>) -> &'a MmCore<S> {
    if races::ENABLED && mm.is_null() {
        races::violation(Oracle::O6, "the address space of a free VMA was looked into");
    }
    // SAFETY: the caller's promise.
    unsafe { &*mm }
}

/// The address space whose number a reader of `mm` compares with: its own. (The
/// mutant takes the object's word for it, as before the seed: case 2.)
#[inline(always)]
fn number_of<'a, S: LockScheme>(mm: &'a MmCore<S>, vma: &'a Vma<S>) -> &'a MmCore<S> {
    let counts = if mutant(Mutant::NumberOfForeignMm) {
        // SAFETY: builds with mutants keep the memory of dead address spaces.
        unsafe { named(vma.vm_mm()) }
    } else {
        mm
    };
    point(Point::Number);
    counts.assert_alive();
    counts
}
