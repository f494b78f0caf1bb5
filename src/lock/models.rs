//! Models of a reader that already has a pointer from a walk, at any time
//! before, against everything that writers may do with the object meanwhile.
//! The schemes' own `models.rs` run them.
//!
//! What the threads assert, beside what [`VmaRead`] does by itself (oracle O3:
//! a locked VMA is attached, not write-locked, and does not change): that it
//! covers the address and belongs to the reader's own mm. And all fields are
//! [`Plain`](crate::models::Plain) data: what a reader relies on it must be
//! certain to see, and what it has seen no writer may change before it has let
//! go. That is what the orderings are for.

use super::LockScheme;
use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
use crate::mm::{MmCore, MmapWrite};
use crate::models::{explore, join, spawn};
use crate::tree::Entry;
use crate::vma::plan::Layout;
use crate::vma::{Hold, Segment, Vma, VmaFlags, VmaNew, VmaRead, VmaRef, VmaWrite};
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// A scheme whose readers can be started behind the walk.
pub(crate) trait Found: LockScheme {
    /// What a fault of `mm` at `addr` does with the object it found.
    fn lock_found(mm: &MmCore<Self>, vma: &Vma<Self>, addr: VirtAddr) -> bool;
}

/// Two address spaces, and two objects that main has had.
pub(crate) struct Scene<S: LockScheme> {
    pub(crate) a: Box<MmCore<S>>,
    pub(crate) b: Box<MmCore<S>>,
    /// The stale pointer.
    pub(crate) x: NonNull<Vma<S>>,
    pub(crate) y: NonNull<Vma<S>>,
}

// SAFETY: slab objects, which all threads may share and which stay.
unsafe impl<S: LockScheme> Send for Scene<S> {}
// SAFETY: as above.
unsafe impl<S: LockScheme> Sync for Scene<S> {}

/// A pointer from a walk.
pub(crate) struct Stale<S: LockScheme>(pub(crate) NonNull<Vma<S>>);

// SAFETY: to a slab object, which all threads may share and which stays.
unsafe impl<S: LockScheme> Send for Stale<S> {}

impl<S: LockScheme> Stale<S> {
    /// The pointer.
    pub(crate) fn get(&self) -> NonNull<Vma<S>> {
        self.0
    }
}

/// Pages `first..end`.
pub(crate) fn pages(first: usize, end: usize) -> PageRange {
    PageRange::new(page(first), page(end))
}

pub(crate) fn page(n: usize) -> VirtAddr {
    VirtAddr(n * PAGE_SIZE)
}

fn segment(range: PageRange) -> Segment {
    Segment::unfaulted(range, VmaFlags::READ | VmaFlags::WRITE)
}

/// A new VMA, attached.
pub(crate) fn attach<'m, S: LockScheme>(write: &MmapWrite<'m, S>, range: PageRange) -> VmaWrite<'m, S> {
    VmaNew::alloc(write, &segment(range)).expect("memory").attach()
}

/// Write-locks an attached VMA.
pub(crate) fn lock<'m, S: LockScheme>(write: &MmapWrite<'m, S>, vma: NonNull<Vma<S>>) -> VmaWrite<'m, S> {
    // SAFETY: the models' writers write-lock only what is attached to the mm.
    let vma: VmaRef<'m, S> = unsafe { VmaRef::new(vma) };
    vma.start_write(write, None).expect("nobody can tell it to give up")
}

/// A fault of `mm` at page `n` that has found `vma`. Returns whether it got
/// the lock.
pub(crate) fn fault<S: Found>(mm: &MmCore<S>, vma: NonNull<Vma<S>>, n: usize) -> bool {
    // SAFETY: memory of a slab, which stays a VMA in a model.
    let object = unsafe { vma.as_ref() };
    if !S::lock_found(mm, object, page(n)) {
        return false;
    }
    held(mm, vma, n);
    true
}

/// What must hold of a VMA that was locked for a fault of `mm` at page `n`, and
/// the end of the fault.
pub(crate) fn held<S: LockScheme>(mm: &MmCore<S>, vma: NonNull<Vma<S>>, n: usize) {
    // SAFETY: locked just now.
    let read = unsafe { VmaRead::new(mm, vma, Hold::Vma) };
    // SAFETY: as above.
    let object = unsafe { vma.as_ref() };
    assert!(read.range().contains(page(n)), "O1: locked a VMA that does not cover the address");
    assert!(ptr::eq(object.vm_mm(), mm), "O1: locked a VMA of another mm");
    assert!(!read.flags().is_empty());
}

/// Maps page `n`, or unmaps it, through the tree.
pub(crate) fn replace<S: LockScheme>(mm: &MmCore<S>, n: usize, new: bool) {
    let range = pages(n, n + 1);
    let mut write = mm.mmap_write();
    let (affected, _) = write.affected(range);
    let mut layout = Layout::new();
    if new {
        layout.change(None, segment(range));
    }
    let prepared = write.prepare(&affected, &layout, None).expect("memory").expect("a change");
    drop(write.commit(prepared));
}

type Actor<S> = fn(&Scene<S>);

/// Explores `actors` over a scene in which `x` is attached to `a` at page 1
/// and `y` at pages 4..6.
pub(crate) fn scene<S: Found>(name: &'static str, preemptions: Option<usize>, actors: &'static [Actor<S>]) {
    explore(name, preemptions, move || {
        let (a, b) = (Box::new(MmCore::new()), Box::new(MmCore::new()));
        let (x, y) = {
            let write = a.mmap_write();
            let y = attach(&write, pages(4, 6)).as_ptr();
            (attach(&write, pages(1, 2)).as_ptr(), y)
        };
        let scene = Arc::new(Scene { a, b, x, y });
        let (first, others) = actors.split_first().unwrap();
        let others: Vec<_> = others
            .iter()
            .map(|actor| {
                let scene = scene.clone();
                spawn(move || actor(&scene))
            })
            .collect();
        first(&scene);
        join(others);
        for vma in [scene.x, scene.y] {
            // SAFETY: as above.
            assert_eq!(S::readers(unsafe { vma.as_ref() }), 0, "O4: readers at rest");
        }
    });
}

/// The object is unmapped, freed, and handed out again at another place of the
/// same mm, all in one write section.
pub(crate) fn moves<S: LockScheme>(scene: &Scene<S>) {
    let write = scene.a.mmap_write();
    drop(lock(&write, scene.x).detach());
    let again = attach(&write, pages(2, 3));
    assert_eq!(again.as_ptr(), scene.x, "the slab reuses last what was freed last");
}

/// The same in two write sections, and at the same place; and the VMA grows in
/// the very section in which it was attached, write-locked.
pub(crate) fn comes_back<S: LockScheme>(scene: &Scene<S>) {
    let write = scene.a.mmap_write();
    drop(lock(&write, scene.x).detach());
    drop(write);
    let write = scene.a.mmap_write();
    let mut again = attach(&write, pages(1, 2));
    assert_eq!(again.as_ptr(), scene.x);
    again.set_segment(&segment(pages(1, 3)), PageRange::default());
}

/// It is handed out again to another mm, at the very same place, and goes
/// from there.
pub(crate) fn emigrates<S: LockScheme>(scene: &Scene<S>) {
    let write = scene.a.mmap_write();
    drop(lock(&write, scene.x).detach());
    drop(write);
    let write = scene.b.mmap_write();
    assert_eq!(attach(&write, pages(1, 2)).as_ptr(), scene.x);
    drop(write);
    let write = scene.b.mmap_write();
    drop(lock(&write, scene.x).detach());
}

/// It is freed, and becomes the right half of another VMA that is split.
pub(crate) fn splits<S: LockScheme>(scene: &Scene<S>) {
    let write = scene.a.mmap_write();
    drop(lock(&write, scene.x).detach());
    let right = VmaNew::alloc(&write, &segment(pages(5, 6))).expect("memory");
    let mut left = lock(&write, scene.y);
    left.set_segment(&segment(pages(4, 5)), PageRange::default());
    assert_eq!(right.attach().as_ptr(), scene.x);
}

/// It shrinks and grows again, and a section follows that leaves it alone.
pub(crate) fn changes<S: LockScheme>(scene: &Scene<S>) {
    let write = scene.a.mmap_write();
    lock(&write, scene.x).set_segment(&segment(pages(1, 3)), PageRange::default());
    drop(write);
    drop(scene.a.mmap_write());
}

/// It goes for good.
pub(crate) fn goes<S: LockScheme>(scene: &Scene<S>) {
    let write = scene.a.mmap_write();
    drop(lock(&write, scene.x).detach());
}

/// A fault at page 1.
pub(crate) fn reads<S: Found>(scene: &Scene<S>) {
    fault(&scene.a, scene.x, 1);
}

/// A fault of the other mm at page 1, with a pointer from before the object
/// was `a`'s.
pub(crate) fn reads_from_b<S: Found>(scene: &Scene<S>) {
    fault(&scene.b, scene.x, 1);
}

/// A fault at page 2.
pub(crate) fn reads_page_2<S: Found>(scene: &Scene<S>) {
    fault(&scene.a, scene.x, 2);
}

/// A fault at page 5, whose walk found `x`.
pub(crate) fn reads_page_5<S: Found>(scene: &Scene<S>) {
    fault(&scene.a, scene.x, 5);
}

/// A fault at page 5, whose walk found `y`.
pub(crate) fn reads_y<S: Found>(scene: &Scene<S>) {
    fault(&scene.a, scene.y, 5);
}

/// Each of the models that make sense for a scheme that reuses objects at once.
macro_rules! reuse_models {
    ($scheme:ty, $name:literal) => {
        #[test]
        fn reused_in_the_same_mm() {
            let name = concat!($name, ": reuse in the same mm");
            scene::<$scheme>(name, None, &[moves, reads]);
            scene::<$scheme>(name, None, &[moves, reads_page_2]);
        }

        #[test]
        fn comes_back_at_the_same_place() {
            scene::<$scheme>(concat!($name, ": reuse at the same place"), None, &[comes_back, reads]);
        }

        #[test]
        fn reused_in_another_mm() {
            scene::<$scheme>(concat!($name, ": reuse in another mm"), OTHER_MM, &[emigrates, reads]);
            scene::<$scheme>(concat!($name, ": reuse in the reader's mm"), OTHER_MM, &[emigrates, reads_from_b]);
        }

        #[test]
        fn becomes_a_half_of_a_split() {
            let name = concat!($name, ": a split");
            scene::<$scheme>(name, None, &[splits, reads_page_5]);
            scene::<$scheme>(name, TWO_READERS, &[splits, reads_page_5, reads_y]);
        }
    };
}

/// A VMA is published before its section ends, and changed after that (as it
/// must not be, but a `VmaWrite` is leave to do it): it is write-locked from
/// the moment it can be found.
pub(crate) fn published_write_locked<S: LockScheme>(name: &'static str, preemptions: Option<usize>) {
    explore(name, preemptions, || {
        crate::rcu::stats();
        let mm = Arc::new(MmCore::<S>::new());
        let _ = S::slab().stats();
        let reader = {
            let mm = mm.clone();
            spawn(move || {
                if let Ok(vma) = S::lock_vma_under_rcu(&mm, page(1)) {
                    held(&mm, vma, 1);
                }
            })
        };
        let write = mm.mmap_write();
        let mut vma = attach(&write, pages(1, 2));
        let entry = Entry { range: pages(1, 2), ptr: vma.as_ptr() };
        // SAFETY: the mmap lock is held for writing, and there are no snapshots.
        unsafe { mm.tree.replace(pages(1, 2), &[entry]) };
        vma.set_segment(&segment(pages(1, 3)), PageRange::default());
        drop(write);
        join([reader]);
    });
}

/// Those of any scheme with a lock in each VMA.
macro_rules! section_models {
    ($scheme:ty, $name:literal) => {
        #[test]
        fn the_section_before_is_seen() {
            let name = concat!($name, ": the section before");
            scene::<$scheme>(name, None, &[changes, reads]);
            scene::<$scheme>(name, None, &[changes, reads_page_2]);
            // (A reader at a time: two of them have 120,000 schedules even with
            // two preemptions, and nothing to do with each other.)
        }

        #[test]
        fn is_published_write_locked() {
            published_write_locked::<$scheme>(concat!($name, ": published before the section ends"), Some(3));
        }

        #[test]
        fn the_drain_ends() {
            scene::<$scheme>(concat!($name, ": two readers and a detach"), TWO_READERS, &[goes, reads, reads]);
        }
    };
}

pub(super) use {reuse_models, section_models};
