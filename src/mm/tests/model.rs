//! Random sequences of calls against a model that does everything the slow,
//! obvious way: a list of VMAs that is split where a call begins and ends,
//! changed, and merged piece by piece.

use super::*;
use crate::lock::{MmapOnly, Rcu, RefCount, TypeSafe};
use crate::vma::VmaFlags;
use nix::errno::Errno;
use proptest::prelude::*;

const PAGES: usize = 24;
const MAX_COUNT: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq)]
struct ModelVma {
    start: usize,
    end: usize,
    flags: VmaFlags,
    anon: u64,
}

#[derive(Default)]
struct Model {
    vmas: Vec<ModelVma>,
    anon_ids: u64,
    /// The value stored in each page, while it lives.
    values: Vec<Option<u64>>,
}

impl Model {
    fn new() -> Model {
        Model { values: vec![None; PAGES], ..Model::default() }
    }

    fn covering(&self, page: usize) -> Option<usize> {
        self.vmas.iter().position(|v| v.start <= page && page < v.end)
    }

    fn split_at(&mut self, page: usize) {
        if let Some(i) = self.covering(page)
            && self.vmas[i].start != page
        {
            let tail = ModelVma { start: page, ..self.vmas[i] };
            self.vmas[i].end = page;
            self.vmas.insert(i + 1, tail);
        }
    }

    fn mergeable(a: ModelVma, b: ModelVma) -> bool {
        a.end == b.start && a.flags == b.flags && (a.anon == 0 || b.anon == 0 || a.anon == b.anon)
    }

    /// Merges VMA `i` with what lies left of it, then with what lies right.
    fn merge_around(&mut self, mut i: usize) {
        for left in [true, false] {
            let (a, b) = if left { (i.wrapping_sub(1), i) } else { (i, i + 1) };
            if let (Some(&x), Some(&y)) = (self.vmas.get(a), self.vmas.get(b))
                && Self::mergeable(x, y)
            {
                self.vmas[a] = ModelVma { end: y.end, anon: x.anon.max(y.anon), ..x };
                self.vmas.remove(b);
                i = a;
            }
        }
    }

    fn cut_in_the_middle(&self, start: usize, end: usize) -> bool {
        self.vmas.iter().any(|v| v.start < start && v.end > end)
    }

    fn clear(&mut self, start: usize, end: usize) {
        self.split_at(start);
        self.split_at(end);
        self.vmas.retain(|v| v.end <= start || v.start >= end);
        self.values[start..end].fill(None);
    }

    fn mmap_fixed(&mut self, start: usize, end: usize, flags: VmaFlags) -> Result<(), Errno> {
        if self.vmas.len() > MAX_COUNT || self.cut_in_the_middle(start, end) && self.vmas.len() >= MAX_COUNT {
            return Err(Errno::ENOMEM);
        }
        self.clear(start, end);
        let i = self.vmas.iter().position(|v| v.start >= end).unwrap_or(self.vmas.len());
        self.vmas.insert(i, ModelVma { start, end, flags, anon: 0 });
        self.merge_around(i);
        Ok(())
    }

    fn place(&self, pages: usize) -> Option<usize> {
        (0..=PAGES - pages).rev().find(|&s| self.vmas.iter().all(|v| v.end <= s || v.start >= s + pages))
    }

    fn munmap(&mut self, start: usize, end: usize) -> Result<(), Errno> {
        if self.cut_in_the_middle(start, end) && self.vmas.len() >= MAX_COUNT {
            return Err(Errno::ENOMEM);
        }
        self.clear(start, end);
        Ok(())
    }

    fn mprotect(&mut self, start: usize, end: usize, prot: Prot) -> Result<(), Errno> {
        let mut at = start;
        while at < end {
            let i = self.covering(at).ok_or(Errno::ENOMEM)?;
            let old = self.vmas[i];
            let stop = old.end.min(end);
            let mut flags = (old.flags - VmaFlags::ACCESS) | VmaFlags::from_prot(prot);
            if flags == old.flags {
                at = stop;
                continue;
            }
            if flags.contains(VmaFlags::WRITE) {
                if !old.flags.intersects(VmaFlags::ACCOUNT | VmaFlags::WRITE | VmaFlags::NORESERVE) {
                    flags |= VmaFlags::ACCOUNT;
                }
            } else if old.anon == 0 {
                flags -= VmaFlags::ACCOUNT;
            }
            let new = ModelVma { start: at, end: stop, flags, ..old };
            let left = at == old.start && i > 0 && Self::mergeable(self.vmas[i - 1], new);
            let right = stop == old.end && self.vmas.get(i + 1).is_some_and(|&r| Self::mergeable(new, r));
            let splits = usize::from(at != old.start) + usize::from(stop != old.end);
            if !left && !right && splits > 0 && self.vmas.len() + splits > MAX_COUNT {
                return Err(Errno::ENOMEM);
            }
            self.split_at(at);
            self.split_at(stop);
            let i = self.covering(at).unwrap();
            self.vmas[i].flags = flags;
            self.merge_around(i);
            at = stop;
        }
        Ok(())
    }

    fn access(&mut self, page: usize, write: bool) -> Result<(), Signal> {
        let i = self.covering(page).ok_or(Signal::MapErr)?;
        let vma = self.vmas[i];
        let permitted =
            if write { vma.flags.contains(VmaFlags::WRITE) } else { vma.flags.intersects(VmaFlags::ACCESS) };
        if !permitted {
            return Err(Signal::AccErr);
        }
        if write && vma.anon == 0 {
            let alike = |v: &ModelVma| (v.flags ^ vma.flags).difference(VmaFlags::ACCESS).is_empty() && v.anon != 0;
            let next = self.vmas.get(i + 1).filter(|v| v.start == vma.end && alike(v));
            let prev = i.checked_sub(1).map(|i| &self.vmas[i]).filter(|v| v.end == vma.start && alike(v));
            self.vmas[i].anon = match next.or(prev) {
                Some(neighbour) => neighbour.anon,
                None => {
                    self.anon_ids += 1;
                    self.anon_ids
                }
            };
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    MapFixed { start: usize, pages: usize, prot: u32, noreserve: bool },
    MapAnywhere { pages: usize, prot: u32 },
    Unmap { start: usize, pages: usize },
    Protect { start: usize, pages: usize, prot: u32 },
    Store { page: usize },
    Load { page: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let prot = prop_oneof![Just(0u32), Just(1), Just(3), Just(3)];
    let at = (0..PAGES, 1usize..8).prop_map(|(start, pages)| (start, pages.min(PAGES - start)));
    let op = prop_oneof![
        3 => (at.clone(), prot.clone(), prop::bool::weighted(0.2))
            .prop_map(|((start, pages), prot, noreserve)| Op::MapFixed { start, pages, prot, noreserve }),
        1 => (1usize..6, prot.clone()).prop_map(|(pages, prot)| Op::MapAnywhere { pages, prot }),
        2 => at.clone().prop_map(|(start, pages)| Op::Unmap { start, pages }),
        4 => (at, prot).prop_map(|((start, pages), prot)| Op::Protect { start, pages, prot }),
        4 => (0..PAGES).prop_map(|page| Op::Store { page }),
        2 => (0..PAGES).prop_map(|page| Op::Load { page }),
    ];
    prop::collection::vec(op, 1..60)
}

fn run<S: LockScheme>(ops: &[Op]) {
    let mm = soft::<S>(PAGES);
    mm.set_max_map_count(MAX_COUNT);
    let mut model = Model::new();
    let prot = Prot::from_bits_retain;
    for (step, op) in ops.iter().enumerate() {
        let context = || format!("step {step}: {op:?}");
        match *op {
            Op::MapFixed { start, pages, prot: p, noreserve } => {
                let flags = if noreserve { FIXED | MapFlags::NORESERVE } else { FIXED };
                let expected = model.mmap_fixed(start, start + pages, VmaFlags::for_mmap(prot(p), flags));
                let got = mm.mmap(page(start), pages * PAGE_SIZE, prot(p), flags);
                assert_eq!(got, expected.map(|()| VirtAddr(page(start))), "{}", context());
            }
            Op::MapAnywhere { pages, prot: p } => {
                let expected = if model.vmas.len() > MAX_COUNT { None } else { model.place(pages) };
                let got = mm.mmap(0, pages * PAGE_SIZE, prot(p), ANON);
                assert_eq!(got, expected.map(|n| VirtAddr(page(n))).ok_or(Errno::ENOMEM), "{}", context());
                if let Some(start) = expected {
                    model.mmap_fixed(start, start + pages, VmaFlags::for_mmap(prot(p), ANON)).unwrap();
                }
            }
            Op::Unmap { start, pages } => {
                let expected = model.munmap(start, start + pages);
                assert_eq!(mm.munmap(page(start), pages * PAGE_SIZE), expected, "{}", context());
            }
            Op::Protect { start, pages, prot: p } => {
                let expected = model.mprotect(start, start + pages, prot(p));
                assert_eq!(mm.mprotect(page(start), pages * PAGE_SIZE, prot(p)), expected, "{}", context());
            }
            Op::Store { page: n } => {
                let expected = model.access(n, true);
                if expected.is_ok() {
                    model.values[n] = Some(step as u64 + 1);
                }
                assert_eq!(store(&mm, page(n) + VALUE, step as u64 + 1), expected, "{}", context());
            }
            Op::Load { page: n } => {
                let expected = model.access(n, false).map(|()| model.values[n].unwrap_or(0));
                assert_eq!(load(&mm, page(n) + VALUE), expected, "{}", context());
            }
        }
        let read = mm.core().mmap_read();
        let real: Vec<ModelVma> = read
            .snapshot()
            .iter()
            .map(|e| {
                let s = read.vma(e).segment();
                let n = |a: VirtAddr| (a - BASE) / PAGE_SIZE;
                ModelVma { start: n(s.range.start()), end: n(s.range.end()), flags: s.flags, anon: s.anon_vma }
            })
            .collect();
        drop(read);
        assert_eq!(real, model.vmas, "{}", context());
        mm.validate();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        // PROPTEST_CASES=100000 for a night.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400),
        ..ProptestConfig::default()
    })]

    #[test]
    fn calls_agree_with_the_model(ops in ops()) {
        run::<TypeSafe>(&ops);
        run::<MmapOnly>(&ops);
        run::<Rcu>(&ops);
        run::<RefCount>(&ops);
    }
}
