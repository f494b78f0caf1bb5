//! [`MmCore`]: what an address space is to its locks; [`MmapWrite`] and
//! [`MmapRead`]: the mmap lock, held.

use super::count::MmCount;
use super::limits::{Pages, Usage};
use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
use crate::file::FileRef;
use crate::lock::{Kill, Killed, LockScheme};
use crate::mmap_lock::{self, MmapLock};
use crate::races::{self, Knob, Mutant, Point, knob, mutant, point, unless};
use crate::rcu;
use crate::sync::plain::{AtomicU64, AtomicUsize};
use crate::sync::{AtomicU32, CachePadded, Ordering, futex_wake};
use crate::tree::{Entry, Reclaim, Snapshot, VmaTree};
use crate::vma::plan::{Layout, Planned};
use crate::vma::{Segment, Vma, VmaFlags, VmaNew, VmaRef, VmaWrite};
use nix::errno::Errno;
use smallvec::SmallVec;

/// The part of an address space that its lock scheme knows (`mm_struct`).
#[repr(C)]
pub struct MmCore<S: LockScheme> {
    // What every fault reads, and every mutator writes: one cache line.
    pub(crate) mm_lock_seq: AtomicU32,
    /// Its root changes with every operation.
    pub(crate) tree: VmaTree<Vma<S>>,
    /// Pages that one fault makes present (`fault_around_bytes`).
    fault_around: AtomicUsize,
    pub(crate) mmap_lock: CachePadded<MmapLock>,
    /// Raised to wake the writer that waits for readers of a VMA: there is at
    /// most one, as it holds the mmap lock (`vma_writer_wait`; used by `refcount`).
    pub(crate) vma_writer_wait: AtomicU32,
    pub(super) count: MmCount,
    id: u64,
    pub(super) usage: Usage,
    map_count: AtomicUsize,
    map_count_max: AtomicUsize,
    incarnations: AtomicU64,
    anon_vmas: AtomicU64,
}

/// `max_map_count`'s default in Linux.
pub const MAP_COUNT_MAX: usize = 65530;

impl<S: LockScheme> MmCore<S> {
    pub(crate) fn new() -> MmCore<S> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let reclaim = if S::PER_VMA { Reclaim::AfterGracePeriod } else { Reclaim::AtOnce };
        MmCore {
            mm_lock_seq: AtomicU32::new(0),
            tree: VmaTree::new(reclaim),
            fault_around: AtomicUsize::new(1),
            mmap_lock: CachePadded::new(MmapLock::of(mmap_lock::rwsem())),
            vma_writer_wait: AtomicU32::new(0),
            count: MmCount::new::<S>(),
            id: IDS.fetch_add(1, Ordering::Relaxed) + 1,
            usage: Usage::new(),
            map_count: AtomicUsize::new(0),
            map_count_max: AtomicUsize::new(MAP_COUNT_MAX),
            incarnations: AtomicU64::new(0),
            anon_vmas: AtomicU64::new(0),
        }
    }

    /// Process-wide number of the address space, never 0, never reused.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Mappings now (`map_count`); exact while no operation runs.
    pub fn map_count(&self) -> usize {
        self.map_count.load(Ordering::Relaxed)
    }

    /// The limit (`max_map_count`).
    pub(crate) fn map_count_max(&self) -> usize {
        self.map_count_max.load(Ordering::Relaxed)
    }

    pub(crate) fn set_map_count_max(&self, max: usize) {
        self.map_count_max.store(max, Ordering::Relaxed);
    }

    /// Pages that one fault makes present, a power of two.
    #[inline]
    pub(crate) fn fault_around(&self) -> usize {
        self.fault_around.load(Ordering::Relaxed)
    }

    pub(super) fn set_fault_around(&self, pages: usize) {
        self.fault_around.store(pages, Ordering::Relaxed);
    }

    /// Only with the mmap lock held for writing, so numbers ascend in time.
    pub(crate) fn next_incarnation(&self) -> u64 {
        // No read-modify-write: nobody else writes it meanwhile.
        let next = self.incarnations.load(Ordering::Relaxed) + 1;
        self.incarnations.store(next, Ordering::Relaxed);
        next
    }

    /// A new identity for anonymous pages.
    pub(crate) fn next_anon_vma(&self) -> u64 {
        self.anon_vmas.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Waits for the mmap lock, for reading.
    #[inline]
    pub(crate) fn mmap_read(&self) -> MmapRead<'_, S> {
        MmapRead { guard: self.mmap_lock.read(), mm: self }
    }

    /// Waits for the mmap lock, for writing, and opens a write section.
    pub(crate) fn mmap_write(&self) -> MmapWrite<'_, S> {
        let guard = self.mmap_lock.write();
        let seq = self.mm_lock_seq.load(Ordering::Relaxed);
        debug_assert!(seq & 1 == 0, "write section inside another");
        // Odd from here. Release, though it publishes nothing of this section: a
        // reader whose VMA was changed in the section before may meet this
        // number at its second comparison, not the even one that it hides, and
        // must see those changes all the same.
        let ordering = unless(Mutant::UnlockIsPlainStore, Ordering::Release);
        self.mm_lock_seq.store(next_number(seq), ordering);
        point(Point::Section);
        MmapWrite { exit: false, guard: Some(guard), mm: self }
    }

    /// A write section without the lock: a mutant.
    pub(crate) fn pretend_write(&self) -> MmapWrite<'_, S> {
        MmapWrite { exit: false, guard: None, mm: self }
    }

    /// Wakes the writer that waits for readers of a VMA (`rcuwait_wake_up`).
    pub(crate) fn wake_vma_writer(&self) {
        // Release: pairs with the Acquire in `lock::refcount::wait_for_readers`.
        self.vma_writer_wait.fetch_add(1, Ordering::Release);
        futex_wake(&self.vma_writer_wait, 1);
    }

    /// Oracle O6, in builds that keep the memory of dead address spaces.
    #[inline(always)]
    pub(crate) fn assert_alive(&self) {
        if races::ENABLED && self.count.is_dead() {
            races::violation(races::Oracle::O6, "an address space was used after it was freed");
        }
    }

    /// Ends a write section: every VMA write lock is released at once
    /// (`vma_end_write_all`).
    fn end_write_all(&self) {
        let seq = self.mm_lock_seq.load(Ordering::Relaxed);
        debug_assert!(seq & 1 == 1, "no write section to end");
        // Release: pairs with the Acquire of a reader's second comparison
        // (`lock::typesafe::check_locked`): whoever sees the new number, or a
        // later one (`mmap_write`), sees what was changed under the old one
        // (R11). The last act before the mmap lock goes (I5).
        let ordering = unless(Mutant::UnlockIsPlainStore, Ordering::Release);
        self.mm_lock_seq.store(next_number(seq), ordering);
    }
}

/// The number after `seq`. It may wrap: an accidental equality refuses readers,
/// and does nothing else (R12).
#[inline(always)]
fn next_number(seq: u32) -> u32 {
    if knob(Knob::SequenceOf8Bits) { seq.wrapping_add(1) & 0xff } else { seq.wrapping_add(1) }
}

/// The mmap lock of an address space, held for reading.
pub struct MmapRead<'m, S: LockScheme> {
    guard: mmap_lock::ReadGuard<'m>,
    mm: &'m MmCore<S>,
}

impl<'m, S: LockScheme> MmapRead<'m, S> {
    /// The mappings, which do not change while the lock is held.
    #[inline]
    pub(crate) fn snapshot(&self) -> Snapshot<'_, Vma<S>> {
        // SAFETY: mutations need the mmap lock for writing.
        unsafe { self.mm.tree.snapshot_locked() }
    }

    /// A VMA of the snapshot.
    pub(crate) fn vma(&self, entry: Entry<Vma<S>>) -> VmaRef<'_, S> {
        // SAFETY: in the tree, so attached; and the mmap lock is held.
        unsafe { VmaRef::new(entry.ptr) }
    }

    /// Gives the lock on, to a guard of another kind.
    pub(crate) fn into_guard(self) -> mmap_lock::ReadGuard<'m> {
        self.guard
    }
}

/// The mmap lock of an address space, held for writing: the only way to a VMA
/// write lock. When it is dropped or downgraded, all of those are released.
pub struct MmapWrite<'m, S: LockScheme> {
    /// The address space ends with this section.
    exit: bool,
    guard: Option<mmap_lock::WriteGuard<'m>>,
    mm: &'m MmCore<S>,
}

impl<S: LockScheme> Drop for MmapWrite<'_, S> {
    fn drop(&mut self) {
        if self.guard.is_some() {
            self.mm.end_write_all();
        }
    }
}

/// VMAs that an operation replaces, in ascending order.
pub(crate) type Affected<'w, S> = SmallVec<[VmaRef<'w, S>; 4]>;

/// A planned change for which everything that can fail has been done, and
/// whose VMAs are write-locked and drained.
pub(crate) struct Prepared<'w, S: LockScheme> {
    span: PageRange,
    planned: SmallVec<[Planned; 4]>,
    /// Old VMAs, locked, by their place; taken as they find their use.
    old: SmallVec<[Option<VmaWrite<'w, S>>; 4]>,
    new: SmallVec<[VmaNew<'w, S>; 4]>,
    /// The parts of old VMAs that may have pages.
    touched: SmallVec<[Segment; 4]>,
}

impl<S: LockScheme> Default for Prepared<'_, S> {
    fn default() -> Self {
        Prepared {
            span: PageRange::default(),
            planned: SmallVec::new(),
            old: SmallVec::new(),
            new: SmallVec::new(),
            touched: SmallVec::new(),
        }
    }
}

/// Where pages may be present.
#[derive(Default)]
pub(crate) struct Touched {
    /// One stretch that covers them all; it may hold untouched VMAs and holes.
    pub(crate) span: PageRange,
    /// What maps files, in ascending order: where, which, from which page on.
    pub(crate) files: SmallVec<[(PageRange, FileRef, u64); 2]>,
}

impl<S: LockScheme> Prepared<'_, S> {
    /// The part of `range` in which pages may be present. Settled only now that
    /// faults are drained: one that was under way when the operation began may
    /// have been the first to touch its VMA (as in c46000458d57, where a
    /// decision was taken before the VMA was locked).
    pub(crate) fn touched_in(&self, range: PageRange) -> Option<Touched> {
        touched_in(&self.touched, range)
    }
}

fn touched_in(segments: &[Segment], range: PageRange) -> Option<Touched> {
    let mut touched = Touched::default();
    for segment in segments {
        let part = segment.range.intersect(range);
        if part.is_empty() {
            continue;
        }
        let start = if touched.span.is_empty() { part.start() } else { touched.span.start() };
        touched.span = PageRange::new(start, part.end());
        if let Some(file) = segment.file {
            touched.files.push((part, file, segment.pgoff_at(part)));
        }
    }
    (!touched.span.is_empty()).then_some(touched)
}

/// What covers all of the segments that lies in `range`.
fn hull_in(segments: &[Segment], range: PageRange) -> PageRange {
    let mut parts = segments.iter().map(|segment| segment.range.intersect(range)).filter(|part| !part.is_empty());
    let Some(first) = parts.next() else {
        return PageRange::default();
    };
    PageRange::new(first.start(), parts.next_back().unwrap_or(first).end())
}

/// VMAs that are write-locked and stay as they are, of each the part that may have pages.
pub(crate) struct Drained(SmallVec<[Segment; 4]>);

impl Drained {
    /// See [`Prepared::touched_in`].
    pub(crate) fn touched_in(&self, range: PageRange) -> Option<Touched> {
        touched_in(&self.0, range)
    }
}

impl<'m, S: LockScheme> MmapWrite<'m, S> {
    /// The address space whose lock this is.
    pub(crate) fn mm(&self) -> &'m MmCore<S> {
        self.mm
    }

    /// The mappings as they are now.
    pub(crate) fn snapshot(&self) -> Snapshot<'_, Vma<S>> {
        // SAFETY: only the holder of this guard mutates the tree, in `commit`,
        // which takes the guard exclusively.
        unsafe { self.mm.tree.snapshot_locked() }
    }

    /// The VMAs that overlap `range`, with one neighbour on each side if it is
    /// adjacent, and the place of the first one that overlaps. Lifetimes are
    /// the lock's, not the snapshot's: VMAs outlive tree nodes.
    pub(crate) fn affected(&self, range: PageRange) -> (Affected<'m, S>, std::ops::Range<usize>) {
        let snapshot = self.snapshot();
        // One walk finds them all: an adjacent neighbour holds the page before
        // the range, or the one after it.
        let end = range.end().get().checked_add(PAGE_SIZE).map_or(range.end(), VirtAddr);
        let around = PageRange::new(VirtAddr(range.start().get().saturating_sub(PAGE_SIZE)), end);
        let mut affected = Affected::new();
        let (mut first, mut last) = (0, 0);
        for entry in snapshot.overlapping(around) {
            // SAFETY: in the tree, so attached; the mmap lock is held for 'm at
            // most until this guard goes, and callers keep it as long.
            affected.push(unsafe { VmaRef::new(entry.ptr) });
            first += usize::from(entry.range.end() <= range.start());
            last += usize::from(entry.range.start() < range.end());
        }
        (affected, first..last.max(first))
    }

    /// Allocates what `layout` needs and write-locks every VMA that it changes
    /// or drops. `affected` must be what the layout's places number. `Ok(None)`:
    /// nothing to change.
    ///
    /// # Errors
    /// ENOMEM: out of memory; EINTR: `kill` was fired while a VMA's readers were
    /// waited for. Nothing changed.
    pub(crate) fn prepare(
        &self,
        affected: &Affected<'m, S>,
        layout: &Layout,
        kill: Option<&Kill>,
    ) -> Result<Option<Prepared<'m, S>>, Errno> {
        let mut prepared = Prepared::default();
        Ok(self.prepare_in(&mut prepared, affected, layout, kill)?.then_some(prepared))
    }

    /// [`prepare`](MmapWrite::prepare) into the caller's own, which is empty: it
    /// is large, and mmap and munmap feel each time that it is moved. `Ok(false)`:
    /// nothing to change.
    ///
    /// # Errors
    /// As `prepare`.
    pub(crate) fn prepare_in(
        &self,
        prepared: &mut Prepared<'m, S>,
        affected: &Affected<'m, S>,
        layout: &Layout,
        kill: Option<&Kill>,
    ) -> Result<bool, Errno> {
        let mut planned = layout.planned();
        let mut places = 0..affected.len();
        // Neighbours that stay as they are take no part.
        while let (Some(p), Some(old)) = (planned.first(), places.clone().next())
            && p.object == Some(old)
            && !p.fresh
            && p.segment == affected[old].segment()
        {
            planned = &planned[1..];
            places.start += 1;
        }
        while let (Some(p), Some(old)) = (planned.last(), places.clone().next_back())
            && p.object == Some(old)
            && !p.fresh
            && p.segment == affected[old].segment()
        {
            planned = &planned[..planned.len() - 1];
            places.end -= 1;
        }
        if planned.is_empty() && places.is_empty() {
            return Ok(false);
        }
        let starts = [planned.first().map(|p| p.segment.range), places.clone().next().map(|i| affected[i].range())];
        let ends = [planned.last().map(|p| p.segment.range), places.clone().next_back().map(|i| affected[i].range())];
        prepared.span = PageRange::new(
            starts.iter().flatten().map(|range| range.start()).min().expect("one of the two is not empty"),
            ends.iter().flatten().map(|range| range.end()).max().expect("one of the two is not empty"),
        );
        for p in planned {
            if p.object.is_none() {
                prepared.new.push(VmaNew::alloc(self, &p.segment).ok_or(Errno::ENOMEM)?);
            }
            prepared.planned.push(*p);
        }
        for (place, vma) in affected.iter().enumerate() {
            let mut locked = None;
            if places.contains(&place) {
                let vma = vma.start_write(self, kill).map_err(|Killed| Errno::EINTR)?;
                if let Some(segment) = vma.touched() {
                    prepared.touched.push(segment);
                }
                locked = Some(vma);
            }
            prepared.old.push(locked);
        }
        Ok(true)
    }

    /// Write-locks VMAs whose pages an operation changes, and nothing else:
    /// faults are kept out until the write section ends.
    pub(crate) fn drain(&self, vmas: &[VmaRef<'m, S>]) -> Drained {
        let lock = |vma: &VmaRef<'m, S>| vma.start_write(self, None).ok()?.touched();
        Drained(vmas.iter().filter_map(lock).collect())
    }

    /// Carries a prepared change out: VMAs first, then the tree, in one step.
    /// Returns the VMAs that fell out of use, to be freed when their pages are
    /// gone, and the incarnation of the piece that was added, if one was.
    pub(crate) fn commit(&mut self, mut prepared: Prepared<'m, S>) -> (Detached<'m, S>, u64) {
        let mut detached = Detached::new();
        let fresh = self.commit_from(&mut prepared, &mut detached);
        (detached, fresh)
    }

    /// [`commit`](MmapWrite::commit) of the caller's own, which is empty afterwards.
    /// (`detached`, empty before, is not to be moved right after it was filled: that
    /// waits for the tree's nodes, stored before, to reach the cache.)
    pub(crate) fn commit_from(&mut self, prepared: &mut Prepared<'m, S>, detached: &mut Detached<'m, S>) -> u64 {
        let Prepared { span, planned, old, new, touched } = prepared;
        let span = *span;
        point(Point::Commit);
        let mut new = new.drain(..);
        let mut entries: SmallVec<[Entry<Vma<S>>; 4]> = SmallVec::new();
        let mut fresh = 0;
        let (mut before, mut after) = (Pages::default(), Pages::default());
        old.iter().flatten().for_each(|vma| before.add(&vma.segment()));
        for p in planned.iter() {
            // What was there before a wholly new mapping has been zapped.
            let all_new = p.fresh && !p.merged;
            let touched = if all_new { PageRange::default() } else { hull_in(touched, p.segment.range) };
            after.add(&p.segment);
            let (ptr, incarnation) = match p.object {
                Some(place) => {
                    let mut vma = old[place].take().expect("each old object is planned once");
                    vma.set_segment(&p.segment, touched);
                    let incarnation = if p.fresh || p.merged { vma.renew() } else { 0 };
                    if mutant(Mutant::AttachTwice) {
                        vma.attach_again();
                    }
                    (vma.as_ptr(), incarnation)
                }
                None => {
                    let mut vma = new.next().expect("an object for each new VMA");
                    vma.set_touched(touched);
                    let incarnation = vma.incarnation();
                    (vma.attach().as_ptr(), incarnation)
                }
            };
            if p.fresh {
                fresh = incarnation;
            }
            entries.push(Entry { range: p.segment.range, ptr });
        }
        point(Point::H7);
        let mut removed = 0;
        if mutant(Mutant::ReplaceInTwoSteps) {
            // SAFETY: as below.
            removed = unsafe { self.mm.tree.replace(span, &[]) };
            point(Point::H8);
        }
        // SAFETY: the mmap lock is held for writing, and `&mut self` outlives
        // no snapshot.
        removed += unsafe { self.mm.tree.replace(span, &entries) };
        point(Point::H8);
        let count = self.mm.map_count.load(Ordering::Relaxed) + entries.len() - removed;
        self.mm.map_count.store(count, Ordering::Relaxed);
        self.mm.usage.account(before, after);
        let detach = |vma: VmaWrite<'m, S>| {
            if self.exit && mutant(Mutant::ExitWithoutDetach) { vma.leave_attached() } else { vma.detach() }
        };
        for vma in old.drain(..).flatten() {
            detached.push(detach(vma));
        }
        fresh
    }

    /// Changes flags of a whole VMA, which neither splits nor merges.
    pub(crate) fn set_flags(&self, vma: VmaRef<'m, S>, change: impl FnOnce(&mut Segment)) {
        let Ok(mut vma) = vma.start_write(self, None) else { unreachable!("nobody kills it") };
        let (mut before, mut after) = (Pages::default(), Pages::default());
        let mut segment = vma.segment();
        before.add(&segment);
        change(&mut segment);
        after.add(&segment);
        let touched = vma.touched().map_or(PageRange::default(), |part| part.range);
        vma.set_segment(&segment, touched);
        self.mm.usage.account(before, after);
    }

    /// Gives the VMA at `addr` its flags after it was published: a mutant.
    pub(crate) fn finish_late(&self, addr: VirtAddr, flags: VmaFlags) {
        if let Some(entry) = self.snapshot().entry_at(addr) {
            // SAFETY: in the tree, and the mmap lock is held for writing.
            let vma: VmaRef<'_, S> = unsafe { VmaRef::new(entry.ptr) };
            let (mut before, mut after) = (Pages::default(), Pages::default());
            before.add(&vma.segment());
            vma.set_flags_unlocked(flags);
            after.add(&vma.segment());
            self.mm.usage.account(before, after);
        }
    }

    /// Releases all VMA write locks and goes on as a reader.
    pub(crate) fn downgrade(mut self) -> MmapRead<'m, S> {
        let mm = self.mm;
        mm.end_write_all();
        let guard = self.guard.take().expect("held until now").downgrade();
        MmapRead { guard, mm }
    }
}

/// VMAs out of use; freed when dropped.
pub(crate) type Detached<'w, S> = SmallVec<[VmaNew<'w, S>; 4]>;

impl<S: LockScheme> MmCore<S> {
    /// Every VMA is detached, stale foreign readers waited for, and returned to
    /// the slab (`exit_mmap`). No fault or operation runs any more.
    pub(super) fn exit_mmap(&self) {
        {
            let mut write = self.mmap_write();
            write.exit = true;
            let all = write.snapshot().iter().map(|e| e.range).fold(None, |all: Option<PageRange>, r| {
                Some(PageRange::new(all.map_or(r.start(), |a| a.start()), r.end()))
            });
            if let Some(all) = all {
                let (affected, _) = write.affected(all);
                if let Ok(Some(prepared)) = write.prepare(&affected, &Layout::new(), None) {
                    drop(write.commit(prepared));
                }
            }
        }
        assert_eq!(self.map_count(), 0, "mappings left behind at exit");
        rcu::poll();
    }

    /// See [`Mm::validate`](crate::mm::Mm::validate).
    pub(crate) fn validate(&self, bounds: PageRange) {
        let read = self.mmap_read();
        read.snapshot().validate();
        let mut last: Option<Segment> = None;
        let mut count = 0;
        for entry in read.snapshot().iter() {
            let vma = read.vma(entry);
            let segment = vma.segment();
            assert_eq!(segment.range, entry.range, "the tree and the VMA disagree about the range");
            assert!(!segment.range.is_empty() && bounds.covers(segment.range), "VMA {:?} outside", segment.range);
            if let Some(last) = last {
                assert!(last.range.end() <= segment.range.start(), "VMAs overlap at {:?}", segment.range);
            }
            vma.validate(self);
            last = Some(segment);
            count += 1;
        }
        assert_eq!(count, self.map_count(), "map_count is off");
        self.validate_usage(read.snapshot().iter().map(|entry| read.vma(entry).segment()));
        assert!(self.mm_lock_seq.load(Ordering::Relaxed) & 1 == 0, "a write section is open");
        drop(read);
        assert!(self.mmap_lock.is_idle(), "the mmap lock is not idle");
    }
}

/// The address range that a call names, after the checks that every call of
/// the family shares.
pub(crate) fn page_range(addr: VirtAddr, len: usize) -> Option<PageRange> {
    (addr.is_page_aligned() && addr.get().checked_add(len).is_some()).then(|| PageRange::sized(addr, len))
}
