//! Which address space an address belongs to, found without a lock in a signal
//! handler.
//!
//! # Protocol
//!
//! A fixed table. A slot is *free*, *live* (its record serves faults) or
//! *dying*: the space serves no more faults, but its memory may still be
//! mapped, so its addresses answer "nothing is mapped". Lookups run inside a
//! section of [`rcu::FAULTS`] that lasts until the fault is served. Taking a
//! space out marks the slot dying, waits for the sections that were open, and
//! only then frees the record; the slot becomes free when the memory is gone.

use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use vmalab::addr::{PageRange, VirtAddr};
use vmalab::fault::ServeFault;
use vmalab::rcu::{self, ReadGuard};

/// Address spaces alive at once in a process.
pub const SPACES_MAX: usize = 256;

/// All of it in one cache line.
#[repr(align(64))]
struct Record {
    region: PageRange,
    reservation: PageRange,
    serve: Arc<dyn ServeFault>,
}

struct Slot {
    /// The whole reservation, `start..end`; both 0 in a free slot.
    start: AtomicUsize,
    end: AtomicUsize,
    /// Null while free or dying.
    record: AtomicPtr<Record>,
}

/// The mark lies in the cache line of the first slots.
#[repr(C, align(64))]
struct Table {
    /// Slots ever used are `slots[..high_water]`.
    high_water: AtomicUsize,
    slots: [Slot; SPACES_MAX],
}

static TABLE: Table = Table {
    high_water: AtomicUsize::new(0),
    slots: [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), record: AtomicPtr::new(ptr::null_mut()) } };
        SPACES_MAX],
};

/// Some space has been freed in this process.
static FREED: AtomicBool = AtomicBool::new(false);

/// Whether the region that an address belonged to may be gone already.
pub(crate) fn any_freed() -> bool {
    // Acquire: pairs with the Release in `Registration`'s drop: who finds the
    // slot free finds this set.
    FREED.load(Ordering::Acquire)
}

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

impl fmt::Display for TableFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this process already has {SPACES_MAX} address spaces: drop one first")
    }
}

impl std::error::Error for TableFull {}

/// What lies at an address.
pub enum Found<'g> {
    /// An address inside a region; `serve` may be called while the guard lives.
    Region(&'g dyn ServeFault),
    /// Part of a reservation, but nothing that a program may touch.
    Nothing,
    /// Not ours.
    Foreign,
}

/// Finds what serves `addr`. Async-signal-safe. `_section` must be a section
/// of [`rcu::FAULTS`].
pub fn find<'g>(_section: &'g ReadGuard, addr: VirtAddr) -> Found<'g> {
    let mut dying = false;
    // Acquire: pairs with the Release in `register`.
    for slot in &TABLE.slots[..TABLE.high_water.load(Ordering::Acquire)] {
        // Acquire: pairs with the Release in `register`. A slot whose space is
        // alive and holds `addr` has not changed since before `addr` was handed
        // out, so these loads agree; for any other slot a mix of old and new
        // can only lead to a record, which is asked itself.
        let (start, end) = (slot.start.load(Ordering::Acquire), slot.end.load(Ordering::Acquire));
        if !(start <= addr.get() && addr.get() < end) {
            continue;
        }
        // SAFETY: a record that the slot still names inside a section of FAULTS
        // is freed only after that section: `Registration::retire` waits. The
        // Acquire pairs with the Release in `register`.
        match unsafe { slot.record.load(Ordering::Acquire).as_ref() } {
            Some(record) if record.region.contains(addr) => return Found::Region(&*record.serve),
            // Guard or twin.
            Some(record) => dying |= record.reservation.contains(addr),
            // Dying; but new memory may have taken its addresses: another slot
            // may know better.
            None => dying |= slot.start.load(Ordering::Acquire) == start,
        }
    }
    if dying { Found::Nothing } else { Found::Foreign }
}

/// A space's place in the table. [`retire`](Registration::retire) and the end
/// of the memory come before the drop that frees the slot.
pub struct Registration {
    slot: &'static Slot,
}

/// Claims a slot: `start` goes from 0 to this for a moment, which no address matches.
const CLAIMED: usize = usize::MAX;

impl Registration {
    /// Lets `serve` answer faults in `region`, and nothing the rest of
    /// `reservation`.
    ///
    /// # Errors
    /// [`TableFull`].
    pub fn new(
        region: PageRange,
        reservation: PageRange,
        serve: Arc<dyn ServeFault>,
    ) -> Result<Registration, TableFull> {
        let claim = |slot: &Slot| {
            // Acquire: pairs with the Release in `Drop`.
            slot.start.compare_exchange(0, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let (index, slot) = TABLE.slots.iter().enumerate().find(|(_, slot)| claim(slot)).ok_or(TableFull)?;
        let record = Box::into_raw(Box::new(Record { region, reservation, serve }));
        // Release, all of them: pair with the Acquire loads in `find`.
        slot.record.store(record, Ordering::Release);
        slot.end.store(reservation.end().get(), Ordering::Release);
        slot.start.store(reservation.start().get(), Ordering::Release);
        TABLE.high_water.fetch_max(index + 1, Ordering::Release);
        Ok(Registration { slot })
    }

    /// Ends service: when this returns no fault is being served any more, and
    /// new ones find nothing mapped. Mutators only, and not inside a fault.
    pub fn retire(&self) {
        // AcqRel: Release so that a grace period that starts later comes after
        // it; Acquire because we free the record.
        let record = self.slot.record.swap(ptr::null_mut(), Ordering::AcqRel);
        if record.is_null() {
            return;
        }
        rcu::FAULTS.synchronize();
        // SAFETY: from `Box::into_raw` in `new`; the swap took it out once, and
        // every section that may have seen it has ended.
        drop(unsafe { Box::from_raw(record) });
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.retire();
        // Release: pairs with the Acquire in `any_freed`.
        FREED.store(true, Ordering::Release);
        // Release: pairs with the Acquire in `find`.
        self.slot.end.store(0, Ordering::Release);
        // Release: pairs with the Acquire in `new`.
        self.slot.start.store(0, Ordering::Release);
    }
}
