//! [`Fake`] (tests): a model of an address space in memory, behind one lock.
//! Correct, or with one [`Bug`] planted that an oracle must catch.

use super::Target;
use crate::RunError;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use vmalab::Errno;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::File;
use vmalab::mm::{MapFlags, Mapping, MapsEntry, Prot, RemapFlags};
use vmalab::pager::{PageRequest, Stamp};

/// One thing done wrong, now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A fresh mapping shows what the address held before.
    StaleContents,
    /// ... with the stamp renewed, so that only the values tell.
    StaleValues,
    /// A store succeeds where mprotect has forbidden it.
    StoreAfterProtect,
    /// munmap leaves pages readable.
    ReadableAfterUnmap,
    /// PROT_NONE loses contents.
    LostOverNone,
    /// A page is filled with another address space's stamp.
    ForeignStamp,
    /// A page is filled for another address.
    WrongAddress,
    /// MAP_FIXED unmaps first, and maps after a moment.
    HoleInReplacement,
    /// Two threads that fault on one page both install it.
    DoubleInstall,
    /// A permitted load ends in SEGV_ACCERR.
    SpuriousSignal,
    /// `validate` panics.
    BrokenAtRest,
    /// munmap panics.
    Panic,
    /// munmap fails.
    Errno,
    /// munmap never returns.
    Hang,
}

#[derive(Clone, Default)]
struct Page {
    prot: Prot,
    incarnation: u64,
    /// Words by offset; `None`: not present.
    words: Option<HashMap<usize, u64>>,
}

#[derive(Default)]
struct Model {
    pages: BTreeMap<usize, Page>,
    /// What was unmapped: for bugs.
    ghosts: HashMap<usize, Page>,
    /// Counts chances for the bug.
    chances: u64,
}

/// A model of an address space.
pub(crate) struct Fake {
    range: PageRange,
    id: u64,
    bug: Option<Bug>,
    model: Mutex<Model>,
}

static IDS: AtomicU64 = AtomicU64::new(1);
static INCARNATIONS: AtomicU64 = AtomicU64::new(1);

impl Fake {
    pub(crate) fn new(bytes: usize, bug: Option<Bug>) -> Fake {
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        let range = PageRange::sized(VirtAddr(0x10_0000_0000 * id as usize), bytes);
        Fake { range, id, bug, model: Mutex::default() }
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether the bug strikes: one chance in eight.
    fn strikes(&self, model: &mut Model, bug: Bug) -> bool {
        if self.bug != Some(bug) {
            return false;
        }
        model.chances += 1;
        model.chances.is_multiple_of(8)
    }

    fn pages(&self, addr: usize, len: usize) -> Result<PageRange, Errno> {
        if len == 0 || !addr.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let range = PageRange::sized(VirtAddr(addr), len);
        if self.range.covers(range) { Ok(range) } else { Err(Errno::ENOMEM) }
    }

    /// The lowest gap, as `mmap` without an address finds one.
    fn gap(&self, model: &Model, len: usize) -> Result<usize, Errno> {
        let mut start = self.range.start().get();
        for &page in model.pages.keys() {
            if page - start >= len {
                break;
            }
            start = page + PAGE_SIZE;
        }
        if start + len <= self.range.end().get() { Ok(start) } else { Err(Errno::ENOMEM) }
    }

    fn unmap(&self, model: &mut Model, range: PageRange) {
        for page in range.iter_pages() {
            if let Some(old) = model.pages.remove(&page.get()) {
                model.ghosts.insert(page.get(), old);
            }
        }
    }

    /// The words of a fresh page.
    fn fill(&self, model: &mut Model, page: VirtAddr, incarnation: u64) -> HashMap<usize, u64> {
        let mut request = PageRequest { page, incarnation, mm_id: self.id };
        if self.strikes(model, Bug::ForeignStamp) {
            request.mm_id += 1;
        }
        if self.strikes(model, Bug::WrongAddress) {
            request.page = page + PAGE_SIZE;
        }
        let stamp = Stamp::of(&request).to_bytes();
        let word = |n: usize| u64::from_ne_bytes(stamp[n * 8..n * 8 + 8].try_into().unwrap());
        (0..3).map(|n| (n * 8, word(n))).collect()
    }

    fn access(&self, addr: VirtAddr, store: Option<u64>) -> Result<u64, Signal> {
        let mut model = self.model();
        let (page, offset) = (addr.page(), addr - addr.page());
        let Some(entry) = model.pages.get(&page.get()).cloned() else {
            if self.bug == Some(Bug::ReadableAfterUnmap)
                && let Some(Page { words: Some(words), .. }) = model.ghosts.get(&page.get())
            {
                return Ok(words.get(&offset).copied().unwrap_or(0));
            }
            return Err(Signal::MapErr);
        };
        let permitted = entry.prot.contains(if store.is_some() { Prot::WRITE } else { Prot::READ });
        let overlooked = entry.prot == Prot::READ && self.strikes(&mut model, Bug::StoreAfterProtect);
        if !(permitted || overlooked) || self.strikes(&mut model, Bug::SpuriousSignal) {
            return Err(Signal::AccErr);
        }
        if entry.words.is_none() {
            let words = self.fill(&mut model, page, entry.incarnation);
            if self.strikes(&mut model, Bug::DoubleInstall) {
                drop(model);
                std::thread::yield_now();
                model = self.model();
            }
            let fresh = model.pages.get_mut(&page.get()).ok_or(Signal::MapErr)?;
            fresh.words = Some(words);
        }
        let words = model.pages.get_mut(&page.get()).expect("just seen").words.as_mut().expect("just filled");
        if let Some(value) = store {
            words.insert(offset, value);
        }
        Ok(words.get(&offset).copied().unwrap_or(0))
    }
}

impl Target for Fake {
    const COUNTS: bool = false;

    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        let mut model = self.model();
        let fixed = flags.intersects(MapFlags::FIXED | MapFlags::FIXED_NOREPLACE);
        let addr = if fixed { addr } else { self.gap(&model, len)? };
        let range = self.pages(addr, len)?;
        let occupied = model.pages.range(addr..range.end().get()).next().is_some();
        if occupied && flags.contains(MapFlags::FIXED_NOREPLACE) {
            return Err(Errno::EEXIST);
        }
        self.unmap(&mut model, range);
        if occupied && self.strikes(&mut model, Bug::HoleInReplacement) {
            drop(model);
            std::thread::yield_now();
            model = self.model();
        }
        let incarnation = INCARNATIONS.fetch_add(1, Ordering::Relaxed);
        for page in range.iter_pages() {
            let ghost = model.ghosts.remove(&page.get()).and_then(|ghost| ghost.words);
            let mut words = None;
            if self.strikes(&mut model, Bug::StaleContents) {
                words = ghost;
            } else if let (Some(old), true) = (ghost, self.strikes(&mut model, Bug::StaleValues)) {
                let mut new = self.fill(&mut model, page, incarnation);
                new.extend(old.into_iter().filter(|&(offset, _)| offset >= 24));
                words = Some(new);
            }
            model.pages.insert(page.get(), Page { prot, incarnation, words });
        }
        Ok(Mapping { addr: VirtAddr(addr), incarnation })
    }

    fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        let range = self.pages(addr, len)?;
        match self.bug {
            Some(Bug::Panic) => panic!("a planted panic"),
            Some(Bug::Errno) => return Err(Errno::ENOMEM),
            Some(Bug::Hang) => loop {
                std::thread::park();
            },
            _ => {}
        }
        self.unmap(&mut self.model(), range);
        Ok(())
    }

    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        let range = self.pages(addr, len)?;
        let mut model = self.model();
        for page in range.iter_pages() {
            let lose = prot.is_empty() && self.strikes(&mut model, Bug::LostOverNone);
            let entry = model.pages.get_mut(&page.get()).ok_or(Errno::ENOMEM)?;
            entry.prot = prot;
            if lose {
                entry.words = None;
            }
        }
        Ok(())
    }

    fn mremap(&self, _: usize, _: usize, _: usize, _: RemapFlags, _: usize) -> Result<VirtAddr, Errno> {
        Err(Errno::ENOSYS)
    }

    fn new_file(&self, _: usize) -> Result<Arc<File>, Errno> {
        Err(Errno::ENOSYS)
    }

    fn map_file(&self, _: usize, _: Prot, _: &Arc<File>) -> Result<Mapping, Errno> {
        Err(Errno::ENOSYS)
    }

    fn msync(&self, _: usize, _: usize) -> Result<(), Errno> {
        Err(Errno::ENOSYS)
    }

    fn fork(&self) -> Result<Fake, RunError> {
        Err(RunError::Unsupported("the model does not fork".to_owned()))
    }

    fn maps(&self) -> Vec<MapsEntry> {
        Vec::new()
    }

    fn query(&self, _: VirtAddr) -> Option<MapsEntry> {
        None
    }

    fn load(&self, addr: VirtAddr) -> Result<u64, Signal> {
        self.access(addr, None)
    }

    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        self.access(addr, Some(value)).map(drop)
    }

    fn range(&self) -> PageRange {
        self.range
    }

    fn id(&self) -> u64 {
        self.id
    }

    fn validate(&self) {
        assert!(self.bug != Some(Bug::BrokenAtRest), "a planted imbalance");
    }
}
