//! Random sequences of calls against the [`Model`].

use super::*;
use crate::lock::{MmapOnly, Rcu, RefCount, TypeSafe};
use crate::mm::model::{Model, ModelVma};
use proptest::prelude::*;

const PAGES: usize = 24;
const MAX_COUNT: usize = 7;

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
    let mut model = Model::new(mm.range());
    mm.set_max_map_count(MAX_COUNT);
    model.set_max_map_count(MAX_COUNT);
    let prot = Prot::from_bits_retain;
    for (step, op) in ops.iter().enumerate() {
        let context = || format!("step {step}: {op:?}");
        match *op {
            Op::MapFixed { start, pages, prot: p, noreserve } => {
                let flags = if noreserve { FIXED | MapFlags::NORESERVE } else { FIXED };
                let (addr, len) = (page(start), pages * PAGE_SIZE);
                let expected = model.mmap(addr, len, prot(p), flags);
                assert_eq!(mm.mmap(addr, len, prot(p), flags), expected, "{}", context());
            }
            Op::MapAnywhere { pages, prot: p } => {
                let expected = model.mmap(0, pages * PAGE_SIZE, prot(p), ANON);
                assert_eq!(mm.mmap(0, pages * PAGE_SIZE, prot(p), ANON), expected, "{}", context());
            }
            Op::Unmap { start, pages } => {
                let expected = model.munmap(page(start), pages * PAGE_SIZE);
                assert_eq!(mm.munmap(page(start), pages * PAGE_SIZE), expected, "{}", context());
            }
            Op::Protect { start, pages, prot: p } => {
                let expected = model.mprotect(page(start), pages * PAGE_SIZE, prot(p));
                assert_eq!(mm.mprotect(page(start), pages * PAGE_SIZE, prot(p)), expected, "{}", context());
            }
            Op::Store { page: n } => {
                let (addr, word) = (VirtAddr(page(n) + VALUE), (step as u64 + 1).to_ne_bytes());
                assert_eq!(mm.write(addr, &word), model.write(addr, &word), "{}", context());
            }
            Op::Load { page: n } => {
                let addr = VirtAddr(page(n) + VALUE);
                let (mut got, mut expected) = ([0; 8], [0; 8]);
                let results = (mm.read(addr, &mut got), model.read(addr, &mut expected));
                assert_eq!((results.0, got), (results.1, expected), "{}", context());
            }
        }
        assert_eq!(ModelVma::all_of(&mm), model.vmas(), "{}", context());
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
