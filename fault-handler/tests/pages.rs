//! Page installation, protection and hiding on real faults, in every delivery.

mod common;

use common::{How, Served, State};
use vmalab::addr::{PAGE_SIZE, VirtAddr};
use vmalab::fault::Signal;
use vmalab::mmu::{AccessOp, Mmu, Trap};
use vmalab_fault_handler::access::{copy, load_u8, load_u64, store_u8, store_u64};

const EVERY: [How; 4] = [How::Sigbus, How::Queue(1, false), How::Queue(2, false), How::Queue(1, true)];

/// Runs `test` in every delivery, with and without UFFDIO_MOVE.
fn everywhere(test: impl Fn(&Served)) {
    for how in EVERY {
        for moves in [true, false] {
            let served = Served::new(64, how);
            if !moves {
                served.map.mmu.forget_move();
            }
            test(&served);
        }
    }
}

fn load(addr: usize) -> Result<u64, Signal> {
    // SAFETY: the tests pass addresses of their own regions.
    unsafe { load_u64(addr) }
}

fn store(addr: usize, value: u64) -> Result<(), Signal> {
    // SAFETY: as above.
    unsafe { store_u64(addr, value) }
}

#[test]
fn zero_pages_for_loads_and_stores() {
    everywhere(|served| {
        served.map.set(0, 4, State::ReadWrite);
        let addr = served.map.addr(0);
        assert_eq!(load(addr), Ok(0));
        assert_eq!(store(addr, 7), Ok(()));
        assert_eq!(load(addr), Ok(7));
        assert_eq!(store(addr + PAGE_SIZE + 8, 9), Ok(()));
        assert_eq!(load(addr + PAGE_SIZE + 8), Ok(9));
        // SAFETY: mapped by this test.
        unsafe {
            assert_eq!(store_u8(addr + 3, 1), Ok(()));
            assert_eq!(load_u8(addr + 3), Ok(1));
        }
    });
}

#[test]
fn plain_accesses_are_served() {
    everywhere(|served| {
        served.map.set(0, 64, State::ReadWrite);
        for page in 0..64 {
            let p = served.map.addr(page) as *mut u64;
            // SAFETY: mapped by this test.
            unsafe {
                p.write_volatile(page as u64);
                assert_eq!(p.read_volatile(), page as u64);
            }
        }
    });
}

#[test]
fn a_store_to_a_read_only_page_fails_and_changes_nothing() {
    everywhere(|served| {
        for fill in [0u8, 0x5a] {
            let expected = u64::from_ne_bytes([fill; 8]);
            served.map.fill_with(fill);
            served.map.set(0, 2, State::Read);
            let addr = served.map.addr(0);
            // Not present, then present.
            assert_eq!(store(addr, 1), Err(Signal::AccErr));
            assert_eq!(load(addr), Ok(expected));
            assert_eq!(store(addr, 1), Err(Signal::AccErr));
            assert_eq!(load(addr), Ok(expected));
            served.map.set(0, 2, State::ReadWrite);
            assert_eq!(store(addr, 1), Ok(()));
            served.map.set(0, 2, State::Read);
            assert_eq!(store(addr, 2), Err(Signal::AccErr));
            assert_eq!(load(addr), Ok(1));
            served.map.set(0, 2, State::Unmapped);
        }
    });
}

#[test]
fn a_zero_page_seen_by_loads_is_protected_too() {
    everywhere(|served| {
        served.map.set(0, 1, State::ReadWrite);
        let addr = served.map.addr(0);
        assert_eq!(load(addr), Ok(0));
        served.map.set(0, 1, State::Read);
        assert_eq!(store(addr, 1), Err(Signal::AccErr));
        served.map.set(0, 1, State::ReadWrite);
        assert_eq!(store(addr, 1), Ok(()));
        assert_eq!(load(addr), Ok(1));
    });
}

#[test]
fn none_hides_contents_which_come_back() {
    everywhere(|served| {
        served.map.set(0, 16, State::ReadWrite);
        for page in (0..16).step_by(3) {
            assert_eq!(store(served.map.addr(page), page as u64 + 100), Ok(()));
        }
        // A shared zero page can be hidden as well.
        assert_eq!(load(served.map.addr(1)), Ok(0));
        for (present, back) in [(7, State::ReadWrite), (16, State::Read)] {
            served.map.set(0, 16, State::None);
            assert_eq!(served.map.mmu.hidden_pages(), present);
            assert_eq!(load(served.map.addr(0)), Err(Signal::AccErr));
            assert_eq!(store(served.map.addr(0), 1), Err(Signal::AccErr));
            served.map.set(0, 16, back);
            for page in 0..16 {
                let expected = if page % 3 == 0 { page as u64 + 100 } else { 0 };
                assert_eq!(load(served.map.addr(page)), Ok(expected), "page {page}");
            }
            assert_eq!(served.map.mmu.hidden_pages(), 0);
        }
        assert_eq!(store(served.map.addr(0), 1), Err(Signal::AccErr));
        served.map.set(0, 16, State::ReadWrite);
        assert_eq!(store(served.map.addr(0), 1), Ok(()));
    });
}

#[test]
fn zap_forgets_pages_in_sight_and_hidden() {
    everywhere(|served| {
        served.map.set(0, 8, State::ReadWrite);
        for page in 0..8 {
            assert_eq!(store(served.map.addr(page), 5), Ok(()));
        }
        served.map.set(0, 8, State::None);
        // Some are brought back, some stay hidden.
        served.map.set(0, 8, State::ReadWrite);
        assert_eq!(load(served.map.addr(2)), Ok(5));
        served.map.set(0, 8, State::Unmapped);
        assert_eq!(served.map.mmu.hidden_pages(), 0);
        assert_eq!(load(served.map.addr(2)), Err(Signal::MapErr));
        served.map.set(0, 8, State::ReadWrite);
        for page in 0..8 {
            assert_eq!(load(served.map.addr(page)), Ok(0));
        }
        // The twin is empty: hiding again finds nothing stale.
        assert_eq!(store(served.map.addr(1), 6), Ok(()));
        served.map.set(0, 8, State::None);
        served.map.set(0, 8, State::ReadWrite);
        assert_eq!(load(served.map.addr(1)), Ok(6));
    });
}

#[test]
fn checked_accesses_tell_the_signal() {
    everywhere(|served| {
        served.map.set(0, 1, State::Read);
        served.map.set(1, 2, State::None);
        served.map.set(2, 3, State::NoMemory);
        let mut buf = [1u8; 16];
        let mmu = &served.map.mmu;
        let at = |page: usize| VirtAddr(served.map.addr(page));
        let mut try_load = |page| mmu.access(at(page), AccessOp::Load(&mut buf));
        assert_eq!(try_load(0), Ok(()));
        assert_eq!(try_load(1), Err(Trap::Signal(Signal::AccErr)));
        assert_eq!(try_load(2), Err(Trap::Signal(Signal::Bus)));
        assert_eq!(try_load(3), Err(Trap::Signal(Signal::MapErr)));
        assert_eq!(buf, [0; 16]);
        assert_eq!(mmu.access(at(0), AccessOp::Store(&buf)), Err(Trap::Signal(Signal::AccErr)));
        // A copy that runs off the end says how far it came.
        let mut long = vec![0u8; 2 * PAGE_SIZE];
        let from = served.map.addr(0) + 100;
        // SAFETY: the buffer is ours, the source lies in the region.
        let result = unsafe { copy(long.as_mut_ptr() as usize, from, 2 * PAGE_SIZE) };
        assert_eq!(result, Err((Signal::AccErr, PAGE_SIZE + 100)));
        // Guards and twin: nothing is mapped there.
        let region = mmu.region();
        for addr in [region.range().end().get(), region.reservation().end().get() - 8 * PAGE_SIZE] {
            assert!(matches!(load(addr), Err(Signal::MapErr | Signal::AccErr)), "{addr:x}");
        }
    });
}

#[test]
fn threads_unhide_the_same_pages_at_once() {
    const PAGES: usize = 256;
    for how in EVERY {
        for moves in [true, false] {
            let served = Served::new(PAGES, how);
            if !moves {
                served.map.mmu.forget_move();
            }
            served.map.set(0, PAGES, State::ReadWrite);
            for page in 0..PAGES {
                store(served.map.addr(page), !(page as u64)).unwrap();
            }
            for back in [State::ReadWrite, State::Read, State::ReadWrite, State::Read] {
                served.map.set(0, PAGES, State::None);
                assert_eq!(served.map.mmu.hidden_pages(), PAGES);
                served.map.set(0, PAGES, back);
                std::thread::scope(|scope| {
                    for _ in 0..3 {
                        scope.spawn(|| {
                            for page in 0..PAGES {
                                assert_eq!(load(served.map.addr(page)), Ok(!(page as u64)));
                            }
                        });
                    }
                });
                assert_eq!(served.map.mmu.hidden_pages(), 0);
            }
        }
    }
}

#[test]
fn stores_race_hiding_and_none_is_lost() {
    for how in [How::Sigbus, How::Queue(2, false)] {
        for moves in [true, false] {
            let served = Served::new(8, how);
            if !moves {
                served.map.mmu.forget_move();
            }
            served.map.set(0, 8, State::ReadWrite);
            std::thread::scope(|scope| {
                let writers: Vec<_> = (0..2)
                    .map(|writer| {
                        let addr = served.map.addr(0) + writer * 8;
                        scope.spawn(move || {
                            let mut stored = 0u64;
                            for _ in 0..3000 {
                                match store(addr, stored + 1) {
                                    Ok(()) => stored += 1,
                                    Err(signal) => assert_eq!(signal, Signal::AccErr),
                                }
                                match load(addr) {
                                    Ok(value) => assert_eq!(value, stored, "a store was lost or passed late"),
                                    Err(signal) => assert_eq!(signal, Signal::AccErr),
                                }
                            }
                        })
                    })
                    .collect();
                while !writers.iter().all(|writer| writer.is_finished()) {
                    for state in
                        [State::None, State::ReadWrite, State::Read, State::None, State::Read, State::ReadWrite]
                    {
                        served.map.set(0, 8, state);
                        std::thread::yield_now();
                    }
                }
            });
        }
    }
}
