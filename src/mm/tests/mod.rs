//! Tests of the operations on the software `Mmu`, under every lock scheme.

mod calls;
mod concurrent;
mod failure;
mod model;

use super::{AccessError, MapFlags, Mm, Prot};
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::fault::Signal;
use crate::lock::LockScheme;
use crate::mmu::soft::{BASE, SoftMmu};
use crate::pager::{AnyPager, Stamp};

pub(super) type SoftMm<S> = Mm<S, SoftMmu, AnyPager>;

pub(super) const RW: Prot = Prot::READ.union(Prot::WRITE);
pub(super) const ANON: MapFlags = MapFlags::PRIVATE.union(MapFlags::ANONYMOUS);
pub(super) const FIXED: MapFlags = ANON.union(MapFlags::FIXED);

pub(super) fn soft<S: LockScheme>(pages: usize) -> SoftMm<S> {
    Mm::new(SoftMmu::new(pages * PAGE_SIZE).unwrap(), AnyPager::Stamped)
}

/// Address of page `n` of a software address space.
pub(super) fn page(n: usize) -> usize {
    BASE.get() + n * PAGE_SIZE
}

/// The listing as (first page, end page, protection bits).
pub(super) fn listing<S: LockScheme>(mm: &SoftMm<S>) -> Vec<(usize, usize, u32)> {
    let n = |a: VirtAddr| (a - BASE) / PAGE_SIZE;
    mm.maps().iter().map(|e| (n(e.range.start()), n(e.range.end()), e.prot.bits())).collect()
}

pub(super) fn load<S: LockScheme>(mm: &SoftMm<S>, addr: usize) -> Result<u64, Signal> {
    let mut word = [0; 8];
    match mm.read(VirtAddr(addr), &mut word) {
        Ok(()) => Ok(u64::from_ne_bytes(word)),
        Err(AccessError { signal, .. }) => Err(signal),
    }
}

pub(super) fn store<S: LockScheme>(mm: &SoftMm<S>, addr: usize, value: u64) -> Result<(), Signal> {
    mm.write(VirtAddr(addr), &value.to_ne_bytes()).map_err(|e| e.signal)
}

pub(super) fn stamp<S: LockScheme>(mm: &SoftMm<S>, addr: usize) -> Result<Stamp, Signal> {
    let mut bytes = [0; 24];
    mm.read(VirtAddr(addr), &mut bytes).map_err(|e| e.signal)?;
    Ok(Stamp::from_bytes(&bytes))
}

/// Where a test keeps its own word in a page, after the stamp.
pub(super) const VALUE: usize = 32;

/// Runs a generic test under each lock scheme.
macro_rules! for_each_scheme {
    ($($name:ident),* $(,)?) => {
        mod mmap_only {
            $(#[test] fn $name() { super::$name::<crate::lock::MmapOnly>(); })*
        }
        mod rcu {
            $(#[test] fn $name() { super::$name::<crate::lock::Rcu>(); })*
        }
        mod refcount {
            $(#[test] fn $name() { super::$name::<crate::lock::RefCount>(); })*
        }
        mod typesafe {
            $(#[test] fn $name() { super::$name::<crate::lock::TypeSafe>(); })*
        }
    };
}
pub(super) use for_each_scheme;
