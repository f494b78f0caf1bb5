//! What each call does and refuses, one by one (kernel lineage §4.1-4.3, 4.8-4.10).

use super::*;
use crate::mm::{Limits, RemapFlags, STACK_GUARD_PAGES};
use crate::mmu::{Content, Mmu};
use nix::errno::Errno;

for_each_scheme!(
    mmap_errors,
    mmap_places_top_down,
    hints,
    fixed_replaces_and_splits,
    noreplace,
    merges_of_new_mappings,
    munmap_errors_and_cuts,
    mprotect_errors,
    mprotect_splits_and_merges,
    accounting_decides_about_merges,
    anon_vma_decides_about_merges,
    map_count_limits,
    the_limit_of_all_mappings,
    signals,
    contents_live_and_die_with_the_mapping,
    a_first_store_is_noticed,
    incarnations_never_go_back,
    what_was_touched_is_remembered,
    what_was_not_touched_stays_so,
    what_comes_along_is_remembered,
    a_page_that_no_vma_knows_of_is_noticed,
    populate,
    listing_reads_like_proc,
    a_stack_grows,
    one_fault_brings_its_neighbours,
    mremap_of_absurd_lengths,
    objects_return_to_the_slab,
);

fn mmap_errors<S: LockScheme>() {
    let mm = soft::<S>(64);
    let size = 64 * PAGE_SIZE;
    let end = page(64);
    for (addr, len, flags, errno) in [
        (0, PAGE_SIZE, MapFlags::PRIVATE, Errno::EBADF),
        (0, 0, ANON, Errno::EINVAL),
        (0, usize::MAX, ANON, Errno::ENOMEM),
        (0, size + PAGE_SIZE, ANON, Errno::ENOMEM),
        (page(1) + 1, PAGE_SIZE, FIXED, Errno::EINVAL),
        (page(1) + 1, PAGE_SIZE, ANON | MapFlags::FIXED_NOREPLACE, Errno::EINVAL),
        (end, PAGE_SIZE, FIXED, Errno::ENOMEM),
        (end - PAGE_SIZE, 2 * PAGE_SIZE, FIXED, Errno::ENOMEM),
        (page(0) - PAGE_SIZE, PAGE_SIZE, FIXED, Errno::EPERM),
        (0, PAGE_SIZE, MapFlags::ANONYMOUS, Errno::EINVAL),
        (0, PAGE_SIZE, MapFlags::ANONYMOUS | MapFlags::SHARED | MapFlags::PRIVATE, Errno::EINVAL),
        (0, PAGE_SIZE, ANON | MapFlags::HUGETLB, Errno::EOPNOTSUPP),
        (0, PAGE_SIZE, MapFlags::ANONYMOUS | MapFlags::SHARED | MapFlags::GROWSDOWN, Errno::EINVAL),
    ] {
        assert_eq!(mm.mmap(addr, len, RW, flags), Err(errno), "{addr:#x} {len:#x} {flags:?}");
    }
    // Unknown prot and flag bits are ignored.
    assert!(mm.mmap(0, 1, Prot::from_bits_retain(0x83), ANON | MapFlags::from_bits_retain(1 << 30)).is_ok());
    assert_eq!(listing(&mm), [(63, 64, 3)]);
    mm.validate();
}

fn mmap_places_top_down<S: LockScheme>() {
    let mm = soft::<S>(16);
    let map = |pages: usize, prot| (mm.mmap(0, pages * PAGE_SIZE, prot, ANON).unwrap().get() - page(0)) / PAGE_SIZE;
    assert_eq!(map(2, RW), 14);
    assert_eq!(map(3, Prot::READ), 11);
    assert_eq!(map(1, RW), 10);
    mm.munmap(page(14), 2 * PAGE_SIZE).unwrap();
    assert_eq!(map(3, RW), 7, "a gap too small is passed by");
    assert_eq!(map(1, RW), 15, "the highest gap is used at its upper end");
    assert_eq!(mm.mmap(0, 9 * PAGE_SIZE, RW, ANON), Err(Errno::ENOMEM));
    mm.validate();
    // Mappings of whole huge pages are aligned to them.
    let mm = soft::<S>(2048);
    mm.mmap(0, PAGE_SIZE, RW, ANON).unwrap();
    assert_eq!(mm.mmap(0, 2 << 20, RW, ANON).unwrap().get() % (2 << 20), 0);
    assert_ne!(mm.mmap(0, (2 << 20) + PAGE_SIZE, RW, ANON).unwrap().get() % (2 << 20), 0);
}

fn hints<S: LockScheme>() {
    let mm = soft::<S>(16);
    assert_eq!(mm.mmap(page(3) + 5, PAGE_SIZE, RW, ANON).unwrap().get(), page(3), "rounded down");
    assert_eq!(mm.mmap(page(3), PAGE_SIZE, RW, ANON).unwrap().get(), page(15), "taken: ignored");
    assert_eq!(mm.mmap(PAGE_SIZE, PAGE_SIZE, RW, ANON).unwrap().get(), page(0), "too low: raised");
    assert_eq!(mm.mmap(1, PAGE_SIZE, RW, ANON).unwrap().get(), page(14), "inside the first page: none");
    assert_eq!(mm.mmap(page(15), 3 * PAGE_SIZE, RW, ANON).unwrap().get(), page(11), "reaches out: ignored");
}

fn fixed_replaces_and_splits<S: LockScheme>() {
    let mm = soft::<S>(16);
    mm.mmap(page(2), 6 * PAGE_SIZE, RW, FIXED).unwrap();
    mm.mmap(page(4), 2 * PAGE_SIZE, Prot::READ, FIXED).unwrap();
    assert_eq!(listing(&mm), [(2, 4, 3), (4, 6, 1), (6, 8, 3)]);
    mm.mmap(page(3), 4 * PAGE_SIZE, RW, FIXED).unwrap();
    assert_eq!(listing(&mm), [(2, 8, 3)], "replaced and merged with both rests");
    mm.mmap(page(0), 16 * PAGE_SIZE, Prot::NONE, FIXED).unwrap();
    assert_eq!(listing(&mm), [(0, 16, 0)]);
    mm.validate();
}

fn noreplace<S: LockScheme>() {
    let mm = soft::<S>(16);
    let flags = ANON | MapFlags::FIXED_NOREPLACE;
    assert_eq!(mm.mmap(page(4), PAGE_SIZE, RW, flags).unwrap().get(), page(4));
    assert_eq!(mm.mmap(page(3), 2 * PAGE_SIZE, RW, flags), Err(Errno::EEXIST));
    assert_eq!(mm.mmap(page(4), PAGE_SIZE, RW, flags | MapFlags::FIXED), Err(Errno::EEXIST));
    assert_eq!(mm.mmap(page(5), PAGE_SIZE, RW, flags).unwrap().get(), page(5));
}

fn merges_of_new_mappings<S: LockScheme>() {
    let mm = soft::<S>(16);
    mm.mmap(page(1), PAGE_SIZE, RW, FIXED).unwrap();
    mm.mmap(page(3), PAGE_SIZE, RW, FIXED).unwrap();
    mm.mmap(page(2), PAGE_SIZE, RW, FIXED).unwrap();
    assert_eq!(listing(&mm), [(1, 4, 3)]);
    mm.mmap(page(4), PAGE_SIZE, RW, FIXED | MapFlags::NORESERVE).unwrap();
    assert_eq!(mm.map_count(), 2, "NORESERVE is not accounted, so it differs");
    mm.mmap(page(5), PAGE_SIZE, RW, FIXED | MapFlags::STACK).unwrap();
    assert_eq!(mm.map_count(), 3, "a stack differs");
}

fn munmap_errors_and_cuts<S: LockScheme>() {
    let mm = soft::<S>(16);
    let end = page(16);
    for (addr, len) in
        [(page(0) + 1, PAGE_SIZE), (page(0), 0), (end + PAGE_SIZE, 1), (page(0), usize::MAX), (page(15), 2 * PAGE_SIZE)]
    {
        assert_eq!(mm.munmap(addr, len), Err(Errno::EINVAL), "{addr:#x} {len:#x}");
    }
    assert_eq!(mm.munmap(page(0), 16 * PAGE_SIZE), Ok(()), "nothing there");
    mm.mmap(page(0), 3 * PAGE_SIZE, RW, FIXED).unwrap();
    mm.mmap(page(5), 3 * PAGE_SIZE, Prot::READ, FIXED).unwrap();
    mm.mmap(page(10), 3 * PAGE_SIZE, RW, FIXED).unwrap();
    mm.munmap(page(1), 1).unwrap();
    assert_eq!(listing(&mm), [(0, 1, 3), (2, 3, 3), (5, 8, 1), (10, 13, 3)]);
    mm.munmap(page(2), 9 * PAGE_SIZE).unwrap();
    assert_eq!(listing(&mm), [(0, 1, 3), (11, 13, 3)]);
    mm.validate();
}

fn mprotect_errors<S: LockScheme>() {
    let mm = soft::<S>(16);
    mm.mmap(page(2), 2 * PAGE_SIZE, RW, FIXED).unwrap();
    mm.mmap(page(5), PAGE_SIZE, RW, FIXED).unwrap();
    let both = Prot::GROWSDOWN | Prot::GROWSUP;
    for (addr, len, prot, expected) in [
        (page(2) + 1, PAGE_SIZE, RW, Err(Errno::EINVAL)),
        (page(2), PAGE_SIZE, both, Err(Errno::EINVAL)),
        (page(2), PAGE_SIZE, Prot::from_bits_retain(0x10), Err(Errno::EINVAL)),
        (page(2), PAGE_SIZE, RW | Prot::SEM, Ok(())),
        (page(2), PAGE_SIZE, RW | Prot::GROWSDOWN, Err(Errno::EINVAL)),
        (page(2), 0, Prot::from_bits_retain(0x10), Ok(())),
        (page(9), 0, RW, Ok(())),
        (page(2), usize::MAX, RW, Err(Errno::ENOMEM)),
        (page(2), usize::MAX - PAGE_SIZE, RW, Err(Errno::ENOMEM)),
        (page(1), 3 * PAGE_SIZE, Prot::READ, Err(Errno::ENOMEM)),
        (page(9), PAGE_SIZE, Prot::READ, Err(Errno::ENOMEM)),
    ] {
        assert_eq!(mm.mprotect(addr, len, prot), expected, "{addr:#x} {len:#x} {prot:?}");
    }
    assert_eq!(listing(&mm), [(2, 4, 3), (5, 6, 3)], "nothing changed");
    assert_eq!(mm.mprotect(page(3), 3 * PAGE_SIZE, Prot::READ), Err(Errno::ENOMEM));
    assert_eq!(listing(&mm), [(2, 3, 3), (3, 4, 1), (5, 6, 3)], "changed up to the hole");
    mm.validate();
}

fn mprotect_splits_and_merges<S: LockScheme>() {
    let mm = soft::<S>(16);
    mm.mmap(page(0), 9 * PAGE_SIZE, RW, FIXED | MapFlags::NORESERVE).unwrap();
    mm.mprotect(page(3), 3 * PAGE_SIZE, Prot::READ).unwrap();
    assert_eq!(listing(&mm), [(0, 3, 3), (3, 6, 1), (6, 9, 3)]);
    mm.mprotect(page(6), PAGE_SIZE, Prot::READ).unwrap();
    assert_eq!(listing(&mm), [(0, 3, 3), (3, 7, 1), (7, 9, 3)], "head joins the left neighbour");
    mm.mprotect(page(2), PAGE_SIZE, Prot::READ).unwrap();
    assert_eq!(listing(&mm), [(0, 2, 3), (2, 7, 1), (7, 9, 3)], "tail joins the right neighbour");
    mm.mprotect(page(1), 7 * PAGE_SIZE, RW).unwrap();
    assert_eq!(listing(&mm), [(0, 9, 3)]);
    mm.validate();
}

fn accounting_decides_about_merges<S: LockScheme>() {
    // A faulted half keeps its charge when it becomes read-only, an unfaulted
    // one gives it back: two VMAs. Without accounting, one.
    for (flags, count) in [(FIXED, 2), (FIXED | MapFlags::NORESERVE, 1)] {
        let mm = soft::<S>(16);
        mm.mmap(page(0), 4 * PAGE_SIZE, RW, flags).unwrap();
        mm.mprotect(page(2), 2 * PAGE_SIZE, Prot::READ).unwrap();
        store(&mm, page(0), 1).unwrap();
        mm.mprotect(page(0), 2 * PAGE_SIZE, Prot::READ).unwrap();
        assert_eq!(mm.map_count(), count, "{flags:?}");
        mm.validate();
    }
}

fn anon_vma_decides_about_merges<S: LockScheme>() {
    let mm = soft::<S>(16);
    let map = |n| mm.mmap(page(n), PAGE_SIZE, RW, FIXED).unwrap();
    map(0);
    map(2);
    store(&mm, page(0), 1).unwrap();
    store(&mm, page(2), 1).unwrap();
    map(1);
    assert_eq!(listing(&mm), [(0, 2, 3), (2, 3, 3)], "both written apart: the fill joins the left one only");
    // Neighbours that differ in protection only share their identity when
    // written, and merge later.
    let mm = soft::<S>(16);
    mm.mmap(page(0), 2 * PAGE_SIZE, RW, FIXED).unwrap();
    mm.mprotect(page(1), PAGE_SIZE, RW | Prot::EXEC).unwrap();
    store(&mm, page(0), 1).unwrap();
    store(&mm, page(1), 1).unwrap();
    mm.mprotect(page(1), PAGE_SIZE, RW).unwrap();
    assert_eq!(listing(&mm), [(0, 2, 3)]);
}

fn map_count_limits<S: LockScheme>() {
    let mm = soft::<S>(64);
    mm.set_max_map_count(4);
    let one = |n| mm.mmap(page(n), PAGE_SIZE, RW, FIXED);
    mm.mmap(page(0), 8 * PAGE_SIZE, RW, FIXED).unwrap();
    for n in [10, 12, 14] {
        one(n).unwrap();
    }
    assert_eq!(mm.mprotect(page(1), PAGE_SIZE, Prot::READ), Err(Errno::ENOMEM), "a split at the limit");
    assert_eq!(mm.munmap(page(1), PAGE_SIZE), Err(Errno::ENOMEM), "a cut in the middle at the limit");
    assert_eq!(mm.mmap(page(1), PAGE_SIZE, Prot::READ, FIXED), Err(Errno::ENOMEM), "the same by FIXED");
    assert_eq!(listing(&mm)[0], (0, 8, 3));
    mm.munmap(page(0), PAGE_SIZE).unwrap();
    one(16).unwrap();
    assert_eq!(mm.map_count(), 5, "one more than the limit");
    assert_eq!(one(18), Err(Errno::ENOMEM));
    assert_eq!(one(17), Err(Errno::ENOMEM), "even one that would merge");
    mm.munmap(page(10), PAGE_SIZE).unwrap();
    mm.mprotect(page(1), 7 * PAGE_SIZE, Prot::READ).unwrap();
    mm.validate();
    // A move wants room for three more, though it needs one (`move_vma`).
    let mm = soft::<S>(64);
    mm.mmap(page(0), PAGE_SIZE, RW, FIXED).unwrap();
    mm.mmap(page(1), PAGE_SIZE, Prot::READ, FIXED).unwrap();
    let grow = |max| {
        mm.set_max_map_count(max);
        mm.mremap(page(0), PAGE_SIZE, 2 * PAGE_SIZE, RemapFlags::MAYMOVE, 0)
    };
    assert_eq!(grow(5), Err(Errno::ENOMEM));
    assert_ne!(grow(6).unwrap(), VirtAddr(page(0)));
    assert_eq!(mm.map_count(), 2);
}

/// RLIMIT_AS.
fn the_limit_of_all_mappings<S: LockScheme>() {
    let mm = soft::<S>(64);
    mm.set_limits(Limits { address_space: 8 * PAGE_SIZE as u64, ..mm.limits() });
    mm.mmap(page(0), 8 * PAGE_SIZE, RW, FIXED).unwrap();
    assert_eq!(mm.mmap(page(8), PAGE_SIZE, RW, FIXED), Err(Errno::ENOMEM));
    mm.mmap(page(4), 4 * PAGE_SIZE, Prot::READ, FIXED).expect("no more than it replaces");
    assert_eq!(listing(&mm), [(0, 4, 3), (4, 8, 1)]);
    mm.validate();
}

fn signals<S: LockScheme>() {
    let mm = soft::<S>(16);
    assert_eq!(load(&mm, page(3)), Err(Signal::MapErr));
    mm.mmap(page(3), PAGE_SIZE, Prot::READ, FIXED).unwrap();
    mm.mmap(page(4), PAGE_SIZE, Prot::NONE, FIXED).unwrap();
    mm.mmap(page(5), PAGE_SIZE, Prot::WRITE, FIXED).unwrap();
    assert!(load(&mm, page(3)).is_ok());
    assert_eq!(store(&mm, page(3), 1), Err(Signal::AccErr));
    assert_eq!(load(&mm, page(4)), Err(Signal::AccErr));
    assert_eq!(store(&mm, page(4), 1), Err(Signal::AccErr));
    assert!(load(&mm, page(5)).is_ok(), "a write-only mapping can be read on x86");
    assert_eq!(load(&mm, page(64)), Err(Signal::MapErr));
    let error = mm.write(VirtAddr(page(5) + 4), &[7; 3 * PAGE_SIZE]).unwrap_err();
    assert_eq!(error, AccessError { addr: VirtAddr(page(6)), signal: Signal::MapErr });
    assert_eq!(load(&mm, page(5) + 8), Ok(0x0707_0707_0707_0707), "bytes before it were stored");
}

fn contents_live_and_die_with_the_mapping<S: LockScheme>() {
    let mm = soft::<S>(16);
    let first = mm.map(page(2), 3 * PAGE_SIZE, RW, FIXED).unwrap();
    store(&mm, page(3) + VALUE, 42).unwrap();
    let seen = stamp(&mm, page(3)).unwrap();
    assert_eq!((seen.page_addr(), seen.mm_id), (VirtAddr(page(3)), mm.id()));
    assert!(seen.incarnation >= first.incarnation);
    for prot in [Prot::READ, Prot::NONE, Prot::READ, Prot::NONE, RW] {
        mm.mprotect(page(3), PAGE_SIZE, prot).unwrap();
        if prot != Prot::NONE {
            assert_eq!(load(&mm, page(3) + VALUE), Ok(42), "{prot:?}");
        }
    }
    assert_eq!(stamp(&mm, page(3)).unwrap(), seen);
    mm.mprotect(page(3), PAGE_SIZE, Prot::NONE).unwrap();
    let second = mm.map(page(3), PAGE_SIZE, RW, FIXED).unwrap();
    assert_eq!(load(&mm, page(3) + VALUE), Ok(0), "replaced while hidden: gone");
    assert!(stamp(&mm, page(3)).unwrap().incarnation >= second.incarnation && second.incarnation > seen.incarnation);
    store(&mm, page(3) + VALUE, 43).unwrap();
    mm.munmap(page(3), PAGE_SIZE).unwrap();
    assert_eq!(load(&mm, page(3)), Err(Signal::MapErr));
    mm.mmap(page(3), PAGE_SIZE, RW, FIXED).unwrap();
    assert_eq!(load(&mm, page(3) + VALUE), Ok(0));
    mm.validate();
}

/// Pages that were only read before the mapping became writable: the first
/// store still counts as one (found by the model).
fn a_first_store_is_noticed<S: LockScheme>() {
    for through_none in [false, true] {
        let mm = soft::<S>(16);
        mm.mmap(page(2), 2 * PAGE_SIZE, Prot::READ, FIXED).unwrap();
        load(&mm, page(2)).unwrap();
        if through_none {
            mm.mprotect(page(2), 2 * PAGE_SIZE, Prot::NONE).unwrap();
        }
        mm.mprotect(page(2), 2 * PAGE_SIZE, RW).unwrap();
        load(&mm, page(2)).unwrap();
        store(&mm, page(2), 1).unwrap();
        let read = mm.core().mmap_read();
        let entry = read.snapshot().entry_at(VirtAddr(page(2))).unwrap();
        assert_ne!(read.vma(entry).segment().anon_vma, 0);
    }
}

/// Pages filled for a mapping carry its incarnation or a higher one, also
/// after it has become part of an older VMA.
fn incarnations_never_go_back<S: LockScheme>() {
    let mm = soft::<S>(16);
    mm.mmap(page(2), PAGE_SIZE, Prot::READ, FIXED).unwrap();
    mm.mmap(page(4), PAGE_SIZE, Prot::READ, FIXED).unwrap();
    let new = mm.map(page(3), PAGE_SIZE, RW, FIXED).unwrap();
    mm.mprotect(page(3), PAGE_SIZE, Prot::READ).unwrap();
    assert_eq!(mm.map_count(), 1);
    assert!(stamp(&mm, page(3)).unwrap().incarnation >= new.incarnation);
    // Nor when an object is used once more.
    let mut last = new.incarnation;
    for _ in 0..3 {
        let next = mm.map(page(8), PAGE_SIZE, RW, FIXED).unwrap();
        assert!(next.incarnation > last, "{} after {last}", next.incarnation);
        last = next.incarnation;
        mm.munmap(page(8), PAGE_SIZE).unwrap();
    }
}

/// What the VMA there knows of its pages: whether one may be present.
fn touched<S: LockScheme>(mm: &SoftMm<S>, addr: usize) -> bool {
    let read = mm.core().mmap_read();
    let entry = read.snapshot().entry_at(VirtAddr(addr)).unwrap();
    read.vma(entry).is_touched()
}

/// A VMA knows whether it may have pages, whatever it was merged, split or made from.
fn what_was_touched_is_remembered<S: LockScheme>() {
    for stored in [2, 4] {
        let mm = soft::<S>(16);
        for (n, prot) in [(2, RW), (3, Prot::READ), (4, RW)] {
            mm.mmap(page(n), PAGE_SIZE, prot, FIXED).unwrap();
        }
        store(&mm, page(stored) + VALUE, 42).unwrap();
        for n in [2, 3, 4] {
            assert_eq!(touched(&mm, page(n)), n == stored);
        }
        mm.mprotect(page(3), PAGE_SIZE, RW).unwrap();
        assert_eq!(mm.map_count(), 1);
        assert!(touched(&mm, page(2)), "the whole, of which a part was");
        mm.munmap(page(3), PAGE_SIZE).unwrap();
        assert!(touched(&mm, page(stored)), "the part, of a whole that was");
        mm.munmap(page(2), 3 * PAGE_SIZE).unwrap();
        mm.mmap(page(2), 3 * PAGE_SIZE, RW, FIXED).unwrap();
        assert!(!touched(&mm, page(2)), "an object that another mapping had");
        assert_eq!(load(&mm, page(stored) + VALUE), Ok(0));
    }
}

/// ... and of what was far from them it knows that there are none.
fn what_was_not_touched_stays_so<S: LockScheme>() {
    const FAR: usize = 64;
    let mm = soft::<S>(4 * FAR);
    mm.mmap(page(FAR), FAR * PAGE_SIZE, RW, FIXED).unwrap();
    store(&mm, page(FAR) + VALUE, 42).unwrap();
    mm.mmap(page(2 * FAR), FAR * PAGE_SIZE, RW, FIXED).unwrap();
    assert_eq!(mm.map_count(), 1, "one that was touched, and one that was not");
    mm.munmap(page(2 * FAR - 1), PAGE_SIZE).unwrap();
    assert!(touched(&mm, page(FAR)) && !touched(&mm, page(2 * FAR)), "apart again");
    mm.mremap(
        page(FAR),
        (FAR - 1) * PAGE_SIZE,
        (FAR - 1) * PAGE_SIZE,
        RemapFlags::MAYMOVE | RemapFlags::FIXED,
        page(0),
    )
    .unwrap();
    assert_eq!(load(&mm, page(0) + VALUE), Ok(42));
    mm.validate();
    mm.munmap(page(32), PAGE_SIZE).unwrap();
    assert!(touched(&mm, page(0)) && !touched(&mm, page(33)), "moved, then cut");
    mm.validate();
    mm.mmap(page(0), 32 * PAGE_SIZE, Prot::READ, FIXED).unwrap();
    assert!(!touched(&mm, page(0)), "replaced");
    mm.validate();
}

/// Fault-around reaches beyond what an earlier fault has told of.
fn what_comes_along_is_remembered<S: LockScheme>() {
    let mm = soft::<S>(128);
    mm.mmap(page(0), 128 * PAGE_SIZE, RW, FIXED).unwrap();
    store(&mm, page(0) + VALUE, 1).unwrap();
    mm.set_fault_around(64);
    store(&mm, page(1) + VALUE, 1).unwrap();
    let beyond = mm.populated(mm.range()).last().unwrap().end().get();
    assert!(beyond > page(32), "two chunks of what is noted: {beyond:#x}");
    mm.validate();
}

/// A page that came without the fault path is found at rest.
fn a_page_that_no_vma_knows_of_is_noticed<S: LockScheme>() {
    let mm = soft::<S>(16);
    mm.mmap(page(2), PAGE_SIZE, RW, FIXED).unwrap();
    mm.validate();
    mm.mmu().install(VirtAddr(page(2)), Content::Zero, true, true).unwrap();
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mm.validate())).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("that no VMA knows of"), "{text}");
}

fn populate<S: LockScheme>() {
    let mm = soft::<S>(16);
    crate::thread::announce();
    let before = crate::stats::of_this_thread(crate::stats::Counter::PageInstalled).unwrap();
    mm.mmap(page(2), 5 * PAGE_SIZE, RW, FIXED | MapFlags::POPULATE).unwrap();
    assert_eq!(crate::stats::of_this_thread(crate::stats::Counter::PageInstalled).unwrap() - before, 5);
    mm.mmap(page(8), PAGE_SIZE, Prot::NONE, FIXED | MapFlags::POPULATE).unwrap();
    mm.mmap(page(9), PAGE_SIZE, Prot::READ, FIXED | MapFlags::POPULATE).unwrap();
    assert_eq!(store(&mm, page(9), 1), Err(Signal::AccErr));
}

fn listing_reads_like_proc<S: LockScheme>() {
    let mm = soft::<S>(16);
    mm.mmap(page(2), PAGE_SIZE, Prot::READ | Prot::EXEC, FIXED).unwrap();
    let line = mm.maps()[0].to_string();
    assert_eq!(line, format!("{:x}-{:x} r-xp 00000000 00:00 0 ", page(2), page(3)));
}

fn objects_return_to_the_slab<S: LockScheme>() {
    let (n, rounds) = (300, 20);
    for _ in 0..rounds {
        let mm = soft::<S>(2 * n);
        for i in 0..n {
            mm.mmap(page(2 * i), PAGE_SIZE, RW, FIXED).unwrap();
        }
        drop(mm);
    }
    let stats = S::slab().stats();
    // Other tests share the slab; a leak would show as rounds * n objects.
    assert!(stats.pages * stats.objects_per_page < rounds * n / 2 + 4000, "{stats:?}");
}

/// R17: a fault below a MAP_GROWSDOWN mapping extends it, as far as the guard
/// gap and the limit allow.
fn a_stack_grows<S: LockScheme>() {
    let pages = STACK_GUARD_PAGES + 64;
    let mm = soft::<S>(pages);
    mm.mmap(page(0), PAGE_SIZE, RW, FIXED).unwrap();
    mm.mmap(page(pages - 8), 4 * PAGE_SIZE, RW, FIXED | MapFlags::GROWSDOWN).unwrap();
    mm.mmap(page(pages - 4), PAGE_SIZE, RW, FIXED).unwrap();
    store(&mm, page(pages - 8), 1).unwrap();
    assert_eq!(store(&mm, page(pages - 9) + 8, 2), Ok(()));
    assert_eq!(store(&mm, page(pages - 20), 3), Ok(()), "growth by several pages at once");
    assert_eq!(listing(&mm)[1], (pages - 20, pages - 4, RW.bits()));
    assert_eq!(load(&mm, page(pages - 9) + 8), Ok(2));
    let lowest = 1 + STACK_GUARD_PAGES;
    assert_eq!(store(&mm, page(lowest - 1), 4), Err(Signal::MapErr), "into the guard gap");
    assert_eq!(store(&mm, page(lowest), 4), Ok(()));
    assert_eq!(mm.map_count(), 3);
    // An ordinary mapping does not grow.
    mm.munmap(page(lowest), (pages - 4 - lowest) * PAGE_SIZE).unwrap();
    assert_eq!(load(&mm, page(pages - 5)), Err(Signal::MapErr));
    mm.validate();
}

fn one_fault_brings_its_neighbours<S: LockScheme>() {
    for pager in [AnyPager::Zero, AnyPager::Stamped] {
        let mm: SoftMm<S> = Mm::new(SoftMmu::new(64 * PAGE_SIZE).unwrap(), pager);
        mm.set_fault_around(16);
        let populated = || -> Vec<(usize, usize)> {
            let n = |addr: VirtAddr| (addr - BASE) / PAGE_SIZE;
            let mut pages: Vec<(usize, usize)> = Vec::new();
            for run in mm.populated(mm.range()) {
                match pages.last_mut().filter(|last| last.1 == n(run.start())) {
                    Some(last) => last.1 = n(run.end()),
                    None => pages.push((n(run.start()), n(run.end()))),
                }
            }
            pages
        };
        mm.mmap(page(2), 38 * PAGE_SIZE, RW, FIXED).unwrap();
        // From the faulting page to the end of its block.
        store(&mm, page(3) + VALUE, 7).unwrap();
        assert_eq!(populated(), [(3, 16)]);
        // What is there already ends it, and is kept.
        assert_eq!(load(&mm, page(2) + VALUE), Ok(0));
        assert_eq!((load(&mm, page(3) + VALUE), populated()), (Ok(7), vec![(2, 16)]));
        // So does a guard, and the end of the mapping.
        mm.madvise(page(20), PAGE_SIZE, 102).unwrap();
        load(&mm, page(17)).unwrap();
        assert_eq!(load(&mm, page(20)), Err(Signal::MapErr));
        load(&mm, page(34)).unwrap();
        assert_eq!(populated(), [(2, 16), (17, 20), (34, 40)]);
        // Contents out of sight are not lost.
        store(&mm, page(18) + VALUE, 9).unwrap();
        mm.mprotect(page(18), PAGE_SIZE, Prot::NONE).unwrap();
        mm.mprotect(page(18), PAGE_SIZE, RW).unwrap();
        mm.madvise(page(16), 2 * PAGE_SIZE, 4).unwrap();
        load(&mm, page(16)).unwrap();
        assert_eq!(load(&mm, page(18) + VALUE), Ok(9));
        mm.validate();
    }
}

fn mremap_of_absurd_lengths<S: LockScheme>() {
    use crate::mm::RemapFlags;
    let mm = soft::<S>(16);
    mm.mmap(page(2), 2 * PAGE_SIZE, RW, FIXED).unwrap();
    mm.mmap(page(8), PAGE_SIZE, RW, FIXED).unwrap();
    let fixed = RemapFlags::MAYMOVE | RemapFlags::FIXED;
    for old_len in [usize::MAX & !(PAGE_SIZE - 1), usize::MAX / 2, 15 * PAGE_SIZE] {
        assert_eq!(mm.mremap(page(2), old_len, PAGE_SIZE, RemapFlags::empty(), 0), Err(Errno::EINVAL), "{old_len:#x}");
        assert_eq!(mm.mremap(page(2), old_len, PAGE_SIZE, fixed, page(8)), Err(Errno::EINVAL), "{old_len:#x}");
        assert_eq!(listing(&mm), [(2, 4, 3), (8, 9, 3)], "{old_len:#x}");
    }
    mm.validate();
}
