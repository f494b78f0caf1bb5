//! [`Adverse`]: a target under the adversary, with the feature `races` only.
//! It makes addresses and VMA objects come back where stale readers still
//! look for what was there before, and leaves what the workload sees as it
//! would be without it:
//!
//! - **The same address again.** `mmap` with an address of 0 gets as a hint a
//!   place that was unmapped a moment ago. A hint is not a demand: where it is
//!   taken, the address space finds another place, as ever.
//! - **The same address elsewhere.** Beside each address space stand *twins*,
//!   two software ones that begin at the same address. What the workload has
//!   unmapped is, half of the time, at once mapped in a twin: the VMA object
//!   goes there, with the very range that a stale reader looks for (the
//!   numbers of two real address spaces in one process never coincide). Then
//!   it may go to and fro between the twins: gone, elsewhere, and back again.
//! - **Ghosts.** Before some accesses a thread touches the page that was
//!   unmapped last, in the workload's address space or in a twin: so there are
//!   readers where objects change hands. What a ghost sees must be right, how
//!   it ends is nobody's business. It stores to the page's last word, which no
//!   workload uses. (Once the workload has moved pages, inherited some or mapped
//!   a file, stamps in its address space say where a page was filled and not
//!   where it is; the workload's own checks and the twins remain.)
//! - **Address spaces that die.** Twins go and others take their place from
//!   time to time, while stale readers may still be at their VMAs.

use super::soft::Soft;
use super::{SlabUse, Target};
use crate::RunError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use vmalab::Errno;
use vmalab::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::File;
use vmalab::lock::LockScheme;
use vmalab::mm::{MapFlags, Mapping, MapsEntry, Prot, RemapFlags};
use vmalab::pager::{AnyPager, Stamp};
use vmalab::races::adversary::draw;
use vmalab::races::{Oracle, violation};

/// Places remembered.
const RECENT: usize = 8;
/// Mappings that the first twin keeps.
const KEPT: usize = 6;
/// Mappings made in twins before the first one dies, and mappings that pass
/// through the second before it dies with one.
const MAPPINGS_PER_LIFE: u64 = 1024;
const PASSAGES_PER_LIFE: u64 = 32;
/// One access in so many follows a ghost's.
const ACCESSES_PER_GHOST: u64 = 4;
/// Where a ghost stores.
const GHOSTS_WORD: usize = PAGE_SIZE - 8;

/// What the targets of a run did.
#[derive(Debug, Default)]
pub(crate) struct Deeds {
    /// `mmap`s that got a place unmapped a moment ago.
    pub(crate) same_address: AtomicU64,
    /// Mappings made in twins where the workload had just unmapped.
    pub(crate) twin_mappings: AtomicU64,
    /// Accesses beside the workload's.
    pub(crate) ghosts: AtomicU64,
    /// Twins that were replaced.
    pub(crate) twin_deaths: AtomicU64,
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

/// The address spaces beside a target, and what is mapped in the first.
struct Twins<S: LockScheme> {
    range: PageRange,
    pager: AnyPager,
    /// Each is replaced as a whole; whoever still holds the old one drops it.
    spaces: [RwLock<Arc<Soft<S>>>; 2],
    kept: Mutex<Vec<PageRange>>,
    deaths: AtomicU64,
}

/// The twin in which what is stolen stays, and where it only passes through.
const HERE: usize = 0;
const THERE: usize = 1;

/// A target under the adversary; see the file's documentation.
pub(crate) struct Adverse<S: LockScheme, T> {
    inner: T,
    twins: Twins<S>,
    recent: Recent,
    /// The page that ghosts visit, 0 at first.
    haunted: AtomicUsize,
    /// `inner` may hold pages that were filled elsewhere.
    strangers: AtomicBool,
    deeds: Arc<Deeds>,
}

impl<S: LockScheme, T: Target> Adverse<S, T> {
    /// Around `inner`, whose twins fill their pages from `pager`.
    pub(crate) fn new(inner: T, pager: AnyPager, deeds: Arc<Deeds>) -> Result<Adverse<S, T>, RunError> {
        let range = inner.range();
        let space = || Ok(RwLock::new(Arc::new(Soft::at(range.start(), range.bytes(), pager)?)));
        let (kept, deaths) = (Mutex::new(Vec::new()), AtomicU64::new(0));
        let twins = Twins { range, pager, spaces: [space()?, space()?], kept, deaths };
        let recent = Recent([const { AtomicU64::new(0) }; RECENT]);
        Ok(Adverse { inner, twins, recent, haunted: AtomicUsize::new(0), strangers: AtomicBool::new(false), deeds })
    }

    /// `range` is about to be unmapped: another thread may want the place the
    /// moment it is free, while this one has not yet returned.
    fn unmapping(&self, range: PageRange) {
        self.recent.put(self.twins.range.start(), range);
        // Relaxed, here and in `ghost`: any page will do.
        self.haunted.store(some_page(range).get(), Ordering::Relaxed);
    }

    /// `range` has just been unmapped.
    fn unmapped(&self, range: PageRange) {
        if !draw().is_multiple_of(2) {
            return;
        }
        let made = self.twins.steal(range);
        let before = self.deeds.twin_mappings.fetch_add(made, Ordering::Relaxed);
        if before / MAPPINGS_PER_LIFE != (before + made) / MAPPINGS_PER_LIFE {
            self.twins.replace_here();
        }
        let deaths = self.twins.deaths.swap(0, Ordering::Relaxed);
        self.deeds.twin_deaths.fetch_add(deaths, Ordering::Relaxed);
    }

    /// Pages that were filled elsewhere are about to come.
    fn expect_strangers(&self) {
        self.strangers.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// An access beside the workload's, now and then.
    #[inline]
    fn ghost(&self) {
        let draw = draw();
        if !draw.is_multiple_of(ACCESSES_PER_GHOST) {
            return;
        }
        let page = VirtAddr(self.haunted.load(Ordering::Relaxed));
        if page.get() == 0 {
            return;
        }
        self.deeds.ghosts.fetch_add(1, Ordering::Relaxed);
        let (in_twin, write) = (!(draw >> 8).is_multiple_of(3), (draw >> 16).is_multiple_of(4));
        // Any outcome is right: mappings come and go.
        match (in_twin, write) {
            (true, _) => self.twins.visit(page, write),
            // (A store gives a mapping an identity, and a moved mapping with one no
            // longer merges as the workload expects.)
            (false, true) if self.strangers.load(Ordering::Relaxed) => drop(self.inner.load(page + GHOSTS_WORD)),
            (false, true) => drop(self.inner.store(page + GHOSTS_WORD, 1)),
            (false, false) => {
                let stamp = self.inner.stamp(page);
                // Looked at after the page: whoever brings a stranger says so before
                // (the fences of both see to it).
                fence(Ordering::SeqCst);
                if let (Ok(stamp), true, false) = (stamp, self.twins.stamped(), self.strangers.load(Ordering::Relaxed))
                {
                    judge(stamp, page, self.inner.id(), 0);
                }
            }
        }
    }
}

/// A page of `range`.
fn some_page(range: PageRange) -> VirtAddr {
    range.start() + (draw() as usize % range.pages()) * PAGE_SIZE
}

/// A page's stamp must be this page's. While it is read another may take its
/// place, but each of them must be right.
fn judge(stamp: Stamp, page: VirtAddr, id: u64, incarnation: u64) {
    if stamp.page_addr() != page {
        violation(Oracle::O1, "a ghost saw a page that was filled for another address");
    }
    if stamp.mm_id != id {
        violation(Oracle::O1, "a ghost saw a page that was filled for another address space");
    }
    if stamp.incarnation < incarnation {
        violation(Oracle::O1, "a ghost saw a page that was filled for an earlier mapping");
    }
}

impl<S: LockScheme> Twins<S> {
    fn space(&self, which: usize) -> Arc<Soft<S>> {
        Arc::clone(&self.spaces[which].read().unwrap_or_else(PoisonError::into_inner))
    }

    fn stamped(&self) -> bool {
        matches!(self.pager, AnyPager::Stamped)
    }

    /// Maps `range`, so that the objects that were just freed go there, and
    /// perhaps to the other twin and back; then unmaps it or an older one.
    /// Returns the mappings made. One thief at a time.
    fn steal(&self, range: PageRange) -> u64 {
        let Ok(mut kept) = self.kept.try_lock() else { return 0 };
        let here = &*self.space(HERE);
        kept.retain(|old| !old.overlaps(range));
        let mut made = self.map(here, range);
        for _ in 0..[0, 0, 0, 1, 1, 2, 4, 8][draw() as usize % 8] {
            self.unmap(here, range);
            match draw() % 8 {
                0 | 1 => {}
                2 | 3 => made += self.map_away(here, range),
                _ => {
                    made += self.map(&self.space(THERE), range);
                    if draw().is_multiple_of(PASSAGES_PER_LIFE) {
                        self.replace(THERE);
                    } else {
                        self.unmap(&self.space(THERE), range);
                    }
                }
            }
            made += self.map(here, range);
        }
        kept.push(range);
        if kept.len() > KEPT || draw().is_multiple_of(2) {
            let victim = if draw().is_multiple_of(2) { kept.len() - 1 } else { draw() as usize % kept.len() };
            self.unmap(here, kept.swap_remove(victim));
        }
        made
    }

    /// MAP_FIXED. The thief is the only one who changes a twin, so it knows
    /// what it must see there.
    fn map(&self, space: &Soft<S>, range: PageRange) -> u64 {
        let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
        let prot = if draw().is_multiple_of(4) { Prot::READ } else { Prot::READ | Prot::WRITE };
        let Ok(mapping) = space.map(range.start().get(), range.bytes(), prot, flags) else { return 0 };
        let page = some_page(range);
        match space.stamp(page) {
            Err(_) => violation(Oracle::O1, "a twin's page could not be read, but it is mapped"),
            Ok(stamp) if self.stamped() => judge(stamp, page, space.id(), mapping.incarnation),
            Ok(_) => {}
        }
        1
    }

    /// Maps beside `range`, where nothing is mapped, and unmaps again: objects
    /// come back with another range.
    fn map_away(&self, space: &Soft<S>, range: PageRange) -> u64 {
        let away = PageRange::sized(range.end(), range.bytes());
        if !self.range.covers(away) {
            return 0;
        }
        let made = self.map(space, away);
        self.expect_nothing(space, range);
        self.unmap(space, away);
        made
    }

    fn unmap(&self, space: &Soft<S>, range: PageRange) {
        if space.munmap(range.start().get(), range.bytes()).is_ok() {
            self.expect_nothing(space, range);
        }
    }

    fn expect_nothing(&self, space: &Soft<S>, range: PageRange) {
        if space.load(some_page(range)).is_ok() {
            violation(Oracle::O2, "a twin's page could be read, but it is not mapped");
        }
    }

    /// A ghost's access.
    fn visit(&self, page: VirtAddr, write: bool) {
        // Most of the time where objects come back.
        let space = self.space(if draw().is_multiple_of(4) { THERE } else { HERE });
        if write {
            let _ = space.store(page + GHOSTS_WORD, 1);
        } else if let (Ok(stamp), true) = (space.stamp(page), self.stamped()) {
            judge(stamp, page, space.id(), 0);
        }
    }

    /// Puts a new twin in place of one, which dies with what is mapped in it.
    fn replace(&self, which: usize) {
        let Ok(new) = Soft::at(self.range.start(), self.range.bytes(), self.pager) else { return };
        let mut space = self.spaces[which].write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *space, Arc::new(new));
        drop(space);
        drop(old);
        self.deaths.fetch_add(1, Ordering::Relaxed);
    }

    /// The same for the first, whose mappings are noted.
    fn replace_here(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clear();
        self.replace(HERE);
    }
}

impl<S: LockScheme, T: Target> Target for Adverse<S, T> {
    const COUNTS: bool = T::COUNTS;

    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        let hint = match self.recent.place_for(self.twins.range.start(), len) {
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
        let range = PageRange::sized(VirtAddr(addr), len.next_multiple_of(PAGE_SIZE));
        self.unmapping(range);
        self.inner.munmap(addr, len)?;
        self.unmapped(range);
        Ok(())
    }

    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        self.inner.mprotect(addr, len, prot)
    }

    fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<VirtAddr, Errno> {
        self.expect_strangers();
        self.unmapping(PageRange::sized(VirtAddr(addr), old_len.next_multiple_of(PAGE_SIZE)));
        self.inner.mremap(addr, old_len, new_len, flags, new_addr)
    }

    fn new_file(&self, bytes: usize) -> Result<Arc<File>, Errno> {
        self.inner.new_file(bytes)
    }

    fn map_file(&self, len: usize, prot: Prot, file: &Arc<File>) -> Result<Mapping, Errno> {
        self.expect_strangers();
        self.inner.map_file(len, prot, file)
    }

    fn msync(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.inner.msync(addr, len)
    }

    fn fork(&self) -> Result<Adverse<S, T>, RunError> {
        let child = Adverse::new(self.inner.fork()?, self.twins.pager, Arc::clone(&self.deeds))?;
        child.expect_strangers();
        Ok(child)
    }

    fn maps(&self) -> Vec<MapsEntry> {
        self.inner.maps()
    }

    fn query(&self, addr: VirtAddr) -> Option<MapsEntry> {
        self.inner.query(addr)
    }

    #[inline]
    fn load(&self, addr: VirtAddr) -> Result<u64, Signal> {
        self.ghost();
        self.inner.load(addr)
    }

    #[inline]
    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        self.ghost();
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

    fn userfaultfds(&self) -> Option<usize> {
        self.inner.userfaultfds()
    }

    fn validate(&self) {
        self.inner.validate();
        [HERE, THERE].iter().for_each(|&which| self.twins.space(which).validate());
    }
}
