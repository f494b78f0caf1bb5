//! Conflicts: the cache lines that two operations touch and at least one of
//! them writes. Operations that commute need none, and then they scale on any
//! machine (Clements, Kaashoek, Zeldovich, Morris, Kohler, *The scalable
//! commutativity rule*, SOSP 2013). So this measures scalability where there
//! are but two CPUs, or one.
//!
//! Recording needs the core's instrumented atomics
//! (`vmalab::sync::record`), a build of its own with the feature `conflicts`:
//! the program `conflicts-record`. It is given a [`Request`] and gives an
//! [`Answer`], both as JSON. Everything else here is in the usual build.
//!
//! | module | what |
//! |---|---|
//! | [`op`] | the operations and how they are paired |
//! | [`report`] | requests, and what was found |
//! | [`model`] | from counts and the price of a line to throughput |
//! | [`price`] | that price, measured |
//! | `stage` | address spaces and two threads that run operations on them |
//! | `record` | recording pairs and workloads |
//! | `lines` | from accesses to shared lines |

#[cfg(feature = "conflicts")]
mod lines;
pub mod model;
pub mod op;
pub mod price;
#[cfg(feature = "conflicts")]
mod record;
pub mod report;
#[cfg(feature = "conflicts")]
mod stage;

pub use op::{Op, Relation};
#[cfg(feature = "conflicts")]
pub use record::answer;
pub use report::{Answer, Request};
