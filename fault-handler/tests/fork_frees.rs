//! Shared pages are given back, however those who inherit them go. A file of
//! its own, as the pages are counted for the process.

mod common;

use common::{How, Served, State};
use vmalab::addr::VirtAddr;
use vmalab::lock::TypeSafe;
use vmalab::mm::{MapFlags, Prot};
use vmalab::mmu::Mmu;
use vmalab_fault_handler::AddressSpace;
use vmalab_fault_handler::access::{load_u64, store_u64};
use vmalab_fault_handler::mmu::UffdMmu;

#[test]
fn nothing_is_left_behind() {
    for moves in [true, false] {
        let [parent, child] = [(); 2].map(|()| Served::new(64, How::Sigbus));
        for served in [&parent, &child] {
            if !moves {
                served.map.mmu.forget_move();
            }
            served.map.set(0, 64, State::ReadWrite);
        }
        for page in 0..64 {
            // SAFETY: mapped just now.
            unsafe { store_u64(parent.map.addr(page), 1).unwrap() };
        }
        parent.map.write_locked(|| {
            let to = VirtAddr(child.map.addr(0));
            parent.map.mmu.fork_range(&child.map.mmu, parent.map.pages(0, 64), to).unwrap();
        });
        assert_eq!(UffdMmu::shared_pages(), 64);
        for page in 0..16 {
            // SAFETY: mapped.
            unsafe {
                store_u64(parent.map.addr(page), 2).unwrap();
                assert_eq!(load_u64(child.map.addr(page)), Ok(1));
            }
        }
        assert_eq!(UffdMmu::shared_pages(), 48);
        child.map.set(0, 32, State::Unmapped);
        parent.map.set(0, 24, State::Unmapped);
        assert_eq!(UffdMmu::shared_pages(), 40);
        drop(parent);
        assert_eq!(UffdMmu::shared_pages(), 32);
        drop(child);
        assert_eq!(UffdMmu::shared_pages(), 0);
    }
    an_address_space_makes_another_like_it();
}

fn an_address_space_makes_another_like_it() {
    const LEN: usize = 8 << 12;
    let space = AddressSpace::<TypeSafe>::builder().region(1 << 20).build().unwrap();
    let start = space.range().start().get();
    space
        .mmap(start, LEN, Prot::READ | Prot::WRITE, MapFlags::PRIVATE | MapFlags::ANONYMOUS | MapFlags::FIXED)
        .unwrap();
    space.write(VirtAddr(start), b"inherited").unwrap();
    let child = space.fork().unwrap();
    space.write(VirtAddr(start), b"disowned!").unwrap();
    let mut found = [0; 9];
    child.read(child.range().start(), &mut found).unwrap();
    assert_eq!(&found, b"inherited");
    drop((space, child));
    assert_eq!(UffdMmu::shared_pages(), 0);
}
