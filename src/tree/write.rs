//! One mutation: from a root and a change to a new root and the nodes that
//! fall away. Nothing here publishes or frees.
//!
//! The nodes that a change touches on one level form a run. Of the run's
//! first node some leading items are kept, of its last some trailing ones, and
//! what is between them is replaced. Two paths, left and right, describe all
//! levels' runs. From the leaves upward, each level's kept and new items are
//! packed into new nodes, which are the new items of the level above. A run
//! with too few items takes the neighbouring node in, wherever in the tree
//! its parent is.
//!
//! Most mutations stay within one leaf that neither overflows nor runs low.
//! They take a short cut ([`in_one_leaf`]): each node of the one path is
//! copied and one slot of the copy changed.

use super::Entry;
use super::node::{Child, INNER_MAX, INNER_MIN, LEAF_MAX, LEAF_MIN, MAX_HEIGHT, Node, NodeRef, rank, store};
use crate::addr::PageRange;
use smallvec::SmallVec;
use std::ptr::NonNull;

/// What a mutation comes to. (Two words, which are returned in registers.)
pub(super) struct Done {
    /// The new root, freshly made, or the old one if nothing changes; `None` if the
    /// tree is empty now.
    pub(super) root: Option<NonNull<Node>>,
    /// Entries removed.
    pub(super) removed: usize,
}

/// New nodes of one level: one, when nothing splits.
type Made = SmallVec<[Child; 2]>;

/// A node of a path. On the left path the items before `at` are kept, on the
/// right path the items from `at` on.
#[derive(Clone, Copy)]
struct Step<'t> {
    node: NodeRef<'t>,
    at: usize,
}

struct Edit<'t> {
    /// By level; only the first `height` are meant.
    left: [Step<'t>; MAX_HEIGHT],
    right: [Step<'t>; MAX_HEIGHT],
    height: usize,
    retired: SmallVec<[NonNull<Node>; MAX_HEIGHT]>,
    removed: usize,
}

/// Replaces what is in `span` by `new`. Adds the nodes that the new root does not
/// reach to `retired`, once each.
pub(super) fn edit(
    root: Option<NodeRef<'_>>,
    span: PageRange,
    new: &[Entry<()>],
    retired: &mut Vec<NonNull<Node>>,
) -> Done {
    check(span, new);
    let Some(root) = root else {
        return Done { root: first_root(new), removed: 0 };
    };
    let unchanged = Done { root: Some(root.as_ptr()), removed: 0 };
    if span.is_empty() {
        return unchanged;
    }
    if let Some(done) = in_one_leaf(root, span, new, retired) {
        return done;
    }
    let mut edit = Edit::descend(root, span);
    if edit.removed == 0 && new.is_empty() {
        return unchanged;
    }
    let entries = root.entries - edit.removed + new.len();
    let mut made = edit.leaves(new);
    let mut level = 0;
    while made.len() > 1 || edit.keeps_above(level) {
        level += 1;
        made = edit.inner(level, &made);
    }
    let root = made.first().map(|child| finish(child.node, entries));
    retired.extend_from_slice(&edit.retired);
    Done { root, removed: edit.removed }
}

/// The root of a tree that was empty.
fn first_root(new: &[Entry<()>]) -> Option<NonNull<Node>> {
    let mut made = pack_leaves(new, None);
    for level in 1.. {
        if made.len() <= 1 {
            break;
        }
        made = pack_inner(level, &made, None);
    }
    made.first().map(|child| finish(child.node, new.len()))
}

fn check(span: PageRange, new: &[Entry<()>]) {
    let mut end = span.start();
    for entry in new {
        assert!(!entry.range.is_empty(), "empty range {:?}", entry.range);
        assert!(end <= entry.range.start(), "{:?} is out of order or outside {span:?}", entry.range);
        end = entry.range.end();
    }
    assert!(end <= span.end(), "an entry ends at {end:?}, outside {span:?}");
}

/// Panics if an entry of the slots `lo..hi`, those that `span` meets in a leaf,
/// reaches out of `span`.
#[inline]
fn check_ends(leaf: &Node, lo: usize, hi: usize, span: PageRange) {
    if lo < hi {
        let (low, high) = (leaf.leaf().starts[lo], leaf.leaf().ends[hi - 1]);
        assert!(
            span.start().get() <= low && high <= span.end().get(),
            "an entry of {low:#x}..{high:#x} straddles {span:?}"
        );
    }
}

/// The short cut; `None` if it does not apply.
fn in_one_leaf(
    root: NodeRef<'_>,
    span: PageRange,
    new: &[Entry<()>],
    retired: &mut Vec<NonNull<Node>>,
) -> Option<Done> {
    let (first, last) = (span.start().get(), span.end().get() - 1);
    let height = root.level() + 1;
    let mut path: SmallVec<[Step<'_>; MAX_HEIGHT]> = SmallVec::new();
    let mut node = root;
    for _ in 1..height {
        let starts = &node.get().inner().starts;
        let i = rank(starts, first);
        if starts[i + 1] <= last {
            return None;
        }
        path.push(Step { node, at: i });
        node = node.child(i);
    }
    let leaf = node.get();
    let (starts, ends) = (&leaf.leaf().starts, &leaf.leaf().ends);
    let lo = rank(starts, first);
    let lo = lo + usize::from(ends[lo] <= first);
    let hi = lo + starts[lo..leaf.len()].iter().take_while(|&&start| start <= last).count();
    check_ends(leaf, lo, hi, span);
    let removed = hi - lo;
    let len = leaf.len() - removed + new.len();
    let min = if height > 1 { LEAF_MIN } else { 1 };
    if !(min..=LEAF_MAX).contains(&len) || removed + new.len() == 0 {
        return None;
    }
    let mut changed = Changed::leaf(leaf, lo, hi, new);
    let mut made = store(leaf, |leaf| leaf.splice(lo, hi, new));
    for &Step { node, at } in path.iter().rev() {
        let old = node.get();
        let child = changed.as_child(old.inner().gaps[at], made);
        changed = Changed::inner(old, at, child);
        made = store(old, |node| node.set_child(at, child));
    }
    // Not before all is made that may fail: until then the tree reaches them.
    retired.push(node.as_ptr());
    retired.extend(path.iter().map(|step| step.node.as_ptr()));
    Some(Done { root: Some(finish(made, root.entries - removed + new.len())), removed })
}

/// A node of which the slots `lo..hi` are replaced: what its parent has to know
/// of the copy, from what is known beforehand. (To look at the copy would mean to
/// wait until it has reached the cache.)
struct Changed<'t> {
    old: &'t Node,
    lo: usize,
    hi: usize,
    /// Start of the first entry and end of the last one.
    start: usize,
    end: usize,
    /// The widest of the gaps that go, and of those that come in their place.
    gone: usize,
    come: usize,
}

impl<'t> Changed<'t> {
    #[inline]
    fn leaf(old: &'t Node, lo: usize, hi: usize, new: &[Entry<()>]) -> Changed<'t> {
        let body = old.leaf();
        let left = if lo > 0 { Some(body.ends[lo - 1]) } else { None };
        let right = if hi < old.len() { Some(body.starts[hi]) } else { None };
        let gap = |left: Option<usize>, right| left.map_or(0, |left: usize| right - left);
        let (mut come, mut last) = (0, left);
        for entry in new {
            come = come.max(gap(last, entry.range.start().get()));
            last = Some(entry.range.end().get());
        }
        if let Some(right) = right {
            come = come.max(gap(last, right));
        }
        let first = new.first().map(|entry| entry.range.start().get()).or(right);
        let start = if lo > 0 { body.starts[0] } else { first.expect("the node is not empty") };
        let end = if hi < old.len() { body.ends[old.len() - 1] } else { last.expect("the node is not empty") };
        Changed { old, lo, hi, start, end, gone: widest(old, lo..=hi), come }
    }

    /// Child `at` becomes `child`.
    #[inline]
    fn inner(old: &'t Node, at: usize, child: Child) -> Changed<'t> {
        let (body, len) = (old.inner(), old.len());
        let gone = body.gaps[at].max(widest(old, at..=at + 1));
        let left = if at > 0 { child.start - body.ends[at - 1] } else { 0 };
        let right = if at + 1 < len { body.starts[at + 1] - child.end } else { 0 };
        let start = if at > 0 { body.starts[0] } else { child.start };
        let end = if at + 1 < len { body.ends[len - 1] } else { child.end };
        Changed { old, lo: at, hi: at + 1, start, end, gone, come: child.gap.max(left).max(right) }
    }

    /// What the parent says of the copy, if of the old node it said `old_max`.
    #[inline]
    fn as_child(&self, old_max: usize, node: NonNull<Node>) -> Child {
        let gap = if self.come >= old_max {
            self.come
        } else if self.gone < old_max {
            old_max
        } else {
            // Perhaps another is as wide as the one that went; none is wider.
            self.come.max(self.old.max_gap_but(self.lo, self.hi))
        };
        Child { start: self.start, end: self.end, gap, node }
    }
}

/// The widest gap before one of `slots`.
#[inline]
fn widest(node: &Node, slots: std::ops::RangeInclusive<usize>) -> usize {
    let mut widest = 0;
    for i in slots {
        widest = widest.max(node.gap_before(i));
    }
    widest
}

/// Makes a node that is not published yet the root.
fn finish(mut node: NonNull<Node>, entries: usize) -> NonNull<Node> {
    // SAFETY: made by this mutation, so nobody else knows it yet.
    unsafe { node.as_mut() }.entries = entries;
    node
}

/// A node of this mutation.
#[inline]
fn fresh(node: &NonNull<Node>) -> &Node {
    // SAFETY: written by `store` and not published yet; nobody frees it, and
    // `finish` writes to it only when all borrows are over.
    unsafe { node.as_ref() }
}

/// What the parent of a new node says of it, but for the gap.
#[inline]
fn outline(node: NonNull<Node>) -> Child {
    Child { start: fresh(&node).start(), end: fresh(&node).end(), gap: 0, node }
}

/// What the parent of a new node says of it.
fn describe(node: NonNull<Node>) -> Child {
    Child { gap: fresh(&node).max_gap(), ..outline(node) }
}

impl<'t> Edit<'t> {
    /// Finds both paths, and retires what is on and between them.
    fn descend(root: NodeRef<'t>, span: PageRange) -> Edit<'t> {
        let (first, last) = (span.start().get(), span.end().get() - 1);
        let step = Step { node: root, at: 0 };
        let height = root.level() + 1;
        let mut edit =
            Edit { left: [step; MAX_HEIGHT], right: [step; MAX_HEIGHT], height, retired: SmallVec::new(), removed: 0 };
        let (mut left, mut right) = (root, root);
        for level in (1..height).rev() {
            let i = rank(&left.inner().starts, first);
            let j = rank(&right.inner().starts, last);
            edit.left[level] = Step { node: left, at: i };
            edit.right[level] = Step { node: right, at: j + 1 };
            edit.retired.push(left.as_ptr());
            if left.as_ptr() == right.as_ptr() {
                (i + 1..j).for_each(|c| edit.retire_below(left.child(c)));
            } else {
                edit.retired.push(right.as_ptr());
                (i + 1..left.len()).for_each(|c| edit.retire_below(left.child(c)));
                (0..j).for_each(|c| edit.retire_below(right.child(c)));
            }
            (left, right) = (left.child(i), right.child(j));
        }
        let before = &left.leaf().ends[..left.len()];
        let lo = before.iter().take_while(|&&end| end <= first).count();
        let upto = &right.leaf().starts[..right.len()];
        let hi = upto.iter().take_while(|&&start| start <= last).count();
        edit.left[0] = Step { node: left, at: lo };
        edit.right[0] = Step { node: right, at: hi };
        edit.retired.push(left.as_ptr());
        if left.as_ptr() == right.as_ptr() {
            check_ends(&left, lo, hi, span);
            edit.removed += hi - lo;
        } else {
            check_ends(&left, lo, left.len(), span);
            check_ends(&right, 0, hi, span);
            edit.retired.push(right.as_ptr());
            edit.removed += left.len() - lo + hi;
        }
        edit
    }

    fn retire_below(&mut self, node: NodeRef<'t>) {
        if node.level() == 0 {
            self.removed += node.len();
        } else {
            (0..node.len()).for_each(|i| self.retire_below(node.child(i)));
        }
        self.retired.push(node.as_ptr());
    }

    /// Whether anything above `level` stays.
    fn keeps_above(&self, level: usize) -> bool {
        (level + 1..self.height).any(|l| self.left[l].at > 0 || self.right[l].at < self.right[l].node.len())
    }

    /// The new leaves.
    fn leaves(&mut self, new: &[Entry<()>]) -> Made {
        let (left, right) = (self.left[0], self.right[0]);
        let len = left.at + new.len() + right.node.len() - right.at;
        let mut items: SmallVec<[Entry<()>; 2 * LEAF_MAX + 4]> = SmallVec::new();
        items.extend((0..left.at).map(|i| left.node.entry(i)));
        items.extend_from_slice(new);
        items.extend((right.at..right.node.len()).map(|i| right.node.entry(i)));
        if len > 0 && len < LEAF_MIN {
            match self.take_neighbour(0) {
                Some((Side::Left, node)) => {
                    items.insert_many(0, (0..node.len()).map(|i| node.entry(i)));
                }
                Some((Side::Right, node)) => items.extend((0..node.len()).map(|i| node.entry(i))),
                None => {}
            }
        }
        pack_leaves(&items, self.growing(0))
    }

    /// At which end of the level's run the tree grows: where nothing is kept of
    /// the run's node there.
    fn growing(&self, level: usize) -> Option<Side> {
        let (left, right) = (self.left[level], self.right[level]);
        match (left.at == 0, right.at == right.node.len()) {
            (true, false) => Some(Side::Left),
            (false, true) => Some(Side::Right),
            _ => None,
        }
    }

    /// The new nodes of `level`, whose new children are `made`. Where a single
    /// child is left in the whole tree, that child, as the root to be.
    fn inner(&mut self, level: usize, made: &[Child]) -> Made {
        if level >= self.height {
            return pack_inner(level, made, None);
        }
        let (left, right) = (self.left[level], self.right[level]);
        if let [child] = *made
            && left.node.as_ptr() == right.node.as_ptr()
            && left.at + 1 == right.at
        {
            // One child for one child: the common case. If the node has too
            // few children, it had before, and is the root.
            return one(describe(store(&left.node, |node| node.set_child(left.at, child))));
        }
        let mut items: SmallVec<[Child; 2 * INNER_MAX + 4]> = SmallVec::new();
        items.extend((0..left.at).map(|i| left.node.summary(i)));
        items.extend_from_slice(made);
        items.extend((right.at..right.node.len()).map(|i| right.node.summary(i)));
        if !items.is_empty() && items.len() < INNER_MIN {
            match self.take_neighbour(level) {
                Some((Side::Left, node)) => {
                    items.insert_many(0, (0..node.len()).map(|i| node.summary(i)));
                }
                Some((Side::Right, node)) => items.extend((0..node.len()).map(|i| node.summary(i))),
                None if items.len() == 1 => return one(self.sole_child(items[0])),
                None => {}
            }
        }
        pack_inner(level, &items, self.growing(level))
    }

    /// The tree loses a level, and a child that was kept becomes the root. It
    /// is published already, so the root must be a copy.
    fn sole_child(&mut self, child: Child) -> Child {
        self.retired.push(child.node);
        // SAFETY: a kept child, live until the mutation is done.
        let node = store(unsafe { NodeRef::new(child.node) }.get(), |_| ());
        Child { node, ..child }
    }

    /// Adds the node beside the run of `level` to the run, one with the same
    /// parent if there is one. The caller takes its items in. `None` if the
    /// run is the whole level.
    fn take_neighbour(&mut self, level: usize) -> Option<(Side, NodeRef<'t>)> {
        for above in level + 1..self.height {
            let Step { node, at } = self.left[above];
            if at > 0 {
                self.left[above].at = at - 1;
                let mut node = node.child(at - 1);
                for l in (level + 1..above).rev() {
                    let last = node.len() - 1;
                    self.left[l] = Step { node, at: last };
                    self.retired.push(node.as_ptr());
                    node = node.child(last);
                }
                self.retired.push(node.as_ptr());
                return Some((Side::Left, node));
            }
            let Step { node, at } = self.right[above];
            if at < node.len() {
                self.right[above].at = at + 1;
                let mut node = node.child(at);
                for l in (level + 1..above).rev() {
                    self.right[l] = Step { node, at: 1 };
                    self.retired.push(node.as_ptr());
                    node = node.child(0);
                }
                self.retired.push(node.as_ptr());
                return Some((Side::Right, node));
            }
        }
        None
    }
}

#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

fn one(child: Child) -> Made {
    let mut made = Made::new();
    made.push(child);
    made
}

/// What a new node has above the minimum where the tree grows, so that the next
/// few removals do not merge it again.
const SLACK: usize = 2;

/// Splits `items` into as few runs of at most `max` as possible, of about equal
/// length; where one becomes two because the tree grows at one end, of `min` items
/// there and the rest at the other. (mmap places downwards, so most trees grow at
/// an end all the time: nodes cut in half would stay so.)
fn runs<I>(mut items: &[I], min: usize, max: usize, growing: Option<Side>) -> impl Iterator<Item = &[I]> {
    let mut left = items.len().div_ceil(max);
    let uneven = if left == 2 && items.len() <= max + min { growing } else { None };
    std::iter::from_fn(move || {
        let run = match (left, uneven) {
            (2, Some(Side::Left)) => min,
            (2, Some(Side::Right)) => items.len() - min,
            _ => items.len().checked_div(left)?,
        };
        let (head, tail) = items.split_at(run);
        (items, left) = (tail, left - 1);
        Some(head)
    })
}

fn pack_leaves(items: &[Entry<()>], growing: Option<Side>) -> Made {
    const EMPTY: &Node = &Node::empty(0);
    runs(items, LEAF_MIN + SLACK, LEAF_MAX, growing)
        .map(|run| describe(store(EMPTY, |leaf| leaf.splice(0, 0, run))))
        .collect()
}

fn pack_inner(level: usize, items: &[Child], growing: Option<Side>) -> Made {
    assert!(level < MAX_HEIGHT, "the tree is too high");
    let empty = Node::empty(level);
    runs(items, INNER_MIN + SLACK, INNER_MAX, growing)
        .map(|run| describe(store(&empty, |node| run.iter().for_each(|&child| node.push_child(child)))))
        .collect()
}
