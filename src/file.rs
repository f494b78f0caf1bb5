//! Files that mappings map (`struct file`, `struct address_space`).
//!
//! The core knows of a file what merging, permissions and faults need. Bytes
//! come from a [`Store`]: a descriptor of the host (crate
//! `vmalab-fault-handler`), or memory ([`MemoryStore`]).
//!
//! # Where a page of a file is
//!
//! A page of a region is anonymous memory of the host, so two mappings cannot
//! show the same page. They are kept coherent all the same: a page of a file
//! that is mapped, by whatever number of mappings in whatever address space,
//! is present in **at most one** of them, its *owner*. A fault in another
//! mapping takes the page away from there. The owner of each page, whether
//! the store is behind, and the lock under which both change are one word,
//! [`Inode::slot`]; the [`Mmu`](crate::mmu::Mmu) does the rest.
//!
//! What shows of it: a page that was populated may be gone when a system call
//! meets it (EFAULT, unless kernel faults are served); readers of one page
//! through many mappings take it from each other; and one instruction that
//! loads from a page through one mapping and stores to the same page through
//! another (`rep movs` between two mappings of one page) never completes.

use crate::addr::PAGE_SIZE;
use crate::sync::plain::AtomicU64;
use nix::errno::Errno;
use std::alloc::{Layout, alloc_zeroed};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the bytes of a file are. [`read_at`](Store::read_at),
/// [`write_at`](Store::write_at) and [`bytes`](Store::bytes) are called on the
/// fault path: they must be async-signal-safe.
pub trait Store: Send + Sync + 'static {
    /// Length of the file, in bytes.
    fn bytes(&self) -> u64;

    /// Fills `buf` from byte `offset` on; what lies beyond the end is zero.
    ///
    /// # Errors
    /// The host's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno>;

    /// Writes `bytes` at `offset`; never beyond the end: what lies there is dropped.
    ///
    /// # Errors
    /// The host's.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno>;

    /// Makes bytes zero and gives their memory back (`fallocate` PUNCH_HOLE).
    ///
    /// # Errors
    /// EOPNOTSUPP: not this file.
    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno>;

    /// Waits until bytes are stored for good (`fdatasync`).
    ///
    /// # Errors
    /// The host's.
    fn sync(&self) -> Result<(), Errno>;
}

/// A file's contents (`struct address_space`): the store, and where each page
/// is present.
pub struct Inode {
    store: Box<dyn Store>,
    /// One word a page; for the `Mmu`, see the module's documentation.
    slots: Box<[AtomicU64]>,
}

impl Inode {
    /// A file of at most `bytes_max` bytes that can be mapped (8 bytes of
    /// memory for each page of them).
    ///
    /// # Panics
    /// If there is no memory for that.
    pub fn new(store: Box<dyn Store>, bytes_max: u64) -> Arc<Inode> {
        Inode::try_new(store, bytes_max).expect("memory for a file's slots")
    }

    /// The same, or `None` if there is no memory for it.
    pub fn try_new(store: Box<dyn Store>, bytes_max: u64) -> Option<Arc<Inode>> {
        let pages = usize::try_from(bytes_max.div_ceil(PAGE_SIZE as u64)).ok()?;
        Some(Arc::new(Inode { store, slots: zeroed_slots(pages)? }))
    }

    /// The bytes.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// Pages that can be mapped.
    pub fn pages_max(&self) -> u64 {
        self.slots.len() as u64
    }

    /// The word of page `index`; its meaning is the `Mmu`'s.
    ///
    /// # Panics
    /// If the page cannot be mapped.
    pub fn slot(&self, index: u64) -> &AtomicU64 {
        &self.slots[index as usize]
    }
}

/// Slots that the host provides as they are touched: most pages of a large file
/// are never mapped.
fn zeroed_slots(pages: usize) -> Option<Box<[AtomicU64]>> {
    if pages == 0 {
        return Some(Box::default());
    }
    let layout = Layout::array::<AtomicU64>(pages).ok()?;
    // SAFETY: the layout is not empty.
    let start = NonNull::new(unsafe { alloc_zeroed(layout) })?.cast::<AtomicU64>();
    let slots = NonNull::slice_from_raw_parts(start, pages);
    // SAFETY: allocated with the layout of such a box, and zero is a value.
    Some(unsafe { Box::from_raw(slots.as_ptr()) })
}

impl fmt::Debug for Inode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inode").field("bytes", &self.store.bytes()).finish_non_exhaustive()
    }
}

/// An open file (`struct file`). Mappings of one `File` may merge, those of
/// two may not, even of the same [`Inode`].
#[derive(Debug)]
pub struct File {
    inode: Arc<Inode>,
    readable: bool,
    writable: bool,
    write_sealed: bool,
    mappable: bool,
}

impl File {
    /// Opens `inode` for reading, writing, or both.
    pub fn open(inode: Arc<Inode>, readable: bool, writable: bool) -> Arc<File> {
        Arc::new(File { inode, readable, writable, write_sealed: false, mappable: true })
    }

    /// Opens a memfd that is sealed against writing (F_SEAL_WRITE).
    pub fn open_sealed(inode: Arc<Inode>) -> Arc<File> {
        Arc::new(File { inode, readable: true, writable: true, write_sealed: true, mappable: true })
    }

    /// Opens something that cannot be mapped, such as a directory.
    pub fn open_unmappable(inode: Arc<Inode>) -> Arc<File> {
        Arc::new(File { inode, readable: true, writable: false, write_sealed: false, mappable: false })
    }

    /// Whether it can be mapped at all.
    pub fn mappable(&self) -> bool {
        self.mappable
    }

    /// Sealed against writing, so never mapped both shared and writable.
    pub fn write_sealed(&self) -> bool {
        self.write_sealed
    }

    /// The contents.
    pub fn inode(&self) -> &Arc<Inode> {
        &self.inode
    }

    /// Opened for reading (FMODE_READ).
    pub fn readable(&self) -> bool {
        self.readable
    }

    /// Opened for writing (FMODE_WRITE).
    pub fn writable(&self) -> bool {
        self.writable
    }
}

/// A file, by identity. Does not keep it: a VMA object does, or the caller of
/// an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileRef(NonNull<File>);

// SAFETY: an address; to dereference it is unsafe.
unsafe impl Send for FileRef {}
// SAFETY: as above.
unsafe impl Sync for FileRef {}

impl fmt::Debug for FileRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {:p}", self.0)
    }
}

impl FileRef {
    /// The identity of `file`.
    pub fn of(file: &Arc<File>) -> FileRef {
        FileRef(NonNull::from(&**file))
    }

    pub(crate) fn from_raw(raw: *mut File) -> Option<FileRef> {
        NonNull::new(raw).map(FileRef)
    }

    pub(crate) fn as_ptr(self) -> *mut File {
        self.0.as_ptr()
    }

    /// The file.
    ///
    /// # Safety
    /// It is kept during `'f`: by a VMA that is attached or ours, or by the caller.
    pub unsafe fn get<'f>(self) -> &'f File {
        // SAFETY: the caller's promise.
        unsafe { self.0.as_ref() }
    }

    /// Keeps the file: one more reference.
    ///
    /// # Safety
    /// It is kept by somebody now.
    pub(crate) unsafe fn keep(self) {
        // SAFETY: from an Arc that lives, by the caller's promise.
        unsafe { Arc::increment_strong_count(self.0.as_ptr()) };
    }

    /// Gives a reference back.
    ///
    /// # Safety
    /// It is the caller's, from [`keep`](FileRef::keep). Not on the fault path.
    pub(crate) unsafe fn release(self) {
        // SAFETY: the caller's promise.
        unsafe { Arc::decrement_strong_count(self.0.as_ptr()) };
    }
}

/// A page of a file, for the [`Mmu`](crate::mmu::Mmu).
#[derive(Clone, Copy, Debug)]
pub struct FilePage<'f> {
    /// The file's contents.
    pub inode: &'f Inode,
    /// The page's number in the file.
    pub index: u64,
}

/// A file in memory: for the software `Mmu`'s shared anonymous mappings, and for tests.
pub struct MemoryStore {
    words: Box<[AtomicU64]>,
    bytes: u64,
}

impl MemoryStore {
    /// `bytes` zeros.
    pub fn new(bytes: u64) -> MemoryStore {
        MemoryStore { words: (0..bytes.div_ceil(8)).map(|_| AtomicU64::new(0)).collect(), bytes }
    }
}

impl Store for MemoryStore {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let mut at = offset;
        for part in words_of(offset, buf.len()) {
            let word = self.words.get((at / 8) as usize).map_or(0, |word| word.load(Ordering::Relaxed));
            let start = (at % 8) as usize;
            buf[part.clone()].copy_from_slice(&word.to_ne_bytes()[start..start + part.len()]);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut at = offset;
        // Bytes behind the end stay zero.
        let within = self.bytes.saturating_sub(offset).min(bytes.len() as u64) as usize;
        for part in words_of(offset, within) {
            let (word, start, part) = (&self.words[(at / 8) as usize], (at % 8) as usize, &bytes[part]);
            if let Ok(whole) = <[u8; 8]>::try_from(part) {
                word.store(u64::from_ne_bytes(whole), Ordering::Relaxed);
            } else {
                let merge = |word: u64| {
                    let mut word = word.to_ne_bytes();
                    word[start..start + part.len()].copy_from_slice(part);
                    Some(u64::from_ne_bytes(word))
                };
                let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, merge);
            }
            at += part.len() as u64;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        (offset..offset.saturating_add(len).min(self.bytes)).try_for_each(|at| self.write_at(at, &[0]))
    }

    fn sync(&self) -> Result<(), Errno> {
        Ok(())
    }
}

/// The parts of a buffer of `len` bytes that lie in one word each, if it starts
/// at `offset`: whole aligned words are loaded and stored in one go.
fn words_of(offset: u64, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let start = done;
        done = len.min(start + 8 - ((offset + start as u64) % 8) as usize);
        (start < done).then_some(start..done)
    })
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_memory_store_ends_where_it_ends() {
        let store = MemoryStore::new(21);
        store.write_at(3, &[7; 100]).unwrap();
        let mut buf = [1; 40];
        store.read_at(0, &mut buf).unwrap();
        assert_eq!((&buf[..3], &buf[3..21], &buf[21..]), (&[0; 3][..], &[7; 18][..], &[0; 19][..]));
        store.punch(10, 5).unwrap();
        store.read_at(9, &mut buf[..7]).unwrap();
        assert_eq!(buf[..7], [7, 0, 0, 0, 0, 0, 7]);
        store.write_at(50, &[1]).unwrap();
    }
}
