//! Real page faults for vmalab: a region under userfaultfd, fault delivery and
//! page installation.
//!
//! [`AddressSpace`] is the way in; the modules below are for `vmalab doctor`,
//! for tests, and for those who build something else from the parts:
//!
//! | module | what |
//! |---|---|
//! | [`space`] | an `Mm` with everything it needs below it |
//! | [`mmu`] | the core's `Mmu` on real page tables |
//! | [`mod@file`] | files of the host, to be mapped |
//! | [`region`] | the memory: reserved, registered, given back |
//! | [`uffd`] | one userfaultfd: how it is created, its ioctls |
//! | [`stripes`] | the userfaultfds of a region, and which serves which part |
//! | [`registry`] | from an address to the space that serves it, in a signal handler |
//! | [`sigbus`] | the signal handlers |
//! | [`queue`] | the handler threads |
//! | [`access`] | loads and stores that report a signal instead of raising it |

pub mod access;
mod cache;
mod cow;
pub mod file;
mod hidden;
pub mod mmu;
mod presence;
pub mod queue;
mod ready;
pub mod region;
pub mod registry;
pub mod sigbus;
mod siginfo;
pub mod space;
pub mod stripes;
pub mod uffd;
mod zeroed;

pub use space::{AddressSpace, Builder, Delivery, Error};
