//! System calls that meet pages of a region.

#[path = "common/child.rs"]
mod child_process;
mod common;

use child_process::{End, ends, scenario};
use common::{How, Served, State};
use vmalab::Errno;
use vmalab::addr::PAGE_SIZE;
use vmalab::fault::Signal;
use vmalab_fault_handler::access::{load_u64, store_u64};
use vmalab_fault_handler::uffd::{Privilege, capabilities};

/// A system call that stores `PAGE_SIZE` zeros at `addr`.
fn fill(addr: usize) -> Result<usize, Errno> {
    let zero = std::fs::File::open("/dev/zero").unwrap();
    // SAFETY: the kernel writes into a region of this test, or fails.
    Errno::result(unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&zero), addr as *mut _, PAGE_SIZE) })
        .map(|n| n as usize)
}

fn load(addr: usize) -> Result<u64, Signal> {
    // SAFETY: addresses of this test's region.
    unsafe { load_u64(addr) }
}

fn store(addr: usize, value: u64) -> Result<(), Signal> {
    // SAFETY: as above.
    unsafe { store_u64(addr, value) }
}

fn may_serve_the_kernel() -> bool {
    capabilities().origins[..2].iter().any(|attempt| attempt.result.is_ok())
}

#[test]
fn without_rights_a_missing_page_is_efault() {
    for how in [How::Sigbus, How::Queue(1, false)] {
        let served = Served::new(8, how);
        served.map.set(0, 8, State::ReadWrite);
        assert_eq!(fill(served.map.addr(0)), Err(Errno::EFAULT), "{how:?}");
        assert_eq!(store(served.map.addr(0), 5), Ok(()));
        assert_eq!(fill(served.map.addr(0)), Ok(PAGE_SIZE));
        assert_eq!(load(served.map.addr(0)), Ok(0));
    }
}

#[test]
fn with_rights_the_kernel_is_served() {
    if !may_serve_the_kernel() {
        return eprintln!("skipped: no right to kernel faults");
    }
    let served = Served::with(8, How::Queue(2, false), Privilege::Kernel);
    served.map.set(0, 4, State::ReadWrite);
    assert_eq!(fill(served.map.addr(0)), Ok(PAGE_SIZE));
    assert_eq!(fill(served.map.addr(1)), Ok(PAGE_SIZE));
}

#[test]
fn with_rights_a_bad_address_is_efault_and_nothing_stays() {
    if !may_serve_the_kernel() {
        return eprintln!("skipped: no right to kernel faults");
    }
    let served = Served::with(8, How::Queue(2, false), Privilege::Kernel);
    let addr = |page| served.map.addr(page);
    served.map.set(2, 3, State::ReadWrite);
    assert_eq!(store(addr(2), 77), Ok(()));
    served.map.set(2, 3, State::None);
    for page in [0, 1, 2] {
        assert_eq!(fill(addr(page)), Err(Errno::EFAULT));
    }
    // The addresses are as bad as before to the program.
    assert_eq!(load(addr(0)), Err(Signal::MapErr));
    assert_eq!(store(addr(2), 1), Err(Signal::AccErr));
    // What is mapped there later is in order: zero pages, stores, what was hidden.
    served.map.set(0, 3, State::ReadWrite);
    assert_eq!(load(addr(0)), Ok(0));
    assert_eq!(store(addr(1), 3), Ok(()));
    assert_eq!(load(addr(2)), Ok(77));
    assert_eq!(fill(addr(2)), Ok(PAGE_SIZE));
}

#[test]
fn child() {
    if scenario().as_deref() == Some("read_only") {
        let served = Served::with(8, How::Queue(1, false), Privilege::Kernel);
        served.map.set(0, 1, State::Read);
        assert_eq!(load(served.map.addr(0)), Ok(0));
        let _ = fill(served.map.addr(0));
    }
}

#[test]
fn with_rights_a_store_to_a_read_only_page_ends() {
    if may_serve_the_kernel() {
        ends("read_only", End::Signal(libc::SIGSEGV));
    }
}
