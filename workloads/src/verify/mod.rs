//! Verification: what an access may see, and what is said when it saw
//! something else.
//!
//! * [`owned`]: mappings that one thread has for itself; everything is exact.
//! * [`shadow`]: slots that one thread changes under the others' eyes; a
//!   **generation window** says which states an access may have met.
//! * [`grid`]: a workload's slots, and the checked accesses to them.
//!
//! # What a page holds
//! Bytes 0..24 are the pager's [`Stamp`](vmalab::pager::Stamp): whose page it
//! is. The words after it start as zero and are the workload's: [`VALUE`] and
//! [`ECHO`] belong to the mapping's owner, [`word_of`] each worker is that
//! worker's alone, so that it knows what it must read there.
//!
//! # Oracles
//! As in the kernel lineage: **O1** contents (a stamp of another address space,
//! address or older incarnation; a value that is stale or lost), **O2** a page
//! readable where nothing is mapped, **O3** an outcome that no state of the
//! window explains (a store that a returned mprotect forbids, a hole inside a
//! replacement), **O4** invariants at rest, **O5** a thread that never returns.

pub(crate) mod grid;
pub(crate) mod log;
pub(crate) mod owned;
pub(crate) mod shadow;

use crate::ctx::{Ctx, Fail, Flow};
use crate::report::Violation;
use crate::target::Target;
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::Signal;
use vmalab::pager::Stamp;

/// Offset of the owner's word.
pub(crate) const VALUE: usize = 32;
/// Offset of the owner's second word.
pub(crate) const ECHO: usize = 40;
/// Offset of worker 0's word.
const WORDS: usize = 64;
/// Workers that have a word of their own.
pub(crate) const WORKERS_MAX: usize = (PAGE_SIZE - WORDS) / 8;

/// Offset of a worker's own word in every page.
pub(crate) fn word_of(worker: usize) -> usize {
    assert!(worker < WORKERS_MAX, "the configuration was checked");
    WORDS + 8 * worker
}

/// What an oracle names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oracle {
    /// O1
    Contents,
    /// O2
    Orphan,
    /// O3
    Outcome,
}

impl Oracle {
    fn name(self) -> &'static str {
        match self {
            Oracle::Contents => "O1",
            Oracle::Orphan => "O2",
            Oracle::Outcome => "O3",
        }
    }
}

impl<T: Target> Ctx<T> {
    /// A violation, with this thread's last events.
    #[cold]
    pub(crate) fn violation(&self, oracle: Oracle, mm: usize, addr: VirtAddr, message: String) -> Fail {
        self.violation_of(oracle, mm, addr, message, None, None)
    }

    /// A violation that knows of incarnations.
    #[cold]
    pub(crate) fn violation_of(
        &self,
        oracle: Oracle,
        mm: usize,
        addr: VirtAddr,
        message: String,
        incarnation_expected: Option<u64>,
        incarnation_seen: Option<u64>,
    ) -> Fail {
        Fail::Violation(Box::new(Violation {
            oracle: oracle.name().to_owned(),
            message,
            address: format!("{addr:#x}"),
            address_space: mm as u32,
            incarnation_expected,
            incarnation_seen,
            events: Vec::new(), // the runner adds them, this thread's and the others'
            thread: self.name(),
        }))
    }

    /// Judges a stamp that was read from `page`: its words may be of different
    /// pages that were there while it was read, but each must be right.
    pub(crate) fn check_stamp(&self, mm: usize, page: VirtAddr, stamp: Stamp, incarnation: u64) -> Flow {
        let own = self.target(mm).id();
        let message = if stamp.page_addr() != page {
            format!("the page was filled for address {:#x}", stamp.page_addr())
        } else if stamp.mm_id != own {
            format!("the page was filled for mm id {}, this one is {own}", stamp.mm_id)
        } else if stamp.incarnation < incarnation {
            "the page was filled for an earlier mapping".to_owned()
        } else {
            return Ok(());
        };
        let seen = Some(stamp.incarnation);
        Err(self.violation_of(Oracle::Contents, mm, page, message, Some(incarnation), seen))
    }

    /// An access must never end in SIGBUS: workloads do not use up memory.
    pub(crate) fn not_bus<V>(&self, addr: VirtAddr, result: Result<V, Signal>) -> Flow<Result<V, Signal>> {
        match result {
            Err(Signal::Bus) => Err(Fail::Error(format!("no memory for the page at {addr:#x} (SIGBUS)"))),
            other => Ok(other),
        }
    }
}
