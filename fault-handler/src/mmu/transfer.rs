//! Contents that change their place: hidden, moved, inherited. For mutators
//! only, who keep faults away from both places.

use super::{Retry, UffdMmu, drop_pages, one_page, unexpected};
use crate::stripes::Stripes;
use crate::uffd::UffdError;
use std::sync::atomic::Ordering;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::mmu::{MmuError, PageAccess};

/// Attempts to put back what a move that failed has moved.
const TRIES_BACK: u32 = 10_000;

/// Where contents come from and go to. Nothing else is at `to`, but what a
/// stray access may have left there.
pub(super) struct Route<'a> {
    pub from: PageRange,
    pub to: VirtAddr,
    /// The userfaultfds of `to`.
    pub uffd: &'a Stripes,
    /// `from` lies in the region, where the program may store to it until it is gone.
    pub live: bool,
}

impl UffdMmu {
    /// Takes the pages of `route.from` that are present to `route.to`, by as
    /// few calls as can be. `placed` hears of each part that has arrived.
    pub(super) fn transfer(&self, route: &Route<'_>, mut placed: impl FnMut(PageRange)) -> Result<(), MmuError> {
        let (mut at, end) = (route.from.start(), route.from.end());
        let mut retry = Retry::new();
        while at < end {
            #[cfg(test)]
            if tests::fails_now() {
                return Err(MmuError::NoMemory);
            }
            if !self.moves() {
                self.transfer_by_copy(route, at, &mut placed)?;
                at = at + PAGE_SIZE;
                continue;
            }
            let to = route.to + (at - route.from.start());
            // From one host mapping at a time.
            let bytes = if route.live { self.region.uffd().cut(at, end) - at } else { end - at };
            // SAFETY: pages of a region, its twin or the store; program and
            // faults must do without them from now on, says the caller.
            let done = match unsafe { route.uffd.move_pages(to, at, bytes) } {
                Ok(()) => bytes,
                Err(UffdError::Again { done }) => {
                    if done == 0 && !retry.again() {
                        return Err(MmuError::Again);
                    }
                    done
                }
                // A hole after all.
                Err(UffdError::NoEntry) => {
                    at = at + PAGE_SIZE;
                    continue;
                }
                Err(UffdError::NoMemory) if retry.again() => 0,
                Err(UffdError::NoMemory) => return Err(MmuError::NoMemory),
                Err(UffdError::Gone) => return Err(MmuError::Gone),
                // EBUSY: pinned or shared. EINVAL, ENOSYS: no MOVE here. EEXIST:
                // see `transfer_by_copy`.
                Err(UffdError::Busy | UffdError::Exists | UffdError::Fault | UffdError::Other(_)) => {
                    self.transfer_by_copy(route, at, &mut placed)?;
                    at = at + PAGE_SIZE;
                    continue;
                }
            };
            if done > 0 {
                placed(PageRange::sized(at, done));
                retry = Retry::new();
            }
            at = at + done;
        }
        Ok(())
    }

    /// One page, without MOVE. Write-protecting it first keeps stores out of
    /// the copy's way.
    fn transfer_by_copy(
        &self,
        route: &Route<'_>,
        page: VirtAddr,
        placed: &mut dyn FnMut(PageRange),
    ) -> Result<(), MmuError> {
        if route.live {
            self.set_protection(one_page(page), true)?;
        }
        let to = route.to + (page - route.from.start());
        let mut retry = Retry::new();
        loop {
            // SAFETY: the source is the page itself, which no store can reach.
            match unsafe { route.uffd.copy(to, page.get() as *const u8, PAGE_SIZE, false) } {
                Ok(()) => break,
                // A hole: nothing to take along.
                Err(UffdError::Fault) => return Ok(()),
                // Nothing is there that is worth anything: a stray access may
                // have left it.
                Err(UffdError::Exists) if retry.again() => drop_pages(one_page(to)),
                Err(UffdError::Again { .. } | UffdError::NoMemory) if retry.again() => {}
                Err(UffdError::Again { .. }) => return Err(MmuError::Again),
                Err(UffdError::NoMemory) => return Err(MmuError::NoMemory),
                Err(UffdError::Gone | UffdError::NoEntry) => return Err(MmuError::Gone),
                Err(error) => unexpected("COPY to another place", page, error),
            }
        }
        placed(one_page(page));
        drop_pages(one_page(page));
        Ok(())
    }

    /// Takes the present pages of `run` out of sight.
    pub(super) fn hide_run(&self, run: PageRange) -> Result<(), MmuError> {
        self.hide_run_at(run, run.start())
    }

    /// Takes the present pages of `run` to where they are hidden pages of `to`.
    fn hide_run_at(&self, run: PageRange, to: VirtAddr) -> Result<(), MmuError> {
        let region = &*self.region;
        let route = Route { from: run, to: region.twin(to), uffd: region.twin_uffd(), live: true };
        self.transfer(&route, |part| {
            let at = region.bit(to + (part.start() - run.start()));
            region.pages.hidden.set(at, at + part.pages());
        })
    }

    /// See `move_range`. A move that fails puts back what it has moved, as
    /// hidden pages, which come back with the next access.
    pub(super) fn move_all(&self, from: PageRange, to: PageRange, access: PageAccess) -> Result<(), MmuError> {
        if let Err(error) = self.move_contents(from, to, access == PageAccess::ReadWrite) {
            let mut tries = 0;
            while self.move_contents(to, from, false).is_err() {
                // Contents must not be lost, and VMAs must not disagree with pages.
                tries += 1;
                if tries == TRIES_BACK {
                    unexpected("MOVE back", from.start(), UffdError::NoMemory);
                }
                std::thread::yield_now();
            }
            return Err(error);
        }
        // What cannot fail comes last.
        let region = &*self.region;
        let (first, last) = region.bits(from);
        let target = region.bit(to.start());
        if !region.pages.inherited.is_empty() {
            region.pages.inherited.clear(first, last, |a, b| {
                let (new, end) = (target + (a - first), target + (b - first));
                for bit in a..b {
                    let number = region.shares[bit].load(Ordering::Relaxed);
                    region.shares[target + (bit - first)].store(number, Ordering::Relaxed);
                }
                region.pages.inherited.set(new, end);
            });
        }
        for bits in [&region.pages.lazy, &region.pages.guards] {
            if !bits.is_empty() {
                bits.clear(first, last, |a, b| bits.set(target + (a - first), target + (b - first)));
            }
        }
        Ok(())
    }

    /// Moves contents that are present or hidden. `plain`: stores are permitted
    /// at `to`, so pages whose stores need not be noticed go there directly.
    fn move_contents(&self, from: PageRange, to: PageRange, plain: bool) -> Result<(), MmuError> {
        let region = &*self.region;
        let there = |page: VirtAddr| to.start() + (page - from.start());
        let hidden = &region.pages.hidden;
        let (first, last) = region.bits(from);
        for run in hidden.runs(first, last) {
            let run = region.pages_of(run);
            let twin = region.twin_of(run);
            let route =
                Route { from: twin, to: region.twin(there(run.start())), uffd: region.twin_uffd(), live: false };
            self.transfer(&route, |part| {
                let page = run.start() + (part.start() - twin.start());
                let (old, new) = (region.bit(page), region.bit(there(page)));
                hidden.set(new, new + part.pages());
                hidden.clear(old, old + part.pages(), |_, _| {});
            })?;
        }
        region.presence().runs(from, |run| {
            if !plain {
                return self.hide_run_at(run, there(run.start()));
            }
            let (first, last) = region.bits(run);
            for (a, b) in region.pages.lazy.gaps(first, last) {
                let run = region.pages_of((a, b));
                let route = Route { from: run, to: there(run.start()), uffd: region.uffd(), live: true };
                self.transfer(&route, |_| {})?;
            }
            for lazy in region.pages.lazy.runs(first, last) {
                let run = region.pages_of(lazy);
                self.hide_run_at(run, there(run.start()))?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::Notify;
    use crate::stripes::tests::enough_descriptors;
    use crate::uffd::Privilege;
    use std::cell::Cell;
    use vmalab::mmu::{Content, Mmu, PageBuf};
    use vmalab::stats::{Counter, of_this_thread};

    thread_local! {
        /// Calls of the host that work before one that does not, and how many
        /// of these in a row.
        static FAILS: Cell<Option<(u32, u32)>> = const { Cell::new(None) };
    }

    pub(super) fn fails_now() -> bool {
        match FAILS.take() {
            Some((0, more)) => {
                FAILS.set((more > 1).then(|| (0, more - 1)));
                true
            }
            Some((calls, more)) => {
                FAILS.set(Some((calls - 1, more)));
                false
            }
            None => false,
        }
    }

    /// Both places lie across a border of stripes, each at another distance from it.
    #[test]
    fn a_move_that_fails_leaves_everything_where_it_was() {
        const PAGES: usize = 24;
        const STRIPE: usize = 512;
        /// First page of the source, and how far away the target is.
        const BASE: usize = STRIPE - 11;
        const FAR: usize = STRIPE + 5;
        enough_descriptors();
        for moves in [true, false] {
            let mmu = UffdMmu::new(4 * STRIPE * PAGE_SIZE, Notify::Signal, Privilege::User).unwrap();
            if !moves {
                mmu.forget_move();
            }
            let start = mmu.range().start() + BASE * PAGE_SIZE;
            let pages = |from: usize, to: usize| PageRange::new(start + from * PAGE_SIZE, start + to * PAGE_SIZE);
            let is_hole = |page: usize| page % 5 == 4;
            for page in (0..PAGES).filter(|&page| !is_hole(page)) {
                let content = Content::Page(&PageBuf([page as u8; PAGE_SIZE]));
                mmu.install(start + page * PAGE_SIZE, content, true, true).unwrap();
            }
            mmu.protect(pages(3, 8), PageAccess::ReadWrite, PageAccess::None).unwrap();
            mmu.lazy_free(pages(6, 13));
            let check = |first: usize, why: &str| {
                let mut found = Vec::new();
                mmu.presence(mmu.range(), &mut |run| found.extend(run.iter_pages().map(|p| (p - start) / PAGE_SIZE)));
                let wanted: Vec<_> = (0..PAGES).filter(|&page| !is_hole(page)).map(|page| first + page).collect();
                assert_eq!(found, wanted, "{why}");
            };
            let mut failures = 0;
            for calls in 0.. {
                FAILS.set(Some((calls, 1 + calls % 3)));
                let access = if calls % 2 == 0 { PageAccess::ReadWrite } else { PageAccess::Read };
                let moved = mmu.move_range(pages(0, PAGES), pages(FAR, FAR + 1).start(), access);
                if moved.is_ok() {
                    break;
                }
                assert!(FAILS.take().is_none(), "the move was not taken back");
                failures += 1;
                check(0, "after a failure");
            }
            FAILS.set(None);
            assert!(failures > 3, "only {failures} calls");
            check(FAR, "moved");
            for page in (0..PAGES).filter(|&page| !is_hole(page)) {
                let at = start + (FAR + page) * PAGE_SIZE;
                mmu.unhide(at, true).unwrap();
                // SAFETY: present now.
                assert_eq!(unsafe { (at.get() as *const u8).read_volatile() }, page as u8);
            }
            mmu.reclaim(mmu.range());
            let lazy = BASE + FAR + 6..BASE + FAR + 13;
            assert!(lazy.clone().all(|page| !mmu.region.pages.lazy.get(page)));
        }
    }

    /// What crosses borders is moved in parts, not copied page by page.
    #[test]
    fn a_run_across_borders_takes_a_call_for_each_part() {
        const STRIPE: usize = 512;
        enough_descriptors();
        let mmu = UffdMmu::new(4 * STRIPE * PAGE_SIZE, Notify::Signal, Privilege::User).unwrap();
        if !mmu.moves() {
            return;
        }
        let page = |n: usize| mmu.range().start() + n * PAGE_SIZE;
        // Other tests' threads count in slots of their own.
        assert!(vmalab::thread::announce());
        let calls = || of_this_thread(Counter::HostUffd).unwrap();
        let run = PageRange::new(page(STRIPE - 8), page(STRIPE + 8));
        for at in run.iter_pages() {
            mmu.install(at, Content::Page(&PageBuf([1; PAGE_SIZE])), true, true).unwrap();
        }
        let before = calls();
        // To another distance from a border: three parts. Hidden, and back: two, and a page at a time.
        let to = page(2 * STRIPE - 3);
        mmu.move_range(run, to, PageAccess::ReadWrite).unwrap();
        assert_eq!(calls() - before, 3);
        let moved = PageRange::sized(to, run.bytes());
        mmu.protect(moved, PageAccess::ReadWrite, PageAccess::Read).unwrap();
        mmu.protect(moved, PageAccess::Read, PageAccess::None).unwrap();
        assert_eq!(calls() - before, 3 + 2 + 2);
        for at in moved.iter_pages() {
            assert_eq!(mmu.unhide(at, true), Ok(true));
            // SAFETY: present now.
            assert_eq!(unsafe { (at.get() as *const u8).read_volatile() }, 1);
        }
    }
}
