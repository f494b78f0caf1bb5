//! The search for free space, guided by the gap summaries.
//!
//! A child whose largest gap is too small is passed by. A child inside the
//! window whose largest gap is large enough has a fitting one; only the two
//! children at the ends of the window can disappoint. So a search looks into
//! at most three children on each level.

use super::node::{Node, NodeRef};
use crate::addr::VirtAddr;

/// `len` bytes wanted in the window `low..high`.
#[derive(Clone, Copy)]
pub(super) struct Search {
    len: usize,
    low: usize,
    high: usize,
}

impl Search {
    /// `None` if the window itself is too small.
    pub(super) fn new(len: usize, low: VirtAddr, high: VirtAddr) -> Option<Search> {
        assert!(len > 0 && VirtAddr(len).is_page_aligned(), "length {len:#x}");
        assert!(low.is_page_aligned() && high.is_page_aligned(), "window {low:?}..{high:?}");
        let (low, high) = (low.get(), high.get());
        (low <= high && high - low >= len).then_some(Search { len, low, high })
    }

    /// The part of the gap `start..end` inside the window, if `len` bytes fit.
    fn fit(self, start: usize, end: usize) -> Option<(usize, usize)> {
        let (start, end) = (start.max(self.low), end.min(self.high));
        (start <= end && end - start >= self.len).then_some((start, end))
    }

    fn fit_top(self, start: usize, end: usize) -> Option<usize> {
        self.fit(start, end).map(|(_, end)| end - self.len)
    }

    fn fit_bottom(self, start: usize, end: usize) -> Option<usize> {
        self.fit(start, end).map(|(start, _)| start)
    }

    pub(super) fn top_down(self, root: Option<NodeRef<'_>>) -> Option<usize> {
        let Some(root) = root else {
            return self.fit_top(0, usize::MAX);
        };
        self.fit_top(root.end(), usize::MAX)
            .or_else(|| self.top_down_below(root))
            .or_else(|| self.fit_top(0, root.start()))
    }

    fn top_down_below(self, node: NodeRef<'_>) -> Option<usize> {
        let (starts, ends) = bounds(&node);
        for i in (0..node.len()).rev() {
            if ends[i] <= self.low && starts.get(i + 1).is_none_or(|&next| next <= self.low) {
                return None;
            }
            if starts[i] >= self.high {
                continue;
            }
            if let Some(&next) = starts.get(i + 1)
                && let Some(found) = self.fit_top(ends[i], next)
            {
                return Some(found);
            }
            if self.may_hold(&node, i)
                && let Some(found) = self.top_down_below(node.child(i))
            {
                return Some(found);
            }
        }
        None
    }

    pub(super) fn bottom_up(self, root: Option<NodeRef<'_>>) -> Option<usize> {
        let Some(root) = root else {
            return self.fit_bottom(0, usize::MAX);
        };
        self.fit_bottom(0, root.start())
            .or_else(|| self.bottom_up_below(root))
            .or_else(|| self.fit_bottom(root.end(), usize::MAX))
    }

    fn bottom_up_below(self, node: NodeRef<'_>) -> Option<usize> {
        let (starts, ends) = bounds(&node);
        for i in 0..node.len() {
            if starts[i] >= self.high {
                return None;
            }
            if self.may_hold(&node, i)
                && let Some(found) = self.bottom_up_below(node.child(i))
            {
                return Some(found);
            }
            if let Some(&next) = starts.get(i + 1)
                && let Some(found) = self.fit_bottom(ends[i], next)
            {
                return Some(found);
            }
        }
        None
    }

    /// Whether slot `i` is a child that may have a fitting gap inside.
    fn may_hold(self, node: &Node, i: usize) -> bool {
        node.level() > 0 && {
            let inner = node.inner();
            inner.gaps[i] >= self.len && inner.starts[i] < self.high && inner.ends[i] > self.low
        }
    }
}

/// Where the used slots of a node start and end.
fn bounds(node: &Node) -> (&[usize], &[usize]) {
    let len = node.len();
    if node.level() == 0 {
        (&node.leaf().starts[..len], &node.leaf().ends[..len])
    } else {
        (&node.inner().starts[..len], &node.inner().ends[..len])
    }
}
