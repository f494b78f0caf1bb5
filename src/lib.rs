//! Linux's address-space layer in user space: VMAs, their locks, the tree that
//! finds them, and a fault path that needs no `mmap_lock`.
//!
//! This crate is the core. It decides which pages may appear, vanish and
//! change; an [`Mmu`](mmu::Mmu) makes it so. Over
//! [`SoftMmu`](mmu::soft::SoftMmu) everything runs without a real fault, for
//! tests, model checkers and lock benchmarks. Over userfaultfd (crate
//! `vmalab-fault-handler`) every access is a true hardware fault, served by
//! this very code in a signal handler.
//!
//! # Try it
//!
//! ```
//! use vmalab::addr::{PAGE_SIZE, VirtAddr};
//! use vmalab::fault::Signal;
//! use vmalab::lock::TypeSafe;
//! use vmalab::mm::{MapFlags, Mm, Prot};
//! use vmalab::mmu::soft::SoftMmu;
//! use vmalab::pager::ZeroPager;
//!
//! // An address space of 1 MiB under the seed's per-VMA locks.
//! let mm: Mm<TypeSafe, _, _> = Mm::new(SoftMmu::new(1 << 20).unwrap(), ZeroPager);
//! let anon = MapFlags::PRIVATE | MapFlags::ANONYMOUS;
//!
//! let addr = mm.mmap(0, 4 * PAGE_SIZE, Prot::READ | Prot::WRITE, anon)?;
//! mm.write(addr, b"hello").unwrap(); // a write fault, under the VMA's own lock
//! mm.mprotect(addr.get(), PAGE_SIZE, Prot::READ)?; // splits the mapping
//!
//! let mut word = [0; 5];
//! mm.read(addr, &mut word).unwrap();
//! assert_eq!(&word, b"hello");
//! assert_eq!(mm.write(addr, b"x").unwrap_err().signal, Signal::AccErr);
//! assert_eq!(mm.map_count(), 2);
//! for line in mm.maps() {
//!     println!("{line}"); // as in /proc/PID/maps
//! }
//! mm.munmap(addr.get(), 4 * PAGE_SIZE)?;
//! assert_eq!(mm.read(VirtAddr(addr.get()), &mut word).unwrap_err().signal, Signal::MapErr);
//! # Ok::<(), vmalab::Errno>(())
//! ```
//!
//! # How a fault finds its VMA
//!
//! Under [`lock::TypeSafe`] a fault enters an RCU section ([`rcu`]), looks the
//! address up in the tree ([`tree`]) and read-locks the VMA it finds
//! ([`lock`]), all without writing anything shared but the VMA's own lock
//! word. The VMA objects come from a type-safe slab ([`slab`]): an object may
//! be freed and in use again, in another address space, between the look-up
//! and the lock. So after locking the fault checks that it got what it looked
//! for, and if not, or if a writer is at work, it falls back to the mmap lock
//! ([`mmap_lock`]). Then the VMA cannot change, and [`fault`] makes the page
//! present.
//!
//! Mutators ([`mm`]) hold the mmap lock for writing, write-lock each VMA they
//! change, publish the whole operation by one store of the tree's root, and
//! release all VMA locks by one increment of a sequence number.
//!
//! Three more schemes run the same code: [`lock::MmapOnly`], the baseline of
//! Linux up to 6.3, where every fault takes the mmap lock; [`lock::Rcu`] of
//! 6.4, which frees VMAs after a grace period; and [`lock::RefCount`] of 6.15
//! and later, where one counter is lock and lifetime.
//!
//! # Where to read on
//!
//! | to understand | read |
//! |---|---|
//! | the per-VMA lock, its windows and how they are closed | [`lock`], `src/lock/typesafe.rs` |
//! | which field is protected by what | `docs/locking.md` |
//! | reuse of objects | [`slab`] |
//! | grace periods | [`rcu`] |
//! | one operation from end to end | `src/mm/munmap.rs` |
//! | what is emulated, and what differs | `docs/semantics.md` |
//! | how a page of a file is kept | [`mod@file`] |
//! | which VMAs merge | [`vma::plan`] |

pub mod addr;
pub mod fault;
pub mod file;
mod inject;
pub mod lock;
mod membarrier;
pub mod mm;
pub mod mmap_lock;
pub mod mmu;
#[cfg(all(test, loom))]
mod models;
pub mod pager;
pub mod races;
pub mod rcu;
pub mod slab;
pub mod stats;
pub mod sync;
pub mod thread;
pub mod trace;
pub mod tree;
pub mod vma;

pub use nix::errno::Errno;
