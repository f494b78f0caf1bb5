//! [`UffdMmu`]: the core's [`Mmu`] on real page tables, through userfaultfd.
//!
//! | asked for | done |
//! |---|---|
//! | install zeros for a load of a writable mapping | UFFDIO_ZEROPAGE |
//! | install anything else | UFFDIO_COPY, with MODE_WP where stores are forbidden |
//! | read-only / writable | UFFDIO_WRITEPROTECT |
//! | PROT_NONE | UFFDIO_MOVE to the twin, a bit in the hidden bitmap |
//! | move | UFFDIO_MOVE, from region to region where stores are permitted, else to the twin |
//! | fork | UFFDIO_MOVE to the arena of shared pages (`cow.rs`); back by COPY, the last by MOVE |
//! | back from the twin | UFFDIO_MOVE, or COPY with MODE_WP where stores are forbidden |
//! | pages of files | see `cache.rs` |
//! | unmap | MADV_DONTNEED |
//!
//! # Why a page is never lost or doubled while it is unhidden
//!
//! A page's hidden bit changes from clear to set only under the VMA's write
//! lock. Faults hold its read lock, and several may unhide one page at once.
//! Each first reads the bit. Set: it tries to bring the page back, and the
//! region has the page *before* anyone clears the bit or empties the twin
//! (MOVE fills one and empties the other in one step). So a loser's attempt
//! ends in EEXIST (the region has it), ENOENT or EFAULT (the twin has it no
//! more), and all of them mean "repeat the access". Clear: the page was never
//! hidden, or is back already (the Acquire load of the bit pairs with the
//! Release of clearing it); a zero page that the fault then tries to install
//! meets EEXIST. No path leads from a set bit to a fresh page.

mod fork;
mod states;
mod transfer;

use crate::access;
use crate::cache;
use crate::file::FdStore;
use crate::ready::Pool;
use crate::region::{Notify, Region, Retry, drop_pages};
use crate::uffd::{Privilege, UffdError, feature};
use nix::errno::Errno;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmalab::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use vmalab::file::{FilePage, Store};
use vmalab::mmu::{AccessOp, Content, Installed, Mmu, MmuError, PageAccess, PageBuf, Trap};

/// Source of zero pages that are copied: write-protected ones and those about
/// to be stored to. Filled with zeros by the loader, read by the kernel only.
static ZERO_PAGE: PageBuf = PageBuf::zeroed();

/// Pages that one call of fault-around makes present at most.
const RUN_MAX: usize = 64;
/// The same for runs.
static ZERO_RUN: [PageBuf; RUN_MAX] = [const { PageBuf::zeroed() }; RUN_MAX];

/// See the module's documentation.
pub struct UffdMmu {
    region: Arc<Region>,
    /// Zeroed pages that need only be moved.
    ready: Option<Pool>,
    /// UFFDIO_MOVE is there (Linux 6.8). Without it hiding copies page by page.
    moves: AtomicBool,
}

fn one_page(page: VirtAddr) -> PageRange {
    PageRange::sized(page, PAGE_SIZE)
}

impl UffdMmu {
    /// An empty region of `bytes`, rounded up to whole pages.
    ///
    /// # Errors
    /// [`RegionError`](crate::region::RegionError).
    pub fn new(bytes: usize, notify: Notify, privilege: Privilege) -> Result<UffdMmu, crate::region::RegionError> {
        let region = Arc::new(Region::new(bytes, notify, privilege)?);
        let both = region.uffd().features() & region.twin_uffd().features();
        cache::enlist(&region);
        Ok(UffdMmu { moves: AtomicBool::new(both & feature::MOVE != 0), ready: None, region })
    }

    /// Keeps `pages` zeroed pages ready for fault-around of stores, and a thread
    /// that makes new ones. To be called before the first fault.
    ///
    /// # Errors
    /// The host's: no memory, no thread. ENOSYS: it cannot move pages (before
    /// Linux 6.8).
    pub fn keep_ready(&mut self, pages: usize) -> Result<(), Errno> {
        if !self.moves() {
            return Err(Errno::ENOSYS);
        }
        self.ready = Some(Pool::new(pages)?);
        Ok(())
    }

    /// Pages that are ready at this moment (see [`keep_ready`](UffdMmu::keep_ready)).
    pub fn ready_pages(&self) -> usize {
        self.ready.as_ref().map_or(0, Pool::pages)
    }

    /// The memory below.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Whether pages are hidden by UFFDIO_MOVE.
    pub fn moves(&self) -> bool {
        self.moves.load(Ordering::Relaxed)
    }

    /// Hides and unhides by copying from now on, as on a kernel without
    /// UFFDIO_MOVE. For tests.
    pub fn forget_move(&self) {
        self.moves.store(false, Ordering::Relaxed);
    }

    /// Pages whose contents are hidden.
    pub fn hidden_pages(&self) -> usize {
        self.region.pages.hidden.count()
    }

    /// Pages whose contents are shared with a fork, and not here.
    pub fn inherited_pages(&self) -> usize {
        self.region.pages.inherited.count()
    }

    /// Pages that forked address spaces share, in the whole process.
    pub fn shared_pages() -> usize {
        crate::cow::used()
    }

    fn check(&self, range: PageRange) {
        assert!(self.region.range().covers(range), "{range:?} is outside the region");
    }

    /// UFFDIO_WRITEPROTECT to the end, however often it is interrupted.
    fn set_protection(&self, range: PageRange, protect: bool) -> Result<(), MmuError> {
        let mut retry = Retry::new();
        loop {
            match self.region.uffd().write_protect(range, protect) {
                Ok(()) => return Ok(()),
                Err(UffdError::Again { .. }) if retry.again() => {}
                Err(UffdError::NoMemory) if retry.again() => {}
                Err(UffdError::Again { .. }) => return Err(MmuError::Again),
                Err(UffdError::NoMemory) => return Err(MmuError::NoMemory),
                Err(UffdError::Gone | UffdError::NoEntry) => return Err(MmuError::Gone),
                Err(error) => unexpected("WRITEPROTECT", range.start(), error),
            }
        }
    }

    /// Brings a page back that is hidden or inherited. `Ok(false)`: it is neither.
    #[inline(never)]
    fn unhide_any(&self, page: VirtAddr, writable: bool) -> Result<bool, MmuError> {
        let (states, bit) = (&self.region.pages, self.region.bit(page));
        let hidden = !states.hidden.is_empty() && states.hidden.get(bit);
        if !hidden && (states.inherited.is_empty() || !states.inherited.get(bit)) {
            return Ok(false);
        }
        // A lazily freed page comes back protected: its first store must fault.
        let writable = writable && (states.lazy.is_empty() || !states.lazy.get(bit));
        if !hidden {
            self.unhide_inherited(page, writable)?;
            return Ok(true);
        }
        // MOVE drops write protection, so it is only for writable mappings.
        if writable && self.moves() && self.unhide_by_move(page)? {
            return Ok(true);
        }
        self.unhide_by_copy(page, writable)?;
        Ok(true)
    }

    /// Brings a page back by MOVE. `Ok(false)`: it cannot be moved.
    fn unhide_by_move(&self, page: VirtAddr) -> Result<bool, MmuError> {
        let mut retry = Retry::new();
        loop {
            // SAFETY: the twin's page has no other use; stores are permitted.
            match unsafe { self.region.uffd().of(page).move_pages(page, self.region.twin(page), PAGE_SIZE) } {
                Ok(()) => {
                    self.region.pages.hidden.clear(self.region.bit(page), self.region.bit(page) + 1, |_, _| {});
                    return Ok(true);
                }
                // Not a page but a poison marker, perhaps: COPY replaces it.
                Err(UffdError::Exists) if self.region.is_poisoned() => return Ok(false),
                // Another thread was first, see the module's documentation.
                Err(UffdError::Exists | UffdError::NoEntry) => return Ok(true),
                Err(UffdError::Again { .. } | UffdError::NoMemory) if retry.again() => {}
                Err(UffdError::Again { .. }) => return Err(MmuError::Again),
                Err(UffdError::NoMemory) => return Err(MmuError::NoMemory),
                Err(UffdError::Gone) => return Err(MmuError::Gone),
                Err(UffdError::Busy | UffdError::Fault | UffdError::Other(_)) => return Ok(false),
            }
        }
    }

    /// Brings a page back by COPY.
    fn unhide_by_copy(&self, page: VirtAddr, writable: bool) -> Result<(), MmuError> {
        let twin = self.region.twin(page);
        let mut retry = Retry::new();
        loop {
            // SAFETY: the twin's page, which nobody writes.
            match unsafe { self.region.uffd().of(page).copy(page, twin.get() as *const u8, PAGE_SIZE, !writable) } {
                Ok(()) => {
                    // The twin is emptied while the bit still says hidden: who
                    // finds it empty finds the page in the region.
                    drop_pages(one_page(twin));
                    self.region.pages.hidden.clear(self.region.bit(page), self.region.bit(page) + 1, |_, _| {});
                    return Ok(());
                }
                // Another thread was first, see the module's documentation.
                Err(UffdError::Exists | UffdError::Fault) => return Ok(()),
                Err(UffdError::Again { .. } | UffdError::NoMemory) if retry.again() => {}
                Err(UffdError::Again { .. }) => return Err(MmuError::Again),
                Err(UffdError::NoMemory) => return Err(MmuError::NoMemory),
                Err(UffdError::Gone | UffdError::NoEntry) => return Err(MmuError::Gone),
                Err(error) => unexpected("COPY from the twin", page, error),
            }
        }
    }
}

/// An answer that arguments of ours cannot cause. It may be met in a signal
/// handler, where a panic must not unwind: say it in one write and abort.
#[cold]
fn unexpected(what: &str, at: VirtAddr, error: UffdError) -> ! {
    let errno = match error {
        UffdError::Other(errno) => errno as i32,
        UffdError::Busy => libc::EBUSY,
        UffdError::Fault => libc::EFAULT,
        UffdError::Exists => libc::EEXIST,
        _ => 0,
    };
    let mut text = [0u8; 160];
    let mut rest = &mut text[..];
    // Formatting integers and strings into a buffer allocates nothing.
    let _ = std::io::Write::write_fmt(
        &mut rest,
        format_args!("vmalab: userfaultfd {what} at {at:x} failed with errno {errno}; this is a bug\n"),
    );
    let len = text.iter().position(|&b| b == 0).unwrap_or(text.len());
    // SAFETY: writes the buffer; abort does not return.
    unsafe {
        libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), len);
        libc::abort()
    }
}

impl Mmu for UffdMmu {
    fn range(&self) -> PageRange {
        self.region.range()
    }

    fn install(
        &self,
        page: VirtAddr,
        content: Content<'_>,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError> {
        let uffd = self.region.uffd().of(page);
        let mut retry = Retry::new();
        loop {
            let result = match &content {
                // Never where stores are forbidden: the host's own copy-on-write
                // would let one pass. Nor for a store, which would fault again.
                Content::Zero if writable && !for_write && !self.region.is_poisoned() => uffd.zeropage(page),
                // SAFETY: a static page of zeros.
                Content::Zero => unsafe { uffd.copy(page, ZERO_PAGE.0.as_ptr(), PAGE_SIZE, !writable) },
                // SAFETY: one page of bytes, borrowed for the call.
                Content::Page(bytes) => unsafe { uffd.copy(page, bytes.0.as_ptr(), PAGE_SIZE, !writable) },
            };
            // Apart, as it is the way of nearly all.
            let Err(error) = result else {
                return Ok(Installed::New);
            };
            match error {
                UffdError::Exists => return Ok(Installed::Exists),
                UffdError::Again { .. } | UffdError::NoMemory if retry.again() => {}
                UffdError::Again { .. } => return Err(MmuError::Again),
                UffdError::NoMemory => return Err(MmuError::NoMemory),
                UffdError::Gone | UffdError::NoEntry => return Err(MmuError::Gone),
                error => unexpected("COPY or ZEROPAGE", page, error),
            }
        }
    }

    fn install_run(&self, run: PageRange, writable: bool, for_write: bool) -> Result<usize, MmuError> {
        let uffd = self.region.uffd();
        let first = self.region.bit(run.start());
        let states = &self.region.pages;
        let mut end = first + run.pages().min(RUN_MAX);
        for special in [&states.hidden, &states.inherited, &states.guards] {
            end = special.runs(first, end).next().map_or(end, |(start, _)| start);
        }
        let bytes = (end - first) << PAGE_SHIFT;
        if bytes == 0 {
            return Ok(0);
        }
        let poisoned = self.region.is_poisoned();
        if let Some(ready) = self.ready.as_ref().filter(|_| writable && for_write && !poisoned)
            && let Some(pages) = ready.move_to(uffd, PageRange::sized(run.start(), bytes))
        {
            return Ok(pages);
        }
        let mut retry = Retry::new();
        loop {
            let result = if writable && !for_write && !poisoned {
                uffd.zero_pages(PageRange::sized(run.start(), bytes))
            } else {
                // SAFETY: static pages of zeros, RUN_MAX of them.
                unsafe { uffd.copy(run.start(), ZERO_RUN[0].0.as_ptr(), bytes, !writable) }
            };
            match result {
                Ok(()) => return Ok(bytes >> PAGE_SHIFT),
                // The rest is there, or can wait: only the first page must be had.
                Err(UffdError::Again { done }) if done > 0 => return Ok(done >> PAGE_SHIFT),
                Err(UffdError::Exists) => return Ok(0),
                Err(UffdError::Again { .. } | UffdError::NoMemory) if retry.again() => {}
                Err(UffdError::Again { .. }) => return Err(MmuError::Again),
                Err(UffdError::NoMemory) => return Err(MmuError::NoMemory),
                Err(UffdError::Gone | UffdError::NoEntry) => return Err(MmuError::Gone),
                Err(error) => unexpected("COPY or ZEROPAGE", run.start(), error),
            }
        }
    }

    #[inline]
    fn unhide(&self, page: VirtAddr, writable: bool) -> Result<bool, MmuError> {
        // One relaxed load each where nothing is hidden or inherited. Enough: a
        // page that we must see was hidden under the VMA lock that we now hold
        // for reading.
        let states = &self.region.pages;
        if states.hidden.is_empty() && states.inherited.is_empty() {
            return Ok(false);
        }
        self.unhide_any(page, writable)
    }

    fn allow_write(&self, page: VirtAddr) -> Result<(), MmuError> {
        let lazy = &self.region.pages.lazy;
        if !lazy.is_empty() {
            // Before the store can pass. Faults only ever clear the mark, so it
            // does not matter which of several does.
            lazy.clear(self.region.bit(page), self.region.bit(page) + 1, |_, _| {});
        }
        self.set_protection(one_page(page), false)
    }

    fn zap(&self, range: PageRange) {
        self.discard(range);
        self.unguard(range);
    }

    fn protect(&self, range: PageRange, from: PageAccess, to: PageAccess) -> Result<(), MmuError> {
        self.check(range);
        if range.is_empty() || from == to {
            return Ok(());
        }
        match (from, to) {
            // Hidden pages come back one by one, with the protection of the day.
            (PageAccess::None, _) => Ok(()),
            (_, PageAccess::None) => {
                self.region.assert_released(range);
                self.region.presence().runs(range, |run| self.hide_run(run))
            }
            (_, PageAccess::Read) => self.set_protection(range, true),
            (_, PageAccess::ReadWrite) => self.allow_writes(range),
        }
    }

    fn install_file(
        &self,
        page: VirtAddr,
        file: FilePage<'_>,
        shared: bool,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError> {
        self.bring_file(page, file, shared, writable, for_write)
    }

    fn allow_write_file(&self, page: VirtAddr, file: FilePage<'_>, shared: bool) -> Result<(), MmuError> {
        self.allow_file(page, file, shared)
    }

    fn discard(&self, range: PageRange) {
        self.check(range);
        self.drop_contents(range);
    }

    fn release_file(&self, range: PageRange, file: FilePage<'_>) {
        self.check(range);
        self.release(range, file);
    }

    fn sync_file(&self, range: PageRange, file: FilePage<'_>) -> Result<(), Errno> {
        self.check(range);
        self.write_back(range, file)
    }

    fn punch_file(&self, file: FilePage<'_>, pages: u64) -> Result<(), Errno> {
        self.punch(file, pages)
    }

    fn shmem(&self, bytes: u64) -> Result<Box<dyn Store>, Errno> {
        Ok(Box::new(FdStore::memory(bytes)?))
    }

    fn move_range(&self, from: PageRange, to: VirtAddr, access: PageAccess) -> Result<(), MmuError> {
        let to = PageRange::sized(to, from.bytes());
        self.check(from);
        self.check(to);
        assert!(!from.overlaps(to), "{from:?} cannot move to {to:?}");
        self.region.assert_released(from);
        self.move_all(from, to, access)
    }

    fn fork_range(&self, child: &Self, range: PageRange, to: VirtAddr) -> Result<(), MmuError> {
        let to = PageRange::sized(to, range.bytes());
        self.check(range);
        child.check(to);
        self.region.assert_released(range);
        self.fork_all(child, range, to)
    }

    fn presence(&self, range: PageRange, run: &mut dyn FnMut(PageRange)) {
        self.check(range);
        self.populated(range, run);
    }

    fn marks_refusals(&self) -> bool {
        self.region.is_poisoned()
    }

    fn was_written(&self, range: PageRange) -> bool {
        self.check(range);
        self.region.presence().written(range)
    }

    fn has_contents(&self, range: PageRange) -> bool {
        self.check(range);
        self.holds_anything(range)
    }

    fn guard(&self, range: PageRange) {
        self.discard(range);
        let (first, last) = self.region.bits(range);
        self.region.pages.guards.set(first, last);
    }

    fn unguard(&self, range: PageRange) {
        self.check(range);
        let guards = &self.region.pages.guards;
        if !guards.is_empty() {
            let (first, last) = self.region.bits(range);
            guards.clear(first, last, |_, _| {});
        }
    }

    #[inline]
    fn is_guarded(&self, page: VirtAddr) -> bool {
        // One relaxed load where nothing is guarded; enough as in `unhide`.
        let guards = &self.region.pages.guards;
        !guards.is_empty() && guards.get(self.region.bit(page))
    }

    fn first_guarded(&self, range: PageRange) -> Option<VirtAddr> {
        self.check(range);
        let (first, last) = self.region.bits(range);
        let run = self.region.pages.guards.runs(first, last).next()?;
        Some(self.region.pages_of(run).start())
    }

    fn lazy_free(&self, range: PageRange) {
        self.check(range);
        if !range.is_empty() {
            self.mark_lazy(range);
        }
    }

    fn reclaim(&self, range: PageRange) {
        self.check(range);
        self.drop_lazy(range);
    }

    fn drop_own(&self, range: PageRange) {
        self.check(range);
        self.drop_all_but_zero_pages(range);
    }

    fn access(&self, addr: VirtAddr, op: AccessOp<'_>) -> Result<(), Trap> {
        let (dst, src, len) = match op {
            AccessOp::Load(buf) => (buf.as_mut_ptr() as usize, addr.get(), buf.len()),
            AccessOp::Store(buf) => (addr.get(), buf.as_ptr() as usize, buf.len()),
        };
        assert!(
            self.region.range().contains(addr) && len <= self.region.range().end() - addr,
            "access outside the region"
        );
        // SAFETY: one side is the caller's buffer, the other lies in our
        // region, where every fault is served or comes back as a signal.
        unsafe { access::copy(dst, src, len) }.map_err(|(signal, _)| Trap::Signal(signal))
    }
}
