//! [`SoftMmu`]: page tables as an array of page states, with real contents.
//!
//! It behaves as hardware does, down to what makes hardware interesting: an
//! access in flight holds its page (a translation in somebody's TLB), and who
//! removes a page or takes rights away waits for those accesses, as a TLB
//! shootdown does. So after `zap` no store lands in the old page, and after
//! `protect` no store succeeds.
//!
//! A page of a file is a reference to the file: loads and stores go straight to
//! its [`Store`], so nothing is ever behind, and a fork copies at once.
//!
//! Addresses are numbers, not memory: two `SoftMmu`s serve the same range.

use super::{AccessOp, Content, Installed, Mmu, MmuError, PageAccess, PageBuf, Trap};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, PageRange, VirtAddr};
use crate::fault::Signal;
use crate::file::{FilePage, Inode, MemoryStore, Store};
use crate::sync::{AtomicU32, Backoff, Ordering, spin_loop};
use nix::errno::Errno;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
// Contents are the program's memory, not the mm's: no executor looks at them, and no record.
use std::sync::atomic::AtomicU64;

/// First address of a software address space, unless another is asked for.
pub const BASE: VirtAddr = VirtAddr(0x10_0000_0000);

const PRESENT: u32 = 1 << 31;
const WRITABLE: u32 = 1 << 30;
/// Contents kept, not reachable (PROT_NONE).
const HIDDEN: u32 = 1 << 29;
/// MADV_GUARD_INSTALL.
const GUARDED: u32 = 1 << 28;
/// Freed lazily and not stored to since; never writable.
const LAZY: u32 = 1 << 27;
/// A page of a file: contents are the store's, which is always up to date.
const FILE: u32 = 1 << 26;
/// Somebody is changing the page.
const BUSY: u32 = 1 << 25;
/// Accesses in flight.
const USERS: u32 = BUSY - 1;
const WORDS: usize = PAGE_SIZE / 8;
const POPULATED: u32 = PRESENT | HIDDEN;

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
    /// For pages of files: address of the inode, and which page of it.
    files: ZeroedArray<AtomicU64>,
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
            files: ZeroedArray::new(pages * 2)?,
        })
    }

    fn state(&self, page: VirtAddr) -> &AtomicU32 {
        &self.states[(page - self.range.start()) >> PAGE_SHIFT]
    }

    fn words(&self, page: VirtAddr) -> &[AtomicU64] {
        let first = ((page - self.range.start()) >> PAGE_SHIFT) * WORDS;
        &self.contents[first..first + WORDS]
    }

    fn fill(&self, page: VirtAddr, content: &PageBuf) {
        for (word, bytes) in self.words(page).iter().zip(content.0.chunks_exact(8)) {
            let value = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
            // Absent pages are zero already.
            if value != 0 {
                word.store(value, Ordering::Relaxed);
            }
        }
    }

    fn clear(&self, page: VirtAddr) {
        self.words(page).iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    fn file_words(&self, page: VirtAddr) -> &[AtomicU64] {
        let first = ((page - self.range.start()) >> PAGE_SHIFT) * 2;
        &self.files[first..first + 2]
    }

    /// The file page behind `page`, which is FILE and held: by an access or by
    /// `lock_page`.
    fn file(&self, page: VirtAddr) -> FilePage<'_> {
        let [inode, index] = [0, 1].map(|i| self.file_words(page)[i].load(Ordering::Relaxed));
        // SAFETY: stored by `install_file` from a reference. The core keeps the
        // file for as long as a page of it may be present, and the page is held.
        FilePage { inode: unsafe { &*(inode as *const Inode) }, index }
    }

    /// Removes what is in `range`, and of the states those in `states`.
    fn remove(&self, range: PageRange, states: u32) {
        for page in range.iter_pages() {
            if let Some(old) = self.lock_page(page, |now| now & states == 0) {
                assert!(old & FILE == 0, "a file's page at {page:x} was not released");
                self.clear(page);
                self.unlock_page(page, old & GUARDED & !states);
            }
        }
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

    /// Fills `page`, which is locked and holds nothing, from a file.
    fn copy_from(&self, page: VirtAddr, file: FilePage<'_>) -> Result<(), MmuError> {
        let mut buf = PageBuf::zeroed();
        let read = file.inode.store().read_at(file.index * PAGE_SIZE as u64, &mut buf.0);
        read.map_err(|_| MmuError::BeyondEnd)?;
        self.fill(page, &buf);
        Ok(())
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
        if crate::inject::fails() {
            return Err(MmuError::NoMemory);
        }
        if self.lock_page(page, |now| now & POPULATED != 0).is_none() {
            return Ok(Installed::Exists);
        }
        if let Content::Page(bytes) = content {
            self.fill(page, bytes);
        }
        // A page that is only read may be shared (the zero page): the first
        // store to it faults again, as on the host.
        self.unlock_page(page, PRESENT | if writable && for_write { WRITABLE } else { 0 });
        Ok(Installed::New)
    }

    fn install_run(&self, run: PageRange, writable: bool, for_write: bool) -> Result<usize, MmuError> {
        for (done, page) in run.iter_pages().enumerate() {
            let special = self.state(page).load(Ordering::Relaxed) & GUARDED != 0;
            if special {
                return Ok(done);
            }
            match self.install(page, Content::Zero, writable, for_write) {
                Ok(Installed::New) => {}
                Err(error) if done == 0 => return Err(error),
                Ok(Installed::Exists) | Err(_) => return Ok(done),
            }
        }
        Ok(run.pages())
    }

    fn unhide(&self, page: VirtAddr, writable: bool) -> Result<bool, MmuError> {
        if self.state(page).load(Ordering::Relaxed) & HIDDEN == 0 {
            return Ok(false);
        }
        if crate::inject::fails() {
            return Err(MmuError::NoMemory);
        }
        if let Some(old) = self.lock_page(page, |now| now & HIDDEN == 0) {
            let writable = writable && old & LAZY == 0;
            self.unlock_page(page, PRESENT | old & LAZY | if writable { WRITABLE } else { 0 });
        }
        // Otherwise another fault has just done it.
        Ok(true)
    }

    fn allow_write(&self, page: VirtAddr) -> Result<(), MmuError> {
        if crate::inject::fails() {
            return Err(MmuError::NoMemory);
        }
        if let Some(old) = self.lock_page(page, |now| now & PRESENT == 0) {
            assert!(old & FILE == 0, "a file's page at {page:x} takes allow_write_file");
            self.unlock_page(page, (old | WRITABLE) & !LAZY);
        }
        Ok(())
    }

    fn zap(&self, range: PageRange) {
        self.remove(range, POPULATED | GUARDED);
    }

    fn protect(&self, range: PageRange, _: PageAccess, to: PageAccess) -> Result<(), MmuError> {
        // A failure comes half-way, as the host's may.
        let fails = crate::inject::fails();
        let pages = if fails { range.pages().div_ceil(2) } else { range.pages() };
        for page in range.iter_pages().take(pages) {
            if let Some(old) = self.lock_page(page, |now| now & PRESENT == 0) {
                self.unlock_page(page, reprotected(old, to));
            }
        }
        if fails { Err(MmuError::NoMemory) } else { Ok(()) }
    }

    fn install_file(
        &self,
        page: VirtAddr,
        file: FilePage<'_>,
        shared: bool,
        writable: bool,
        for_write: bool,
    ) -> Result<Installed, MmuError> {
        let store = file.inode.store();
        if file.index * PAGE_SIZE as u64 >= store.bytes() {
            return Err(MmuError::BeyondEnd);
        }
        if crate::inject::fails() {
            return Err(MmuError::NoMemory);
        }
        let Some(old) = self.lock_page(page, |now| now & POPULATED != 0) else {
            return Ok(Installed::Exists);
        };
        let copied = if shared || !for_write {
            let words = [std::ptr::from_ref(file.inode) as usize as u64, file.index];
            self.file_words(page).iter().zip(words).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
            Ok(FILE)
        } else {
            self.copy_from(page, file).map(|()| 0)
        };
        let new = copied.map(|state| PRESENT | state | if writable && for_write { WRITABLE } else { 0 });
        self.unlock_page(page, new.unwrap_or(old));
        new.map(|_| Installed::New)
    }

    fn allow_write_file(&self, page: VirtAddr, file: FilePage<'_>, shared: bool) -> Result<(), MmuError> {
        if crate::inject::fails() {
            return Err(MmuError::NoMemory);
        }
        let Some(old) = self.lock_page(page, |now| now & PRESENT == 0) else {
            return Ok(());
        };
        let copied = if !shared && old & FILE != 0 { self.copy_from(page, file).map(|()| FILE) } else { Ok(0) };
        self.unlock_page(page, copied.map_or(old, |gone| (old | WRITABLE) & !(gone | LAZY)));
        copied.map(drop)
    }

    fn discard(&self, range: PageRange) {
        self.remove(range, POPULATED);
    }

    fn release_file(&self, range: PageRange, _: FilePage<'_>) {
        for page in range.iter_pages() {
            if let Some(old) = self.lock_page(page, |now| now & FILE == 0) {
                self.unlock_page(page, old & GUARDED);
            }
        }
    }

    fn sync_file(&self, _: PageRange, _: FilePage<'_>) -> Result<(), Errno> {
        if crate::inject::fails() {
            return Err(Errno::EIO);
        }
        Ok(())
    }

    fn punch_file(&self, file: FilePage<'_>, pages: u64) -> Result<(), Errno> {
        if crate::inject::fails() {
            return Err(Errno::EIO);
        }
        // Pages hold nothing of their own.
        file.inode.store().punch(file.index << PAGE_SHIFT, pages << PAGE_SHIFT)
    }

    fn shmem(&self, bytes: u64) -> Result<Box<dyn Store>, Errno> {
        if crate::inject::fails() {
            return Err(Errno::ENOMEM);
        }
        Ok(Box::new(MemoryStore::new(bytes)))
    }

    fn move_range(&self, from: PageRange, to: VirtAddr, access: PageAccess) -> Result<(), MmuError> {
        if crate::inject::fails() {
            return Err(MmuError::NoMemory);
        }
        assert!(!from.overlaps(PageRange::sized(to, from.bytes())));
        for page in from.iter_pages() {
            let target = to + (page - from.start());
            let Some(old) = self.lock_page(page, |now| now & (POPULATED | GUARDED) == 0) else {
                continue;
            };
            assert!(old & FILE == 0, "a file's page at {page:x} was not released");
            let empty = self.lock_page(target, |_| false).expect("nothing refuses it");
            assert!(empty & (POPULATED | GUARDED) == 0, "something is at {target:x} already");
            for (from, to) in self.words(page).iter().zip(self.words(target)) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            self.clear(page);
            self.unlock_page(target, if old & PRESENT != 0 { reprotected(old, access) } else { old });
            self.unlock_page(page, 0);
        }
        Ok(())
    }

    fn fork_range(&self, child: &Self, range: PageRange, to: VirtAddr) -> Result<(), MmuError> {
        if crate::inject::fails() {
            return Err(MmuError::NoMemory);
        }
        for page in range.iter_pages() {
            let target = to + (page - range.start());
            let Some(old) = self.lock_page(page, |now| now & (POPULATED | GUARDED) == 0) else {
                continue;
            };
            assert!(old & FILE == 0, "a file's page at {page:x} was not released");
            for (from, to) in self.words(page).iter().zip(child.words(target)) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            // It comes back with the protection of the child's mapping.
            let hidden = if old & POPULATED != 0 { HIDDEN } else { 0 };
            child.unlock_page(target, hidden | old & (LAZY | GUARDED));
            self.unlock_page(page, old);
        }
        Ok(())
    }

    fn presence(&self, range: PageRange, run: &mut dyn FnMut(PageRange)) {
        let mut start = None;
        for page in range.iter_pages() {
            let populated = self.state(page).load(Ordering::Relaxed) & POPULATED != 0;
            match start {
                None if populated => start = Some(page),
                Some(first) if !populated => {
                    run(PageRange::new(first, page));
                    start = None;
                }
                _ => {}
            }
        }
        if let Some(first) = start {
            run(PageRange::new(first, range.end()));
        }
    }

    fn was_written(&self, _: PageRange) -> bool {
        false
    }

    fn has_contents(&self, range: PageRange) -> bool {
        range.iter_pages().any(|page| {
            let populated = self.state(page).load(Ordering::Relaxed) & POPULATED != 0;
            populated && self.words(page).iter().any(|word| word.load(Ordering::Relaxed) != 0)
        })
    }

    fn guard(&self, range: PageRange) {
        for page in range.iter_pages() {
            let old = self.lock_page(page, |_| false).expect("nothing refuses it");
            assert!(old & FILE == 0, "a file's page at {page:x} was not released");
            if old & POPULATED != 0 {
                self.clear(page);
            }
            self.unlock_page(page, GUARDED);
        }
    }

    fn unguard(&self, range: PageRange) {
        for page in range.iter_pages() {
            if let Some(old) = self.lock_page(page, |now| now & GUARDED == 0) {
                self.unlock_page(page, old & !GUARDED);
            }
        }
    }

    fn is_guarded(&self, page: VirtAddr) -> bool {
        self.state(page).load(Ordering::Relaxed) & GUARDED != 0
    }

    fn first_guarded(&self, range: PageRange) -> Option<VirtAddr> {
        range.iter_pages().find(|&page| self.is_guarded(page))
    }

    fn lazy_free(&self, range: PageRange) {
        for page in range.iter_pages() {
            if let Some(old) = self.lock_page(page, |now| now & POPULATED == 0) {
                self.unlock_page(page, old & !WRITABLE | LAZY);
            }
        }
    }

    fn drop_own(&self, range: PageRange) {
        let own = |page: VirtAddr| {
            let writable = self.state(page).load(Ordering::Relaxed) & WRITABLE != 0;
            writable || self.words(page).iter().any(|word| word.load(Ordering::Relaxed) != 0)
        };
        range
            .iter_pages()
            .filter(|page| own(*page))
            .for_each(|page| self.remove(PageRange::sized(page, PAGE_SIZE), POPULATED));
    }

    fn reclaim(&self, range: PageRange) {
        for page in range.iter_pages() {
            if self.lock_page(page, |now| now & LAZY == 0).is_some() {
                self.clear(page);
                self.unlock_page(page, 0);
            }
        }
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
        let done = match op {
            AccessOp::Load(bytes) if now & FILE != 0 => {
                let file = self.file(page);
                file.inode.store().read_at(file.index * PAGE_SIZE as u64 + offset as u64, bytes)
            }
            AccessOp::Store(bytes) if now & FILE != 0 => {
                let file = self.file(page);
                file.inode.store().write_at(file.index * PAGE_SIZE as u64 + offset as u64, bytes)
            }
            AccessOp::Load(bytes) => {
                load_bytes(words, offset, bytes);
                Ok(())
            }
            AccessOp::Store(bytes) => {
                store_bytes(words, offset, bytes);
                Ok(())
            }
        };
        // Release: pairs with the Acquire in `lock_page`.
        state.fetch_sub(1, Ordering::Release);
        done.map_err(|_| Trap::Signal(Signal::Bus))
    }
}

/// What a present page becomes under another protection. Stores to a file's
/// page, and to one that was freed lazily, must be noticed.
fn reprotected(old: u32, to: PageAccess) -> u32 {
    let kept = old & (LAZY | FILE | GUARDED);
    match to {
        PageAccess::None => {
            assert!(old & FILE == 0, "a file's page was not released");
            HIDDEN | kept
        }
        PageAccess::ReadWrite if old & (LAZY | FILE) == 0 => PRESENT | WRITABLE | kept,
        PageAccess::Read | PageAccess::ReadWrite => PRESENT | kept,
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

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
