//! The fault path: from a faulting address to an installed page or a signal
//! (`do_user_addr_fault`, `handle_mm_fault`).
//!
//! A fault first tries to find and read-lock its VMA without the mmap lock.
//! Where that does not work, or the fault turns out to need the mmap lock, it
//! takes the mmap lock for reading and then must succeed or earn a signal. A
//! bad access is decided under whichever lock is held.
//!
//! Everything here is async-signal-safe: no allocation, no logging, and no
//! lock that a thread can hold while it touches the region. A fault that holds
//! a VMA's lock never waits for the mmap lock (I11, R15).

use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
use crate::lock::{LockScheme, vma_lookup};
use crate::mm::Mm;
use crate::mmu::{Installed, Mmu, MmuError, PageBuf};
use crate::pager::{PageRequest, Pager};
use crate::races::{Mutant, Point, mutant, point};
use crate::stats::{Counter, count, count_n};
use crate::trace::{self, Event, hit};
use crate::vma::{Hold, VmaFlags, VmaRead};
use std::hint::cold_path;

/// The access that faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// A store (else a load).
    pub write: bool,
    /// A protection fault on a present page (else a missing page).
    pub present: bool,
}

/// The signal an access earns (`do_user_addr_fault`'s ways out).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGSEGV, SEGV_MAPERR: nothing is mapped there.
    MapErr,
    /// SIGSEGV, SEGV_ACCERR: the mapping does not permit the access.
    AccErr,
    /// SIGBUS, BUS_ADRERR: the page could not be provided (out of memory).
    Bus,
}

/// What the fault path decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Repeat the access: the page is there, or another thread is making it so.
    Done,
    /// Deliver a signal to the faulting thread.
    Signal(Signal),
}

/// An address space as the fault delivery sees it: anything that serves faults.
pub trait ServeFault: Send + Sync {
    /// Serves one fault (`do_user_addr_fault`). Async-signal-safe.
    fn serve_fault(&self, addr: VirtAddr, access: Access) -> Outcome;
}

/// What [`Mm::handle_mm_fault`] has to say.
enum Step {
    Finished(Outcome),
    /// `VM_FAULT_RETRY`: the fault needs the mmap lock.
    Retry,
}

impl<S: LockScheme, M: Mmu, P: Pager> ServeFault for Mm<S, M, P> {
    fn serve_fault(&self, addr: VirtAddr, access: Access) -> Outcome {
        count(Counter::Fault);
        hit(Event::FaultEntry, addr.get() as u64, trace::access(access));
        let outcome = self.vma_lock_fault(addr, access).unwrap_or_else(|| self.mmap_lock_fault(addr, access));
        match outcome {
            Outcome::Done => {}
            Outcome::Signal(signal) => {
                cold_path();
                count(if signal == Signal::Bus { Counter::FaultBus } else { Counter::FaultSegv });
            }
        }
        hit(Event::FaultReturn, addr.get() as u64, trace::outcome(outcome));
        outcome
    }
}

/// What the page will hold is decided; it is not installed yet. The VMA stays
/// locked in between, or another mapping could get it (B21).
#[inline(always)]
fn before_install<S: LockScheme>(vma: &mut VmaRead<'_, S>) {
    #[cfg(any(feature = "races", loom, shuttle))]
    if mutant(Mutant::InstallAfterUnlock) {
        vma.unlock_early();
    }
    let _ = vma;
    point(Point::Fill);
}

impl<S: LockScheme, M: Mmu, P: Pager> Mm<S, M, P> {
    /// The fault under its VMA's own lock; `None` where that does not work.
    #[inline]
    fn vma_lock_fault(&self, addr: VirtAddr, access: Access) -> Option<Outcome> {
        if !S::PER_VMA {
            return None;
        }
        let mut vma = match S::lock_vma_under_rcu(self.core(), addr) {
            // SAFETY: the scheme has read-locked it, attached to our mm.
            Ok(vma) => unsafe { VmaRead::new(self.core(), vma, Hold::Vma) },
            Err(abort) => {
                cold_path();
                count(abort.counter());
                hit(Event::Abort, addr.get() as u64, abort as u64);
                return None;
            }
        };
        let step = self.handle_mm_fault(&mut vma, addr, access);
        vma.assert_not_write_locked(self.core());
        drop(vma);
        match step {
            Step::Finished(outcome) => {
                count(Counter::VmaLockSuccess);
                Some(outcome)
            }
            Step::Retry => {
                count(Counter::VmaLockRetry);
                None
            }
        }
    }

    /// The fault under the mmap lock (`lock_mm_and_find_vma`).
    pub(crate) fn mmap_lock_fault(&self, addr: VirtAddr, access: Access) -> Outcome {
        point(Point::Fallback);
        hit(Event::Fallback, addr.get() as u64, 0);
        let read = self.core().mmap_read();
        let found = {
            let snapshot = read.snapshot();
            point(Point::Walk);
            vma_lookup(&snapshot, addr)
        };
        hit(Event::Lookup, addr.get() as u64, found.map_or(0, |vma| trace::id_of(vma.as_ptr())));
        let (read, vma) = match found {
            Some(vma) => (read, vma),
            None => {
                let Some(read) = self.expand_stack(read, addr) else {
                    return Outcome::Signal(Signal::MapErr);
                };
                let vma = read.snapshot().lookup(addr).expect("the stack has grown to here");
                (read, vma)
            }
        };
        // SAFETY: in the tree, so attached, and the mmap lock keeps it so.
        let mut vma = unsafe { VmaRead::new(self.core(), vma, Hold::Mmap(read.into_guard())) };
        match self.handle_mm_fault(&mut vma, addr, access) {
            Step::Finished(outcome) => outcome,
            Step::Retry => unreachable!("the mmap lock is held"),
        }
    }

    /// Judges the access and makes the page present (`handle_mm_fault`).
    #[inline]
    fn handle_mm_fault(&self, vma: &mut VmaRead<'_, S>, addr: VirtAddr, access: Access) -> Step {
        let flags = vma.flags();
        let permitted = if access.write { flags.contains(VmaFlags::WRITE) } else { flags.intersects(VmaFlags::ACCESS) };
        if !permitted {
            cold_path();
            // The `Mmu` may leave a mark there (`Mmu::marks_refusals`).
            vma.set_touched(addr.page(), 1);
            return Step::Finished(Outcome::Signal(Signal::AccErr));
        }
        let page = addr.page();
        if !access.present && self.mmu().is_guarded(page) {
            return Step::Finished(Outcome::Signal(Signal::MapErr));
        }
        // The first store to private memory gives it its identity.
        let private = !flags.contains(VmaFlags::SHARED);
        if access.write && private && vma.anon_vma() == 0 && !self.fault_prepares_anon_vma(vma) {
            return Step::Retry;
        }
        // Before the page appears: who removes it looks here first. With those
        // after it that may come along.
        let around = self.core().fault_around();
        vma.set_touched(page, around);
        hit(Event::Install, page.get() as u64, 0);
        let done = match (access.present, vma.file_page(page)) {
            // Write-protected from before the mapping became writable; or
            // somebody else has just served the same page.
            (true, None) if access.write => self.mmu().allow_write(page),
            (true, Some(file)) if access.write => self.mmu().allow_write_file(page, file, !private),
            (true, _) => Ok(()),
            (false, None) => self.make_present(vma, page, access.write, around),
            (false, Some(_)) => self.make_file_present(vma, page, access.write),
        };
        hit(Event::InstallReturn, page.get() as u64, u64::from(done.is_ok()));
        Step::Finished(match done {
            // Again: the access is repeated, and so is the fault if need be.
            Ok(()) | Err(MmuError::Again) => Outcome::Done,
            Err(MmuError::NoMemory | MmuError::BeyondEnd) => Outcome::Signal(Signal::Bus),
            Err(MmuError::Gone) => Outcome::Signal(Signal::MapErr),
        })
    }

    /// `do_read_fault`, `do_cow_fault`, `do_shared_fault`
    #[inline(never)]
    fn make_file_present(&self, vma: &mut VmaRead<'_, S>, page: VirtAddr, for_write: bool) -> Result<(), MmuError> {
        // A copy that belongs to the mapping may be out of sight. (It comes back
        // protected: the next store faults.)
        let private = !vma.flags().contains(VmaFlags::MAYSHARE);
        if private && self.mmu().unhide(page, false)? {
            return Ok(());
        }
        let writable = vma.flags().contains(VmaFlags::WRITE);
        before_install(vma);
        let file = vma.file_page(page).expect("a file mapping");
        let installed = self.mmu().install_file(page, file, !private, writable, for_write)?;
        count(match installed {
            Installed::New => Counter::PageInstalled,
            Installed::Exists => Counter::PageExists,
        });
        Ok(())
    }

    /// `do_anonymous_page`, and hidden pages.
    #[inline]
    fn make_present(
        &self,
        vma: &mut VmaRead<'_, S>,
        page: VirtAddr,
        for_write: bool,
        around: usize,
    ) -> Result<(), MmuError> {
        let writable = vma.flags().contains(VmaFlags::WRITE);
        // Contents of a mapping that was never written come back protected: its
        // first store must fault.
        if self.mmu().unhide(page, writable && vma.anon_vma() != 0)? {
            return Ok(());
        }
        if around > 1 {
            let run = page.block_from(around).intersect(vma.range());
            return self.fault_around(vma, run, writable, for_write);
        }
        let installed = if self.pager().is_zero() {
            before_install(vma);
            self.mmu().install(page, crate::mmu::Content::Zero, writable, for_write)?
        } else {
            self.install_filled(vma, page, writable, for_write)?
        };
        count(match installed {
            Installed::New => Counter::PageInstalled,
            Installed::Exists => Counter::PageExists,
        });
        Ok(())
    }

    /// Makes the pages of `run` present (`do_fault_around`, for anonymous memory).
    /// Only the first one must be had.
    #[inline(never)]
    fn fault_around(
        &self,
        vma: &mut VmaRead<'_, S>,
        run: PageRange,
        writable: bool,
        for_write: bool,
    ) -> Result<(), MmuError> {
        let made = if self.pager().is_zero() {
            before_install(vma);
            self.mmu().install_run(run, writable, for_write)?
        } else {
            let mut made = 0;
            for at in run.iter_pages() {
                let installed = match self.install_filled(vma, at, writable, for_write) {
                    Err(error) if at == run.start() => return Err(error),
                    Err(_) => break,
                    Ok(installed) => installed,
                };
                made += usize::from(installed == Installed::New);
                let next = at + PAGE_SIZE;
                // Only the first page must be had: any trouble ends the run.
                let special =
                    next < run.end() && (self.mmu().is_guarded(next) || self.mmu().unhide(next, false).unwrap_or(true));
                if installed == Installed::Exists || special {
                    break;
                }
            }
            made
        };
        match made {
            0 => count(Counter::PageExists),
            pages => count_n(Counter::PageInstalled, pages as u64),
        }
        Ok(())
    }

    /// Apart from `make_present` so that only filled pages pay for the buffer.
    #[inline(never)]
    fn install_filled(
        &self,
        vma: &mut VmaRead<'_, S>,
        page: VirtAddr,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError> {
        let mut scratch = PageBuf::zeroed();
        let request = PageRequest { page, incarnation: vma.incarnation(), mm_id: self.id() };
        let content = self.pager().page(&request, &mut scratch);
        before_install(vma);
        self.mmu().install(page, content, writable, for_write)
    }

    /// Gives the VMA an identity for its anonymous pages (`__vmf_anon_prepare`).
    /// Looking at neighbours takes the mmap lock; with the VMA's own lock held
    /// it must not be waited for. `false`: could not have it.
    #[cold]
    fn fault_prepares_anon_vma(&self, vma: &VmaRead<'_, S>) -> bool {
        point(Point::Prepare);
        let guard = if vma.is_vma_lock() && mutant(Mutant::FaultWaitsForMmapLock) {
            Some(self.core().mmap_lock.read())
        } else if vma.is_vma_lock() {
            match self.core().mmap_lock.try_read() {
                Some(guard) => Some(guard),
                None => return false,
            }
        } else {
            None
        };
        // SAFETY: the mmap lock is held, by the guard above or by `vma`.
        let snapshot = unsafe { self.core().tree.snapshot_locked() };
        vma.set_anon_vma(self.core().anon_vma_for(snapshot, &vma.segment()));
        drop(guard);
        true
    }
}
