//! What holds for a VMA at rest (oracle O4).

use super::VmaRef;
use crate::lock::LockScheme;
use crate::mm::MmCore;
use crate::sync::MODEL;
use std::time::Duration;

/// Looks, a millisecond apart, until a VMA that still has readers counts as one
/// that a reader has forgotten. (In a model nobody is about when it is at rest.)
const LOOKS: u32 = if MODEL { 1 } else { 1000 };

impl<S: LockScheme> VmaRef<'_, S> {
    /// Checks an attached VMA of an address space at rest. Another address space's
    /// reader may still come by with a stale pointer to the object: it leaves at
    /// once, and is waited for.
    ///
    /// # Panics
    /// If something is wrong with it.
    pub(crate) fn validate(&self, mm: &MmCore<S>) {
        let vma = self.vma();
        assert!(S::is_attached(vma), "VMA {:?} in the tree is not attached", vma.range());
        assert!(vma.epoch.now() & 1 == 0, "VMA {:?} is being changed at rest", vma.range());
        assert!(std::ptr::eq(vma.vm_mm(), mm), "VMA {:?} in the tree belongs to another mm", vma.range());
        // One look without readers is enough: a reader that forgot to leave is there in all.
        let idle = (0..LOOKS).any(|look| {
            if look > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            S::readers(vma) == 0
        });
        assert!(idle, "VMA {:?} has readers at rest", vma.range());
    }
}
