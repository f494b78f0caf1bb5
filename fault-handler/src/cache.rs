//! Pages of files in regions: who has each page (`struct address_space`,
//! `filemap_fault`, `do_wp_page`).
//!
//! # Protocol
//!
//! The host cannot show one anonymous page at two addresses, so a page of a
//! file is present in at most one place, its **owner**. One word for each page
//! of a file ([`Inode::slot`](vmalab::file::Inode::slot)) says where:
//!
//! | bits | |
//! |---|---|
//! | 48-63 | number of the owner's region in `REGIONS`, not 0; or all zero: no owner |
//! | 12-47 | address of the owner |
//! | 1 | `DIRTY`: the owner has contents that the store does not have |
//! | 0 | `LOCK` |
//!
//! 1. Everything that concerns the page happens with `LOCK` held: bringing it
//!    in, taking it from its owner, making it writable, writing it back, dropping it.
//!    Acquire when it is taken, Release when it is let go.
//! 2. While `LOCK` is held the owner's page is present (perhaps in the host's
//!    swap): only its holder removes it. (What else could, `zap` and
//!    `protect(.., None)`, comes after `release_file`; moves and forks as well.)
//! 3. The owner may be writable only while `DIRTY` is set, and only in a shared
//!    mapping. `DIRTY` is set before stores are permitted; stores are
//!    forbidden before contents are copied elsewhere, or written back.
//!    `DIRTY` goes along when the page changes its owner.
//! 4. A page of a private mapping that is not the owner is the mapping's own
//!    (a copy). It is judged with `LOCK` held: without it, another thread
//!    could bring the file's page in there, between judging and permitting stores.
//! 5. Each region has a bit, `PageStates::files`, for each page that is an
//!    owner; it changes with the word, under the same lock. Who takes a page
//!    from another region clears the bit there last, after which it touches
//!    that region no more. A region is freed when no bit is set any more
//!    (`Region::drop` waits for it), so an owner's region is alive as long as
//!    one holds `LOCK` and has not cleared the bit.
//!
//! The lock spins, then yields. Its holder may be in a signal handler, touches
//! no region itself (the kernel does, in ioctls whose source and destination
//! rule 2 covers), waits for no other lock but those of further pages of the same
//! file, in ascending order, and for no VMA. Mutators that hold it must not be
//! interrupted by a handler that touches a region, as everywhere.

use crate::mmu::UffdMmu;
use crate::region::{Region, Retry, drop_pages};
use crate::uffd::UffdError;
use nix::errno::Errno;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use vmalab::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use vmalab::file::{FilePage, Inode};
use vmalab::mmu::{Installed, Mmu, MmuError, PageBuf};
use vmalab::sync::plain::AtomicU64;

const LOCK: u64 = 1;
const DIRTY: u64 = 2;
const REGION_SHIFT: u32 = 48;
/// Pages of one file that are locked together.
const BATCH: usize = 64;

/// Regions that may own pages of files.
const REGIONS_MAX: usize = 1024;
/// Number n is at place n - 1. The pointers are good for who holds `LOCK` of a
/// page that the region owns (rule 5).
static REGIONS: [AtomicPtr<Region>; REGIONS_MAX] = [const { AtomicPtr::new(ptr::null_mut()) }; REGIONS_MAX];

/// Gives `region` a number, if one is left. It must stay where it is.
pub(crate) fn enlist(region: &Arc<Region>) {
    let this = Arc::as_ptr(region).cast_mut();
    for (number, place) in (1..).zip(&REGIONS) {
        // Release: pairs with the Acquire in `region_of`.
        if place.compare_exchange(ptr::null_mut(), this, Ordering::Release, Ordering::Relaxed).is_ok() {
            region.number.store(number, Ordering::Relaxed);
            return;
        }
    }
    tracing::warn!("more than {REGIONS_MAX} regions: no files can be mapped in this one");
}

/// Takes the number back, when the region is about to be freed.
///
/// # Panics
/// If it owns pages of files: whoever wants them later would follow a pointer
/// to nowhere.
pub(crate) fn strike(region: &Region) {
    let number = region.number.load(Ordering::Relaxed);
    if number == 0 {
        return;
    }
    let mut tries = 0;
    // Somebody who has just taken our last page is about to leave us (rule 5).
    while !region.pages.files.is_empty_at_last() {
        tries += 1;
        assert!(tries < 1_000_000, "a region is freed while it owns pages of files");
        std::thread::yield_now();
    }
    REGIONS[number as usize - 1].store(ptr::null_mut(), Ordering::Relaxed);
}

/// A place where a page of a file is.
#[derive(Clone, Copy)]
struct Owner<'r> {
    region: &'r Region,
    page: VirtAddr,
}

impl Owner<'_> {
    /// WRITEPROTECT of the page. Fails only if the host has no memory.
    fn forbid_stores(&self) -> Result<(), MmuError> {
        forbid_stores(self.region, PageRange::sized(self.page, PAGE_SIZE))
    }

    fn word(&self) -> u64 {
        u64::from(self.region.number.load(Ordering::Relaxed)) << REGION_SHIFT | self.page.get() as u64
    }

    fn bit(&self) -> usize {
        self.region.bit(self.page)
    }
}

fn forbid_stores(region: &Region, range: PageRange) -> Result<(), MmuError> {
    let mut retry = Retry::new();
    loop {
        match region.uffd().write_protect(range, true) {
            Ok(()) => return Ok(()),
            Err(UffdError::Again { .. } | UffdError::NoMemory) if retry.again() => {}
            Err(UffdError::Again { .. }) => return Err(MmuError::Again),
            Err(UffdError::Gone) => return Err(MmuError::Gone),
            Err(_) => return Err(MmuError::NoMemory),
        }
    }
}

/// A page of a file, locked.
struct Locked<'f> {
    inode: &'f Inode,
    index: u64,
    /// What the slot will hold when the lock goes.
    word: u64,
}

impl<'f> Locked<'f> {
    fn new(inode: &'f Inode, index: u64) -> Locked<'f> {
        let slot: &AtomicU64 = inode.slot(index);
        let mut spins = 0;
        loop {
            let word = slot.load(Ordering::Relaxed);
            // Acquire: pairs with the Release in `drop`.
            if word & LOCK == 0
                && slot.compare_exchange_weak(word, word | LOCK, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                return Locked { inode, index, word };
            }
            spins += 1;
            if spins < 100 {
                std::hint::spin_loop();
            } else {
                // SAFETY: no arguments; async-signal-safe.
                unsafe { libc::sched_yield() };
            }
        }
    }

    /// Where the page is. Good until [`take_from`](Locked::take_from), or until
    /// the lock goes.
    fn owner<'r>(&self) -> Option<Owner<'r>> {
        let number = (self.word >> REGION_SHIFT) as usize;
        let place = REGIONS.get(number.checked_sub(1)?)?;
        // SAFETY: it owns a page that we have locked, so it is alive (rule 5);
        // nobody here keeps the owner for longer than that.
        // Acquire: pairs with the Release in `enlist`.
        let region = unsafe { &*place.load(Ordering::Acquire) };
        let page = VirtAddr((self.word & ((1 << REGION_SHIFT) - 1)) as usize).page();
        Some(Owner { region, page })
    }

    fn is_owner(&self, owner: Owner<'_>) -> bool {
        self.word & !(LOCK | DIRTY) == owner.word()
    }

    fn is_dirty(&self) -> bool {
        self.word & DIRTY != 0
    }

    /// The page is at `owner` from now on, `dirty` or as dirty as it was.
    fn give_to(&mut self, owner: Owner<'_>, dirty: bool) {
        self.word = owner.word() | self.word & DIRTY | if dirty { DIRTY } else { 0 };
        owner.region.pages.files.set(owner.bit(), owner.bit() + 1);
    }

    /// Nobody owns the page; `from` did.
    fn take_from(&mut self, from: Owner<'_>) {
        self.word = 0;
        // The last use of the region (rule 5).
        from.region.pages.files.clear(from.bit(), from.bit() + 1, |_, _| {});
    }

    fn offset(&self) -> u64 {
        self.index << PAGE_SHIFT
    }

    /// Writes the owner's contents to the store. Stores to it are forbidden.
    fn write_back(&mut self, owner: Owner<'_>) -> Result<(), Errno> {
        // SAFETY: the owner's page is present (rule 2), and nobody can store to it.
        let bytes = unsafe { std::slice::from_raw_parts(owner.page.get() as *const u8, PAGE_SIZE) };
        self.inode.store().write_at(self.offset(), bytes)?;
        self.word &= !DIRTY;
        Ok(())
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `new`.
        self.inode.slot(self.index).store(self.word & !LOCK, Ordering::Release);
    }
}

/// Where a page's contents are.
enum Source<'r> {
    Owner(Owner<'r>),
    Scratch(&'r PageBuf),
}

impl UffdMmu {
    fn owner_at(&self, page: VirtAddr) -> Owner<'_> {
        Owner { region: self.region(), page }
    }

    /// See `install_file`.
    pub(crate) fn bring_file(
        &self,
        page: VirtAddr,
        file: FilePage<'_>,
        shared: bool,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError> {
        if file.index >= file.inode.pages_max() || file.index << PAGE_SHIFT >= file.inode.store().bytes() {
            return Err(MmuError::BeyondEnd);
        }
        if self.region().number.load(Ordering::Relaxed) == 0 {
            return Err(MmuError::NoMemory);
        }
        let mut slot = Locked::new(file.inode, file.index);
        let here = self.owner_at(page);
        if slot.is_owner(here) {
            return Ok(Installed::Exists);
        }
        // Stores are permitted, and note that the store is behind, for stores.
        let stored_to = writable && for_write;
        match slot.word & !(LOCK | DIRTY) {
            0 => self.bring_from_store(&mut slot, here, shared, stored_to),
            _ => self.bring_from_owner(&mut slot, here, shared, stored_to),
        }
    }

    /// Apart so that only those who read pay for the buffer.
    #[inline(never)]
    fn bring_from_store(
        &self,
        slot: &mut Locked<'_>,
        here: Owner<'_>,
        shared: bool,
        stored_to: bool,
    ) -> Result<Installed, MmuError> {
        let mut scratch = PageBuf::zeroed();
        slot.inode.store().read_at(slot.offset(), &mut scratch.0).map_err(|_| MmuError::BeyondEnd)?;
        let installed = self.put(here.page, Source::Scratch(&scratch), stored_to)?;
        if installed == Installed::New && (shared || !stored_to) {
            slot.give_to(here, stored_to);
        }
        Ok(installed)
    }

    fn bring_from_owner(
        &self,
        slot: &mut Locked<'_>,
        here: Owner<'_>,
        shared: bool,
        stored_to: bool,
    ) -> Result<Installed, MmuError> {
        let there = slot.owner().expect("the word names one");
        if !shared && stored_to {
            // A copy of what is there now. Stores that pass meanwhile may be in
            // it or not, as with the kernel's.
            return self.put(here.page, Source::Owner(there), true);
        }
        // MOVE drops write protection, and takes a poison marker for a page.
        if stored_to && self.moves() && !self.region().is_poisoned() {
            let mut retry = Retry::new();
            loop {
                // SAFETY: the page goes from the one place where it may be
                // reached to the other, at once.
                match unsafe { self.region().uffd().of(here.page).move_pages(here.page, there.page, PAGE_SIZE) } {
                    Ok(()) => {
                        self.change_owner(slot, there, here, true);
                        return Ok(Installed::New);
                    }
                    Err(UffdError::Exists) => return Ok(Installed::Exists),
                    Err(UffdError::Again { .. } | UffdError::NoMemory) if retry.again() => {}
                    Err(UffdError::Gone) => return Err(MmuError::Gone),
                    // It cannot be moved now.
                    Err(_) => break,
                }
            }
        }
        // While both are there, nobody stores to either.
        there.forbid_stores()?;
        let installed = self.put(here.page, Source::Owner(there), false)?;
        if installed == Installed::New {
            drop_pages(PageRange::sized(there.page, PAGE_SIZE));
            self.change_owner(slot, there, here, stored_to);
            if stored_to {
                self.allow_write(here.page)?;
            }
        }
        Ok(installed)
    }

    fn change_owner(&self, slot: &mut Locked<'_>, from: Owner<'_>, to: Owner<'_>, dirty: bool) {
        let was_dirty = slot.is_dirty();
        slot.take_from(from);
        slot.give_to(to, dirty || was_dirty);
    }

    /// COPY to `page`.
    fn put(&self, page: VirtAddr, source: Source<'_>, writable: bool) -> Result<Installed, MmuError> {
        let bytes = match &source {
            Source::Owner(owner) => owner.page.get() as *const u8,
            Source::Scratch(buf) => buf.0.as_ptr(),
        };
        let mut retry = Retry::new();
        loop {
            // SAFETY: a buffer, or an owner's page, which is present (rule 2).
            match unsafe { self.region().uffd().of(page).copy(page, bytes, PAGE_SIZE, !writable) } {
                Ok(()) => return Ok(Installed::New),
                Err(UffdError::Exists) => return Ok(Installed::Exists),
                Err(UffdError::Again { .. } | UffdError::NoMemory) if retry.again() => {}
                Err(UffdError::Again { .. }) => return Err(MmuError::Again),
                Err(UffdError::NoMemory) => return Err(MmuError::NoMemory),
                Err(UffdError::Gone | UffdError::NoEntry) => return Err(MmuError::Gone),
                // The source cannot be read.
                Err(_) => return Err(MmuError::BeyondEnd),
            }
        }
    }

    /// See `allow_write_file`.
    pub(crate) fn allow_file(&self, page: VirtAddr, file: FilePage<'_>, shared: bool) -> Result<(), MmuError> {
        let mut slot = Locked::new(file.inode, file.index);
        let here = self.owner_at(page);
        match (slot.is_owner(here), shared) {
            (true, true) => slot.word |= DIRTY,
            (true, false) => {
                if slot.is_dirty() {
                    // It is protected: only shared mappings' owners are not.
                    slot.write_back(here).map_err(|_| MmuError::NoMemory)?;
                }
                slot.take_from(here);
            }
            // Taken away meanwhile: the access, repeated, brings it back.
            (false, true) => return Ok(()),
            // The mapping's own, or nothing (rule 4).
            (false, false) => {}
        }
        self.allow_write(page)
    }

    /// See `release_file`.
    pub(crate) fn release(&self, range: PageRange, file: FilePage<'_>) {
        let region = &**self.region();
        let (first, last) = region.bits(range);
        // Faults bring nothing in here; others' may take pages away.
        for (a, b) in region.pages.files.runs(first, last) {
            for from in (a..b).step_by(BATCH) {
                let to = (from + BATCH).min(b);
                self.release_run(region.pages_of((from, to)), file.inode, file.index + (from - first) as u64);
            }
        }
    }

    fn release_run(&self, run: PageRange, inode: &Inode, index: u64) {
        let region = &**self.region();
        let mut slots: [Option<Locked<'_>>; BATCH] = [const { None }; BATCH];
        for ((slot, page), index) in slots.iter_mut().zip(run.iter_pages()).zip(index..) {
            *slot = Some(Locked::new(inode, index)).filter(|locked| locked.is_owner(self.owner_at(page)));
        }
        if slots.iter().flatten().any(Locked::is_dirty) {
            // Where the host has no memory for it: stores that race an unmapping
            // may be lost, rather than all.
            let _ = forbid_stores(region, run);
        }
        for (slot, page) in slots.iter_mut().zip(run.iter_pages()) {
            if let Some(slot) = slot.as_mut().filter(|slot| slot.is_dirty()) {
                // What cannot be written is lost, as with the kernel's.
                let _ = slot.write_back(self.owner_at(page));
            }
        }
        // As few calls as can be, but nothing that is not the file's.
        let mut at = 0;
        while at < run.pages() {
            let end = (at..run.pages()).find(|&i| slots[i].is_none()).unwrap_or(run.pages());
            if at < end {
                drop_pages(PageRange::sized(run.start() + (at << PAGE_SHIFT), (end - at) << PAGE_SHIFT));
            }
            at = end + 1;
        }
        for (slot, page) in slots.iter_mut().zip(run.iter_pages()) {
            if let Some(slot) = slot {
                slot.take_from(self.owner_at(page));
            }
        }
    }

    /// See `sync_file`.
    pub(crate) fn write_back(&self, range: PageRange, file: FilePage<'_>) -> Result<(), Errno> {
        let end = (file.index + range.pages() as u64).min(file.inode.pages_max());
        let mut result = Ok(());
        for index in file.index..end {
            // Relaxed: a store that is ordered before this call has locked the
            // slot before it passed, and who unlocks it shows the bit.
            if file.inode.slot(index).load(Ordering::Relaxed) & (DIRTY | LOCK) == 0 {
                continue;
            }
            let mut slot = Locked::new(file.inode, index);
            if !slot.is_dirty() {
                continue;
            }
            let owner = slot.owner().expect("dirty, so somebody has it");
            let written = match owner.forbid_stores() {
                Ok(()) => slot.write_back(owner),
                Err(_) => Err(Errno::ENOMEM),
            };
            result = result.and(written);
        }
        result
    }

    /// See `punch_file`. The store loses a page while the page is locked: no
    /// mapping can bring it back, or write it back, in between.
    pub(crate) fn punch(&self, file: FilePage<'_>, pages: u64) -> Result<(), Errno> {
        let store = file.inode.store();
        let all = file.index.saturating_add(pages);
        let end = all.min(file.inode.pages_max());
        for index in file.index..end {
            let mut slot = Locked::new(file.inode, index);
            // First: if it cannot be, nothing is lost.
            store.punch(index << PAGE_SHIFT, PAGE_SIZE as u64)?;
            if let Some(owner) = slot.owner() {
                drop_pages(PageRange::sized(owner.page, PAGE_SIZE));
                slot.take_from(owner);
            }
        }
        // Never mapped.
        let from = end.max(file.index);
        let rest = all.saturating_sub(from);
        if rest > 0 { store.punch(from << PAGE_SHIFT, rest << PAGE_SHIFT) } else { Ok(()) }
    }
}
