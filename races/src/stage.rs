//! [`Stage`]: the address spaces that an entry's actors work on.
//!
//! Actors name pages by number and see an address space as [`Space`], the same
//! on real faults and over the software `Mmu`.

use std::sync::{Arc, Mutex};
use vmalab::Errno;
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::Signal;
use vmalab::lock::{Kill, LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::{MapFlags, Mapping, Mm, Prot};
use vmalab::mmu::Mmu;
use vmalab::mmu::soft::{self, SoftMmu};
use vmalab::pager::{AnyPager, Stamp};
use vmalab::races::{Oracle, violation};

use crate::race::{Lock, Race};

/// Pages of an address space. On real faults a stack with its guard gap fits.
pub const PAGES: usize = if vmalab::sync::MODEL { 16 } else { 288 };

/// Loads and stores permitted.
pub const RW: Prot = Prot::READ.union(Prot::WRITE);

/// Where an actor's own word lies in a page, behind the stamp.
const VALUE: usize = 64;

/// An address space, by page numbers. Pages begin with a [`Stamp`].
pub trait Space: Send + Sync {
    /// mmap at a place, MAP_FIXED.
    fn map(&self, page: usize, pages: usize, prot: Prot) -> Result<Mapping, Errno>;
    /// The same with MAP_GROWSDOWN.
    fn map_stack(&self, page: usize, pages: usize) -> Result<Mapping, Errno>;
    /// mmap anywhere; the page number.
    fn map_anywhere(&self, pages: usize) -> Result<usize, Errno>;
    /// munmap.
    fn unmap(&self, page: usize, pages: usize) -> Result<(), Errno>;
    /// munmap, killable.
    fn unmap_killable(&self, page: usize, pages: usize, kill: &Kill) -> Result<(), Errno>;
    /// Tells that one to give up.
    fn kill(&self, kill: &Kill);
    /// mprotect.
    fn protect(&self, page: usize, pages: usize, prot: Prot) -> Result<(), Errno>;
    /// Loads the page's stamp.
    fn stamp(&self, page: usize) -> Result<Stamp, Signal>;
    /// Loads the actors' own word.
    fn load(&self, page: usize) -> Result<u64, Signal>;
    /// Stores it.
    fn store(&self, page: usize, value: u64) -> Result<(), Signal>;
    /// A walk of the tree without any lock.
    fn is_mapped(&self, page: usize) -> bool;
    /// The VMAs' first and end pages, from one walk under the mmap lock.
    fn listing(&self) -> Vec<(usize, usize)>;
    /// Its first address.
    fn base(&self) -> VirtAddr;
    /// The number that stamps carry.
    fn id(&self) -> u64;
    /// Oracle O4, at rest.
    fn validate(&self);
}

/// How an address space is accessed: the part that differs.
pub(crate) trait Access: Send + Sync {
    type S: LockScheme;
    type M: Mmu;
    fn mm(&self) -> &Mm<Self::S, Self::M, AnyPager>;
    fn load_word(&self, addr: VirtAddr) -> Result<u64, Signal>;
    fn store_word(&self, addr: VirtAddr, value: u64) -> Result<(), Signal>;
}

impl<A: Access> Space for A {
    fn map(&self, page: usize, pages: usize, prot: Prot) -> Result<Mapping, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
        self.mm().map(addr(self, page).get(), pages * PAGE_SIZE, prot, flags)
    }

    fn map_stack(&self, page: usize, pages: usize) -> Result<Mapping, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED | MapFlags::GROWSDOWN;
        self.mm().map(addr(self, page).get(), pages * PAGE_SIZE, RW, flags)
    }

    fn map_anywhere(&self, pages: usize) -> Result<usize, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
        let found = self.mm().mmap(0, pages * PAGE_SIZE, RW, flags)?;
        Ok((found - self.mm().range().start()) / PAGE_SIZE)
    }

    fn unmap(&self, page: usize, pages: usize) -> Result<(), Errno> {
        self.mm().munmap(addr(self, page).get(), pages * PAGE_SIZE)
    }

    fn unmap_killable(&self, page: usize, pages: usize, kill: &Kill) -> Result<(), Errno> {
        self.mm().munmap_killable(addr(self, page).get(), pages * PAGE_SIZE, kill)
    }

    fn kill(&self, kill: &Kill) {
        self.mm().kill(kill);
    }

    fn protect(&self, page: usize, pages: usize, prot: Prot) -> Result<(), Errno> {
        self.mm().mprotect(addr(self, page).get(), pages * PAGE_SIZE, prot)
    }

    fn stamp(&self, page: usize) -> Result<Stamp, Signal> {
        let mut bytes = [0; 24];
        for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.load_word(addr(self, page) + 8 * i)?.to_ne_bytes());
        }
        Ok(Stamp::from_bytes(&bytes))
    }

    fn load(&self, page: usize) -> Result<u64, Signal> {
        self.load_word(addr(self, page) + VALUE)
    }

    fn store(&self, page: usize, value: u64) -> Result<(), Signal> {
        self.store_word(addr(self, page) + VALUE, value)
    }

    fn is_mapped(&self, page: usize) -> bool {
        self.mm().is_mapped(addr(self, page))
    }

    fn listing(&self) -> Vec<(usize, usize)> {
        let number = |at: VirtAddr| (at - self.mm().range().start()) / PAGE_SIZE;
        self.mm().maps().iter().map(|e| (number(e.range.start()), number(e.range.end()))).collect()
    }

    fn base(&self) -> VirtAddr {
        self.mm().range().start()
    }

    fn id(&self) -> u64 {
        self.mm().id()
    }

    fn validate(&self) {
        self.mm().validate();
    }
}

fn addr<A: Access>(space: &A, page: usize) -> VirtAddr {
    assert!(page < PAGES, "page {page} of {PAGES}");
    space.mm().range().start() + page * PAGE_SIZE
}

/// An address space over the software `Mmu`.
struct Soft<S: LockScheme>(Mm<S, SoftMmu, AnyPager>);

impl<S: LockScheme> Access for Soft<S> {
    type S = S;
    type M = SoftMmu;

    fn mm(&self) -> &Mm<S, SoftMmu, AnyPager> {
        &self.0
    }

    fn load_word(&self, addr: VirtAddr) -> Result<u64, Signal> {
        let mut word = [0; 8];
        self.0.read(addr, &mut word).map_err(|error| error.signal)?;
        Ok(u64::from_ne_bytes(word))
    }

    fn store_word(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        self.0.write(addr, &value.to_ne_bytes()).map_err(|error| error.signal)
    }
}

/// An address space over the software `Mmu`, under `lock`, from address `base`.
///
/// # Panics
/// If the host has no memory for it.
pub fn soft(lock: Lock, base: Option<VirtAddr>) -> Arc<dyn Space> {
    fn new<S: LockScheme>(base: Option<VirtAddr>) -> Arc<dyn Space> {
        let mmu =
            SoftMmu::at(base.unwrap_or(soft::BASE), PAGES * PAGE_SIZE).expect("memory for a software address space");
        Arc::new(Soft::<S>(Mm::new(mmu, AnyPager::Stamped)))
    }
    match lock {
        Lock::Mmap => new::<MmapOnly>(base),
        Lock::Rcu => new::<Rcu>(base),
        Lock::TypeSafe => new::<TypeSafe>(base),
        Lock::RefCount => new::<RefCount>(base),
    }
}

/// The address spaces of one run, and what the actors want remembered.
pub struct Stage {
    spaces: Vec<Mutex<Option<Arc<dyn Space>>>>,
    notes: Mutex<Vec<(&'static str, u64)>>,
    /// For entries in which a writer is told to give up.
    pub kill: Kill,
}

impl Stage {
    /// The spaces of `race`, made by `make`, after its set-up. `make` is told
    /// the first address of the first space.
    pub fn new(race: &Race, make: impl Fn(crate::race::Space, Option<VirtAddr>) -> Arc<dyn Space>) -> Stage {
        let mut base = None;
        let mut one = |&kind| {
            let space = make(kind, base);
            base.get_or_insert(space.base());
            Mutex::new(Some(space))
        };
        let spaces = race.spaces.iter().map(&mut one).collect();
        let stage = Stage { spaces, notes: Mutex::new(Vec::new()), kill: Kill::default() };
        (race.set_up)(&stage);
        stage
    }

    /// Address space `i`.
    ///
    /// # Panics
    /// If it has been dropped.
    pub fn mm(&self, i: usize) -> Arc<dyn Space> {
        self.spaces[i].lock().expect("space").clone().expect("the space is still there")
    }

    /// Ends address space `i`. Nobody else may be using it.
    pub fn end(&self, i: usize) {
        let space = self.spaces[i].lock().expect("space").take();
        drop(space);
    }

    /// Remembers a number under a name.
    pub fn note(&self, name: &'static str, value: u64) {
        self.notes.lock().expect("notes").push((name, value));
    }

    /// The number last remembered under a name.
    pub fn noted(&self, name: &'static str) -> Option<u64> {
        self.notes.lock().expect("notes").iter().rev().find(|note| note.0 == name).map(|note| note.1)
    }

    /// Oracle O2: nothing may be present where nothing is mapped.
    pub fn nothing_at(&self, mm: usize, page: usize) {
        if let Ok(stamp) = self.mm(mm).stamp(page) {
            violation(Oracle::O2, &format!("page {page} is present where nothing is mapped ({stamp:?})"));
        }
    }

    /// Oracle O1: page `page` is this space's, of incarnation `at_least` or later.
    pub fn stamped(&self, mm: usize, page: usize, at_least: u64) {
        let space = self.mm(mm);
        match space.stamp(page) {
            Ok(stamp) if stamp.incarnation >= at_least && stamp.mm_id == space.id() => {}
            Ok(stamp) => violation(
                Oracle::O1,
                &format!("page {page} was filled for incarnation {}, the mapping is of {at_least}", stamp.incarnation),
            ),
            Err(signal) => violation(Oracle::O1, &format!("page {page} is mapped, but a load gets {signal:?}")),
        }
    }

    /// After everything: what [`Race::finish`] says, and O4 of every space.
    pub fn finish(&self, race: &Race) {
        (race.finish)(self);
        for space in &self.spaces {
            let space = space.lock().expect("space").clone();
            if let Some(space) = space {
                space.validate();
            }
        }
    }
}
