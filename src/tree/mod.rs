//! [`VmaTree`]: the ordered map from page ranges to VMAs, read without a lock.
//! It stands where Linux has the maple tree (`lib/maple_tree.c`).
//!
//! # Protocol
//!
//! The tree is a B+ tree whose published nodes are never written. A mutation
//! ([`VmaTree::replace`]) builds new copies of the nodes on the path that it
//! changes, up to a new root, and then stores the root pointer, once. So:
//!
//! - **All at once.** The root store is the moment at which a whole operation
//!   becomes visible. Before it a reader sees everything as it was, after it
//!   everything as it is; there is nothing between, hence no hole inside a
//!   `MAP_FIXED` replacement, a split or a merge.
//! - **One state for a whole walk.** A [`Snapshot`] keeps the root that it
//!   loaded. All its queries answer from the same state, however many
//!   mutations take place meanwhile. (What the pointers point to is not part
//!   of the tree, and may change.)
//! - **No reader writes.** A query is plain loads from nodes that no one
//!   writes; the one atomic access is the Acquire load of the root.
//!
//! What a mutation took out of the tree is retired after the root store: with
//! [`Reclaim::AfterGracePeriod`] it is freed when every read section that may
//! have loaded an older root is over, with [`Reclaim::AtOnce`] immediately,
//! for trees that are read under the lock that excludes mutations. RCU is told
//! of it by the dozen (`RETIRED_MAX`): until then the tree keeps it.
//!
//! Mutations exclude each other by the caller's lock (the mmap lock for
//! writing).
//!
//! # Summaries
//!
//! A parent keeps for each child where its first entry starts, where its last
//! entry ends and the largest gap between two entries inside it. The gap
//! between neighbouring children follows from the first two. That is what
//! makes a search for free space O(log n).

mod gap;
#[cfg(all(test, loom))]
mod models;
mod node;
mod read;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
mod validate;
mod write;

#[cfg(any(feature = "races", loom, shuttle))]
pub(crate) use read::Position;
pub use read::{Iter, Snapshot};

use crate::addr::PageRange;
use crate::races;
use crate::rcu;
use crate::sync::{AtomicPtr, MODEL, Ordering, const_fn};
use node::{Node, NodeRef, free_node};
use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

/// One mapping: a range and what it maps to.
#[repr(C)]
pub struct Entry<T> {
    /// The pages; not empty.
    pub range: PageRange,
    /// What they map to.
    pub ptr: NonNull<T>,
}

impl<T> Clone for Entry<T> {
    #[inline]
    fn clone(&self) -> Entry<T> {
        *self
    }
}

impl<T> Copy for Entry<T> {}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Entry<T>) -> bool {
        self.range == other.range && self.ptr == other.ptr
    }
}

impl<T> Eq for Entry<T> {}

impl<T> fmt::Debug for Entry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} -> {:?}", self.range, self.ptr)
    }
}

impl Entry<()> {
    #[inline]
    fn cast<T>(self) -> Entry<T> {
        Entry { range: self.range, ptr: self.ptr.cast() }
    }
}

/// When the nodes that a mutation replaced are freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// After a grace period of [`rcu::READERS`]: the tree is read in its sections.
    AfterGracePeriod,
    /// At once: every reader holds the lock that excludes mutations.
    AtOnce,
}

/// Retired nodes of a tree of which RCU is told at once: ten operations'. (One by
/// one where a node should be poisoned as soon as it may be.)
const RETIRED_MAX: usize = if MODEL || races::ENABLED { 1 } else { 30 };

/// An ordered map from disjoint page ranges to `NonNull<T>`. See the module's
/// documentation.
///
/// It owns its nodes, not what the pointers point to.
pub struct VmaTree<T> {
    /// The published state; null when empty.
    root: AtomicPtr<Node>,
    reclaim: Reclaim,
    /// Unlinked nodes that nobody has been told to free. Only mutations touch it.
    retired: UnsafeCell<Vec<NonNull<Node>>>,
    /// Hands out pointers and dereferences none: Send and Sync like an atomic pointer.
    _entries: PhantomData<AtomicPtr<T>>,
}

// SAFETY: nodes may be freed by any thread.
unsafe impl<T> Send for VmaTree<T> {}
// SAFETY: `retired` is touched by `replace`, which excludes itself by its
// contract, and by `drop`; all else is atomic, or never changes.
unsafe impl<T> Sync for VmaTree<T> {}
/// A mutation that panics has changed nothing.
impl<T> std::panic::RefUnwindSafe for VmaTree<T> {}

impl<T> VmaTree<T> {
    const_fn! {
    /// An empty tree.
    pub const fn new(reclaim: Reclaim) -> VmaTree<T> {
        VmaTree {
            root: AtomicPtr::new(ptr::null_mut()),
            reclaim,
            retired: UnsafeCell::new(Vec::new()),
            _entries: PhantomData,
        }
    }
    }

    /// The state at this moment, for as long as the read section lasts.
    /// Async-signal-safe, like all queries.
    ///
    /// # Panics
    /// If `guard` is not of [`rcu::READERS`], or the tree reclaims
    /// [`AtOnce`](Reclaim::AtOnce): the section would protect nothing.
    #[inline]
    pub fn snapshot<'g>(&'g self, guard: &'g rcu::ReadGuard) -> Snapshot<'g, T> {
        assert!(guard.domain().protects_readers() && self.reclaim == Reclaim::AfterGracePeriod);
        // SAFETY: a node that this root reaches is retired after a later root
        // store, so not freed before the section behind `guard` ends; and the
        // tree, borrowed, is not dropped.
        unsafe { self.load() }
    }

    /// The state at this moment, for a caller that excludes mutations.
    ///
    /// # Safety
    /// No [`replace`](VmaTree::replace) runs during `'g` (but see there: the
    /// caller may drop the snapshot and mutate).
    #[inline]
    pub unsafe fn snapshot_locked(&self) -> Snapshot<'_, T> {
        // SAFETY: nothing is unlinked while the snapshot is in use.
        unsafe { self.load() }
    }

    /// # Safety
    /// The nodes that the root reaches are not freed during `'g`.
    #[inline]
    unsafe fn load<'g>(&'g self) -> Snapshot<'g, T> {
        // Acquire: pairs with the Release in `replace`: the nodes were written
        // before they were published.
        let root = NonNull::new(self.root.load(Ordering::Acquire));
        // SAFETY: published, and not freed during 'g by the caller's promise.
        Snapshot::new(root.map(|root| unsafe { NodeRef::new(root) }))
    }

    /// Removes every entry in `span` and inserts `new`, in one step. Returns
    /// how many entries it removed. Costs O(log n + removed + inserted).
    ///
    /// With [`Reclaim::AfterGracePeriod`] the caller must be outside any
    /// section of [`rcu::READERS`]: when many retired nodes wait, so does this.
    ///
    /// # Panics
    /// Before anything is changed: if an entry straddles an end of `span`, or
    /// `new` is not sorted, disjoint, inside `span` and free of empty ranges.
    ///
    /// # Safety
    /// No other `replace` on this tree runs meanwhile, and no
    /// [`snapshot_locked`](VmaTree::snapshot_locked) is used that was taken before.
    pub unsafe fn replace(&self, span: PageRange, new: &[Entry<T>]) -> usize {
        // SAFETY: Entry is repr(C), and a thin NonNull has the same layout
        // whatever it points to.
        let new = unsafe { &*(ptr::from_ref(new) as *const [Entry<()>]) };
        // Relaxed: the lock that excludes mutations orders them.
        let old = NonNull::new(self.root.load(Ordering::Relaxed));
        // SAFETY: the root is live, and only mutations free nodes: this one does after `edit`.
        let root = old.map(|root| unsafe { NodeRef::new(root) });
        // SAFETY: no other `replace` runs meanwhile, and nothing else uses it.
        let retired = unsafe { &mut *self.retired.get() };
        let done = write::edit(root, span, new, retired);
        if done.root == old {
            return 0;
        }
        let root = done.root.map_or(ptr::null_mut(), NonNull::as_ptr);
        // Release: pairs with the Acquire in `load`.
        self.root.store(root, Ordering::Release);
        match self.reclaim {
            Reclaim::AfterGracePeriod if retired.len() < RETIRED_MAX => {}
            Reclaim::AfterGracePeriod => {
                let retired = retired.drain(..).map(|node| node.as_ptr().cast());
                // SAFETY: unlinked by the store above, or by an earlier mutation that
                // came before this one; `edit` lists each node once.
                unsafe { rcu::defer_all(retired, reclaim_node) }
            }
            Reclaim::AtOnce => {
                for node in retired.drain(..) {
                    // SAFETY: as above, and readers are excluded.
                    unsafe { free_node(node) }
                }
            }
        }
        // A large operation's list is not kept.
        retired.shrink_to(4 * RETIRED_MAX);
        done.removed
    }
}

/// # Safety
/// As [`free_node`]; `node` is a node.
unsafe fn reclaim_node(node: *mut ()) {
    // SAFETY: passed on from the caller; a node's address is not null.
    unsafe { free_node(NonNull::new_unchecked(node.cast())) }
}

impl<T> Drop for VmaTree<T> {
    fn drop(&mut self) {
        fn free(node: NodeRef<'_>) {
            if node.level() > 0 {
                (0..node.len()).for_each(|i| free(node.child(i)));
            }
            // SAFETY: the tree is borrowed by no snapshot; children go first,
            // and each node has one parent.
            unsafe { free_node(node.as_ptr()) }
        }
        if let Some(root) = NonNull::new(self.root.load(Ordering::Relaxed)) {
            // SAFETY: live until `free` gets to it.
            free(unsafe { NodeRef::new(root) });
        }
        for node in self.retired.get_mut().drain(..) {
            // SAFETY: unlinked, and whoever read it then had the tree borrowed.
            unsafe { free_node(node) }
        }
    }
}

impl<T> fmt::Debug for VmaTree<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmaTree").field("reclaim", &self.reclaim).finish_non_exhaustive()
    }
}
