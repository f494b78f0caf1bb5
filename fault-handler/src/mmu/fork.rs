//! `fork_range`, and how an inherited page comes back. The protocol is in
//! [`cow`](crate::cow).

use super::transfer::Route;
use super::{Retry, UffdMmu, drop_pages, one_page, unexpected};
use crate::cow::{self, Arena};
use crate::uffd::UffdError;
use std::sync::atomic::Ordering;
use vmalab::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use vmalab::mmu::MmuError;

impl UffdMmu {
    /// See `fork_range`.
    pub(super) fn fork_all(&self, child: &UffdMmu, range: PageRange, to: PageRange) -> Result<(), MmuError> {
        let arena = cow::arena().ok_or(MmuError::NoMemory)?;
        let (region, heir) = (&*self.region, &*child.region);
        let ((first, last), target) = (region.bits(range), heir.bit(to.start()));
        // Those that were inherited before; then the contents that are here,
        // which will be inherited as well.
        for (a, b) in region.pages.inherited.runs(first, last) {
            for bit in a..b {
                let number = region.shares[bit].load(Ordering::Relaxed);
                arena.refer(number as usize);
                heir.shares[target + (bit - first)].store(number, Ordering::Relaxed);
            }
            heir.pages.inherited.set(target + (a - first), target + (b - first));
        }
        for run in region.pages.hidden.runs(first, last) {
            self.share_run(arena, child, region.pages_of(run), target + (run.0 - first), true)?;
        }
        region.presence().runs(range, |run| {
            let place = target + (region.bit(run.start()) - first);
            self.share_run(arena, child, run, place, false)
        })?;
        let marks = [(&region.pages.lazy, &heir.pages.lazy), (&region.pages.guards, &heir.pages.guards)];
        for (ours, theirs) in marks {
            for (a, b) in ours.runs(first, last) {
                theirs.set(target + (a - first), target + (b - first));
            }
        }
        Ok(())
    }

    /// Gives the contents of `run` up to shared pages, for us and for the child,
    /// where they are pages number `place` and on.
    fn share_run(
        &self,
        arena: &Arena,
        child: &UffdMmu,
        run: PageRange,
        place: usize,
        hidden: bool,
    ) -> Result<(), MmuError> {
        let (region, heir) = (&*self.region, &*child.region);
        let mut at = run.start();
        while at < run.end() {
            let numbers = arena.take((run.end() - at) >> PAGE_SHIFT).ok_or(MmuError::NoMemory)?;
            let part = PageRange::sized(at, numbers.len() * PAGE_SIZE);
            let from = if hidden { region.twin_of(part) } else { part };
            let route = Route { from, to: arena.page(numbers.start), uffd: arena.uffd(), live: !hidden };
            let (ours, theirs) = (region.bit(at), place + ((at - run.start()) >> PAGE_SHIFT));
            let result = self.transfer(&route, |moved| {
                let a = (moved.start() - from.start()) >> PAGE_SHIFT;
                let b = a + moved.pages();
                for i in a..b {
                    let number = (numbers.start + i) as u32;
                    region.shares[ours + i].store(number, Ordering::Relaxed);
                    heir.shares[theirs + i].store(number, Ordering::Relaxed);
                }
                region.pages.inherited.set(ours + a, ours + b);
                heir.pages.inherited.set(theirs + a, theirs + b);
                if hidden {
                    region.pages.hidden.clear(ours + a, ours + b, |_, _| {});
                }
            });
            // Places of holes, and of what could not come.
            for i in (0..numbers.len()).filter(|i| !region.pages.inherited.get(ours + i)) {
                arena.give_back(numbers.start + i);
            }
            result?;
            at = part.end();
        }
        Ok(())
    }

    /// Brings an inherited page back: the shared page itself where nobody else
    /// inherits it, else a copy.
    #[inline(never)]
    pub(super) fn unhide_inherited(&self, page: VirtAddr, writable: bool) -> Result<(), MmuError> {
        let (region, arena) = (&*self.region, cow::existing());
        let bit = region.bit(page);
        // Relaxed: the Acquire load that found the bit set pairs with the Release
        // of setting it, which came later.
        let number = region.shares[bit].load(Ordering::Relaxed) as usize;
        let (source, uffd) = (arena.page(number), region.uffd().of(page));
        // A poison marker is replaced by COPY only. MOVE drops write protection.
        let mut whole = writable && self.moves() && !region.is_poisoned();
        let mut retry = Retry::new();
        loop {
            let sole = whole && arena.is_sole(number);
            let result = if sole {
                // SAFETY: no other page depends on this one: rules 2 and 4.
                unsafe { uffd.move_pages(page, source, PAGE_SIZE) }
            } else {
                // SAFETY: a page of the arena, to which nobody writes.
                unsafe { uffd.copy(page, source.get() as *const u8, PAGE_SIZE, !writable) }
            };
            match result {
                Ok(()) => {
                    // We made it present, so we give the reference up (rule 3).
                    region.pages.inherited.clear(bit, bit + 1, |_, _| {});
                    if arena.give_up(number) {
                        if !sole {
                            drop_pages(one_page(source));
                        }
                        arena.free(number..number + 1);
                    }
                    return Ok(());
                }
                // Another thread was first (rule 4).
                Err(UffdError::Exists) => return Ok(()),
                Err(UffdError::NoEntry) if sole => return Ok(()),
                Err(UffdError::Fault) if !sole => return Ok(()),
                Err(UffdError::Again { .. } | UffdError::NoMemory) if retry.again() => {}
                Err(UffdError::Again { .. }) => return Err(MmuError::Again),
                Err(UffdError::NoMemory) => return Err(MmuError::NoMemory),
                Err(UffdError::Gone | UffdError::NoEntry) => return Err(MmuError::Gone),
                // It cannot be moved.
                Err(UffdError::Busy | UffdError::Fault | UffdError::Other(_)) if sole => whole = false,
                Err(error) => unexpected("COPY of a shared page", page, error),
            }
        }
    }
}
