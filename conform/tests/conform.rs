//! The host and vmalab, side by side; and that a difference is found.

use vmalab_conform::prelude::*;
use vmalab_conform::run::Sabotage;
use vmalab_conform::{Config, Lock, Runner};

const RW: u32 = 3;
const ANON: u32 = 0x22;
const FIXED: u32 = 0x32;

fn run(config: Config, ops: u64) -> vmalab_conform::Report {
    let mut runner = Runner::new(config).unwrap_or_else(|e| panic!("{e}"));
    runner.run(ops, &mut |_| true).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn random_calls_agree() {
    for lock in Lock::ALL {
        let report = run(Config { lock, ..Config::default() }, 6000);
        assert_eq!(report.divergences, 0, "{:#?}", report.first);
        assert_eq!(report.ops, 6000);
    }
}

#[test]
fn a_wrong_errno_is_found_and_shrunk() {
    let report = run(Config { sabotage: Some(Sabotage::Errno), ..Config::default() }, 20_000);
    let first = report.first.expect("munmap gives a wrong errno");
    assert!(first.shrunk.len() == 1 && first.host == "EINVAL" && first.vmalab == "ENOMEM", "{first:#?}");
}

#[test]
fn a_missing_merge_is_found_and_shrunk() {
    let report = run(Config { sabotage: Some(Sabotage::NoMerge), ..Config::default() }, 20_000);
    let first = report.first.expect("some mappings do not merge");
    assert!(first.shrunk.len() <= 3, "{first:#?}");
}

#[test]
fn a_panic_is_found_and_shrunk() {
    let report = run(Config { sabotage: Some(Sabotage::Panic), ..Config::default() }, 20_000);
    let first = report.first.expect("mremap panics");
    assert!(first.shrunk.len() == 1 && first.vmalab == "panics: sabotage", "{first:#?}");
}

#[test]
fn a_mapping_and_its_neighbour_merge() {
    check(&[
        Mmap { addr: win(0x2000), len: 0x1000, prot: RW, flags: FIXED, file: NoFile, offset: 0 },
        Mmap { addr: win(0x3000), len: 0x1000, prot: RW, flags: FIXED, file: NoFile, offset: 0 },
        Store { addr: win(0x3000), value: 7 },
        Mmap { addr: abs(0), len: 0x1000, prot: RW, flags: ANON, file: NoFile, offset: 0 },
        Munmap { addr: win(0x2000), len: 0x1001 },
        Load { addr: win(0x3000) },
    ]);
}
