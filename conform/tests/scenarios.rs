//! Scenarios of the kernel's own tests (tools/testing/vma, selftests/mm:
//! merge, mremap_test, mremap_dontunmap, map_fixed_noreplace, guard-regions,
//! madv_populate, mlock2-tests, droppable, cow, mseal_test), restated as
//! sequences that run on the host and on vmalab, under every lock scheme and
//! delivery, and are compared after each step.

use vmalab_conform::PAGE;
use vmalab_conform::op::{At, Op, Slot};
use vmalab_conform::prelude::*;

const NONE: u32 = 0;
const R: u32 = 1;
const W: u32 = 2;
const RW: u32 = 3;
const FIXED: u32 = 0x32;
const SHARED: u32 = 0x31;
const NORESERVE: u32 = 0x4000;
const GROWSDOWN: u32 = 0x100;
const NOREPLACE: u32 = 0x10_0000;
const MAYMOVE: u32 = 1;
const MOVE_TO: u32 = 3;
const DONTUNMAP: u32 = 5;

const DONTNEED: i32 = 4;
const FREE: i32 = 8;
const REMOVE: i32 = 9;
const DONTFORK: i32 = 10;
const WIPEONFORK: i32 = 18;
const COLD: i32 = 20;
const PAGEOUT: i32 = 21;
const POPULATE_READ: i32 = 22;
const POPULATE_WRITE: i32 = 23;
const DONTNEED_LOCKED: i32 = 24;
const GUARD: i32 = 102;
const UNGUARD: i32 = 103;

fn page(n: usize) -> At {
    win(n * PAGE)
}

fn map_as(n: usize, pages: usize, prot: u32, flags: u32) -> Op {
    Mmap { addr: page(n), len: pages * PAGE, prot, flags, file: NoFile, offset: 0 }
}

fn map(n: usize, pages: usize) -> Op {
    map_as(n, pages, RW, FIXED)
}

fn map_file(n: usize, pages: usize, prot: u32, flags: u32, file: Slot, first: u64) -> Op {
    Mmap { addr: page(n), len: pages * PAGE, prot, flags, file, offset: first * PAGE as u64 }
}

fn unmap(n: usize, pages: usize) -> Op {
    Munmap { addr: page(n), len: pages * PAGE }
}

fn protect(n: usize, pages: usize, prot: u32) -> Op {
    Mprotect { addr: page(n), len: pages * PAGE, prot }
}

fn advise(n: usize, pages: usize, advice: i32) -> Op {
    Madvise { addr: page(n), len: pages * PAGE, advice }
}

fn remap(n: usize, pages: usize, new_pages: usize, flags: u32, to: usize) -> Op {
    Mremap { addr: page(n), old_len: pages * PAGE, new_len: new_pages * PAGE, flags, new_addr: page(to) }
}

fn seal(n: usize, pages: usize) -> Op {
    Mseal { addr: page(n), len: pages * PAGE, flags: 0 }
}

fn store(n: usize) -> Op {
    Store { addr: page(n), value: 0x5700 + n as u64 }
}

fn load(n: usize) -> Op {
    Load { addr: page(n) }
}

fn stores(pages: std::ops::Range<usize>) -> impl Iterator<Item = Op> {
    pages.map(store)
}

/// Tests of one sequence each.
macro_rules! scenarios {
    ($($(#[$attr:meta])* $name:ident: [$($op:expr),* $(,)?];)*) => {
        $($(#[$attr])* #[test] fn $name() { check(&[$($op),*]); })*
    };
}

// tools/testing/vma
scenarios! {
    a_new_mapping_joins_left_and_right: [map(0, 1), map(2, 1), map(1, 1)];
    a_changed_middle_splits_in_three: [map(0, 3), protect(1, 1, R), protect(1, 1, RW)];
    new_mappings_fill_gaps: [
        map(0, 2), map(3, 1), map(5, 1), map(7, 2),
        map(2, 1), map(4, 1), map(6, 1), map(9, 1), unmap(0, 10),
    ];
    growth_and_shrinkage_in_place: [
        map(4, 1), remap(4, 1, 3, 0, 0), remap(4, 3, 1, 0, 0), map(6, 1), remap(4, 1, 2, 0, 0), remap(4, 3, 4, 0, 0),
    ];
    a_changed_part_joins_the_right: [map(0, 4), map_as(4, 4, R, FIXED), protect(2, 2, R), protect(2, 1, RW)];
    a_changed_part_joins_the_left: [map(0, 4), map_as(4, 4, R, FIXED), protect(4, 2, RW), protect(6, 2, RW)];
    changes_that_join_nothing: [
        map_as(0, 2, R, FIXED), map(2, 8), map_as(10, 2, R, FIXED),
        protect(3, 1, R), protect(5, 2, NONE), protect(8, 1, R), protect(9, 1, R), protect(2, 1, R),
    ];
    different_anon_vmas_do_not_meet: [
        map(0, 2), store(0), map(4, 2), store(4), map(2, 2), protect(2, 2, R), protect(2, 2, RW), store(2),
    ];
    mapped_apart_and_stored_to_before_the_gap_closes: [
        map(0, 3), map(5, 3), store(1), store(6), map(3, 2), store(4), protect(0, 8, R), protect(0, 8, RW),
    ];
    an_anon_vma_goes_on_to_who_has_none: [
        map(0, 3), protect(1, 1, R), store(0), protect(1, 1, RW), store(2),
        protect(0, 1, R), protect(2, 1, R), protect(0, 3, RW), protect(0, 3, NONE),
    ];
    moves_beside_oneself: [map(8, 2), remap(8, 2, 2, MOVE_TO, 10), remap(10, 2, 2, MOVE_TO, 8), remap(8, 2, 2, MOVE_TO, 6)];
    moves_beside_another: [map(0, 2), map(8, 2), remap(8, 2, 2, MOVE_TO, 2), remap(2, 2, 2, MOVE_TO, 20)];
}

// selftests/mm/merge.c: thirds, MAP_NORESERVE so that accounting does not matter.
scenarios! {
    mprotect_unfaulted_left: [
        map_as(0, 10, RW, FIXED | NORESERVE), protect(0, 5, R), store(5), store(9), protect(5, 5, R),
    ];
    mprotect_unfaulted_right: [
        map_as(0, 10, RW, FIXED | NORESERVE), protect(5, 5, R), store(0), store(4), protect(0, 5, R),
    ];
    mprotect_unfaulted_both: [
        map_as(0, 9, RW, FIXED | NORESERVE), protect(0, 3, R), protect(6, 3, R), store(3), protect(3, 3, R),
    ];
    mprotect_faulted_left_unfaulted_right: [
        map_as(0, 9, RW, FIXED | NORESERVE), protect(6, 3, R), store(0), store(5), protect(3, 3, R), protect(0, 3, R),
    ];
    mprotect_unfaulted_left_faulted_right: [
        map_as(0, 9, RW, FIXED | NORESERVE), protect(0, 3, R), store(8), protect(3, 3, R), protect(6, 3, R),
    ];
    accounted_halves_do_not_merge: [map(0, 10), protect(0, 5, R), store(5), protect(5, 5, R)];
    a_forked_target_does_not_merge: [
        map(0, 5), store(0), store(4), Fork, map(5, 5), store(5), protect(5, 5, R), protect(5, 5, RW), unmap(0, 1),
    ];
    a_forked_source_does_not_merge: [
        map(0, 5), map_as(10, 5, R, FIXED), store(0), Fork, protect(0, 5, R), remap(0, 5, 5, MOVE_TO, 5), store(5),
    ];
    an_unfaulted_child_merges: [map(0, 5), load(2), Fork, map(5, 5), store(7)];
    the_child_of_a_split_mapping: [
        map(0, 6), stores(0..6).next().unwrap(), protect(2, 2, R), store(5), Fork, protect(2, 2, RW), store(2), protect(0, 6, R),
    ];
    mremap_unfaulted_to_faulted: [map(0, 5), map(20, 5), store(0), remap(20, 5, 5, MOVE_TO, 5)];
    mremap_unfaulted_behind_faulted: [map(10, 5), map(30, 5), store(10), remap(30, 5, 5, MOVE_TO, 5)];
    mremap_unfaulted_between_faulted: [
        map(0, 5), map(10, 5), map(30, 5), store(0), store(10), remap(30, 5, 5, MOVE_TO, 5),
    ];
    mremap_unfaulted_between_faulted_unfaulted: [
        map(0, 5), map(10, 5), map(30, 5), store(0), remap(30, 5, 5, MOVE_TO, 5),
    ];
    mremap_unfaulted_between_correctly_placed_faulted: [
        map(0, 15), store(0), store(14), unmap(5, 5), map(30, 5), remap(30, 5, 5, MOVE_TO, 5),
    ];
    mremap_faulted_out_and_back: [
        map(0, 15), store(0), store(7), store(14),
        remap(5, 5, 5, MOVE_TO, 30), remap(30, 5, 5, MOVE_TO, 5),
        remap(0, 5, 5, MOVE_TO, 30), remap(30, 5, 5, MOVE_TO, 0),
        remap(10, 5, 5, MOVE_TO, 30), remap(30, 5, 5, MOVE_TO, 10),
        remap(0, 5, 5, MOVE_TO, 40), remap(5, 10, 10, MOVE_TO, 45),
    ];
    mremap_faulted_beside_unfaulted: [
        map(0, 5), map(20, 5), store(20), remap(20, 5, 5, MOVE_TO, 5), protect(0, 10, R), protect(0, 10, RW),
    ];
    dontunmap_then_unmap_beside_neighbours: [
        map(0, 15), store(6), remap(5, 5, 5, DONTUNMAP | 2, 30), unmap(5, 5), remap(30, 5, 5, MOVE_TO, 5),
    ];
    seals_do_not_merge_with_what_is_not_sealed: [
        map(0, 3), seal(1, 1), map(3, 1), seal(3, 1), seal(2, 1), seal(0, 1),
    ];
}

// selftests/mm/mremap_test.c, mremap_dontunmap.c, map_fixed_noreplace.c
scenarios! {
    parameters_of_mremap: [
        map(0, 8), store(3),
        remap(0, 4, 4, MOVE_TO, 2), Mremap { addr: win(1), old_len: PAGE, new_len: PAGE, flags: MOVE_TO, new_addr: page(20) },
        Mremap { addr: page(0), old_len: PAGE, new_len: PAGE, flags: MOVE_TO, new_addr: win(20 * PAGE + 8) },
        remap(0, 4, 0, MAYMOVE, 0), remap(0, 4, 4, 8, 0), remap(0, 4, 4, 2, 20), remap(0, 4, 5, DONTUNMAP, 20),
        remap(20, 1, 2, MAYMOVE, 0), remap(0, 0, 1, MAYMOVE, 0), remap(4, 8, 9, MAYMOVE, 0),
        Mremap { addr: page(0), old_len: 1, new_len: PAGE + 1, flags: MAYMOVE, new_addr: page(0) },
    ];
    an_expansion_over_a_hole_merges: [map(0, 3), store(0), store(2), unmap(1, 1), remap(0, 1, 2, 0, 0)];
    an_expansion_from_within_merges: [map(0, 4), unmap(2, 1), remap(1, 1, 2, 0, 0), remap(0, 1, 2, 0, 0)];
    a_move_within_one_mapping: [map(0, 20), store(1), store(6), remap(0, 3, 3, MOVE_TO, 5), remap(10, 4, 2, MOVE_TO, 14)];
    several_mappings_move_at_once: [
        map(0, 11), store(0), store(2), store(5), store(10), unmap(1, 1), unmap(3, 1), unmap(7, 1), unmap(9, 1),
        remap(0, 11, 11, MOVE_TO, 20), remap(20, 11, 11, MOVE_TO, 9), remap(9, 11, 11, MOVE_TO, 40),
    ];
    several_mappings_move_over_others: [
        map(0, 6), store(0), store(5), unmap(2, 2), map_as(20, 8, R, FIXED), load(22), remap(0, 6, 6, MOVE_TO, 21),
    ];
    several_move_and_stay: [
        map(0, 6), store(0), store(5), unmap(2, 2), remap(0, 6, 6, MOVE_TO | 4, 21), load(0), store(1),
    ];
    several_do_not_shrink_or_grow: [
        map(0, 6), unmap(2, 1), remap(0, 6, 4, MOVE_TO, 21), remap(0, 6, 8, MOVE_TO, 21), remap(0, 6, 4, 0, 0), remap(0, 6, 3, MAYMOVE, 0),
    ];
    a_move_that_splits_both_ends: [
        map(0, 12), store(1), store(3), store(10), protect(4, 4, R), remap(2, 8, 8, MOVE_TO, 20), protect(20, 8, RW),
    ];
    a_move_must_not_begin_in_a_gap: [map(1, 4), unmap(2, 1), remap(0, 5, 5, MOVE_TO, 20), remap(2, 3, 3, MOVE_TO, 20)];
    what_is_read_only_or_hidden_moves_too: [
        map(0, 6), store(0), store(2), store(4), protect(2, 2, R), protect(4, 2, NONE),
        remap(0, 6, 6, MOVE_TO, 20), protect(20, 6, RW), load(20), load(22), load(24), store(22),
        remap(20, 6, 9, MAYMOVE, 0),
    ];
    dontunmap_simple: [map(0, 5), store(0), store(4), remap(0, 5, 5, DONTUNMAP, 30), load(0), store(1)];
    dontunmap_fixed: [map(0, 5), store(0), map(30, 5), store(31), remap(0, 5, 5, DONTUNMAP | 2, 30), load(0)];
    dontunmap_part: [map(0, 10), store(0), store(5), store(9), remap(5, 5, 5, DONTUNMAP | 2, 30), load(5), load(0)];
    dontunmap_part_over_something_larger: [
        map(0, 10), store(5), map(30, 20), store(36), store(49), remap(5, 5, 5, DONTUNMAP | 2, 32), load(30),
    ];
    dontunmap_shared: [map_as(0, 5, RW, SHARED | 0x10), store(0), remap(0, 5, 5, DONTUNMAP | 2, 30), load(0), store(30)];
    duplicates_of_shared_mappings: [
        map_as(0, 4, RW, SHARED | 0x10), store(1), remap(0, 0, 4, MAYMOVE, 0), remap(0, 0, 2, MOVE_TO, 20), remap(1, 0, 2, 0, 0), load(21),
    ];
    fixed_noreplace: [
        map_as(1, 3, RW, FIXED | NOREPLACE), map_as(0, 5, RW, 0x22 | NOREPLACE), map_as(2, 1, RW, 0x22 | NOREPLACE),
        map_as(3, 2, RW, 0x22 | NOREPLACE), map_as(0, 2, RW, 0x22 | NOREPLACE), map_as(0, 1, RW, 0x22 | NOREPLACE),
        map_as(4, 1, RW, 0x22 | NOREPLACE), unmap(0, 5), map_as(0, 5, RW, 0x22 | NOREPLACE),
    ];
}

// selftests/mm/guard-regions.c
scenarios! {
    guards_refuse_accesses: [
        map(0, 10), store(0), store(3), advise(0, 2, GUARD), load(0), store(1), load(2), store(3), advise(1, 5, GUARD),
        load(3), advise(0, 10, UNGUARD), load(0), load(3), store(1),
    ];
    guards_over_gaps: [map(0, 3), map(5, 3), store(6), advise(0, 10, GUARD), load(2), load(6), advise(2, 4, UNGUARD), load(2), load(5)];
    guards_go_with_munmap: [map(0, 6), advise(0, 6, GUARD), unmap(2, 2), map(2, 2), load(1), load(2), store(3), load(4)];
    guards_survive_mprotect_splits_and_merges: [
        map(0, 9), store(8), advise(1, 7, GUARD), protect(3, 3, R), load(4), load(8), protect(3, 3, RW), load(4), store(0),
        protect(0, 9, NONE), protect(0, 9, RW), load(5),
    ];
    guards_survive_dontneed: [map(0, 6), store(5), advise(1, 2, GUARD), advise(0, 6, DONTNEED), load(1), load(5), load(0)];
    guards_and_mlock: [
        map(0, 6), advise(1, 2, GUARD), Mlock { addr: page(0), len: 6 * PAGE }, load(1), advise(3, 1, GUARD),
        advise(0, 6, UNGUARD), load(1), advise(0, 1, DONTNEED), advise(0, 1, DONTNEED_LOCKED),
    ];
    guards_move: [map(0, 6), store(0), advise(1, 2, GUARD), remap(0, 6, 6, MOVE_TO, 20), load(20), load(21), load(23), store(22)];
    guards_stay_where_a_mapping_grows: [map(0, 6), advise(0, 2, GUARD), remap(0, 6, 9, MAYMOVE, 0), load(1), load(7), map(9, 1)];
    guards_of_what_shrinks: [map(0, 6), advise(4, 2, GUARD), remap(0, 6, 5, 0, 0), load(4), remap(0, 5, 6, 0, 0), load(5)];
    guards_are_inherited: [map(0, 6), store(0), advise(1, 2, GUARD), Fork, load(1), load(0), advise(0, 6, UNGUARD), load(1), store(0)];
    guards_and_wipeonfork: [map(0, 6), store(0), advise(0, 6, WIPEONFORK), advise(1, 2, GUARD), Fork, load(0), load(1)];
    guards_and_lazy_freeing: [map(0, 6), store(0), store(3), advise(1, 2, GUARD), advise(0, 6, FREE), load(1), store(3), advise(2, 2, UNGUARD)];
    guards_and_populate: [
        map(0, 6), advise(2, 1, GUARD), advise(0, 6, POPULATE_READ), advise(0, 6, POPULATE_WRITE), advise(3, 3, POPULATE_WRITE),
    ];
    guards_and_reclaim: [map(0, 6), store(0), advise(2, 1, GUARD), advise(0, 6, COLD), advise(0, 6, PAGEOUT), load(2), load(0)];
    guards_in_files: [
        map_file(0, 4, RW, 0x12, ReadWrite, 0), map_file(8, 4, RW, 0x11, ReadWrite, 0), load(0), store(1),
        advise(0, 2, GUARD), load(0), load(8), advise(9, 1, GUARD), load(9), load(1), advise(0, 4, UNGUARD), load(0), load(1),
    ];
}

// Others of selftests/mm
scenarios! {
    populate_needs_the_right: [
        map(0, 3), protect(1, 1, R), protect(2, 1, W), advise(0, 1, POPULATE_WRITE), advise(1, 1, POPULATE_READ),
        advise(1, 1, POPULATE_WRITE), advise(2, 1, POPULATE_READ), advise(2, 1, POPULATE_WRITE), protect(0, 1, NONE),
        advise(0, 1, POPULATE_READ),
    ];
    populate_stops_at_holes: [
        map(0, 6), unmap(2, 2), advise(0, 6, POPULATE_READ), advise(1, 5, POPULATE_WRITE), advise(2, 4, POPULATE_READ), advise(3, 9, POPULATE_WRITE),
    ];
    locks_split_and_merge: [
        map(0, 3), Mlock { addr: page(0), len: 3 * PAGE }, Munlock { addr: page(1), len: PAGE }, Mlock2 { addr: page(1), len: PAGE, flags: 1 },
        Mlock { addr: page(1), len: PAGE }, Munlockall, load(0),
    ];
    locks_on_fault: [
        map(0, 4), Mlock2 { addr: page(0), len: 4 * PAGE, flags: 1 }, store(1), Mlock2 { addr: page(0), len: PAGE, flags: 2 },
        Munlock { addr: page(0), len: 8 * PAGE }, Mlock { addr: page(2), len: 8 * PAGE },
    ];
    locked_memory_stays: [
        map(0, 2), Mlock { addr: page(0), len: PAGE }, advise(0, 1, DONTNEED), advise(0, 1, FREE), advise(0, 1, COLD),
        advise(0, 1, GUARD), advise(0, 1, DONTNEED_LOCKED), Msync { addr: page(0), len: PAGE, flags: 2 }, Fork, load(0),
    ];
    locks_over_nothing: [
        map(0, 2), protect(1, 1, NONE), Mlock { addr: page(0), len: 2 * PAGE }, Munlock { addr: page(0), len: 3 * PAGE },
        Mlock { addr: page(5), len: PAGE }, Mlock { addr: page(5), len: 0 },
    ];
    limits_on_locks: [
        SetLimit { what: Memlock, pages: 4 }, map(0, 8), Mlock { addr: page(0), len: 3 * PAGE }, Mlock { addr: page(3), len: 2 * PAGE },
        Mlock { addr: page(0), len: 4 * PAGE }, map_as(10, 2, RW, FIXED | 0x2000), remap(0, 4, 6, MAYMOVE, 0),
        SetLimit { what: Memlock, pages: 0 }, Mlock { addr: page(0), len: PAGE }, map_as(10, 2, RW, FIXED | 0x2000),
    ];
    droppable_memory: [
        map_as(0, 4, RW, 0x38), store(0), Mlock { addr: page(0), len: PAGE }, advise(0, 1, 19), advise(0, 1, 17), map_as(0, 4, RW, 0x2038),
        Fork, load(0), store(1),
    ];
    droppable_memory_is_paged_out: [
        map_as(0, 5, RW, 0x28), load(0), store(1), load(2), store(2), load(3), store(4), advise(0, 3, 21), load(0), store(0),
        protect(0, 5, NONE), advise(0, 5, 21), protect(0, 5, RW), load(3), load(4),
        map_as(8, 4, NONE, 0x38), protect(9, 1, R), Mlock { addr: page(9), len: PAGE }, advise(9, 1, 21), map_as(12, 1, R, 0x8038),
        advise(12, 1, 21), load(12), map_as(13, 1, W, 0x8038), advise(13, 1, 21), map_as(14, 2, W, 0x38), Mlock { addr: page(15), len: PAGE },
        advise(15, 1, 21),
    ];
    lengths_that_no_address_space_has: [
        Mremap { addr: page(0), old_len: 0, new_len: (1 << 47) - PAGE, flags: MAYMOVE, new_addr: abs(0) },
        Mremap { addr: page(0), old_len: 0, new_len: 1 << 47, flags: MAYMOVE, new_addr: abs(0) },
        map(0, 1), Mremap { addr: page(0), old_len: PAGE, new_len: (1 << 47) - PAGE, flags: MAYMOVE, new_addr: abs(0) },
    ];
    a_forked_mapping_grows_into_its_neighbour: [
        map(0, 3), store(0), map(8, 1), remap(8, 1, 1, MOVE_TO, 5), Fork, remap(1, 2, 4, 0, 0),
    ];
    copies_on_write: [
        map(0, 6), store(0), store(1), store(2), load(4), protect(2, 1, R), Fork, store(0), load(1), protect(2, 1, RW), store(2),
        load(4), Fork, store(0), load(2), remap(0, 3, 3, MOVE_TO, 20), load(21),
    ];
    what_is_not_inherited: [
        map(0, 6), store(0), store(2), store(4), advise(0, 2, DONTFORK), advise(2, 2, WIPEONFORK), Fork, load(0), load(2), load(4), map(0, 2),
    ];
    shared_memory_is_shared_by_a_child: [map_as(0, 4, RW, SHARED | 0x10), store(0), load(1), Fork, load(0), store(0), store(1)];
    seals_refuse_changes: [
        map(0, 6), store(2), seal(2, 2), unmap(2, 1), unmap(0, 6), unmap(1, 3), protect(2, 1, R), protect(0, 6, R), map(2, 1), map(1, 4),
        remap(2, 2, 1, 0, 0), remap(2, 2, 2, MOVE_TO, 20), remap(0, 1, 1, MOVE_TO, 2), advise(2, 1, DONTNEED), store(2),
        Mseal { addr: win(1), len: PAGE, flags: 0 }, Mseal { addr: page(0), len: PAGE, flags: 1 }, seal(5, 3), seal(0, 0), seal(4, 1),
    ];
    sealed_contents_that_cannot_be_written_stay: [
        map(0, 4), store(0), protect(0, 2, R), seal(0, 4), advise(0, 1, DONTNEED), advise(0, 1, FREE), advise(0, 1, DONTFORK),
        advise(0, 1, WIPEONFORK), advise(0, 1, GUARD), advise(2, 1, DONTNEED), advise(0, 1, COLD), advise(0, 1, 16),
    ];
    stacks_grow_and_keep_their_gap: [
        map_as(60, 2, RW, FIXED | GROWSDOWN), store(59), store(50), load(48), protect(47, 2, R), map_as(20, 1, RW, FIXED), load(30),
        protect(50, 4, R | 0x0100_0000), map_as(0, 2, RW, 0x22), unmap(20, 1), store(40),
    ];
    heaps: [
        Brk { to: page(5) }, Brk { to: win(5 * PAGE + 9) }, Brk { to: page(2) }, map(20, 1), Brk { to: page(19) }, Brk { to: page(17) },
        Brk { to: abs(0) }, load(0), Brk { to: page(0) },
    ];
    advice_is_flags: [
        map(0, 8), advise(1, 2, 2), advise(3, 2, 1), advise(1, 4, 0), advise(2, 2, DONTFORK), advise(2, 2, 11), advise(4, 1, 16),
        advise(4, 1, 17), advise(5, 1, 14), advise(5, 1, 15), advise(0, 9, 2), advise(10, 1, 2), advise(10, 0, 2), advise(0, 1, 99),
    ];
    advice_over_holes: [map(0, 2), map(4, 2), store(0), store(4), advise(0, 6, DONTNEED), load(0), load(4), advise(0, 6, 3), advise(0, 6, FREE)];
    files_end: [
        map_file(0, 8, RW, 0x12, ReadWrite, 0), load(0), store(4), load(5), load(6), store(7), map_file(10, 8, RW, 0x11, ReadWrite, 3), load(12), load(13),
    ];
    files_are_shared: [
        map_file(0, 4, RW, 0x11, ReadWrite, 0), map_file(10, 4, RW, 0x11, ReadWrite, 1), map_file(20, 4, R, 0x12, ReadOnly, 0),
        load(21), store(1), load(10), load(21), store(11), load(2), Msync { addr: page(0), len: 4 * PAGE, flags: 4 }, unmap(0, 4), load(10),
    ];
    files_are_copied: [
        map_file(0, 4, RW, 0x12, ReadWrite, 0), map_file(10, 4, RW, 0x11, ReadWrite, 0), load(0), store(0), store(10), load(0), load(1), store(11),
        load(1), advise(0, 4, DONTNEED), load(0), protect(0, 4, NONE), protect(0, 4, RW), load(0), Fork, store(0), load(10), store(10),
    ];
    files_refuse: [
        map_file(0, 1, RW, 0x11, ReadOnly, 0), map_file(0, 1, R, 0x11, WriteOnly, 0), map_file(0, 1, RW, 0x11, Sealed, 0), map_file(0, 1, R, 0x11, Sealed, 0),
        protect(0, 1, RW), map_file(2, 1, R, 0x11, ReadOnly, 0), protect(2, 1, RW), map_file(4, 1, R, 0x12, Directory, 0),
        Mmap { addr: page(4), len: PAGE, prot: R, flags: 0x12, file: ReadWrite, offset: 1 }, map_file(4, 1, R, 0x12 | GROWSDOWN, ReadWrite, 0),
        map_file(4, 1, R, 0x12, NoFile, 0), map_file(4, 1, R, 0x13 | 0x10_0000, ReadWrite, 0),
    ];
    holes_in_files: [
        map_file(0, 4, RW, 0x11, ReadWrite, 0), map_file(10, 4, R, 0x12, ReadWrite, 0), load(11), store(1), advise(0, 2, REMOVE), load(0), load(11), load(2),
        advise(10, 1, REMOVE), map(20, 1), advise(20, 1, REMOVE),
    ];
    what_is_in_memory: [
        map(0, 4), load(0), store(2), protect(2, 1, NONE), Mincore { addr: page(0), len: 4 * PAGE }, Mincore { addr: page(0), len: 6 * PAGE },
        Mincore { addr: win(1), len: PAGE }, Mincore { addr: page(0), len: 0 }, Mincore { addr: page(8), len: PAGE },
    ];
    limits_on_space: [
        SetLimit { what: AddressSpace, pages: 6 }, map(0, 4), map(4, 3), map(4, 2), map(0, 3), remap(0, 4, 8, MAYMOVE, 0), remap(10, 1, 2, MAYMOVE, 0),
        SetLimit { what: Data, pages: 2 }, map_as(8, 1, R, FIXED), unmap(0, 8), map(0, 2), map(2, 1), map_as(2, 2, R, FIXED), protect(2, 2, RW),
    ];
}

// What random sequences have found in vmalab.
scenarios! {
    guards_of_shared_memory_are_inherited: [map_as(0, 1, R, 0x31), advise(0, 1, GUARD), Fork, load(0)];
    guards_give_file_mappings_no_identity: [
        map_file(0x1d, 3, NONE, 0x12, ReadOnly, 0), protect(0x1f, 1, W), store(0x1f), advise(0x1d, 1, GUARD), protect(0x1e, 1, W),
    ];
    a_store_after_a_load_is_noticed_before_a_cut: [
        map(0x18, 5), load(0x1c), store(0x1c), unmap(0x19, 1), protect(0x18, 1, NONE),
    ];
    dontunmap_to_the_page_above: [map_as(3, 9, NONE, FIXED), remap(4, 1, 1, MOVE_TO | 4, 12)];
    locked_and_droppable: [Mlockall { flags: 2 }, map_as(0, 1, NONE, 0x38), map_as(1, 1, NONE, 0x38)];
    locked_memory_made_writable: [
        map_as(0, 0x26, NONE, FIXED), Mlock { addr: page(0x23), len: 3 * PAGE }, protect(0x25, 1, W), protect(0x23, 1, R), protect(0x23, 2, W),
    ];
    locked_memory_left_behind_still_counts: [
        map_as(0, 3, NONE, FIXED), Mlock { addr: page(1), len: PAGE }, remap(1, 2, 2, MOVE_TO | 4, 20),
        SetLimit { what: Memlock, pages: 4 }, map_as(30, 4, NONE, FIXED), Mlock { addr: page(30), len: 3 * PAGE }, Mlock { addr: page(30), len: PAGE },
    ];
    a_move_that_shrinks_reaches_beyond_its_mapping: [map_as(9, 3, NONE, FIXED), remap(11, 2, 1, MOVE_TO, 0)];
    splits_stay_when_the_limit_refuses: [
        map_as(0, 3, NONE, FIXED), SetLimit { what: AddressSpace, pages: 0 }, map_as(1, 1, NONE, FIXED),
    ];
    the_heap_merges_with_the_heap_alone: [map(0x17, 1), Brk { to: page(0x19) }, Brk { to: page(0x1a) }];
    a_bad_access_across_pages: [map(0, 1), Store { addr: win(PAGE - 4), value: 1 }, load(0)];
    a_store_after_a_load_is_noticed_before_its_page_goes: [
        map_as(0, 7, W, FIXED), load(6), store(6), advise(6, 1, DONTNEED), protect(0, 1, NONE),
        map_as(10, 7, W, FIXED), load(16), store(16), advise(16, 1, FREE), protect(10, 1, NONE),
        map_as(20, 7, W, FIXED), load(26), store(26), advise(26, 1, PAGEOUT), protect(20, 1, NONE),
    ];
    a_fault_on_a_guard_gives_no_identity: [
        map_file(0, 3, NONE, 0x12, Sealed, 0), advise(0, 1, GUARD), protect(2, 1, RW), store(2), protect(0, 1, RW), store(0), protect(1, 1, RW),
    ];
    data_limit_over_several_mappings: [
        SetLimit { what: Data, pages: 1 }, map_file(0, 1, NONE, 0x12, ReadWrite, 0), map_as(1, 1, NONE, FIXED), protect(0, 2, W),
        protect(0, 1, NONE), protect(1, 1, W), protect(0, 2, W),
    ];
    sequences_of_moves_keep_zero_pages: [
        map_as(0, 1, R, FIXED), load(0), remap(0, 1, 2, MOVE_TO, 9), remap(9, 2, 2, MOVE_TO | 4, 11),
    ];
}

#[test]
fn large_anonymous_memory_ignores_the_offset() {
    let large = Setup { place: Large, ..Setup::THOROUGH };
    let of =
        |flags| Mmap { addr: abs(0), len: 512 * PAGE, prot: NONE, flags, file: ReadWrite, offset: 5 * PAGE as u64 };
    check_in(large, &[map(0, 1), of(0x22), of(0x21), of(0x2)]);
}

#[test]
fn large_anonymous_memory_moves_to_whatever_offset_is_free() {
    let large = Setup { place: Large, ..Setup::THOROUGH };
    check_in(large, &[map_as(0x7ff, 1, NONE, FIXED), map_as(0, 3, NONE, FIXED), remap(1, 1, 1024, MAYMOVE, 0)]);
}
