//! Real page faults for vmalab.

pub mod access;
mod hidden;
pub mod mmu;
mod presence;
pub mod queue;
pub mod region;
pub mod registry;
mod siginfo;
pub mod sigbus;
pub mod uffd;
