//! The fault path: from a faulting address to an installed page or a signal.

use crate::addr::VirtAddr;

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
