//! The tree against a model, at size, and under concurrent readers.

use super::node::{BALANCE, NodeRef};
use super::{Entry, Reclaim, Snapshot, VmaTree};
use crate::addr::{PAGE_SIZE, PageRange, VirtAddr};
use crate::rcu;
use crate::sync::{AtomicBool, Ordering};
use crate::thread;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::num::NonZero;
use std::ptr::NonNull;

/// The entries' "objects" are numbers: the tree never follows a pointer.
fn id(n: usize) -> NonNull<u64> {
    NonNull::without_provenance(NonZero::new(n).unwrap())
}

fn addr(page: usize) -> VirtAddr {
    VirtAddr(page * PAGE_SIZE)
}

fn pages(start: usize, end: usize) -> PageRange {
    PageRange::new(addr(start), addr(end))
}

fn entry(start: usize, end: usize, n: usize) -> Entry<u64> {
    Entry { range: pages(start, end), ptr: id(n) }
}

/// xorshift64*: the test's choices follow from one number that proptest shrinks.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    /// Some of the pages `start..end` as disjoint entries of up to `longest` pages.
    fn fill(&mut self, start: usize, end: usize, longest: usize, gaps: bool, next_id: &mut usize) -> Vec<Entry<u64>> {
        let (mut at, mut new) = (start, Vec::new());
        while at < end {
            if gaps && self.below(3) == 0 {
                at += 1 + self.below(longest);
                continue;
            }
            let to = end.min(at + 1 + self.below(longest));
            *next_id += 1;
            new.push(entry(at, to, *next_id));
            at = to;
        }
        new
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// One entry where there is none, or in place of what is there.
    Insert { page: usize, len: usize },
    /// Takes out the n-th entry.
    Remove { nth: usize },
    /// Puts another pointer at the n-th entry, maybe in two parts.
    Change { nth: usize, split: bool },
    /// Empties a span.
    Clear { page: usize, len: usize },
    /// Replaces a span's contents by many entries.
    Fill { page: usize, len: usize, longest: usize, gaps: bool },
}

fn op(domain: usize) -> impl Strategy<Value = Op> {
    let page = 0..domain;
    prop_oneof![
        4 => (page.clone(), 1..8usize).prop_map(|(page, len)| Op::Insert { page, len }),
        4 => any::<usize>().prop_map(|nth| Op::Remove { nth }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(nth, split)| Op::Change { nth, split }),
        2 => (page.clone(), 1..=domain / 2).prop_map(|(page, len)| Op::Clear { page, len }),
        1 => (page.clone(), 1..=domain).prop_map(|(page, len)| Op::Clear { page, len }),
        4 => (page, 1..=domain, 1..4usize, any::<bool>())
            .prop_map(|(page, len, longest, gaps)| Op::Fill { page, len, longest, gaps }),
    ]
}

/// Cases for proptest: fewer where every access is checked.
fn cases(release: u32, debug: u32) -> ProptestConfig {
    let cases = if cfg!(debug_assertions) { debug } else { release };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A tree and what it must hold, in pages.
struct Checked {
    tree: VmaTree<u64>,
    model: BTreeMap<usize, (usize, usize)>,
    domain: usize,
    next_id: usize,
    rng: Rng,
}

impl Checked {
    fn new(domain: usize, reclaim: Reclaim, seed: u64) -> Checked {
        let tree = VmaTree::new(reclaim);
        Checked { tree, model: BTreeMap::new(), domain, next_id: 0, rng: Rng(seed | 1) }
    }

    fn nth(&self, nth: usize) -> Option<(usize, usize)> {
        let nth = nth.checked_rem(self.model.len())?;
        self.model.iter().nth(nth).map(|(&start, &(end, _))| (start, end))
    }

    /// `start..end` grown so that no entry straddles its ends.
    fn snap(&self, start: usize, end: usize) -> (usize, usize) {
        let around =
            |page: usize| self.model.range(..page).next_back().map(|(&s, &(e, _))| (s, e)).filter(|&(_, e)| e > page);
        (around(start).map_or(start, |(s, _)| s), around(end).map_or(end, |(_, e)| e))
    }

    fn apply(&mut self, op: &Op) {
        let bounded = |page: usize, len: usize| (page, (page + len).min(self.domain));
        match *op {
            Op::Insert { page, len } => {
                let (start, end) = bounded(page, len);
                let (low, high) = self.snap(start, end);
                self.next_id += 1;
                self.replace(low, high, &[entry(start, end, self.next_id)]);
            }
            Op::Remove { nth } => {
                if let Some((start, end)) = self.nth(nth) {
                    self.replace(start, end, &[]);
                }
            }
            Op::Change { nth, split } => {
                if let Some((start, end)) = self.nth(nth) {
                    self.next_id += 2;
                    let mid = start + 1;
                    if split && mid < end {
                        let parts = [entry(start, mid, self.next_id - 1), entry(mid, end, self.next_id)];
                        self.replace(start, end, &parts);
                    } else {
                        self.replace(start, end, &[entry(start, end, self.next_id)]);
                    }
                }
            }
            Op::Clear { page, len } => {
                let (start, end) = bounded(page, len);
                let (start, end) = self.snap(start, end);
                self.replace(start, end, &[]);
            }
            Op::Fill { page, len, longest, gaps } => {
                let (start, end) = bounded(page, len);
                let (start, end) = self.snap(start, end);
                let new = self.rng.fill(start, end, longest, gaps, &mut self.next_id);
                self.replace(start, end, &new);
            }
        }
    }

    fn replace(&mut self, start: usize, end: usize, new: &[Entry<u64>]) {
        let doomed: Vec<usize> = self.model.range(start..end).map(|(&s, _)| s).collect();
        // SAFETY: one thread has the tree, and holds no snapshot now.
        let removed = unsafe { self.tree.replace(pages(start, end), new) };
        assert_eq!(removed, doomed.len());
        for start in doomed {
            self.model.remove(&start);
        }
        for entry in new {
            let (start, end) = (entry.range.start().get() / PAGE_SIZE, entry.range.end().get() / PAGE_SIZE);
            self.model.insert(start, (end, entry.ptr.addr().get()));
        }
    }

    /// Compares every query with the model, at a few addresses.
    fn check(&mut self) {
        // SAFETY: one thread has the tree, and mutates it only after this.
        let snap = unsafe { self.tree.snapshot_locked() };
        snap.validate();
        assert_eq!(snap.len(), self.model.len());
        assert_eq!(snap.is_empty(), self.model.is_empty());
        let model = || self.model.iter().map(|(&start, &(end, n))| entry(start, end, n));
        assert!(snap.iter().eq(model()), "iteration");
        for _ in 0..12 {
            let (a, b) = (self.rng.below(self.domain + 2), self.rng.below(self.domain + 2));
            let byte = VirtAddr(a * PAGE_SIZE + self.rng.below(3) * (PAGE_SIZE / 2 - 1));
            let before = self.model.range(..=a).next_back().map(|(&s, &(e, n))| entry(s, e, n));
            let holds = before.filter(|e| e.range.contains(byte));
            assert_eq!(snap.lookup(byte), holds.map(|e| e.ptr), "lookup {byte:?}");
            assert_eq!(snap.entry_at(byte), holds, "entry_at {byte:?}");
            let above = self.model.range(a + 1..).next().map(|(&s, &(e, n))| entry(s, e, n));
            assert_eq!(snap.next(byte), holds.or(above), "next {byte:?}");
            let below = self.model.range(..a).next_back().map(|(&s, &(e, n))| entry(s, e, n));
            assert_eq!(snap.prev(addr(a)), below, "prev {a}");
            let range = pages(a.min(b), a.max(b));
            let hits: Vec<_> = model().filter(|e| e.range.overlaps(range) && !range.is_empty()).collect();
            assert!(snap.overlapping(range).eq(hits.iter().copied()), "overlapping {range:?}");
            assert_eq!(snap.is_free(range), hits.is_empty(), "is_free {range:?}");
            let longest = if b % 2 == 0 { 4 } else { self.domain };
            self.check_gaps(snap, 1 + self.rng.0 as usize % longest, a.min(b), a.max(b));
            self.rng.below(2);
        }
    }

    fn check_gaps(&self, snap: Snapshot<'_, u64>, len: usize, low: usize, high: usize) {
        let ends = std::iter::once(0).chain(self.model.values().map(|&(end, _)| end));
        let starts = self.model.keys().copied().chain(std::iter::once(usize::MAX));
        let fitting: Vec<(usize, usize)> = ends
            .zip(starts)
            .map(|(start, end)| (start.max(low), end.min(high)))
            .filter(|&(start, end)| start + len <= end)
            .collect();
        let (bytes, low, high) = (len * PAGE_SIZE, addr(low), addr(high));
        let top = fitting.last().map(|&(_, end)| addr(end - len));
        assert_eq!(snap.gap_top_down(bytes, low, high), top, "top down {len} in {low:?}..{high:?}");
        let bottom = fitting.first().map(|&(start, _)| addr(start));
        assert_eq!(snap.gap_bottom_up(bytes, low, high), bottom, "bottom up {len} in {low:?}..{high:?}");
    }
}

proptest! {
    #![proptest_config(cases(400, 100))]

    #[test]
    fn small_trees_agree_with_the_model(ops in prop::collection::vec(op(600), 1..60), seed: u64) {
        let mut checked = Checked::new(600, Reclaim::AtOnce, seed);
        for op in &ops {
            checked.apply(op);
            checked.check();
        }
    }
}

proptest! {
    #![proptest_config(cases(20, 4))]

    #[test]
    fn high_trees_agree_with_the_model(ops in prop::collection::vec(op(20_000), 1..40), seed: u64) {
        let mut checked = Checked::new(20_000, Reclaim::AfterGracePeriod, seed);
        checked.apply(&Op::Fill { page: 0, len: 20_000, longest: 1, gaps: false });
        for op in &ops {
            checked.apply(op);
            checked.check();
        }
    }
}

#[test]
fn the_ends_of_the_address_space() {
    let last = usize::MAX / PAGE_SIZE;
    let tree = VmaTree::new(Reclaim::AtOnce);
    let new = [entry(0, 1, 1), entry(last - 1, last, 2)];
    // SAFETY: one thread has the tree, and holds no snapshot now.
    unsafe { tree.replace(pages(0, last), &new) };
    // SAFETY: one thread has the tree, and mutates it no more.
    let snap = unsafe { tree.snapshot_locked() };
    snap.validate();
    assert_eq!(snap.lookup(VirtAddr(0)), Some(id(1)));
    assert_eq!(snap.lookup(VirtAddr(usize::MAX)), None);
    assert_eq!(snap.next(VirtAddr(usize::MAX)), None);
    assert_eq!(snap.prev(VirtAddr(usize::MAX)), Some(new[1]));
    assert_eq!(snap.prev(VirtAddr(0)), None);
    assert_eq!(snap.gap_top_down(PAGE_SIZE, addr(0), addr(last)), Some(addr(last - 2)));
    assert_eq!(snap.gap_bottom_up((last - 2) * PAGE_SIZE, addr(0), addr(last)), Some(addr(1)));
    assert_eq!(snap.gap_bottom_up((last - 1) * PAGE_SIZE, addr(0), addr(last)), None);
}

#[test]
fn a_change_that_must_not_be_made_is_refused() {
    let refused = |span: PageRange, new: &[Entry<u64>]| {
        let tree = VmaTree::new(Reclaim::AtOnce);
        // SAFETY: one thread has the tree, and holds no snapshot now.
        unsafe { tree.replace(pages(0, 100), &[entry(10, 20, 1), entry(20, 30, 2)]) };
        // SAFETY: as above.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| unsafe { tree.replace(span, new) }));
        // SAFETY: one thread has the tree, and mutates it no more.
        let snap = unsafe { tree.snapshot_locked() };
        snap.validate();
        assert_eq!(snap.len(), 2);
        result.is_err()
    };
    assert!(refused(pages(5, 15), &[]), "straddles the end");
    assert!(refused(pages(25, 40), &[]), "straddles the start");
    assert!(refused(pages(12, 14), &[]), "straddles both");
    assert!(refused(pages(40, 50), &[entry(45, 51, 3)]), "outside");
    assert!(refused(pages(40, 50), &[entry(39, 41, 3)]), "outside");
    assert!(refused(pages(40, 50), &[entry(44, 46, 3), entry(45, 47, 4)]), "overlapping");
    assert!(refused(pages(40, 50), &[entry(46, 47, 3), entry(44, 45, 4)]), "out of order");
    assert!(refused(pages(40, 50), &[entry(44, 44, 3)]), "empty");
    assert!(!refused(pages(40, 50), &[]), "nothing to do");
}

#[test]
fn a_section_of_another_domain_gives_no_snapshot() {
    let tree = VmaTree::<u64>::new(Reclaim::AfterGracePeriod);
    let guard = rcu::FAULTS.enter();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tree.snapshot(&guard).len()));
    assert!(result.is_err());
}

#[test]
fn a_million_entries() {
    // A tenth where every access is checked.
    let bits = if cfg!(debug_assertions) { 17 } else { 20 };
    let count = 1usize << bits;
    // An odd multiplier permutes the numbers modulo a power of two.
    let shuffled = move |i: usize| i.wrapping_mul(0x9e37_79b1) & (count - 1);
    let tree = VmaTree::new(Reclaim::AfterGracePeriod);
    for i in (0..count).map(shuffled) {
        let new = entry(2 * i, 2 * i + 1, i + 1);
        // SAFETY: one thread has the tree, and holds no snapshot now.
        unsafe { tree.replace(new.range, &[new]) };
    }
    let check = |present: &dyn Fn(usize) -> bool| {
        let guard = rcu::read();
        let snap = tree.snapshot(&guard);
        snap.validate();
        assert_eq!(snap.len(), (0..count).filter(|&i| present(i)).count());
        for i in (0..count).map(shuffled) {
            assert_eq!(snap.lookup(addr(2 * i)), present(i).then(|| id(i + 1)));
            assert_eq!(snap.lookup(addr(2 * i + 1)), None);
        }
    };
    check(&|_| true);
    for i in (0..count).map(shuffled).filter(|i| i % 4 != 0) {
        // SAFETY: as above.
        assert_eq!(unsafe { tree.replace(pages(2 * i, 2 * i + 1), &[]) }, 1);
    }
    check(&|i| i % 4 == 0);
    // All but the first and the last at once.
    // SAFETY: as above.
    assert_eq!(unsafe { tree.replace(pages(1, 2 * count - 8), &[]) }, count / 4 - 2);
    check(&|i| i == 0 || i == count - 4);
    // SAFETY: as above.
    assert_eq!(unsafe { tree.replace(pages(0, 2 * count), &[]) }, 2);
    check(&|_| false);
}

#[test]
fn every_node_is_given_back_once() {
    fn nodes(node: NodeRef<'_>) -> isize {
        1 + if node.level() == 0 { 0 } else { (0..node.len()).map(|i| nodes(node.child(i))).sum() }
    }
    let before = BALANCE.get();
    let balanced = |checked: &Checked| {
        // SAFETY: one thread has the tree, and mutates it only after this.
        let snap = unsafe { checked.tree.snapshot_locked() };
        assert_eq!(BALANCE.get() - before, snap.root.map_or(0, nodes));
    };
    let mut checked = Checked::new(6_000, Reclaim::AtOnce, 3);
    for round in 0..2_000 {
        if round % 20 == 0 {
            checked.apply(&Op::Fill { page: 0, len: 6_000, longest: 1, gaps: round % 40 == 0 });
        }
        let (page, nth) = (checked.rng.below(6_000), checked.rng.below(6_000));
        let longest = [6, 60, 600, 6_000][checked.rng.below(4)];
        let len = 1 + checked.rng.below(longest);
        let ops = [Op::Clear { page, len }, Op::Remove { nth }, Op::Insert { page, len: 1 + len % 5 }];
        let choice = checked.rng.below(3);
        checked.apply(&ops[choice]);
        balanced(&checked);
    }
    // Exactly the second of two leaves: the first, left alone, becomes the root.
    checked.apply(&Op::Clear { page: 0, len: 6_000 });
    checked.apply(&Op::Fill { page: 0, len: 40, longest: 1, gaps: false });
    checked.apply(&Op::Clear { page: 20, len: 20 });
    balanced(&checked);
    checked.check();
    drop(checked);
    assert_eq!(BALANCE.get(), before);
}

/// Where the concurrent tests' writer works: always wholly covered.
const COVERED: (usize, usize) = (1_000, 1_240);

/// Replaces the covering of [`COVERED`] again and again: by 1 to 240 entries,
/// sometimes by splitting or merging two. All entries of one covering carry
/// its number. Other mappings beside it come and go.
fn rewrite(rounds: usize, mut replace: impl FnMut(PageRange, &[Entry<u64>])) {
    let mut rng = Rng(7);
    let (start, end) = COVERED;
    for round in 2..rounds + 2 {
        let longest = [1, 3, 20, end - start][rng.below(4)];
        let mut parts = rng.fill(start, end, longest, false, &mut 0);
        parts.iter_mut().for_each(|part| part.ptr = id(round));
        replace(pages(start, end), &parts);
        let beside = 900 + 2 * rng.below(400);
        if !(start - 2..end + 2).contains(&beside) {
            let new = entry(beside, beside + 1, 1);
            replace(new.range, if rng.below(2) == 0 { &[] } else { std::slice::from_ref(&new) });
        }
    }
}

/// Sees the whole range covered, and by one covering only.
fn observe(snap: Snapshot<'_, u64>, rng: &mut Rng) -> usize {
    let (start, end) = COVERED;
    let at = start + rng.below(end - start);
    let number = snap.lookup(addr(at)).unwrap_or_else(|| panic!("a hole at page {at}"));
    let mut reached = addr(start);
    for entry in snap.overlapping(pages(start, end)) {
        assert_eq!(entry.range.start(), reached, "a hole");
        assert_eq!(entry.ptr, number, "two coverings in one walk");
        reached = entry.range.end();
    }
    assert_eq!(reached, addr(end), "a hole at the end");
    let before = snap.prev(addr(end)).expect("covered");
    assert_eq!(before.ptr, number, "two coverings in one snapshot");
    assert_eq!(snap.gap_top_down(PAGE_SIZE, addr(start), addr(end)), None);
    number.addr().get()
}

fn rounds() -> usize {
    if cfg!(debug_assertions) { 5_000 } else { 50_000 }
}

#[test]
fn readers_see_whole_operations_under_rcu() {
    let tree = VmaTree::new(Reclaim::AfterGracePeriod);
    // SAFETY: no other mutation yet.
    unsafe { tree.replace(pages(COVERED.0, COVERED.1), &[entry(COVERED.0, COVERED.1, 1)]) };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = [true, true, false]
            .into_iter()
            .map(|announced| {
                let (tree, stop) = (&tree, &stop);
                scope.spawn(move || {
                    if announced {
                        thread::announce();
                    }
                    let (mut rng, mut seen, mut latest) = (Rng(9), 0, 0);
                    while !stop.load(Ordering::Relaxed) {
                        let guard = rcu::read();
                        let number = observe(tree.snapshot(&guard), &mut rng);
                        assert!(number >= latest, "an older state after a newer one");
                        seen += usize::from(number > latest);
                        latest = number;
                    }
                    seen
                })
            })
            .collect();
        let outcome = std::panic::catch_unwind(|| {
            // SAFETY: this is the only thread that mutates.
            rewrite(rounds(), |span, new| _ = unsafe { tree.replace(span, new) });
        });
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
        for reader in readers {
            assert!(reader.join().unwrap() > 1, "the reader never met a mutation");
        }
    });
    tree.snapshot(&rcu::read()).validate();
    rcu::barrier();
}

#[test]
fn readers_see_whole_operations_under_the_lock() {
    let tree = std::sync::RwLock::new(VmaTree::new(Reclaim::AtOnce));
    // SAFETY: no other mutation yet.
    unsafe { tree.read().unwrap().replace(pages(COVERED.0, COVERED.1), &[entry(COVERED.0, COVERED.1, 1)]) };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut rng, mut latest) = (Rng(9), 0);
            while !stop.load(Ordering::Relaxed) {
                let tree = tree.read().unwrap();
                // SAFETY: the lock is held for reading while the snapshot is used.
                latest = observe(unsafe { tree.snapshot_locked() }, &mut rng).max(latest);
            }
            latest
        });
        // SAFETY: the lock is held for writing.
        rewrite(rounds(), |span, new| _ = unsafe { tree.write().unwrap().replace(span, new) });
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    let tree = tree.into_inner().unwrap();
    // SAFETY: no thread but this one has the tree now.
    unsafe { tree.snapshot_locked() }.validate();
}
