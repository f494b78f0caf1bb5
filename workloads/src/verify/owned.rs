//! Checked accesses to mappings that one thread has for itself (or that all
//! threads agree on between two meetings): every outcome and value is known.

use super::{ECHO, Oracle, VALUE};
use crate::ctx::{Ctx, Fail, Flow};
use crate::target::Target;
use vmalab::addr::{PAGE_SIZE, PageRange, VirtAddr};
use vmalab::fault::Signal;
use vmalab::mm::Mapping;

/// A mapping of one's own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owned {
    pub(crate) mm: usize,
    pub(crate) range: PageRange,
    pub(crate) incarnation: u64,
}

impl Owned {
    pub(crate) fn new(mm: usize, mapping: Mapping, len: usize) -> Owned {
        Owned { mm, range: PageRange::sized(mapping.addr, len), incarnation: mapping.incarnation }
    }

    /// Start of its `n`th page.
    pub(crate) fn page(&self, n: usize) -> VirtAddr {
        debug_assert!(n < self.range.pages());
        self.range.start() + n * PAGE_SIZE
    }
}

impl<T: Target> Ctx<T> {
    /// First store to a page since it was mapped: the fault that counts. Returns
    /// the value stored, which [`owned_check`](Ctx::owned_check) expects.
    #[inline]
    pub(crate) fn first_touch(&mut self, owned: &Owned, page: VirtAddr) -> Flow<u64> {
        let value = self.value();
        let result = self.first_store(owned.mm, page + VALUE, value);
        self.owned_ok(owned, page + VALUE, "store", result)?;
        if self.verify {
            let echo = self.owned_load(owned, page + ECHO)?;
            if echo != 0 {
                let message = format!("a fresh page holds {echo:#x} where nothing has been stored");
                return Err(self.violation_of(
                    Oracle::Contents,
                    owned.mm,
                    page + ECHO,
                    message,
                    Some(owned.incarnation),
                    None,
                ));
            }
            let result = self.store(owned.mm, page + ECHO, value);
            self.owned_ok(owned, page + ECHO, "store", result)?;
            self.owned_check(owned, page, value)?;
        }
        Ok(value)
    }

    /// A page whose first touch stored `value` must hold it still.
    pub(crate) fn owned_check(&mut self, owned: &Owned, page: VirtAddr, value: u64) -> Flow {
        for offset in [VALUE, ECHO] {
            self.expect_word(owned, page + offset, value)?;
        }
        self.owned_stamp(owned, page)
    }

    /// A word that must hold `value`.
    pub(crate) fn expect_word(&mut self, owned: &Owned, addr: VirtAddr, value: u64) -> Flow {
        let seen = self.owned_load(owned, addr)?;
        if seen != value {
            let message = format!("the word is {seen:#x}, the last store to it was {value:#x}");
            return Err(self.violation(Oracle::Contents, owned.mm, addr, message));
        }
        Ok(())
    }

    /// The page's stamp must be of this mapping.
    pub(crate) fn owned_stamp(&mut self, owned: &Owned, page: VirtAddr) -> Flow {
        self.checked();
        if !self.target(owned.mm).checked() {
            return Ok(());
        }
        let stamp = self.target(owned.mm).stamp(page);
        let stamp = self.owned_ok(owned, page, "load", stamp)?;
        self.check_stamp(owned.mm, page, stamp, owned.incarnation)
    }

    fn owned_load(&mut self, owned: &Owned, addr: VirtAddr) -> Flow<u64> {
        let result = self.load(owned.mm, addr);
        self.checked();
        self.owned_ok(owned, addr, "load", result)
    }

    /// A mapping that permits it must serve the access, verified or not.
    #[inline]
    pub(crate) fn owned_ok<V>(&self, owned: &Owned, addr: VirtAddr, what: &str, result: Result<V, Signal>) -> Flow<V> {
        match result {
            Ok(value) => Ok(value),
            Err(Signal::Bus) => Err(Fail::Error(format!("no memory for the page at {addr:#x} (SIGBUS)"))),
            Err(signal) => {
                let message = format!("{what} ended in {signal:?}, but the mapping {:?} permits it", owned.range);
                Err(self.violation(Oracle::Outcome, owned.mm, addr, message))
            }
        }
    }

    /// After munmap: nothing of `range` may be readable. Only for addresses
    /// that nobody else maps.
    pub(crate) fn check_unmapped(&mut self, mm: usize, addr: VirtAddr) -> Flow {
        if !self.target(mm).checked() {
            return Ok(());
        }
        let result = self.load(mm, addr);
        self.checked();
        match self.not_bus(addr, result)? {
            Err(Signal::MapErr) => Ok(()),
            Ok(value) => {
                let message = format!("load gave {value:#x} where nothing is mapped");
                Err(self.violation(Oracle::Orphan, mm, addr, message))
            }
            Err(signal) => {
                let message = format!("load ended in {signal:?} where nothing is mapped (MapErr)");
                Err(self.violation(Oracle::Outcome, mm, addr, message))
            }
        }
    }
}
