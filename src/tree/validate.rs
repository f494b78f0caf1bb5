//! Checks what the tree relies on. For tests and for the end of a run.

use super::node::{Child, INNER_MIN, LEAF_MIN, Node, NodeRef};
use super::read::Snapshot;

impl<T> Snapshot<'_, T> {
    /// Checks order, disjointness, the summaries, fill, equal depth and the
    /// entry count of the whole tree. O(n).
    ///
    /// # Panics
    /// If something is wrong, saying what.
    pub fn validate(&self) {
        let Some(root) = self.root else {
            return;
        };
        assert!(root.level() == 0 || root.len() >= 2, "an inner root has {} children", root.len());
        let entries = check(root, root.level(), true);
        assert_eq!(entries, root.entries, "entry count");
    }
}

/// Checks a subtree; returns its entries.
fn check(node: NodeRef<'_>, level: usize, is_root: bool) -> usize {
    assert_eq!(node.level(), level, "leaves at different depths");
    let min = if level == 0 { LEAF_MIN } else { INNER_MIN };
    assert!(node.len() >= if is_root { 1 } else { min }, "level {level} node has {} items", node.len());
    unused_slots(&node);
    let mut last_end = 0;
    let mut order = |start: usize, end: usize| {
        assert!(start < end, "{start:#x}..{end:#x} is empty or reversed");
        assert!(last_end <= start, "{start:#x}..{end:#x} begins before {last_end:#x}");
        last_end = end;
    };
    if level == 0 {
        for i in 0..node.len() {
            let range = node.entry(i).range;
            order(range.start().get(), range.end().get());
        }
        return node.len();
    }
    let mut entries = 0;
    for i in 0..node.len() {
        let Child { start, end, gap, .. } = node.summary(i);
        order(start, end);
        let child = node.child(i);
        entries += check(child, level - 1, false);
        assert_eq!(start, child.start(), "first start of child {i} on level {level}");
        assert_eq!(end, child.end(), "last end of child {i} on level {level}");
        assert_eq!(gap, child.max_gap(), "largest gap in child {i} on level {level}");
    }
    entries
}

fn unused_slots(node: &Node) {
    let starts = if node.level() == 0 { &node.leaf().starts[..] } else { &node.inner().starts[..] };
    assert!(starts[node.len()..].iter().all(|&start| start == usize::MAX), "an unused slot can be found");
}
