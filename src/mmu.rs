//! What the core asks of the hardware: the [`Mmu`] trait.
//!
//! The core decides *whether* a page may appear, vanish or change; an `Mmu`
//! makes it so. There are two: userfaultfd (crate `vmalab-fault-handler`), on
//! real page tables, and [`SoftMmu`](soft::SoftMmu), an array of page states
//! for model checkers, tests and lock benchmarks without the price of a fault.
//!
//! Locking: `install`, `unhide` and `allow_write` are called from the fault
//! path, with the VMA read-locked (or the mmap lock held), must be
//! async-signal-safe and may run concurrently, also for the same page. `zap`
//! and `protect` are called by mutators, which by then have drained every
//! fault from the range (invariant I10).

pub mod soft;

use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};

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

    /// Brings `page` back if its contents were hidden by `protect(.., None)`.
    /// `Ok(false)`: nothing is hidden there.
    ///
    /// # Errors
    /// [`MmuError`]; contents are not lost.
    fn unhide(&self, page: VirtAddr, writable: bool) -> Result<bool, MmuError>;

    /// Permits stores to `page`, if it is present and write-protected.
    ///
    /// # Errors
    /// [`MmuError::Again`], [`MmuError::Gone`].
    fn allow_write(&self, page: VirtAddr) -> Result<(), MmuError>;

    /// Removes every page of `range`, hidden ones too. When it returns no
    /// thread can still reach the old contents.
    fn zap(&self, range: PageRange);

    /// Changes what `range`'s pages permit. [`PageAccess::None`] hides
    /// contents; they come back through [`unhide`](Mmu::unhide), page by page.
    /// When it returns, no access that `to` forbids can still pass.
    ///
    /// # Errors
    /// [`MmuError::NoMemory`]: every page still permits at most what it
    /// permitted, and nothing is lost.
    fn protect(&self, range: PageRange, from: PageAccess, to: PageAccess) -> Result<(), MmuError>;

    /// Loads or stores bytes as the program would, reporting instead of
    /// raising a signal.
    ///
    /// # Errors
    /// [`Trap`].
    fn access(&self, addr: VirtAddr, op: AccessOp<'_>) -> Result<(), Trap>;
}
