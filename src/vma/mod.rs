//! VMAs: the objects, and the guards that say what may be done with one.
//!
//! A [`Vma`] lives in the type-safe slab of its lock scheme. A stale reader
//! may hold a pointer to one at any time, whatever has become of it, so every
//! field is an atomic and may be *looked at* under RCU; what a look is worth
//! depends on what one holds, and the types carry that:
//!
//! | type | held | may |
//! |---|---|---|
//! | [`VmaRead`] | the VMA's read lock, or the mmap lock for reading | read fields, mark it faulted |
//! | [`VmaRef`] | the mmap lock, for reading or writing | read fields |
//! | [`VmaWrite`] | that, and the VMA's write lock | change range, flags, protection; detach |
//! | [`VmaNew`] | a detached object of one's own | fill it in; attach it, once |
//!
//! There is no way to a `VmaWrite` or a `VmaNew` but through `MmapWrite`, the mmap
//! lock held for writing, and attaching takes the `VmaNew` by value: the double
//! attach of the seed's reply does not compile. (That a `VmaWrite` is not used
//! after the `MmapWrite` has gone is left to the operations, in `src/mm/`.)

mod flags;
pub mod plan;
#[cfg(feature = "races")]
mod poison;
mod touched;
mod validate;

pub use flags::VmaFlags;
pub use plan::Segment;

use crate::addr::{PAGE_SHIFT, PageRange, VirtAddr};
use crate::file::{File, FilePage, FileRef};
use crate::lock::{Kill, Killed, LockScheme};
use crate::mm::{MmCore, MmapWrite};
use crate::mmap_lock;
use crate::races::{self, Knob, Mutant, Oracle, knob, mutant};
use crate::stats::{Counter, count};
#[cfg(any(feature = "races", loom, shuttle))]
use crate::sync::plain::AtomicU64 as EpochNumber;
use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use crate::trace::{Event, hit, id_of};
use std::marker::PhantomData;
use std::ptr::NonNull;
use touched::{CHUNK_PAGES, TouchedSpan};

/// One mapping (`vm_area_struct`).
///
/// # Invariants
/// Only the owner of the object writes its fields: one mutator that holds its
/// address space's mmap lock for writing, and the VMA's write lock while the
/// VMA is attached. Exceptions, under a read lock: `anon_vma` goes from unset to
/// set, and `touched` grows.
#[repr(C, align(64))]
pub struct Vma<S: LockScheme> {
    /// First byte.
    vm_start: AtomicUsize,
    /// First byte after.
    vm_end: AtomicUsize,
    /// The address space the object belongs to, or last belonged to. Compared,
    /// never dereferenced.
    vm_mm: AtomicPtr<MmCore<S>>,
    vm_flags: AtomicU64,
    /// Identity of the anonymous pages, 0 before the first write fault
    /// (`anon_vma`): decides about merges.
    anon_vma: AtomicU64,
    /// `vm_pgoff`
    vm_pgoff: AtomicU64,
    /// The file, one reference of which the object owns from its allocation to
    /// its end; null for private anonymous memory (`vm_file`).
    vm_file: AtomicPtr<File>,
    /// Raised for every new mapping; an oracle's number, no lock relies on it.
    incarnation: AtomicU64,
    /// `MmCore::id` of the last owner, 0 for an object never used.
    owner_id: AtomicU64,
    touched: TouchedSpan,
    /// Oracle O3, see [`Epoch`].
    epoch: Epoch,
    /// In a part model: `vm_mm`, and the other fields that are settled by a
    /// lock, as data without any ordering.
    #[cfg(all(test, loom))]
    settled: [crate::models::Plain; 2],
    /// What the lock scheme keeps; not touched by anything but the scheme.
    pub(crate) lock: S::VmaLock,
}

/// Oracle O3, in builds with the feature `races`: odd while the object is
/// detached or being changed. A reader looks after it has locked the VMA and
/// before it gives the lock back; what it sees must be even, and the same.
/// Never looked at by a lock.
struct Epoch {
    #[cfg(any(feature = "races", loom, shuttle))]
    number: EpochNumber,
}

impl Epoch {
    fn new() -> Epoch {
        Epoch {
            #[cfg(any(feature = "races", loom, shuttle))]
            number: EpochNumber::new(1),
        }
    }

    #[inline(always)]
    fn add(&self, _n: u64) {
        #[cfg(any(feature = "races", loom, shuttle))]
        self.number.fetch_add(_n, Ordering::SeqCst);
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        #[cfg(any(feature = "races", loom, shuttle))]
        return self.number.load(Ordering::SeqCst);
        #[cfg(not(any(feature = "races", loom, shuttle)))]
        return 0;
    }
}

impl<S: LockScheme> Vma<S> {
    /// The slab constructor (`vm_area_ctor`).
    pub(crate) fn construct() -> Vma<S> {
        Vma {
            vm_start: AtomicUsize::new(0),
            vm_end: AtomicUsize::new(0),
            vm_mm: AtomicPtr::new(std::ptr::null_mut()),
            vm_flags: AtomicU64::new(0),
            anon_vma: AtomicU64::new(0),
            vm_pgoff: AtomicU64::new(0),
            vm_file: AtomicPtr::new(std::ptr::null_mut()),
            incarnation: AtomicU64::new(0),
            owner_id: AtomicU64::new(0),
            touched: TouchedSpan::new(),
            epoch: Epoch::new(),
            #[cfg(all(test, loom))]
            settled: [crate::models::Plain::new(), crate::models::Plain::new()],
            lock: S::new_vma_lock(),
        }
    }

    // All loads and stores of these fields are Relaxed: the lock that makes
    // them worth something orders them (see the lock scheme). The part models
    // check that it does, wherever fields are relied on.

    /// Somebody relies on `vm_mm` ([`Vma::VM_MM`]) or the other fields.
    #[inline(always)]
    fn relied_on(&self, _which: usize) {
        #[cfg(all(test, loom))]
        self.settled[_which].look();
    }

    /// The owner writes them.
    #[inline(always)]
    fn written(&self, _which: usize) {
        #[cfg(all(test, loom))]
        self.settled[_which].change();
    }

    const VM_MM: usize = 0;
    const OTHERS: usize = 1;

    /// The address space, for comparison only.
    #[inline]
    pub(crate) fn vm_mm(&self) -> *const MmCore<S> {
        self.relied_on(Self::VM_MM);
        self.vm_mm.load(Ordering::Relaxed)
    }

    /// Whether the range holds `addr` just now; settled only under a lock.
    #[inline]
    pub(crate) fn range_now_contains(&self, addr: VirtAddr) -> bool {
        self.relied_on(Self::OTHERS);
        self.vm_start.load(Ordering::Relaxed) <= addr.get() && addr.get() < self.vm_end.load(Ordering::Relaxed)
    }

    fn range(&self) -> PageRange {
        self.relied_on(Self::OTHERS);
        PageRange::new(VirtAddr(self.vm_start.load(Ordering::Relaxed)), VirtAddr(self.vm_end.load(Ordering::Relaxed)))
    }

    fn flags(&self) -> VmaFlags {
        self.relied_on(Self::OTHERS);
        VmaFlags::from_bits_retain(self.vm_flags.load(Ordering::Relaxed))
    }

    fn segment(&self) -> Segment {
        Segment {
            range: self.range(),
            flags: self.flags(),
            anon_vma: self.anon_vma.load(Ordering::Relaxed),
            pgoff: self.vm_pgoff.load(Ordering::Relaxed),
            file: self.file(),
        }
    }

    fn file(&self) -> Option<FileRef> {
        FileRef::from_raw(self.vm_file.load(Ordering::Relaxed))
    }

    fn store_segment(&self, segment: &Segment, touched: PageRange) {
        self.written(Self::OTHERS);
        self.vm_start.store(segment.range.start().get(), Ordering::Relaxed);
        self.vm_end.store(segment.range.end().get(), Ordering::Relaxed);
        self.vm_flags.store(segment.flags.bits(), Ordering::Relaxed);
        self.anon_vma.store(segment.anon_vma, Ordering::Relaxed);
        self.vm_pgoff.store(segment.pgoff, Ordering::Relaxed);
        self.vm_file.store(segment.file.map_or(std::ptr::null_mut(), FileRef::as_ptr), Ordering::Relaxed);
        self.touched.set(touched);
    }
}

/// How a [`VmaRead`] keeps its VMA.
pub(crate) enum Hold<'m> {
    /// By the VMA's own read lock (`FAULT_FLAG_VMA_LOCK`).
    Vma,
    /// By the mmap lock.
    Mmap(#[allow(dead_code, reason = "held for its Drop")] mmap_lock::ReadGuard<'m>),
    /// Not at all: a mutant.
    #[cfg(any(feature = "races", loom, shuttle))]
    Nothing,
}

impl Hold<'_> {
    /// As trace points tell it.
    #[inline(always)]
    fn by_mmap_lock(&self) -> u64 {
        u64::from(matches!(self, Hold::Mmap(_)))
    }
}

/// A VMA that cannot change or go away while this lives.
#[must_use = "the lock is released when the guard is dropped"]
pub struct VmaRead<'m, S: LockScheme> {
    vma: NonNull<Vma<S>>,
    hold: Hold<'m>,
    /// [`Epoch`] when it was locked.
    epoch: u64,
    _mm: PhantomData<&'m MmCore<S>>,
}

impl<S: LockScheme> Drop for VmaRead<'_, S> {
    #[inline]
    fn drop(&mut self) {
        hit(Event::Unlock, id_of(self.vma.as_ptr()), self.hold.by_mmap_lock());
        if let Hold::Vma = self.hold {
            if races::ENABLED && self.vma().epoch.now() != self.epoch {
                races::violation(Oracle::O3, "a VMA changed while a reader had it locked");
            }
            // SAFETY: by `new`'s contract it was locked for us, and we end once.
            unsafe { S::vma_end_read(self.vma) };
        }
    }
}

impl<'m, S: LockScheme> VmaRead<'m, S> {
    /// # Safety
    /// `vma` is attached to an mm that outlives `'m`, and `hold` keeps it so:
    /// [`Hold::Vma`] is the caller's read lock, given to the guard.
    #[inline]
    pub(crate) unsafe fn new(mm: &'m MmCore<S>, vma: NonNull<Vma<S>>, hold: Hold<'m>) -> VmaRead<'m, S> {
        // SAFETY: the caller's promise.
        let epoch = unsafe { vma.as_ref() }.epoch.now();
        if races::ENABLED && epoch & 1 == 1 {
            races::violation(Oracle::O3, "a reader locked a VMA that is not attached");
        }
        let read = VmaRead { vma, hold, epoch, _mm: PhantomData };
        hit(Event::Lock, id_of(vma.as_ptr()), read.hold.by_mmap_lock());
        read.assert_not_write_locked(mm);
        read
    }

    /// Oracle O3: no writer has the VMA while a reader has it. (A number of 8
    /// bits may have wrapped.)
    #[inline(always)]
    pub(crate) fn assert_not_write_locked(&self, mm: &MmCore<S>) {
        let held = races::ENABLED && matches!(self.hold, Hold::Vma) && !knob(Knob::SequenceOf8Bits);
        if held && S::is_write_locked(mm, self.vma()) {
            races::violation(Oracle::O3, "a reader has locked a VMA that is write-locked");
        }
    }

    /// Lets go of the lock before the fault is over: a mutant.
    #[cfg(any(feature = "races", loom, shuttle))]
    pub(crate) fn unlock_early(&mut self) {
        if let Hold::Vma = std::mem::replace(&mut self.hold, Hold::Nothing) {
            // SAFETY: it was locked for us, and will not be given back again.
            unsafe { S::vma_end_read(self.vma) };
        }
    }

    #[inline]
    fn vma(&self) -> &Vma<S> {
        // SAFETY: by `new`'s contract the object is attached while we live.
        unsafe { self.vma.as_ref() }
    }

    /// Whether the VMA's own lock is held, not the mmap lock.
    #[inline]
    pub fn is_vma_lock(&self) -> bool {
        matches!(self.hold, Hold::Vma)
    }

    /// The addresses.
    pub fn range(&self) -> PageRange {
        self.vma().range()
    }

    /// The flags.
    #[inline]
    pub fn flags(&self) -> VmaFlags {
        self.vma().flags()
    }

    /// The incarnation: what a stamped page carries.
    #[inline]
    pub fn incarnation(&self) -> u64 {
        self.vma().incarnation.load(Ordering::Relaxed)
    }

    /// Identity of the anonymous pages, 0 if no page was written yet.
    #[inline]
    pub fn anon_vma(&self) -> u64 {
        self.vma().anon_vma.load(Ordering::Relaxed)
    }

    /// The page of the VMA's file that is mapped at `page`; `None` in private
    /// anonymous memory. The VMA keeps the file.
    #[inline]
    pub(crate) fn file_page(&self, page: VirtAddr) -> Option<FilePage<'_>> {
        let vma = self.vma();
        // SAFETY: the VMA is attached while we live, and owns a reference.
        let file = unsafe { vma.file()?.get() };
        let offset = (page - vma.range().start()) >> PAGE_SHIFT;
        Some(FilePage { inode: file.inode(), index: vma.vm_pgoff.load(Ordering::Relaxed) + offset as u64 })
    }

    /// What the VMA is.
    pub(crate) fn segment(&self) -> Segment {
        self.vma().segment()
    }

    /// Sets `anon_vma` unless another fault has.
    pub(crate) fn set_anon_vma(&self, id: u64) {
        // Relaxed: read under this VMA's locks only.
        let _ = self.vma().anon_vma.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that `page` may be present from now on, and those after it in its
    /// block of `around` pages, a power of two.
    #[inline]
    pub(crate) fn set_touched(&self, page: VirtAddr, around: usize) {
        // (A block that is no larger than a chunk lies in one.)
        if around > CHUNK_PAGES || !self.vma().touched.has_chunk_of(page) {
            self.vma().touched.extend(page.block_from(around));
        }
    }
}

/// An attached VMA, seen with the mmap lock held.
pub struct VmaRef<'w, S: LockScheme> {
    vma: NonNull<Vma<S>>,
    _mmap_write: PhantomData<&'w MmCore<S>>,
}

impl<S: LockScheme> Clone for VmaRef<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: LockScheme> Copy for VmaRef<'_, S> {}

impl<'w, S: LockScheme> VmaRef<'w, S> {
    /// # Safety
    /// `vma` is attached to an mm whose mmap lock is held, for reading or
    /// writing, for `'w`.
    pub(crate) unsafe fn new(vma: NonNull<Vma<S>>) -> VmaRef<'w, S> {
        VmaRef { vma, _mmap_write: PhantomData }
    }

    fn vma(&self) -> &'w Vma<S> {
        // SAFETY: by `new`'s contract; attached VMAs are only freed under the
        // mmap lock held for writing, by a `VmaWrite` that is detached.
        unsafe { self.vma.as_ref() }
    }

    /// What the VMA is.
    pub fn segment(&self) -> Segment {
        self.vma().segment()
    }

    /// The addresses.
    pub fn range(&self) -> PageRange {
        self.vma().range()
    }

    /// The incarnation.
    pub fn incarnation(&self) -> u64 {
        self.vma().incarnation.load(Ordering::Relaxed)
    }

    /// Whether a page may be present. A fault under way may just be changing it.
    pub(crate) fn is_touched(&self) -> bool {
        !self.vma().touched.is_empty()
    }

    /// Outside this none is.
    pub(crate) fn touched(&self) -> PageRange {
        self.vma().touched.get().intersect(self.range())
    }

    /// Sets `anon_vma` unless a fault has.
    pub(crate) fn set_anon_vma(&self, id: u64) {
        // Relaxed: as in `VmaRead::set_anon_vma`.
        let _ = self.vma().anon_vma.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Changes flags without the VMA's write lock: a mutant.
    pub(crate) fn set_flags_unlocked(self, flags: VmaFlags) {
        self.vma().vm_flags.store(flags.bits(), Ordering::Relaxed);
    }

    /// Waits for the VMA's readers and keeps new ones out until the mmap lock
    /// is released or downgraded (`vma_start_write`). `write` is the lock of the
    /// mm that the VMA is attached to.
    ///
    /// # Errors
    /// [`Killed`]: `kill` was fired; the VMA is not write-locked.
    pub(crate) fn start_write(self, write: &MmapWrite<'w, S>, kill: Option<&Kill>) -> Result<VmaWrite<'w, S>, Killed> {
        let mm = write.mm();
        debug_assert!(std::ptr::eq(self.vma().vm_mm(), mm), "write-locked under another mm's lock");
        hit(Event::VmaStartWrite, id_of(self.vma.as_ptr()), self.vma().range().start().get() as u64);
        let locked = match kill {
            _ if mutant(Mutant::ProtectWithoutVmaLock) => Ok(()),
            None => {
                S::vma_start_write(mm, self.vma());
                Ok(())
            }
            Some(kill) => S::vma_start_write_killable(mm, self.vma(), kill),
        };
        hit(Event::VmaWriteLocked, id_of(self.vma.as_ptr()), u64::from(locked.is_ok()));
        locked?;
        Ok(VmaWrite { vma: self.vma, mm })
    }
}

/// A VMA that only the caller may look into.
pub struct VmaWrite<'w, S: LockScheme> {
    vma: NonNull<Vma<S>>,
    mm: &'w MmCore<S>,
}

impl<'w, S: LockScheme> VmaWrite<'w, S> {
    fn vma(&self) -> &'w Vma<S> {
        // SAFETY: attached and write-locked, and `self` is the only handle.
        unsafe { self.vma.as_ref() }
    }

    /// The object, for the tree.
    pub(crate) fn as_ptr(&self) -> NonNull<Vma<S>> {
        self.vma
    }

    /// What the VMA is.
    pub(crate) fn segment(&self) -> Segment {
        self.vma().segment()
    }

    /// Changes what the VMA is.
    pub(crate) fn set_segment(&mut self, segment: &Segment, touched: PageRange) {
        self.vma().epoch.add(1);
        self.vma().store_segment(segment, touched);
        self.vma().epoch.add(1);
    }

    /// Attaches it once more, as the seed's store helper did (R2): a mutant.
    pub(crate) fn attach_again(&self) {
        S::vma_mark_attached(self.mm, self.vma());
    }

    /// The part of the VMA in which pages may be present, if there is one. Only
    /// the write lock settles that: faults change it under the read lock.
    pub(crate) fn touched(&self) -> Option<Segment> {
        let part = self.vma().segment().part(self.vma().touched.get());
        (!part.range.is_empty()).then_some(part)
    }

    /// Notes that pages in `pages` may be present.
    pub(crate) fn set_touched(&self, pages: PageRange) {
        self.vma().touched.extend(pages);
    }

    /// Gives the VMA the next incarnation.
    pub(crate) fn renew(&mut self) -> u64 {
        let incarnation = self.mm.next_incarnation();
        self.vma().incarnation.store(incarnation, Ordering::Relaxed);
        incarnation
    }

    /// Frees the VMA without detaching it: a mutant.
    pub(crate) fn leave_attached(self) -> VmaNew<'w, S> {
        VmaNew { vma: self.vma, mm: self.mm }
    }

    /// Takes the VMA out of use (`vma_mark_detached`). Its tree entry must
    /// already be gone, or go in this write section.
    pub(crate) fn detach(self) -> VmaNew<'w, S> {
        S::vma_mark_detached(self.vma());
        self.vma().epoch.add(1);
        VmaNew { vma: self.vma, mm: self.mm }
    }
}

/// A detached object of one's own: fresh from the slab (`vm_area_alloc`), or
/// just detached. Dropping it frees it (`vm_area_free`); it may be in use
/// again, elsewhere, before the drop returns.
pub struct VmaNew<'w, S: LockScheme> {
    vma: NonNull<Vma<S>>,
    mm: &'w MmCore<S>,
}

impl<'w, S: LockScheme> VmaNew<'w, S> {
    /// Takes an object from the slab for the mm whose mmap lock is `write`.
    /// `None`: out of memory.
    ///
    /// This is `vm_area_dup`, too: a VMA is made from its [`Segment`], field by
    /// field. The lock, `detached` in particular, is never copied (S-A).
    pub(crate) fn alloc(write: &MmapWrite<'w, S>, segment: &Segment) -> Option<VmaNew<'w, S>> {
        if crate::inject::fails() {
            return None;
        }
        let mm = write.mm();
        let new = VmaNew { vma: S::slab().alloc()?, mm };
        let vma = new.vma();
        if races::POISON && S::is_attached(vma) {
            races::violation(Oracle::O4, "an object from the slab is attached");
        }
        count(Counter::VmaAllocated);
        match vma.owner_id.load(Ordering::Relaxed) {
            0 => {}
            last => {
                count(Counter::VmaReused);
                hit(Event::Reuse, id_of(vma), last);
                if last != mm.id() {
                    count(Counter::VmaReusedOtherMm);
                }
                #[cfg(feature = "races")]
                races::adversary::count_reuse(last != mm.id());
            }
        }
        vma.owner_id.store(mm.id(), Ordering::Relaxed);
        vma.written(Vma::<S>::VM_MM);
        vma.vm_mm.store(std::ptr::from_ref(mm).cast_mut(), Ordering::Relaxed);
        vma.incarnation.store(mm.next_incarnation(), Ordering::Relaxed);
        if let Some(file) = segment.file {
            // SAFETY: kept by an old VMA of the operation, or by its caller.
            unsafe { file.keep() };
        }
        vma.store_segment(segment, PageRange::default());
        S::vma_init(vma);
        Some(new)
    }

    fn vma(&self) -> &'w Vma<S> {
        // SAFETY: the object is ours, and slab memory is valid while it is.
        unsafe { self.vma.as_ref() }
    }

    /// The incarnation.
    pub(crate) fn incarnation(&self) -> u64 {
        self.vma().incarnation.load(Ordering::Relaxed)
    }

    /// Notes that pages in `pages` may be present: they were another VMA's.
    pub(crate) fn set_touched(&mut self, pages: PageRange) {
        self.vma().touched.set(pages);
    }

    /// Puts the VMA into use, write-locked (`vma_mark_attached`).
    pub(crate) fn attach(self) -> VmaWrite<'w, S> {
        S::vma_mark_attached(self.mm, self.vma());
        self.vma().epoch.add(1);
        let write = VmaWrite { vma: self.vma, mm: self.mm };
        std::mem::forget(self);
        write
    }
}

impl<S: LockScheme> Drop for VmaNew<'_, S> {
    fn drop(&mut self) {
        if races::POISON && S::is_attached(self.vma()) && !mutant(Mutant::ExitWithoutDetach) {
            races::violation(Oracle::O4, "an attached VMA was freed");
        }
        if let Some(file) = self.vma().file() {
            self.vma().vm_file.store(std::ptr::null_mut(), Ordering::Relaxed);
            // SAFETY: the object's reference, from `alloc`; mutators only.
            unsafe { file.release() };
        }
        #[cfg(feature = "races")]
        self.vma().poison();
        // SAFETY: detached and ours; a detached object refuses stale readers.
        unsafe { S::vma_free(self.vma) };
    }
}
