//! What the adversary leaves in a free VMA object: lies, each of which one of
//! a stale reader's checks must see through. Only with the feature `races`.
//!
//! The lock is not touched: its state is what says "free", in every scheme.

use super::{Vma, VmaFlags};
use crate::addr::{ADDRESSES_END, PAGE_SIZE, PageRange, VirtAddr};
use crate::lock::LockScheme;
use crate::races::adversary;
use crate::sync::Ordering;
use std::ptr;

/// The largest range there is, in whole pages.
const EVERYTHING: (usize, usize) = (0, usize::MAX & !(PAGE_SIZE - 1));

impl<S: LockScheme> Vma<S> {
    /// Poisons an object that is about to be freed, if the adversary is on. As
    /// its owner; stale readers may be at it. `owner_id` stays, for counting.
    pub(super) fn poison(&self) {
        if adversary::is_on() {
            self.poison_by(adversary::draw());
            adversary::count_poison();
        }
    }

    fn poison_by(&self, draw: u64) {
        let own = self.vm_mm.load(Ordering::Relaxed);
        let other = S::slab().swap_mm(own.cast()).cast();
        let (start, end) = (self.vm_start.load(Ordering::Relaxed), self.vm_end.load(Ordering::Relaxed));
        let ((start, end), mm) = match draw % 6 {
            // The kernel's rcu_head in a union with the range, at the end of
            // its list (kernel lineage §1.2): only "detached" protects.
            0 => (EVERYTHING, own),
            1 => ((EVERYTHING.1, EVERYTHING.0), ptr::null_mut()),
            // Nothing has changed, or so it seems.
            2 => ((start, end), own),
            // The right range, in another address space, perhaps a dead one.
            3 => ((start, end), other),
            4 => (EVERYTHING, ptr::null_mut()),
            _ => ((start.wrapping_add(PAGE_SIZE), end.wrapping_add(PAGE_SIZE)), own),
        };
        let everything = VmaFlags::ACCESS | VmaFlags::MAYREAD | VmaFlags::MAYWRITE | VmaFlags::MAYEXEC;
        self.vm_start.store(start, Ordering::Relaxed);
        self.vm_end.store(end, Ordering::Relaxed);
        self.vm_mm.store(mm, Ordering::Relaxed);
        self.vm_flags.store([everything.bits(), 0, u64::MAX][(draw >> 8) as usize % 3], Ordering::Relaxed);
        self.anon_vma.store([0, u64::MAX][(draw >> 16) as usize % 2], Ordering::Relaxed);
        // Older than any mapping: a page that carries it is found out (O1).
        self.incarnation.store(0, Ordering::Relaxed);
        let at = |address: usize| VirtAddr(address.min(ADDRESSES_END));
        let touched = PageRange::new(at(start.min(end)), at(start.max(end)));
        self.touched.set(if (draw >> 24).is_multiple_of(2) { touched } else { PageRange::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{MmapOnly, Rcu, RefCount, TypeSafe};
    use crate::vma::Segment;
    use std::collections::BTreeSet;

    const RANGE: (usize, usize) = (0x7000_0000, 0x7000_2000);

    fn lies_about_everything_but_the_lock<S: LockScheme>() {
        let vma = Vma::<S>::construct();
        let range = PageRange::new(VirtAddr(RANGE.0), VirtAddr(RANGE.1));
        let own: *mut _ = ptr::without_provenance_mut(0x1000);
        let (mut ranges, mut mms, mut flags) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        S::slab().swap_mm(ptr::without_provenance_mut(0x2000));
        for draw in 0..2000u64 {
            vma.store_segment(&Segment::unfaulted(range, VmaFlags::READ), range);
            vma.vm_mm.store(own, Ordering::Relaxed);
            vma.incarnation.store(9, Ordering::Relaxed);
            vma.owner_id.store(7, Ordering::Relaxed);
            vma.poison_by(draw.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            assert!(!S::is_attached(&vma) && S::readers(&vma) == 0 && vma.epoch.now() == 1);
            assert_eq!(vma.owner_id.load(Ordering::Relaxed), 7);
            assert_eq!(vma.incarnation.load(Ordering::Relaxed), 0);
            ranges.insert((vma.vm_start.load(Ordering::Relaxed), vma.vm_end.load(Ordering::Relaxed)));
            mms.insert(vma.vm_mm().addr());
            flags.insert(vma.vm_flags.load(Ordering::Relaxed));
        }
        let shifted = (RANGE.0 + PAGE_SIZE, RANGE.1 + PAGE_SIZE);
        assert_eq!(ranges, [EVERYTHING, (EVERYTHING.1, 0), RANGE, shifted].into());
        assert_eq!(flags.len(), 3);
        // The other one's only once: it was this object's own that was noted then.
        assert!(mms.is_superset(&[0, 0x1000].into()) && mms.len() <= 3, "{mms:x?}");
    }

    #[test]
    fn lies_in_every_scheme() {
        lies_about_everything_but_the_lock::<MmapOnly>();
        lies_about_everything_but_the_lock::<Rcu>();
        lies_about_everything_but_the_lock::<TypeSafe>();
        lies_about_everything_but_the_lock::<RefCount>();
    }

    #[test]
    fn the_mm_of_the_object_freed_before_is_among_the_lies() {
        let vmas = [Vma::<TypeSafe>::construct(), Vma::<TypeSafe>::construct()];
        let mut foreign = 0;
        for draw in 0..100u64 {
            for (i, vma) in vmas.iter().enumerate() {
                let mine = 0x1000 * (i + 1);
                vma.vm_mm.store(ptr::without_provenance_mut(mine), Ordering::Relaxed);
                vma.poison_by(draw);
                foreign += usize::from(!vma.vm_mm().is_null() && vma.vm_mm().addr() != mine);
            }
        }
        assert!(foreign > 0);
    }
}
