//! Tree nodes: their layout, the search inside one, and where their memory
//! comes from. Called by the tree only.
//!
//! A node is 512 bytes. What a lookup compares lies densely at its front; the
//! rest of an entry is touched only once the position is known. Unused starts
//! hold `usize::MAX`, so a search counts over the whole array, with a fixed
//! number of steps and without looking at the length.

use super::Entry;
use crate::addr::{PageRange, VirtAddr};
use crate::races;
use crate::rcu;
use crate::slab::{self, PageReturn, Slab};
use crate::sync::{MODEL, statics, track};
use std::alloc::{Layout, handle_alloc_error};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::{self, NonNull};

/// Entries of a full leaf.
pub(super) const LEAF_MAX: usize = 20;
/// Entries below which a leaf that is not the root is merged or refilled.
pub(super) const LEAF_MIN: usize = LEAF_MAX / 4;
/// Children of a full inner node.
pub(super) const INNER_MAX: usize = 15;
/// Children below which an inner node that is not the root is merged or refilled.
pub(super) const INNER_MIN: usize = 4;
/// Levels of the highest tree. With every node as empty as it may be, this
/// many levels hold `LEAF_MIN * INNER_MIN^15`, five thousand million entries.
pub(super) const MAX_HEIGHT: usize = 16;

/// First word of a live node.
const MAGIC: u32 = 0x7ee5_ab1e;
/// What a freed node is filled with in debug builds.
const POISON: u8 = 0x5a;
/// Start of an unused slot: no address reaches it, see [`rank`].
const UNUSED: usize = usize::MAX;

/// The entries of a leaf, in order of address.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Leaf {
    pub(super) starts: [usize; LEAF_MAX],
    pub(super) ends: [usize; LEAF_MAX],
    pub(super) ptrs: [*mut (); LEAF_MAX],
    /// Makes both bodies the same size, so that no byte is ever uninitialised.
    _pad: usize,
}

/// The children of an inner node, in order of address.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Inner {
    /// Start of the first entry below the child. One slot more than children,
    /// never used: [`rank`] works in blocks of four.
    pub(super) starts: [usize; INNER_MAX + 1],
    /// End of the last entry below the child.
    pub(super) ends: [usize; INNER_MAX],
    /// Largest gap between two entries that are both below the child.
    pub(super) gaps: [usize; INNER_MAX],
    pub(super) children: [*mut Node; INNER_MAX],
}

/// Leaf or inner, by the node's level. Both consist of integers and raw
/// pointers without padding, so that reading either is defined.
#[derive(Clone, Copy)]
#[repr(C)]
union Body {
    leaf: Leaf,
    inner: Inner,
}

/// One node.
///
/// # Invariants
/// Once published it is never written again until it is freed. A node of level
/// `n > 0` has at least one child; its first `len` children are live nodes of
/// level `n - 1`, and live as long as it does. Slots from `len` on have the
/// start [`UNUSED`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Node {
    magic: u32,
    /// 0 is a leaf.
    level: u16,
    len: u16,
    /// Entries of the whole tree; kept in the root only.
    pub(super) entries: usize,
    body: Body,
}

// SAFETY: a node is plain data; what its pointers point to is the tree's affair.
unsafe impl Send for Node {}
// SAFETY: as above.
unsafe impl Sync for Node {}

/// The head of a node and the starts of a leaf.
type Front = [u8; 24 + size_of::<[usize; LEAF_MAX]>()];

const _: () = assert!(size_of::<Node>() == 512 && size_of::<Leaf>() == size_of::<Inner>());

/// One child as its parent describes it.
#[derive(Clone, Copy)]
pub(super) struct Child {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) gap: usize,
    pub(super) node: NonNull<Node>,
}

impl Node {
    /// A node without entries, to start from.
    pub(super) const fn empty(level: usize) -> Node {
        let body = if level == 0 {
            let leaf =
                Leaf { starts: [UNUSED; LEAF_MAX], ends: [0; LEAF_MAX], ptrs: [ptr::null_mut(); LEAF_MAX], _pad: 0 };
            Body { leaf }
        } else {
            let inner = Inner {
                starts: [UNUSED; INNER_MAX + 1],
                ends: [0; INNER_MAX],
                gaps: [0; INNER_MAX],
                children: [ptr::null_mut(); INNER_MAX],
            };
            Body { inner }
        };
        Node { magic: MAGIC, level: level as u16, len: 0, entries: 0, body }
    }

    #[inline]
    pub(super) fn level(&self) -> usize {
        self.level as usize
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub(super) fn leaf(&self) -> &Leaf {
        debug_assert_eq!(self.level, 0);
        // SAFETY: every bit pattern is valid in every field of either body.
        unsafe { &self.body.leaf }
    }

    #[inline]
    pub(super) fn inner(&self) -> &Inner {
        debug_assert_ne!(self.level, 0);
        // SAFETY: every bit pattern is valid in every field of either body.
        unsafe { &self.body.inner }
    }

    fn leaf_mut(&mut self) -> &mut Leaf {
        debug_assert_eq!(self.level, 0);
        // SAFETY: every bit pattern is valid in every field of either body.
        unsafe { &mut self.body.leaf }
    }

    fn inner_mut(&mut self) -> &mut Inner {
        debug_assert_ne!(self.level, 0);
        // SAFETY: every bit pattern is valid in every field of either body.
        unsafe { &mut self.body.inner }
    }

    /// Entry `i` of a leaf, `i < len`.
    #[inline]
    pub(super) fn entry(&self, i: usize) -> Entry<()> {
        debug_assert!(i < self.len());
        let leaf = self.leaf();
        track::read(&raw const leaf.ends[i]);
        track::read(&raw const leaf.ptrs[i]);
        Entry {
            range: PageRange::new(VirtAddr(leaf.starts[i]), VirtAddr(leaf.ends[i])),
            ptr: NonNull::new(leaf.ptrs[i]).expect("a used slot has a pointer"),
        }
    }

    /// Child `i` of an inner node, `i < len`.
    #[inline]
    pub(super) fn summary(&self, i: usize) -> Child {
        let inner = self.inner();
        let node = NonNull::new(inner.children[i]).expect("a used slot has a child");
        Child { start: inner.starts[i], end: inner.ends[i], gap: inner.gaps[i], node }
    }

    /// Start of the first entry.
    #[inline]
    pub(super) fn start(&self) -> usize {
        // The starts begin both bodies.
        if self.level == 0 { self.leaf().starts[0] } else { self.inner().starts[0] }
    }

    /// End of the last entry.
    #[inline]
    pub(super) fn end(&self) -> usize {
        let last = self.len() - 1;
        if self.level == 0 { self.leaf().ends[last] } else { self.inner().ends[last] }
    }

    /// The free bytes between slots `i - 1` and `i`; 0 beside an end of the node.
    #[inline]
    pub(super) fn gap_before(&self, i: usize) -> usize {
        if i == 0 || i >= self.len() {
            0
        } else if self.level == 0 {
            self.leaf().starts[i] - self.leaf().ends[i - 1]
        } else {
            self.inner().starts[i] - self.inner().ends[i - 1]
        }
    }

    /// Largest gap strictly between two entries below this node.
    #[inline]
    pub(super) fn max_gap(&self) -> usize {
        self.max_gap_but(self.len(), self.len())
    }

    /// The same without what lies beside or below one of the slots `lo..hi`.
    pub(super) fn max_gap_but(&self, lo: usize, hi: usize) -> usize {
        fn between(starts: &[usize], ends: &[usize]) -> usize {
            let later = starts.get(1..).unwrap_or_default();
            later.iter().zip(ends).fold(0, |max, (start, end)| max.max(start - end))
        }
        let len = self.len();
        if self.level == 0 {
            let Leaf { starts, ends, .. } = self.leaf();
            between(&starts[..lo], &ends[..lo]).max(between(&starts[hi..len], &ends[hi..len]))
        } else {
            let Inner { starts, ends, gaps, .. } = self.inner();
            let widest = |gaps: &[usize]| gaps.iter().fold(0, |max, &gap| max.max(gap));
            let below = widest(&gaps[..lo]).max(widest(&gaps[hi..len]));
            below.max(between(&starts[..lo], &ends[..lo])).max(between(&starts[hi..len], &ends[hi..len]))
        }
    }

    /// Replaces the entries `lo..hi` of a leaf by `new`, which must fit.
    pub(super) fn splice(&mut self, lo: usize, hi: usize, new: &[Entry<()>]) {
        let (old_len, mid) = (self.len(), lo + new.len());
        let len = mid + old_len - hi;
        self.len = len as u16;
        let leaf = self.leaf_mut();
        if mid != hi && hi < old_len {
            leaf.starts.copy_within(hi..old_len, mid);
            leaf.ends.copy_within(hi..old_len, mid);
            leaf.ptrs.copy_within(hi..old_len, mid);
        }
        for (i, entry) in (lo..mid).zip(new) {
            leaf.starts[i] = entry.range.start().get();
            leaf.ends[i] = entry.range.end().get();
            leaf.ptrs[i] = entry.ptr.as_ptr();
        }
        if len < old_len {
            leaf.starts[len..old_len].fill(UNUSED);
        }
    }

    /// Writes child `i` of an inner node, `i < len`.
    pub(super) fn set_child(&mut self, i: usize, child: Child) {
        let inner = self.inner_mut();
        inner.starts[i] = child.start;
        inner.ends[i] = child.end;
        inner.gaps[i] = child.gap;
        inner.children[i] = child.node.as_ptr();
    }

    /// Appends a child to an inner node that has room.
    pub(super) fn push_child(&mut self, child: Child) {
        let i = self.len();
        self.len += 1;
        self.set_child(i, child);
    }
}

/// How many of `keys[1..]` are `<= addr`: the index of the last slot that
/// starts at or before `addr`, or 0 if none does. Below `N`, and a used slot
/// whenever `addr < usize::MAX`.
///
/// Compares every fourth key, then the three keys of the block found: no
/// branch to mispredict, and the comparisons of one step do not wait for each
/// other.
#[inline(always)]
pub(super) fn rank<const N: usize>(keys: &[usize; N], addr: usize) -> usize {
    const { assert!(N.is_multiple_of(4)) };
    let mut block = 0;
    for i in 1..N / 4 {
        block += usize::from(keys[4 * i] <= addr);
    }
    let base = 4 * block;
    // SAFETY: block <= N / 4 - 1, so base + 4 <= N.
    let keys = unsafe { &*keys.as_ptr().add(base).cast::<[usize; 4]>() };
    base + usize::from(keys[1] <= addr) + usize::from(keys[2] <= addr) + usize::from(keys[3] <= addr)
}

/// A node that stays as it is for `'t`.
///
/// # Invariants
/// The node is published and not freed during `'t`.
#[derive(Clone, Copy)]
pub(super) struct NodeRef<'t> {
    ptr: NonNull<Node>,
    _borrow: PhantomData<&'t Node>,
}

impl<'t> NodeRef<'t> {
    /// # Safety
    /// The node is published and not freed during `'t`.
    #[inline]
    pub(super) unsafe fn new(ptr: NonNull<Node>) -> NodeRef<'t> {
        // INVARIANT: the caller's promise.
        NodeRef { ptr, _borrow: PhantomData }
    }

    #[inline]
    #[cfg_attr(feature = "conflicts", track_caller)]
    pub(super) fn get(self) -> &'t Node {
        // SAFETY: live and unwritten during 't, by the invariant.
        let node = unsafe { self.ptr.as_ref() };
        track::used(self.ptr.as_ptr());
        // What a search compares; the starts begin both bodies.
        track::read(self.ptr.as_ptr().cast::<Front>());
        if races::POISON && node.magic != MAGIC {
            races::violation(races::Oracle::O6, "a tree node was used after it was freed");
        }
        node
    }

    /// Child `i`, `i < len`.
    #[inline]
    #[cfg_attr(feature = "conflicts", track_caller)]
    pub(super) fn child(self, i: usize) -> NodeRef<'t> {
        debug_assert!(i < self.len());
        track::read(&raw const self.get().inner().children[i]);
        // SAFETY: `i < len <= INNER_MAX`, and the first `len` children are not null.
        let child = unsafe { NonNull::new_unchecked(*self.get().inner().children.get_unchecked(i)) };
        // INVARIANT: a child lives as long as its parent.
        NodeRef { ptr: child, _borrow: PhantomData }
    }

    /// Has the cache lines brought that a lookup needs once it knows the position
    /// in this leaf: they come together with those that tell it, not after them.
    #[inline(always)]
    pub(super) fn prefetch_entries(self) {
        #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
        for line in 3..8 {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, and inside the node.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.ptr.as_ptr().cast::<i8>().add(64 * line)) };
        }
    }

    #[inline]
    pub(super) fn as_ptr(self) -> NonNull<Node> {
        self.ptr
    }
}

impl Deref for NodeRef<'_> {
    type Target = Node;
    #[inline]
    #[cfg_attr(feature = "conflicts", track_caller)]
    fn deref(&self) -> &Node {
        self.get()
    }
}

/// A node of its own: a copy of `from`, changed by `change`. Nobody else knows
/// it before it is published. Mutators only.
#[inline]
#[cfg_attr(feature = "conflicts", track_caller)]
pub(super) fn store(from: &Node, change: impl FnOnce(&mut Node)) -> NonNull<Node> {
    let ptr = alloc_node();
    track::read(from);
    // SAFETY: fresh memory for one node, which nobody else knows.
    let node = unsafe {
        ptr.copy_from_nonoverlapping(NonNull::from(from), 1);
        &mut *ptr.as_ptr()
    };
    change(node);
    track::born(ptr.as_ptr());
    ptr
}

/// Free nodes that a thread keeps: what a grace period frees is taken again
/// before the next one.
const MAGAZINE: usize = if MODEL { slab::MAGAZINE } else { rcu::BATCH + rcu::BATCH / 4 };

statics! {
    /// Nodes are freed when no reader can reach them, so their pages need not wait.
    static NODES: Slab<Node, MAGAZINE> = Slab::new(|| Node::empty(0), PageReturn::AtOnce);
}

#[cfg(all(test, not(any(loom, shuttle))))]
thread_local! {
    /// Nodes that this thread took less those it gave back.
    pub(super) static BALANCE: std::cell::Cell<isize> = const { std::cell::Cell::new(0) };
}

/// Memory for one node, holding anything.
fn alloc_node() -> NonNull<Node> {
    #[cfg(all(test, not(any(loom, shuttle))))]
    BALANCE.set(BALANCE.get() + 1);
    NODES.alloc().unwrap_or_else(|| handle_alloc_error(Layout::new::<Node>()))
}

/// Gives a node's memory back, not its children's.
///
/// # Safety
/// `node` comes from [`store`], nobody can reach it any more, and it is freed once.
pub(super) unsafe fn free_node(node: NonNull<Node>) {
    #[cfg(all(test, not(any(loom, shuttle))))]
    BALANCE.set(BALANCE.get() - 1);
    track::died(node.as_ptr());
    // SAFETY: the node is the caller's, and came from this slab.
    unsafe {
        if races::POISON {
            node.write_bytes(POISON, 1);
        }
        // A model keeps it, to know a stale reader by its address.
        if !MODEL {
            NODES.free(node);
        }
    }
}
