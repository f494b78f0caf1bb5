//! What the core asks of the hardware: the [`Mmu`] trait.
//!
//! The core decides *whether* a page may appear, vanish or change; an `Mmu`
//! makes it so. There are two: userfaultfd (crate `vmalab-fault-handler`), on
//! real page tables, and [`SoftMmu`](soft::SoftMmu), an array of page states
//! for model checkers, tests and lock benchmarks without the price of a fault.
//!
//! Locking: `install`, `install_run`, `install_file`, `unhide`, `allow_write`,
//! `allow_write_file` and `is_guarded` are called from the fault path, with the
//! VMA read-locked (or the mmap lock held), must be async-signal-safe and may
//! run concurrently, also for the same page. The others are called by
//! mutators, which by then have drained every fault from the range (invariant
//! I10) and keep faults out of it; but while `sync_file`, `punch_file`,
//! `presence` and `first_guarded` run, faults may.
//!
//! What a page is to an `Mmu`:
//!
//! | state | an access finds | from |
//! |---|---|---|
//! | absent | a missing page | `zap`, `discard` |
//! | present | memory, writable or protected | `install`, `install_file` |
//! | hidden | a missing page; contents are kept | `protect(.., None)`, `move_range`, `fork_range` (in parent and child) |
//! | guarded | a missing page, and the fault path a signal | `guard` |
//!
//! A hidden page counts as populated like a present one; both come along with
//! `move_range`, and so do guards.
//!
//! Pages of files are another matter: where each of them is depends on all who
//! map it ([`crate::file`]). They come with `install_file` and go with
//! `release_file`, `allow_write_file` (which makes a copy out of a private
//! mapping's) or a fault elsewhere. `zap`, `discard`, `guard`,
//! `protect(.., None)`, `move_range` and `fork_range` panic if a page of their
//! range is still a file's: release it first. `protect` to another access is
//! fine: stores to pages of files still fault. And an `Mmu` must have released
//! all of them when it is dropped.

pub mod soft;

use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
use crate::file::{FilePage, Store};
use nix::errno::Errno;

/// The contents of one page.
#[repr(C, align(4096))]
pub struct PageBuf(pub [u8; PAGE_SIZE]);

impl PageBuf {
    /// A page of zeros.
    pub const fn zeroed() -> PageBuf {
        PageBuf([0; PAGE_SIZE])
    }
}

/// What a page is filled with, as its [`Pager`](crate::pager::Pager) says.
pub enum Content<'a> {
    /// All zeros: the `Mmu` may share one zero page among readers.
    Zero,
    /// These bytes, copied.
    Page(&'a PageBuf),
}

/// The access that a page of a mapping permits, as far as the hardware is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageAccess {
    /// PROT_NONE: nothing; contents are kept out of sight.
    None,
    /// Loads only.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// Success of [`Mmu::install`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// This call made the page present.
    New,
    /// Someone else had (EEXIST): nothing was changed, the access is simply repeated.
    Exists,
}

/// Why the hardware did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmuError {
    /// No memory for a page or a page table, after the `Mmu`'s own retries.
    NoMemory,
    /// Interrupted by a change of the address space (EAGAIN): repeat the access.
    Again,
    /// The address space is gone (ESRCH, ENOENT).
    Gone,
    /// The page lies beyond the end of its file, or the file cannot be read.
    BeyondEnd,
}

/// One checked access of [`Mmu::access`].
pub enum AccessOp<'a> {
    /// Load bytes; the whole buffer lies in one page.
    Load(&'a mut [u8]),
    /// Store bytes; the whole buffer lies in one page.
    Store(&'a [u8]),
}

/// Why [`Mmu::access`] did not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// A page fault that nobody has served yet (only the software `Mmu`
    /// returns it): the caller runs the fault path and repeats the access.
    Fault {
        /// A protection fault on a present page, not a missing page.
        present: bool,
    },
    /// The fault path has decided on a signal; no retry will help.
    Signal(crate::fault::Signal),
}

/// The hardware below one address space. See the module's documentation for
/// who calls what under which lock.
pub trait Mmu: Send + Sync + 'static {
    /// The addresses that this address space may use, fixed for its life.
    fn range(&self) -> PageRange;

    /// Makes `page` present with `content`, if it is not present.
    ///
    /// `writable`: stores are permitted; otherwise the page must appear
    /// write-protected, without a moment in which a store could pass.
    /// `for_write`: the access that waits is a store (so a shared zero page
    /// would only fault again).
    ///
    /// # Errors
    /// [`MmuError`]; the page is then as it was.
    fn install(
        &self,
        page: VirtAddr,
        content: Content<'_>,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError>;

    /// Makes pages of zeros present from the start of `run` on: fault-around.
    /// Stops before the first page that is present, hidden or guarded, so that
    /// nothing is lost. `writable` and `for_write` as in `install`. Returns how
    /// many pages this call made present, 0 if the first one was there already.
    ///
    /// # Errors
    /// [`MmuError`]; no page was made present.
    fn install_run(&self, run: PageRange, writable: bool, for_write: bool) -> Result<usize, MmuError>;

    /// Makes `page` present with a page of a file, if it is not present.
    ///
    /// `shared`: the page becomes the one place where `file` is mapped
    /// (`crate::file`), and stores to it go to the file; if it is `writable`
    /// but not `for_write`, the first store must still fault (`allow_write`
    /// then notes that the store is behind). Not `shared`: `for_write` makes a
    /// copy of the page that belongs to the mapping (anonymous from then on);
    /// otherwise as if shared, and never writable.
    ///
    /// # Errors
    /// [`MmuError`]; [`BeyondEnd`](MmuError::BeyondEnd) earns SIGBUS.
    fn install_file(
        &self,
        page: VirtAddr,
        file: FilePage<'_>,
        shared: bool,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError>;

    /// Brings `page` back if its contents were hidden: by `protect(.., None)`,
    /// by a move under protection, or by a fork. If it was freed lazily it
    /// comes back protected even if `writable`.
    /// `Ok(false)`: nothing is hidden there.
    ///
    /// # Errors
    /// [`MmuError`]; contents are not lost.
    fn unhide(&self, page: VirtAddr, writable: bool) -> Result<bool, MmuError>;

    /// Permits stores to `page`, if it is present and write-protected; it is
    /// not freed lazily any more. (What is shared with a forked address space
    /// is not present: `unhide` makes the copy.)
    ///
    /// # Errors
    /// [`MmuError::Again`], [`MmuError::NoMemory`], [`MmuError::Gone`].
    fn allow_write(&self, page: VirtAddr) -> Result<(), MmuError>;

    /// The same for a page of a file. `shared`: notes that the store is behind.
    /// Not `shared`: a page that is still the file's becomes a copy that
    /// belongs to the mapping.
    ///
    /// # Errors
    /// As `allow_write`.
    fn allow_write_file(&self, page: VirtAddr, file: FilePage<'_>, shared: bool) -> Result<(), MmuError>;

    /// Removes every page of `range`, hidden and guarded ones too. When it
    /// returns no thread can still reach the old contents.
    ///
    /// # Panics
    /// If a page of a file was not released. So do `discard`, `guard`,
    /// `protect(.., None)`, `move_range` and `fork_range`.
    fn zap(&self, range: PageRange);

    /// Like `zap`, but guards stay (MADV_DONTNEED).
    fn discard(&self, range: PageRange);

    /// Takes a file's pages out of `range`, which maps the file from
    /// `file.index` on: written back where the store is behind, then absent.
    /// Pages of `range` that are not the file's (copies) stay.
    fn release_file(&self, range: PageRange, file: FilePage<'_>);

    /// Writes back what the store is behind of in `range` (`msync`); pages stay.
    ///
    /// # Errors
    /// The store's.
    fn sync_file(&self, range: PageRange, file: FilePage<'_>) -> Result<(), Errno>;

    /// Punches a hole of `pages` pages into the file: takes them out of every
    /// mapping, wherever it is, and out of the store (`vfs_fallocate`,
    /// PUNCH_HOLE). Nobody can write old contents back afterwards.
    ///
    /// # Errors
    /// The store's: EOPNOTSUPP where it has no holes.
    fn punch_file(&self, file: FilePage<'_>, pages: u64) -> Result<(), Errno>;

    /// Memory for a shared anonymous mapping of `bytes` bytes (`shmem_zero_setup`).
    ///
    /// # Errors
    /// The host's.
    fn shmem(&self, bytes: u64) -> Result<Box<dyn Store>, Errno>;

    /// Changes what `range`'s pages permit. [`PageAccess::None`] hides
    /// contents; they come back through [`unhide`](Mmu::unhide), page by page.
    /// When it returns, no access that `to` forbids can still pass.
    ///
    /// # Errors
    /// [`MmuError`]: each page permits what it did or what `to` says, and nothing
    /// is lost; the caller changes `range` back.
    fn protect(&self, range: PageRange, from: PageAccess, to: PageAccess) -> Result<(), MmuError>;

    /// Moves everything in `from` to `to`, which holds nothing and does not
    /// overlap it: present and hidden pages, guards and marks of lazy freeing
    /// (`move_page_tables`).
    /// `access`: what the pages permit from then on. If it is not
    /// [`ReadWrite`](PageAccess::ReadWrite) no store may pass at `to`, not for
    /// a moment; contents may be hidden there.
    ///
    /// # Errors
    /// [`MmuError`]: everything is back in `from`, perhaps hidden.
    fn move_range(&self, from: PageRange, to: VirtAddr, access: PageAccess) -> Result<(), MmuError>;

    /// Lets `child` inherit everything in `range`, at `to`: contents are hidden
    /// in both and shared until they are touched, marks are copied
    /// (`copy_page_range`). Nobody uses `child` yet.
    ///
    /// # Errors
    /// [`MmuError::NoMemory`]; `child` is then dropped.
    fn fork_range(&self, child: &Self, range: PageRange, to: VirtAddr) -> Result<(), MmuError>
    where
        Self: Sized;

    /// Whether [`presence`](Mmu::presence) may tell of places without a page: of
    /// the mark of an access that was refused, say.
    fn marks_refusals(&self) -> bool {
        false
    }

    /// Calls `run` with each stretch of populated pages in `range`, ascending:
    /// present or hidden, not guarded.
    fn presence(&self, range: PageRange, run: &mut dyn FnMut(PageRange));

    /// Whether a page of `range`, installed for loads, was stored to without a
    /// fault that was served here (the host's own copy-on-write of the zero page).
    fn was_written(&self, range: PageRange) -> bool;

    /// Whether a page of `range`, present or hidden, holds anything but zeros.
    fn has_contents(&self, range: PageRange) -> bool;

    /// Removes what is in `range` and marks every page of it (MADV_GUARD_INSTALL).
    fn guard(&self, range: PageRange);

    /// Takes the marks away (MADV_GUARD_REMOVE); pages stay.
    fn unguard(&self, range: PageRange);

    /// Whether `page` is guarded.
    fn is_guarded(&self, page: VirtAddr) -> bool;

    /// A guarded page in `range`, if there is one.
    fn first_guarded(&self, range: PageRange) -> Option<VirtAddr>;

    /// Contents of `range` may be dropped by the next `reclaim` unless they are
    /// stored to before (MADV_FREE). The first store faults, whatever `protect`
    /// and `unhide` permit, and `allow_write` cancels. Not for pages of files.
    fn lazy_free(&self, range: PageRange);

    /// Drops what was freed lazily in `range` (MADV_PAGEOUT).
    fn reclaim(&self, range: PageRange);

    /// Drops every page of `range` that may be stored to or holds anything but zeros
    /// (MADV_PAGEOUT of a droppable mapping): the zero page is nobody's to reclaim.
    fn drop_own(&self, range: PageRange);

    /// Loads or stores bytes as the program would, reporting instead of
    /// raising a signal.
    ///
    /// # Errors
    /// [`Trap`].
    fn access(&self, addr: VirtAddr, op: AccessOp<'_>) -> Result<(), Trap>;
}
