//! Mutants: one check left out; and knobs: one number made small.

use crate::sync::Ordering;

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The code with one check left out. The race catalogue has a story for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Mutant { $($(#[$doc])* $name,)* }

        impl Mutant {
            /// All of them, in order.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Mutant::$name => stringify!($name),)* }
            }
        }
    };
}

mutants! {
    /// A reader does not ask whether the object is attached: `detached` after
    /// locking (`rcu`, `typesafe`), or a count of zero (`refcount`).
    NoDetachedCheck,
    /// A reader does not compare the range after locking.
    NoRangeCheck,
    /// A reader does not compare `vm_mm` after locking.
    NoMmCheck,
    /// A reader takes the number from `vma->vm_mm`, not from its own mm.
    NumberOfForeignMm,
    /// Attach does not wait for stale readers of the object.
    AttachDoesNotWait,
    /// Detach relies on the number and does not drain readers of other mms.
    DetachDoesNotDrain,
    /// The store helper attaches every VMA it is given, old ones too, and does
    /// not look whether they are.
    AttachTwice,
    /// Duplication copies the lock's state and settles it afterwards.
    DupCopiesLock,
    /// Allocation initialises the lock.
    LockInitialisedAtReuse,
    /// Free resets the number, and `detached` is a plain store.
    NumberResetAtFree,
    /// A foreign mm is not pinned before its object's count falls.
    ForeignMmNotPinned,
    /// A walk that is repeated goes on from the position it had.
    TreePositionKept,
    /// A writer that is interrupted leaves its flag behind.
    InterruptedWriterKeepsFlag,
    /// The number that ends a write section is a plain store.
    UnlockIsPlainStore,
    /// A writer that finds the numbers equal takes the VMA for write-locked.
    EqualNumbersSkipDrain,
    /// A reader raises the count without looking at the limit.
    NoCountLimit,
    /// A writer looks at the wake-up word after the count, not before.
    WakeWordReadLate,
    /// A fault waits for the mmap lock while it holds a VMA's lock.
    FaultWaitsForMmapLock,
    /// A stack grows under the mmap lock held for reading.
    GrowthUnderReadLock,
    /// A replacement first removes what was there, then adds the new.
    ReplaceInTwoSteps,
    /// A new VMA is not write-locked, and is finished after it was published.
    AttachUnlocked,
    /// munmap removes the pages before it has drained the readers.
    ZapBeforeDrain,
    /// mprotect does not write-lock the VMAs that it changes.
    ProtectWithoutVmaLock,
    /// The exit of an address space frees VMAs without detaching them.
    ExitWithoutDetach,
    /// munmap lets go of the mmap lock before it removes the pages.
    ZapAfterUnlock,
    /// The fault gives the VMA's lock back before it installs the page.
    InstallAfterUnlock,
    /// MAP_FIXED is an munmap and an mmap, with the lock released in between.
    FixedAsTwoCalls,
    /// A freed VMA is reused without a grace period (`rcu`).
    FreeWithoutGracePeriod,
}

/// A number made small enough to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Knob {
    /// Sequence numbers have 8 bits.
    SequenceOf8Bits,
    /// At most 2 readers of a VMA at once (`refcount`).
    TwoReaders,
}

#[cfg(any(feature = "races", loom, shuttle))]
mod switch {
    use super::{Knob, Mutant, Ordering};
    use crate::sync::plain::AtomicU32;

    static MUTANT: AtomicU32 = AtomicU32::new(0);
    static KNOBS: AtomicU32 = AtomicU32::new(0);

    /// Puts a mutant in force, or none. Before the threads that are to run it
    /// start.
    pub fn set_mutant(mutant: Option<Mutant>) {
        MUTANT.store(mutant.map_or(0, |m| m as u32 + 1), Ordering::SeqCst);
    }

    /// Whether `mutant` is in force.
    #[inline]
    pub fn mutant(mutant: Mutant) -> bool {
        MUTANT.load(Ordering::Relaxed) == mutant as u32 + 1
    }

    /// Sets or clears a knob. Before any address space exists.
    pub fn set_knob(knob: Knob, on: bool) {
        let bit = 1 << knob as u32;
        if on {
            KNOBS.fetch_or(bit, Ordering::SeqCst)
        } else {
            KNOBS.fetch_and(!bit, Ordering::SeqCst)
        };
    }

    /// Whether `knob` is set.
    #[inline]
    pub fn knob(knob: Knob) -> bool {
        KNOBS.load(Ordering::Relaxed) & 1 << knob as u32 != 0
    }
}

#[cfg(not(any(feature = "races", loom, shuttle)))]
mod switch {
    use super::{Knob, Mutant};

    /// Without the feature `races` there are no mutants.
    pub fn set_mutant(_: Option<Mutant>) {}

    /// Whether `mutant` is in force: never.
    #[inline(always)]
    pub const fn mutant(_: Mutant) -> bool {
        false
    }

    /// Without the feature `races` there are no knobs.
    pub fn set_knob(_: Knob, _: bool) {}

    /// Whether `knob` is set: never.
    #[inline(always)]
    pub const fn knob(_: Knob) -> bool {
        false
    }
}

pub use switch::{knob, mutant, set_knob, set_mutant};

/// `ordering`, unless `mutant` is in force: then Relaxed.
#[inline(always)]
pub fn unless(the_mutant: Mutant, ordering: Ordering) -> Ordering {
    if mutant(the_mutant) { Ordering::Relaxed } else { ordering }
}
