//! [`Adverse`]: a target under the adversary, with the feature `races` only.
//! It makes addresses and VMA objects come back where stale readers still
//! look for what was there before, and leaves what the workload sees as it
//! would be without it:
//!
//! - **The same address again.** `mmap` with an address of 0 gets as a hint a
//!   place that was unmapped a moment ago. A hint is not a demand: where it is
//!   taken, the address space finds another place, as ever.
//! - **The same address elsewhere.** Beside each address space stands a *twin*,
//!   a software one that begins at the same address. What the workload has
//!   unmapped is, half of the time, at once mapped in the twin: the VMA object
//!   goes there, with the very range that a stale reader looks for (the
//!   numbers of two real address spaces in one process never coincide). Some
//!   accesses are repeated in the twin, so that it has stale readers, too.
//! - **Address spaces that die.** A twin goes and another takes its place from
//!   time to time, while stale readers may still be at its VMAs.

use super::soft::Soft;
use super::{SlabUse, Target};
use crate::RunError;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use vmalab::Errno;
use vmalab::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::lock::LockScheme;
use vmalab::mm::{MapFlags, Mapping, Prot};
use vmalab::pager::{AnyPager, Stamp};
use vmalab::races::adversary::draw;
use vmalab::races::{Oracle, violation};

/// Places remembered.
const RECENT: usize = 8;
/// Mappings that a twin keeps.
const KEPT: usize = 6;
/// One theft in so many is followed by the death of the twin.
const THEFTS_PER_LIFE: u64 = 512;
/// One access in so many is repeated in the twin.
const ACCESSES_PER_ECHO: u64 = 32;

/// What the targets of a run did.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    /// `mmap`s that got a place unmapped a moment ago.
    pub(crate) same_address: AtomicU64,
    /// Mappings made in a twin where the workload had just unmapped.
    pub(crate) thefts: AtomicU64,
    /// Accesses repeated in a twin.
    pub(crate) echoes: AtomicU64,
    /// Twins that were replaced.
    pub(crate) deaths: AtomicU64,
}

/// A range in one word: first page relative to the target's, pages. 0: none.
struct Recent([AtomicU64; RECENT]);

impl Recent {
    fn put(&self, base: VirtAddr, range: PageRange) {
        let first = ((range.start() - base) >> PAGE_SHIFT) as u64;
        let pages = range.pages() as u64;
        if first < 1 << 32 && pages < 1 << 32 {
            // Relaxed, here and below: a guess, and nothing else hangs on it.
            self.0[draw() as usize % RECENT].store(first << 32 | pages, Ordering::Relaxed);
        }
    }

    /// Somewhere with room for `len` bytes.
    fn place_for(&self, base: VirtAddr, len: usize) -> Option<VirtAddr> {
        let from = draw() as usize;
        (0..RECENT).find_map(|i| {
            let word = self.0[(from + i) % RECENT].load(Ordering::Relaxed);
            let (first, pages) = ((word >> 32) as usize, word as u32 as usize);
            (pages * PAGE_SIZE >= len.max(1)).then(|| base + (first << PAGE_SHIFT))
        })
    }
}

/// The address space beside a target, and what is mapped there.
struct Twin<S: LockScheme> {
    bytes: usize,
    base: VirtAddr,
    pager: AnyPager,
    /// Replaced as a whole; whoever still holds the old one drops it.
    space: RwLock<Arc<Soft<S>>>,
    kept: Mutex<Vec<PageRange>>,
}

/// A target under the adversary; see the file's documentation.
pub(crate) struct Adverse<S: LockScheme, T> {
    inner: T,
    twin: Twin<S>,
    recent: Recent,
    deeds: Arc<Deeds>,
    _scheme: PhantomData<S>,
}

impl<S: LockScheme, T: Target> Adverse<S, T> {
    /// Around `inner`, whose twin fills its pages from `pager`.
    pub(crate) fn new(inner: T, pager: AnyPager, deeds: Arc<Deeds>) -> Result<Adverse<S, T>, RunError> {
        let range = inner.range();
        let (base, bytes) = (range.start(), range.bytes());
        let twin = Twin {
            bytes,
            base,
            pager,
            space: RwLock::new(Arc::new(Soft::at(base, bytes, pager)?)),
            kept: Mutex::new(Vec::new()),
        };
        Ok(Adverse { inner, twin, recent: Recent([const { AtomicU64::new(0) }; RECENT]), deeds, _scheme: PhantomData })
    }

    /// `range` has just been unmapped.
    fn unmapped(&self, range: PageRange) {
        self.recent.put(self.twin.base, range);
        if draw().is_multiple_of(2) && self.twin.steal(range) {
            let thefts = self.deeds.thefts.fetch_add(1, Ordering::Relaxed) + 1;
            if thefts.is_multiple_of(THEFTS_PER_LIFE) && self.twin.replace() {
                self.deeds.deaths.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Repeats an access in the twin, now and then.
    #[inline]
    fn echo(&self, addr: VirtAddr, write: bool) {
        if draw().is_multiple_of(ACCESSES_PER_ECHO) {
            self.deeds.echoes.fetch_add(1, Ordering::Relaxed);
            self.twin.access(addr, write);
        }
    }
}

impl<S: LockScheme> Twin<S> {
    fn space(&self) -> Arc<Soft<S>> {
        Arc::clone(&self.space.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Maps `range`, so that it gets the objects that were just freed, looks at
    /// it, and unmaps it or an older one. Says whether it did: one thief at a time.
    fn steal(&self, range: PageRange) -> bool {
        let Ok(mut kept) = self.kept.try_lock() else { return false };
        let space = self.space();
        let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
        let prot = if draw().is_multiple_of(4) { Prot::READ } else { Prot::READ | Prot::WRITE };
        let Ok(mapping) = space.map(range.start().get(), range.bytes(), prot, flags) else { return false };
        let page = range.start() + (draw() as usize % range.pages()) * PAGE_SIZE;
        self.judge(&space, page, mapping.incarnation, space.stamp(page), Expected::Mapped);
        kept.retain(|old| !old.overlaps(range));
        kept.push(range);
        if kept.len() > KEPT || draw().is_multiple_of(2) {
            let victim = if draw().is_multiple_of(2) { kept.len() - 1 } else { draw() as usize % kept.len() };
            let gone = kept.swap_remove(victim);
            if space.munmap(gone.start().get(), gone.bytes()).is_ok() {
                self.judge(&space, gone.start(), 0, space.stamp(gone.start()), Expected::Unmapped);
            }
        }
        true
    }

    /// Puts a new twin in place of this one.
    fn replace(&self) -> bool {
        let Ok(space) = Soft::at(self.base, self.bytes, self.pager) else { return false };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clear();
        let new = Arc::new(space);
        let old = std::mem::replace(&mut *self.space.write().unwrap_or_else(PoisonError::into_inner), new);
        drop(kept);
        drop(old);
        true
    }

    fn access(&self, addr: VirtAddr, write: bool) {
        let space = self.space();
        let page = addr.page();
        if write {
            // Any outcome is right: thieves come and go.
            let _ = space.store(page + PAGE_SIZE / 2, 1);
        } else {
            self.judge(&space, page, 0, space.stamp(page), Expected::Anything);
        }
    }

    /// What was seen in the twin must be the twin's.
    fn judge(
        &self,
        space: &Soft<S>,
        page: VirtAddr,
        incarnation: u64,
        seen: Result<Stamp, Signal>,
        expected: Expected,
    ) {
        match (seen, expected) {
            (Err(_), Expected::Mapped) => violation(Oracle::O1, "a twin's page could not be read, but it is mapped"),
            (Ok(_), Expected::Unmapped) => violation(Oracle::O2, "a twin's page could be read, but it is not mapped"),
            (Ok(stamp), _) if matches!(self.pager, AnyPager::Stamped) => {
                // Word by word an access of another thread may meet two pages,
                // but each of them must be this one's.
                if stamp.page_addr() != page {
                    violation(Oracle::O1, "a twin's page was filled for another address");
                }
                if stamp.mm_id != space.id() {
                    violation(Oracle::O1, "a twin's page was filled for another address space");
                }
                if stamp.incarnation < incarnation {
                    violation(Oracle::O1, "a twin's page was filled for an earlier mapping");
                }
            }
            _ => {}
        }
    }
}

/// What the thief knows about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Mapped,
    Unmapped,
    Anything,
}

impl<S: LockScheme, T: Target> Target for Adverse<S, T> {
    const COUNTS: bool = T::COUNTS;

    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        let hint = match self.recent.place_for(self.twin.base, len) {
            Some(place) if addr == 0 && !fixed && !draw().is_multiple_of(8) => place.get(),
            _ => addr,
        };
        let mapping = self.inner.map(hint, len, prot, flags)?;
        if hint != addr && mapping.addr.get() == hint {
            self.deeds.same_address.fetch_add(1, Ordering::Relaxed);
        }
        Ok(mapping)
    }

    fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.inner.munmap(addr, len)?;
        self.unmapped(PageRange::sized(VirtAddr(addr), len.next_multiple_of(PAGE_SIZE)));
        Ok(())
    }

    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        self.inner.mprotect(addr, len, prot)
    }

    #[inline]
    fn load(&self, addr: VirtAddr) -> Result<u64, Signal> {
        self.echo(addr, false);
        self.inner.load(addr)
    }

    #[inline]
    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        self.echo(addr, true);
        self.inner.store(addr, value)
    }

    fn stamp(&self, page: VirtAddr) -> Result<Stamp, Signal> {
        self.inner.stamp(page)
    }

    fn checked(&self) -> bool {
        self.inner.checked()
    }

    fn range(&self) -> PageRange {
        self.inner.range()
    }

    fn id(&self) -> u64 {
        self.inner.id()
    }

    fn slab(&self) -> Option<SlabUse> {
        self.inner.slab()
    }

    fn validate(&self) {
        self.inner.validate();
        self.twin.space().validate();
    }
}
