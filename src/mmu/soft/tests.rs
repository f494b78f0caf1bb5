use super::*;
use crate::file::Inode;

fn page(index: usize) -> VirtAddr {
    BASE + index * PAGE_SIZE
}

fn pages(from: usize, to: usize) -> PageRange {
    PageRange::new(page(from), page(to))
}

fn store(mmu: &SoftMmu, at: VirtAddr, value: u64) -> Result<(), Trap> {
    mmu.access(at, AccessOp::Store(&value.to_ne_bytes()))
}

fn load(mmu: &SoftMmu, at: VirtAddr) -> Result<u64, Trap> {
    let mut bytes = [0; 8];
    mmu.access(at, AccessOp::Load(&mut bytes))?;
    Ok(u64::from_ne_bytes(bytes))
}

fn fresh(mmu: &SoftMmu, index: usize, value: u64) {
    mmu.install(page(index), Content::Zero, true, true).unwrap();
    store(mmu, page(index), value).unwrap();
}

fn populated(mmu: &SoftMmu, range: PageRange) -> Vec<usize> {
    let mut found = Vec::new();
    mmu.presence(range, &mut |run| found.extend(run.iter_pages().map(|p| (p - BASE) / PAGE_SIZE)));
    found
}

const MISSING: Trap = Trap::Fault { present: false };
const PROTECTED: Trap = Trap::Fault { present: true };

#[test]
fn a_move_takes_contents_marks_and_protection_along() {
    let mmu = SoftMmu::new(16 * PAGE_SIZE).unwrap();
    for index in 0..4 {
        fresh(&mmu, index, index as u64 + 10);
    }
    mmu.protect(pages(1, 2), PageAccess::ReadWrite, PageAccess::None).unwrap();
    mmu.guard(pages(3, 4));
    mmu.lazy_free(pages(2, 3));
    mmu.move_range(pages(0, 5), page(8), PageAccess::ReadWrite).unwrap();
    assert_eq!(populated(&mmu, pages(0, 16)), [8, 9, 10]);
    assert_eq!(load(&mmu, page(0)), Err(MISSING));
    assert_eq!((load(&mmu, page(8)), store(&mmu, page(8), 1)), (Ok(10), Ok(())));
    assert_eq!(load(&mmu, page(9)), Err(MISSING));
    assert_eq!(mmu.unhide(page(9), true), Ok(true));
    assert_eq!(load(&mmu, page(9)), Ok(11));
    assert_eq!(store(&mmu, page(10), 1), Err(PROTECTED));
    assert_eq!(mmu.first_guarded(mmu.range()), Some(page(11)));
    mmu.reclaim(pages(8, 12));
    assert_eq!(populated(&mmu, pages(0, 16)), [8, 9]);
    mmu.move_range(pages(8, 12), page(0), PageAccess::Read).unwrap();
    assert_eq!((load(&mmu, page(0)), store(&mmu, page(0), 5)), (Ok(1), Err(PROTECTED)));
    assert!(mmu.is_guarded(page(3)) && !mmu.is_guarded(page(11)));
    mmu.discard(pages(0, 16));
    assert!(mmu.is_guarded(page(3)) && populated(&mmu, pages(0, 16)).is_empty());
    mmu.zap(pages(0, 16));
    assert_eq!(mmu.first_guarded(mmu.range()), None);
}

#[test]
fn a_store_cancels_lazy_freeing() {
    let mmu = SoftMmu::new(4 * PAGE_SIZE).unwrap();
    for index in 0..3 {
        fresh(&mmu, index, 7);
    }
    mmu.protect(pages(1, 2), PageAccess::ReadWrite, PageAccess::None).unwrap();
    mmu.lazy_free(pages(0, 3));
    // Whatever the mapping permits, the store must be noticed.
    mmu.protect(pages(0, 1), PageAccess::Read, PageAccess::ReadWrite).unwrap();
    assert_eq!(store(&mmu, page(0), 8), Err(PROTECTED));
    mmu.allow_write(page(0)).unwrap();
    assert_eq!(store(&mmu, page(0), 8), Ok(()));
    assert_eq!(mmu.unhide(page(1), true), Ok(true));
    assert_eq!(store(&mmu, page(1), 8), Err(PROTECTED));
    mmu.reclaim(pages(0, 4));
    assert_eq!(populated(&mmu, pages(0, 4)), [0]);
    mmu.install(page(1), Content::Zero, true, true).unwrap();
    assert_eq!(load(&mmu, page(1)), Ok(0));
}

#[test]
fn a_fork_has_what_was_there_and_nothing_of_what_comes() {
    let [parent, child] = [(); 2].map(|()| SoftMmu::new(8 * PAGE_SIZE).unwrap());
    fresh(&parent, 0, 1);
    fresh(&parent, 1, 2);
    parent.protect(pages(1, 2), PageAccess::ReadWrite, PageAccess::None).unwrap();
    parent.guard(pages(2, 3));
    parent.fork_range(&child, pages(0, 4), page(4)).unwrap();
    store(&parent, page(0), 9).unwrap();
    assert_eq!(populated(&child, pages(0, 8)), [4, 5]);
    assert!(child.is_guarded(page(6)));
    for index in [4, 5] {
        assert_eq!(child.unhide(page(index), true), Ok(true));
        assert_eq!(load(&child, page(index)), Ok(index as u64 - 3));
        store(&child, page(index), 70).unwrap();
    }
    assert_eq!(load(&parent, page(0)), Ok(9));
    assert_eq!(parent.unhide(page(1), false), Ok(true));
    assert_eq!(load(&parent, page(1)), Ok(2));
}

#[test]
fn mappings_of_a_file_are_coherent_and_copies_are_private() {
    let mmu = SoftMmu::new(8 * PAGE_SIZE).unwrap();
    let inode = Inode::new(mmu.shmem(PAGE_SIZE as u64 + 100).unwrap(), 4 * PAGE_SIZE as u64);
    let file = |index| FilePage { inode: &inode, index };
    assert_eq!(mmu.install_file(page(0), file(2), true, true, true), Err(MmuError::BeyondEnd));
    mmu.install_file(page(0), file(0), true, true, true).unwrap();
    mmu.install_file(page(1), file(0), true, true, false).unwrap();
    mmu.install_file(page(2), file(0), false, true, false).unwrap();
    store(&mmu, page(0), 5).unwrap();
    assert_eq!(store(&mmu, page(1), 6), Err(PROTECTED));
    mmu.allow_write_file(page(1), file(0), true).unwrap();
    store(&mmu, page(1) + 8, 6).unwrap();
    for index in 0..3 {
        assert_eq!((load(&mmu, page(index)), load(&mmu, page(index) + 8)), (Ok(5), Ok(6)));
    }
    mmu.allow_write_file(page(2), file(0), false).unwrap();
    mmu.install_file(page(3), file(0), false, true, true).unwrap();
    for index in [2, 3] {
        store(&mmu, page(index), 99).unwrap();
        assert_eq!(load(&mmu, page(index) + 8), Ok(6));
    }
    assert_eq!(load(&mmu, page(0)), Ok(5));
    mmu.sync_file(pages(0, 1), file(0)).unwrap();
    mmu.release_file(pages(0, 4), file(0));
    assert_eq!(populated(&mmu, pages(0, 8)), [2, 3]);
    mmu.zap(pages(0, 8));
}
