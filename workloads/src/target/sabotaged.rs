//! [`Sabotaged`] (tests): the real thing, with one call that does the wrong
//! thing now and then. For the workloads of calls that the model of
//! [`fake`](super::fake) does not know.

use super::Target;
use super::soft::Soft;
use crate::RunError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vmalab::Errno;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::file::File;
use vmalab::lock::TypeSafe;
use vmalab::mm::{MapFlags, Mapping, MapsEntry, Prot, RemapFlags};
use vmalab::pager::AnyPager;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// A moved page arrives empty.
    LostInMove,
    /// What was moved is readable at the old place, too.
    LeftBehind,
    /// What is read-only can be stored to after a move.
    Unprotected,
    /// The parent sees the child's stores.
    SharedAfterFork,
    /// The child finds nothing.
    ForkForgets,
    /// A load of a file's page gives what was there first.
    StaleFile,
    /// `msync` does nothing.
    NoSync,
    /// A stack grows into its guard gap.
    NoGuardGap,
    /// A stack does not grow.
    NoGrowth,
    /// A listing leaves a mapping out.
    Gap,
    /// A listing shows a mapping with a neighbour's protection.
    Mixed,
}

/// One call in so many goes wrong.
const RARE: u64 = 5;

pub(crate) struct Sabotaged {
    inner: Soft<TypeSafe>,
    sabotage: Option<Sabotage>,
    calls: AtomicU64,
    /// The parent of a fork, to be written to.
    parent: Option<Arc<Soft<TypeSafe>>>,
    own: Option<Arc<Soft<TypeSafe>>>,
}

impl Sabotaged {
    pub(crate) fn new(bytes: usize, sabotage: Option<Sabotage>) -> Sabotaged {
        let inner = Soft::new(bytes, AnyPager::Zero).unwrap();
        Sabotaged { inner, sabotage, calls: AtomicU64::new(0), parent: None, own: None }
    }

    /// Whether it is the turn of `sabotage`.
    fn strikes(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage) && self.calls.fetch_add(1, Ordering::Relaxed) % RARE == RARE - 1
    }

    fn target(&self) -> &Soft<TypeSafe> {
        self.own.as_deref().unwrap_or(&self.inner)
    }
}

impl Target for Sabotaged {
    fn map(&self, addr: usize, len: usize, prot: Prot, flags: MapFlags) -> Result<Mapping, Errno> {
        let none = self.sabotage == Some(Sabotage::NoGrowth);
        let flags = if none { flags - MapFlags::GROWSDOWN } else { flags };
        self.target().map(addr, len, prot, flags)
    }

    fn munmap(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.target().munmap(addr, len)
    }

    fn mprotect(&self, addr: usize, len: usize, prot: Prot) -> Result<(), Errno> {
        self.target().mprotect(addr, len, prot)
    }

    fn mremap(
        &self,
        addr: usize,
        old_len: usize,
        new_len: usize,
        flags: RemapFlags,
        new_addr: usize,
    ) -> Result<VirtAddr, Errno> {
        let fixed = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
        let entry = self.query(VirtAddr(addr));
        let moved = self.target().mremap(addr, old_len, new_len, flags, new_addr)?;
        let prot = entry.map_or(Prot::NONE, |entry| entry.prot);
        if self.strikes(Sabotage::LostInMove) {
            self.target().map(moved.get(), PAGE_SIZE, prot, fixed)?;
        }
        if moved.get() != addr && self.strikes(Sabotage::LeftBehind) {
            self.target().map(addr, old_len, prot, fixed)?;
        }
        if self.strikes(Sabotage::Unprotected) {
            self.target().mprotect(moved.get(), new_len, Prot::READ | Prot::WRITE)?;
        }
        Ok(moved)
    }

    fn new_file(&self, bytes: usize) -> Result<Arc<File>, Errno> {
        self.target().new_file(bytes)
    }

    fn map_file(&self, len: usize, prot: Prot, file: &Arc<File>) -> Result<Mapping, Errno> {
        if self.sabotage == Some(Sabotage::NoSync) {
            // Memory of the mapping's own.
            return self.target().map(0, len, prot, MapFlags::PRIVATE | MapFlags::ANONYMOUS);
        }
        self.target().map_file(len, prot, file)
    }

    fn msync(&self, addr: usize, len: usize) -> Result<(), Errno> {
        self.target().msync(addr, len)
    }

    fn fork(&self) -> Result<Sabotaged, RunError> {
        let child = if self.sabotage == Some(Sabotage::ForkForgets) {
            let child = Soft::new(self.range().bytes(), AnyPager::Zero)?;
            for entry in self.maps() {
                let fixed = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
                child.map(entry.range.start().get(), entry.range.bytes(), entry.prot, fixed).unwrap();
            }
            child
        } else {
            self.target().fork()?
        };
        Ok(Sabotaged {
            inner: child,
            sabotage: self.sabotage,
            calls: AtomicU64::new(0),
            parent: self.own.clone(),
            own: None,
        })
    }

    fn maps(&self) -> Vec<MapsEntry> {
        let mut maps = self.target().maps();
        if self.strikes(Sabotage::Gap) && maps.len() > 4 {
            maps.drain(1..4);
        }
        if self.strikes(Sabotage::Mixed) && maps.len() > 3 {
            maps[2].prot = maps[1].prot;
        }
        maps
    }

    fn query(&self, addr: VirtAddr) -> Option<MapsEntry> {
        self.target().query(addr)
    }

    fn load(&self, addr: VirtAddr) -> Result<u64, Signal> {
        let result = self.target().load(addr);
        match result {
            Ok(value) if value > 1 && self.strikes(Sabotage::StaleFile) => Ok(1),
            Err(Signal::MapErr) if self.strikes(Sabotage::NoGuardGap) => Ok(0),
            other => other,
        }
    }

    fn store(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        if let Some(parent) = &self.parent
            && self.sabotage == Some(Sabotage::SharedAfterFork)
        {
            let _ = parent.store(addr, value);
        }
        self.target().store(addr, value)
    }

    fn checked(&self) -> bool {
        true
    }

    fn range(&self) -> PageRange {
        self.target().range()
    }

    fn id(&self) -> u64 {
        self.target().id()
    }

    fn validate(&self) {
        self.target().validate();
    }
}

impl Sabotaged {
    /// Lets forked children know their parent.
    pub(crate) fn known_to_children(mut self) -> Sabotaged {
        let inner = std::mem::replace(&mut self.inner, Soft::new(PAGE_SIZE, AnyPager::Zero).unwrap());
        self.own = Some(Arc::new(inner));
        self
    }
}
