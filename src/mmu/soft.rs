//! [`SoftMmu`]: page tables as an array of page states, with real contents.
//!
//! It behaves as hardware does, down to what makes hardware interesting: an
//! access in flight holds its page (a translation in somebody's TLB), and who
//! removes a page or takes rights away waits for those accesses, as a TLB
//! shootdown does. So after `zap` no store lands in the old page, and after
//! `protect` no store succeeds.
//!
//! Addresses are numbers, not memory: two `SoftMmu`s serve the same range.

use super::{AccessOp, Content, Installed, Mmu, MmuError, PageAccess, Trap};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use crate::file::{FilePage, Store};
use crate::sync::plain::AtomicU64;
use crate::sync::{AtomicU32, Backoff, Ordering, spin_loop};
use nix::errno::Errno;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// First address of a software address space, unless another is asked for.
pub const BASE: VirtAddr = VirtAddr(0x10_0000_0000);

const PRESENT: u32 = 1 << 31;
const WRITABLE: u32 = 1 << 30;
/// Contents kept, not reachable (PROT_NONE).
const HIDDEN: u32 = 1 << 29;
/// Somebody is changing the page.
const BUSY: u32 = 1 << 28;
/// Accesses in flight.
const USERS: u32 = BUSY - 1;
const WORDS: usize = PAGE_SIZE / 8;

/// A model's atomics have to be made, one by one; it has few pages.
#[cfg(any(loom, shuttle))]
type States = Box<[AtomicU32]>;
#[cfg(not(any(loom, shuttle)))]
type States = ZeroedArray<AtomicU32>;

/// The software [`Mmu`]; see the module's documentation.
pub struct SoftMmu {
    range: PageRange,
    /// One word a page: the bits above. Absent pages are 0 and their contents zero.
    states: States,
    contents: ZeroedArray<AtomicU64>,
}

impl SoftMmu {
    /// An `Mmu` for `bytes` bytes, rounded up to pages, from [`BASE`]. Memory
    /// is used as pages are touched.
    ///
    /// # Errors
    /// [`MmuError::NoMemory`] if the host does not grant that much.
    pub fn new(bytes: usize) -> Result<SoftMmu, MmuError> {
        SoftMmu::at(BASE, bytes)
    }

    /// The same from address `base`, a multiple of the page size.
    ///
    /// # Errors
    /// As [`new`](SoftMmu::new).
    ///
    /// # Panics
    /// If `base` is not page aligned.
    pub fn at(base: VirtAddr, bytes: usize) -> Result<SoftMmu, MmuError> {
        assert!(base.is_page_aligned());
        let bytes = crate::addr::page_align_up(bytes).filter(|&b| b > 0 && b < 1 << 46).ok_or(MmuError::NoMemory)?;
        let pages = bytes >> PAGE_SHIFT;
        Ok(SoftMmu {
            range: PageRange::sized(base, bytes),
            #[cfg(not(any(loom, shuttle)))]
            states: ZeroedArray::new(pages)?,
            #[cfg(any(loom, shuttle))]
            states: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            contents: ZeroedArray::new(pages * WORDS)?,
        })
    }

    fn state(&self, page: VirtAddr) -> &AtomicU32 {
        &self.states[(page - self.range.start()) >> PAGE_SHIFT]
    }

    fn words(&self, page: VirtAddr) -> &[AtomicU64] {
        let first = ((page - self.range.start()) >> PAGE_SHIFT) * WORDS;
        &self.contents[first..first + WORDS]
    }

    /// Takes the page for changing and waits until no access is in flight.
    /// Returns what it was, or `None` if `unless` says so.
    fn lock_page(&self, page: VirtAddr, unless: impl Fn(u32) -> bool) -> Option<u32> {
        let state = self.state(page);
        let backoff = Backoff::new();
        loop {
            let now = state.load(Ordering::Relaxed);
            if now & BUSY != 0 {
                backoff.snooze();
                continue;
            }
            if unless(now) {
                return None;
            }
            // Acquire: pairs with the Release of `access` and `unlock_page`.
            if state.compare_exchange(now, now | BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                // The shootdown.
                while state.load(Ordering::Acquire) & USERS != 0 {
                    backoff.snooze();
                }
                return Some(now & !USERS);
            }
        }
    }

    fn unlock_page(&self, page: VirtAddr, new: u32) {
        // Release: pairs with the Acquire in `lock_page` and `access`.
        self.state(page).store(new, Ordering::Release);
    }
}

impl Mmu for SoftMmu {
    fn range(&self) -> PageRange {
        self.range
    }

    fn install(
        &self,
        page: VirtAddr,
        content: Content<'_>,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError> {
        if self.lock_page(page, |now| now & (PRESENT | HIDDEN) != 0).is_none() {
            return Ok(Installed::Exists);
        }
        if let Content::Page(bytes) = content {
            for (word, bytes) in self.words(page).iter().zip(bytes.0.chunks_exact(8)) {
                let value = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
                // Absent pages are zero already.
                if value != 0 {
                    word.store(value, Ordering::Relaxed);
                }
            }
        }
        // A page that is only read may be shared (the zero page): the first
        // store to it faults again, as on the host.
        self.unlock_page(page, PRESENT | if writable && for_write { WRITABLE } else { 0 });
        Ok(Installed::New)
    }

    fn unhide(&self, page: VirtAddr, writable: bool) -> Result<bool, MmuError> {
        if self.state(page).load(Ordering::Relaxed) & HIDDEN == 0 {
            return Ok(false);
        }
        if self.lock_page(page, |now| now & HIDDEN == 0).is_some() {
            self.unlock_page(page, PRESENT | if writable { WRITABLE } else { 0 });
        }
        // Otherwise another fault has just done it.
        Ok(true)
    }

    fn allow_write(&self, page: VirtAddr) -> Result<(), MmuError> {
        if let Some(old) = self.lock_page(page, |now| now & PRESENT == 0) {
            self.unlock_page(page, old | WRITABLE);
        }
        Ok(())
    }

    fn zap(&self, range: PageRange) {
        for page in range.iter_pages() {
            if self.lock_page(page, |now| now & (PRESENT | HIDDEN) == 0).is_some() {
                for word in self.words(page) {
                    word.store(0, Ordering::Relaxed);
                }
                self.unlock_page(page, 0);
            }
        }
    }

    fn protect(&self, range: PageRange, _: PageAccess, to: PageAccess) -> Result<(), MmuError> {
        for page in range.iter_pages() {
            if self.lock_page(page, |now| now & PRESENT == 0).is_some() {
                self.unlock_page(
                    page,
                    match to {
                        PageAccess::None => HIDDEN,
                        PageAccess::Read => PRESENT,
                        PageAccess::ReadWrite => PRESENT | WRITABLE,
                    },
                );
            }
        }
        Ok(())
    }

    fn install_file(&self, _: VirtAddr, _: FilePage<'_>, _: bool, _: bool, _: bool) -> Result<Installed, MmuError> {
        todo!()
    }

    fn allow_write_file(&self, _: VirtAddr, _: FilePage<'_>, _: bool) -> Result<(), MmuError> {
        todo!()
    }

    fn discard(&self, range: PageRange) {
        self.zap(range);
    }

    fn release_file(&self, _: PageRange, _: FilePage<'_>) {
        todo!()
    }

    fn sync_file(&self, _: PageRange, _: FilePage<'_>) -> Result<(), Errno> {
        todo!()
    }

    fn forget_file(&self, _: FilePage<'_>, _: u64) {
        todo!()
    }

    fn shmem(&self, _: u64) -> Result<Box<dyn Store>, Errno> {
        todo!()
    }

    fn move_range(&self, _: PageRange, _: VirtAddr, _: PageAccess) -> Result<(), MmuError> {
        todo!()
    }

    fn fork_range(&self, _: &Self, _: PageRange, _: VirtAddr) -> Result<(), MmuError> {
        todo!()
    }

    fn presence(&self, _: PageRange, _: &mut dyn FnMut(PageRange)) {
        todo!()
    }

    fn was_written(&self, _: PageRange) -> bool {
        false
    }

    fn guard(&self, _: PageRange) {
        todo!()
    }

    fn unguard(&self, _: PageRange) {
        todo!()
    }

    fn is_guarded(&self, _: VirtAddr) -> bool {
        false
    }

    fn first_guarded(&self, _: PageRange) -> Option<VirtAddr> {
        None
    }

    fn lazy_free(&self, _: PageRange) {
        todo!()
    }

    fn reclaim(&self, _: PageRange) {
        todo!()
    }

    fn access(&self, addr: VirtAddr, op: AccessOp<'_>) -> Result<(), Trap> {
        let page = addr.page();
        let state = self.state(page);
        let needed = if matches!(op, AccessOp::Store(_)) { PRESENT | WRITABLE } else { PRESENT };
        let mut now = state.load(Ordering::Relaxed);
        loop {
            if now & BUSY != 0 {
                // A shootdown in progress: the hardware would have the old
                // answer or the new one; wait for the new one.
                spin_loop();
                now = state.load(Ordering::Relaxed);
                continue;
            }
            if now & needed != needed {
                return Err(Trap::Fault { present: now & PRESENT != 0 });
            }
            // Acquire: pairs with the Release in `unlock_page`.
            match state.compare_exchange_weak(now, now + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break,
                Err(changed) => now = changed,
            }
        }
        let (words, offset) = (self.words(page), addr.get() % PAGE_SIZE);
        match op {
            AccessOp::Load(bytes) => load_bytes(words, offset, bytes),
            AccessOp::Store(bytes) => store_bytes(words, offset, bytes),
        }
        // Release: pairs with the Acquire in `lock_page`.
        state.fetch_sub(1, Ordering::Release);
        Ok(())
    }
}

/// Whole aligned words are loaded and stored in one go, as on the hardware.
fn load_bytes(words: &[AtomicU64], offset: usize, bytes: &mut [u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done;
        let n = (8 - at % 8).min(bytes.len() - done);
        let word = words[at / 8].load(Ordering::Relaxed).to_ne_bytes();
        bytes[done..done + n].copy_from_slice(&word[at % 8..at % 8 + n]);
        done += n;
    }
}

fn store_bytes(words: &[AtomicU64], offset: usize, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done;
        let n = (8 - at % 8).min(bytes.len() - done);
        let part = &bytes[done..done + n];
        if let Ok(whole) = <[u8; 8]>::try_from(part) {
            words[at / 8].store(u64::from_ne_bytes(whole), Ordering::Relaxed);
        } else {
            let merge = |old: u64| {
                let mut word = old.to_ne_bytes();
                word[at % 8..at % 8 + n].copy_from_slice(part);
                Some(u64::from_ne_bytes(word))
            };
            let _ = words[at / 8].fetch_update(Ordering::Relaxed, Ordering::Relaxed, merge);
        }
        done += n;
    }
}

/// A large array of zeroed atomics that the host provides page by page, as
/// they are touched.
struct ZeroedArray<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns its elements, like a Vec.
unsafe impl<T: Send> Send for ZeroedArray<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for ZeroedArray<T> {}

/// Types for which all zero bytes are a value.
trait Zeroable {}
#[cfg(not(any(loom, shuttle)))]
impl Zeroable for AtomicU32 {}
impl Zeroable for AtomicU64 {}

impl<T: Zeroable> ZeroedArray<T> {
    fn new(len: usize) -> Result<ZeroedArray<T>, MmuError> {
        let layout = Layout::array::<T>(len).map_err(|_| MmuError::NoMemory)?;
        // SAFETY: `len` is not 0 (callers check), so the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(MmuError::NoMemory)?;
        Ok(ZeroedArray { start: start.cast(), len })
    }
}

impl<T: Zeroable> std::ops::Deref for ZeroedArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: allocated for `len` elements, and zero is a value of T.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for ZeroedArray<T> {
    fn drop(&mut self) {
        let layout = Layout::array::<T>(self.len).expect("as in new");
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr().cast(), layout) };
    }
}
