//! Pages that forked address spaces share: copy-on-touch inside one process.
//!
//! The host cannot show one anonymous page at two addresses. So a fork takes
//! the contents of each populated page out of the parent, into a **shared
//! page** of a process-wide [`Arena`], and parent and child *inherit* it
//! alike: in both the page is missing, a bit in `inherited` is set, and a word
//! in `shares` has the shared page's number. The first access brings a copy;
//! the last of those who inherit it gets the page itself, if it may be writable.
//! (Were the contents left in the parent, loads there would go on without a
//! fault, as they do in Linux. But then a shared page would have an address that
//! changes whenever the parent unmaps, moves, hides or stores, and a lock for it
//! on the fault path. So parent and child are equals, and there is none.)
//!
//! # Protocol
//!
//! A shared page has one word, `refs`: [`FREE`], [`DYING`] or how many pages
//! of regions inherit it. There is no lock on the fault path.
//!
//! 1. *Contents never change.* They are complete before the first reference
//!    exists (the fork sets `inherited` after the transfer), no one writes to
//!    the arena, and they go after the last reference has.
//! 2. *References come from mutators only.* A fork makes them under the
//!    write-locked VMAs of the parent, for pages that it gives up or itself
//!    inherits. So a page of a region that finds itself the only reference,
//!    with its VMA locked, stays the only one.
//! 3. *A reference is given up once.* `inherited` turns from clear to set by
//!    mutators only, who keep faults out, and from set to clear by mutators,
//!    or by the one fault whose ioctl made the page present (in a region at
//!    most one can, until a mutator removes the page again). Who clears the bit
//!    gives the reference up, after that.
//! 4. *Who is late does no harm.* A fault that has read the bit and the number
//!    holds its VMA for reading, so until it is done no mutator can remove the
//!    page that another fault has made present. The number may be out of date
//!    by then, and the shared page have others' contents, or none: but COPY
//!    and MOVE look at their destination, find it taken, and change nothing
//!    (EEXIST; or they find no source: ENOENT, EFAULT). All three mean "repeat
//!    the access". Without rule 3 a late MOVE could steal a page: its
//!    destination must be present whenever the reference is gone.
//! 5. *A shared page is used anew only when it is empty.* Who takes `refs` from
//!    one reference to `DYING` owns the page, drops its contents and then sets
//!    `FREE` (Release); a fork takes free pages under a mutex (Acquire).
//!
//! Only mutators take the mutex, and touch no region while they hold it.

use crate::region::{open_up, reserve};
use crate::stripes::Stripes;
use crate::uffd::{Privilege, Uffd, feature};
use crate::zeroed::Zeroed;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use vmalab::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};

/// Nobody's, and empty.
const FREE: u32 = 0;
/// The last reference is gone, the contents are about to.
const DYING: u32 = 1;
/// Plus one for each reference.
const NONE: u32 = 1;
const ONE: u32 = NONE + 1;

/// Pages of the arena: what is asked for (256 GiB of addresses), and the least
/// that will do where the host grants no more.
const PAGES_MAX: usize = 1 << 26;
const PAGES_MIN: usize = 1 << 16;

/// See the module's documentation.
pub(crate) struct Arena {
    uffd: Stripes,
    start: VirtAddr,
    /// One word a page: `FREE`, `DYING` or `NONE` + references.
    refs: Zeroed<AtomicU32>,
    places: Mutex<Places>,
    /// Pages that are not `FREE`.
    used: AtomicUsize,
}

/// Where free pages are sought.
struct Places {
    next: usize,
    /// From here on no page was ever used.
    fresh: usize,
}

static ARENA: OnceLock<Option<Arena>> = OnceLock::new();

/// The arena; made with the first call. Not on the fault path.
pub(crate) fn arena() -> Option<&'static Arena> {
    ARENA.get_or_init(Arena::new).as_ref()
}

/// The arena, for those who inherit from it. Async-signal-safe.
pub(crate) fn existing() -> &'static Arena {
    ARENA.get().and_then(Option::as_ref).expect("a page is inherited, so there is an arena")
}

/// Shared pages in use.
pub(crate) fn used() -> usize {
    ARENA.get().and_then(Option::as_ref).map_or(0, Arena::used)
}

impl Arena {
    fn new() -> Option<Arena> {
        let mut pages = PAGES_MAX;
        let range = loop {
            match reserve(pages * PAGE_SIZE) {
                Ok(range) => break range,
                Err(_) if pages > PAGES_MIN => pages /= 2,
                Err(errno) => {
                    tracing::warn!(%errno, "no address space for pages that forks share");
                    return None;
                }
            }
        };
        // From here on a failure leaves the reservation behind, which costs
        // nothing but addresses, once.
        open_up(range).ok()?;
        let uffd = Uffd::open(Privilege::User, feature::WP | feature::SIGBUS, feature::MOVE).ok()?;
        let uffd = Stripes::one(uffd);
        uffd.register(range).ok()?;
        let refs = Zeroed::new(pages).ok()?;
        let places = Mutex::new(Places { next: 0, fresh: 0 });
        Some(Arena { uffd, start: range.start(), refs, places, used: AtomicUsize::new(0) })
    }

    pub(crate) fn uffd(&self) -> &Stripes {
        &self.uffd
    }

    /// Where shared page `number` is.
    pub(crate) fn page(&self, number: usize) -> VirtAddr {
        self.start + (number << PAGE_SHIFT)
    }

    fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Up to `pages` free pages in a row, with two references each: the
    /// parent's and the child's. Not on the fault path.
    pub(crate) fn take(&self, pages: usize) -> Option<Range<usize>> {
        let mut places = self.places.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Seeking among used pages pays while at least half of them are free.
        let seek = self.used() * 2 < places.fresh || places.fresh == self.refs.len();
        let found = if seek { self.seek(&places, pages) } else { None };
        let taken = found.or_else(|| {
            let room = self.refs.len() - places.fresh;
            (room > 0).then(|| places.fresh..places.fresh + pages.min(room))
        })?;
        places.fresh = places.fresh.max(taken.end);
        places.next = taken.end;
        // Relaxed: nobody else knows of these pages; `inherited` tells of them.
        taken.clone().for_each(|number| self.refs[number].store(NONE + 2, Ordering::Relaxed));
        self.used.fetch_add(taken.len(), Ordering::Relaxed);
        Some(taken)
    }

    fn seek(&self, places: &Places, pages: usize) -> Option<Range<usize>> {
        // Acquire: pairs with the Release in `free`: the page is empty.
        let is_free = |number: &usize| self.refs[*number].load(Ordering::Acquire) == FREE;
        let start = (places.next..places.fresh).chain(0..places.next.min(places.fresh)).find(is_free)?;
        let limit = (start + pages).min(places.fresh);
        let end = (start..limit).find(|number| !is_free(number)).unwrap_or(limit);
        Some(start..end)
    }

    /// Gives back a page from [`take`](Arena::take) into which nothing came.
    pub(crate) fn give_back(&self, number: usize) {
        self.refs[number].store(DYING, Ordering::Relaxed);
        self.free(number..number + 1);
    }

    /// One more reference; the caller has one.
    pub(crate) fn refer(&self, number: usize) {
        self.refs[number].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the caller's reference is the only one: then it stays so (rule 2).
    pub(crate) fn is_sole(&self, number: usize) -> bool {
        // Acquire: pairs with the Release of those who gave theirs up: they are
        // done with the contents.
        self.refs[number].load(Ordering::Acquire) == ONE
    }

    /// Gives a reference up; `true`: it was the last, and the caller now drops
    /// the contents and [`free`](Arena::free)s the page.
    pub(crate) fn give_up(&self, number: usize) -> bool {
        // Release: our use of the contents is over. Acquire: so is everybody's.
        let old = self.refs[number].fetch_sub(1, Ordering::AcqRel);
        assert!(old >= ONE, "a shared page has lost a reference");
        old == ONE
    }

    /// Makes pages that are dying, and empty, free.
    pub(crate) fn free(&self, numbers: Range<usize>) {
        self.used.fetch_sub(numbers.len(), Ordering::Relaxed);
        // Release: pairs with the Acquire in `seek`.
        numbers.for_each(|number| self.refs[number].store(FREE, Ordering::Release));
    }

    /// Pages `numbers`.
    pub(crate) fn pages(&self, numbers: &Range<usize>) -> PageRange {
        PageRange::new(self.page(numbers.start), self.page(numbers.end))
    }
}

/// References that a mutator gives up, so that neighbours' contents are
/// dropped by one call.
pub(crate) struct GivingUp<'a> {
    arena: &'a Arena,
    dying: Range<usize>,
    drop_pages: fn(PageRange),
}

impl<'a> GivingUp<'a> {
    pub(crate) fn new(arena: &'a Arena, drop_pages: fn(PageRange)) -> GivingUp<'a> {
        GivingUp { arena, dying: 0..0, drop_pages }
    }

    pub(crate) fn give_up(&mut self, number: usize) {
        if self.arena.give_up(number) {
            if self.dying.end != number {
                self.flush();
                self.dying = number..number;
            }
            self.dying.end = number + 1;
        }
    }

    fn flush(&mut self) {
        let dying = std::mem::take(&mut self.dying);
        if !dying.is_empty() {
            (self.drop_pages)(self.arena.pages(&dying));
            self.arena.free(dying);
        }
    }
}

impl Drop for GivingUp<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The only test here that takes pages: the arena is the process's.
    #[test]
    fn free_pages_are_found_again_once_they_prevail() {
        let arena = arena().expect("address space");
        let all = arena.take(1000).unwrap();
        assert_eq!((all.len(), arena.used()), (1000, 1000));
        for number in all.clone().filter(|n| n % 10 != 0) {
            arena.refer(number);
            assert!(!arena.give_up(number) && !arena.is_sole(number) && !arena.give_up(number));
            assert!(arena.is_sole(number) && arena.give_up(number));
            arena.free(number..number + 1);
        }
        let again: Vec<_> = (0..10).map(|_| arena.take(100).unwrap()).collect();
        assert!(again.iter().all(|run| run.end <= all.end && run.len() == 9), "{again:?}");
        again.into_iter().flatten().for_each(|number| arena.give_back(number));
        assert_eq!(arena.used(), 100);
    }
}
