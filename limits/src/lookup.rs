//! The look-up of a VMA: what every fault pays before anything else, and the
//! one floor that is vmalab's own.

use crate::Reason;
use crate::crew::{Probe, Samples};
use std::hint::black_box;
use std::sync::Arc;
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::lock::TypeSafe;
use vmalab::mm::{MapFlags, Mm, Prot};
use vmalab::mmu::soft::{BASE, SoftMmu};
use vmalab::pager::ZeroPager;

const VMAS: usize = 1_000;
/// Look-ups in one sample.
const SHORT: usize = 32;

/// An address space with `VMAS` mappings of one page, a page apart.
pub struct Map {
    mm: Arc<Mm<TypeSafe, SoftMmu, ZeroPager>>,
}

fn nth(i: usize) -> VirtAddr {
    BASE + 2 * i * PAGE_SIZE
}

impl Map {
    pub fn new() -> Result<Map, Reason> {
        let memory = SoftMmu::new(2 * VMAS * PAGE_SIZE).map_err(|error| Reason(format!("{error:?}")))?;
        let mm = Mm::new(memory, ZeroPager);
        let fixed = MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED;
        for i in 0..VMAS {
            mm.mmap(nth(i).get(), PAGE_SIZE, Prot::READ, fixed).map_err(|errno| Reason::call("vmalab mmap", errno))?;
        }
        Ok(Map { mm: Arc::new(mm) })
    }

    /// One thread's look-ups, in an order that no prefetcher knows.
    pub fn probe(&self, worker: usize) -> LookUp {
        vmalab::thread::announce();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 + worker as u64;
        let addresses = (0..1 << 14).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            nth(state as usize % VMAS) + 123
        });
        LookUp { mm: self.mm.clone(), addresses: addresses.collect() }
    }
}

/// See [`Map::probe`].
pub struct LookUp {
    mm: Arc<Mm<TypeSafe, SoftMmu, ZeroPager>>,
    addresses: Vec<VirtAddr>,
}

impl Probe for LookUp {
    fn pass(&mut self, samples: &mut Samples) -> Result<(), Reason> {
        for addresses in self.addresses.chunks_exact(SHORT) {
            // The RCU section is part of it.
            let all = samples.time(SHORT as u64, || {
                addresses.iter().fold(true, |all, &addr| all & self.mm.is_mapped(black_box(addr)))
            });
            if !all {
                return Err(Reason("a mapping was not found".to_owned()));
            }
        }
        Ok(())
    }
}
