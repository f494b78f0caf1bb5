//! Creation without rights, limits, and endings that leave nothing behind.

#[path = "common/child.rs"]
mod child_process;
mod common;

use child_process::{End, ends, scenario};
use common::{How, Served, State};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use vmalab::Errno;
use vmalab::addr::PAGE_SIZE;
use vmalab::fault::Signal;
use vmalab::lock::MmapOnly;
use vmalab::mmu::Mmu;
use vmalab_fault_handler::access::load_u64;
use vmalab_fault_handler::region::{Notify, Region, RegionError};
use vmalab_fault_handler::registry::{SPACES_MAX, TableFull};
use vmalab_fault_handler::uffd::{OpenError, Origin, Privilege, capabilities, feature};
use vmalab_fault_handler::{AddressSpace, Delivery, Error};

fn descriptors() -> Vec<String> {
    let mut all: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| !target.starts_with("/proc/"))
        .collect();
    all.sort();
    all
}

/// Mappings other than the allocator's and the threads', which come and go.
fn mapped_bytes() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .map(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            usize::from_str_radix(end, 16).unwrap() - usize::from_str_radix(start, 16).unwrap()
        })
        .sum()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// Larger than what the allocator may reserve meanwhile.
const REGION: usize = 16 << 30;

fn use_once(delivery: Delivery) {
    let space = AddressSpace::<MmapOnly>::builder().region(REGION).delivery(delivery).build().expect("space");
    assert_eq!(space.mmu().range().bytes(), REGION);
}

fn nothing_is_left() {
    let deliveries = [
        Delivery::Sigbus,
        Delivery::Queue { handlers: 2, polling: false },
        Delivery::Queue { handlers: 1, polling: true },
    ];
    // Handlers, caches, thread stacks.
    deliveries.into_iter().for_each(use_once);
    let (fds, bytes, tasks) = (descriptors(), mapped_bytes(), threads());
    for _ in 0..20 {
        deliveries.into_iter().for_each(use_once);
    }
    assert_eq!(descriptors(), fds);
    assert_eq!(threads(), tasks);
    // The allocator may have grown by less than a twentieth of one region.
    assert!(mapped_bytes() < bytes + REGION / 20, "{} before, {} after", bytes, mapped_bytes());
}

/// Threads fault on a region while it goes, many times over.
fn storm(how: How) {
    const PAGES: usize = 64;
    for round in 0..12 {
        let served = Served::new(PAGES, how);
        served.map.set(0, PAGES, State::ReadWrite);
        served.map.stall.store(round % 3 == 0, SeqCst);
        let map = Arc::downgrade(&served.map);
        let base = served.map.addr(0);
        let (stop, loads) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (stop, loads) = (&stop, &loads);
                scope.spawn(move || {
                    let mut page = thread * 7;
                    while !stop.load(SeqCst) {
                        page = (page + 1) % PAGES;
                        // SAFETY: a load, of our region or of whatever comes after it.
                        match unsafe { load_u64(base + page * PAGE_SIZE) } {
                            Ok(_) | Err(Signal::MapErr | Signal::AccErr) => {}
                            Err(Signal::Bus) => panic!("SIGBUS from a region that goes"),
                        }
                        loads.fetch_add(1, SeqCst);
                    }
                });
            }
            while served.map.faults.load(SeqCst) < 20 {
                served.map.set(0, PAGES, State::Unmapped);
                served.map.set(0, PAGES, State::ReadWrite);
            }
            drop(served);
            let seen = loads.load(SeqCst);
            while loads.load(SeqCst) < seen + 10 {
                std::thread::yield_now();
            }
            stop.store(true, SeqCst);
        });
        assert!(map.upgrade().is_none(), "the address space lives on");
    }
}

fn become_nobody() {
    // SAFETY: gives up every right; this process is made for it.
    unsafe {
        assert_eq!(libc::setgid(65534), 0);
        assert_eq!(libc::setuid(65534), 0);
    }
}

fn unprivileged() {
    become_nobody();
    let caps = capabilities();
    assert_eq!(caps.origins[2].result, Ok(()));
    assert!(caps.offers(feature::WP | feature::SIGBUS));
    if std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap().trim() == "0" {
        assert_eq!(caps.origins[0].result, Err(Errno::EPERM));
        let region = Region::new(PAGE_SIZE, Notify::Queue, Privilege::Kernel);
        let error = region.err().expect("no right to kernel faults");
        assert!(matches!(&error, RegionError::Open(OpenError::Denied(attempts)) if attempts.len() == 2), "{error:?}");
        assert!(error.to_string().contains("CAP_SYS_PTRACE"), "{error}");
    }
    for privilege in [Privilege::User, Privilege::Best] {
        for how in [How::Sigbus, How::Queue(2, false)] {
            let served = Served::with(8, how, privilege);
            assert_eq!(served.map.mmu.region().uffd().origin(), Origin::UserModeOnly);
            served.map.set(0, 8, State::ReadWrite);
            // SAFETY: mapped by this test.
            assert_eq!(unsafe { load_u64(served.map.addr(3)) }, Ok(0));
        }
    }
}

fn table_full() {
    let make = || AddressSpace::<MmapOnly>::builder().region(8 << 20).build();
    let mut spaces: Vec<_> = (0..SPACES_MAX).map(|_| make().expect("room")).collect();
    let error = make().err().expect("the table is full");
    assert!(matches!(error, Error::TableFull(TableFull)), "{error}");
    spaces.pop();
    make().expect("room again");
}

fn no_descriptors() {
    let before = mapped_bytes();
    let limit = |descriptors| {
        let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: 64 };
        // SAFETY: changes a limit of this process.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    };
    limit(3);
    let error = AddressSpace::<MmapOnly>::builder().region(REGION).build().err().expect("no descriptor left");
    limit(64);
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    assert!(mapped_bytes() < before + REGION / 20);
}

fn address_space_limit() {
    let limit = libc::rlimit { rlim_cur: 4 << 30, rlim_max: 4 << 30 };
    // SAFETY: lowers a limit of this process.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    let error = AddressSpace::<MmapOnly>::builder().region(4 << 30).build().err().expect("over the limit");
    assert!(matches!(error, Error::Region(RegionError::Reserve { errno: Errno::ENOMEM, .. })), "{error}");
    assert!(error.to_string().contains("ulimit -v"), "{error}");
    AddressSpace::<MmapOnly>::builder().region(1 << 30).build().expect("below the limit");
}

/// After mlockall(MCL_FUTURE) new memory is locked, unless we see to it.
fn locked() {
    // SAFETY: affects this process only.
    assert_eq!(unsafe { libc::mlockall(libc::MCL_FUTURE) }, 0);
    let served = Served::new(64, How::Sigbus);
    served.map.set(0, 64, State::ReadWrite);
    for _ in 0..2 {
        // SAFETY: mapped by this test.
        assert_eq!(unsafe { load_u64(served.map.addr(3)) }, Ok(0));
        served.map.set(0, 64, State::None);
        served.map.set(0, 64, State::Unmapped);
        served.map.set(0, 64, State::ReadWrite);
    }
    assert_eq!(served.map.installed.load(SeqCst), 2);
}

/// A forked child finds nothing where the region was, and may make its own.
fn forked() {
    let served = Served::new(8, How::Sigbus);
    served.map.set(0, 8, State::ReadWrite);
    // SAFETY: loads of this test's region; in the child of a process with few
    // threads only this code runs, and `_exit` ends it.
    unsafe {
        assert_eq!(load_u64(served.map.addr(0)), Ok(0));
        let child = libc::fork();
        if child == 0 {
            let gone = load_u64(served.map.addr(0)) == Err(Signal::MapErr);
            let own = Served::new(8, How::Sigbus);
            own.map.set(0, 8, State::ReadWrite);
            let works = load_u64(own.map.addr(1)) == Ok(0);
            own.map.set(0, 8, State::None);
            let hides = own.map.mmu.hidden_pages() == 1;
            libc::_exit(if gone && works && hides { 7 } else { 8 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert_eq!(libc::WEXITSTATUS(status), 7);
        assert_eq!(load_u64(served.map.addr(1)), Ok(0));
    }
}

#[test]
fn child() {
    match scenario().as_deref() {
        None => {}
        Some("nothing_is_left") => nothing_is_left(),
        Some("storm_sigbus") => storm(How::Sigbus),
        Some("storm_queue") => storm(How::Queue(2, false)),
        Some("unprivileged") => unprivileged(),
        Some("table_full") => table_full(),
        Some("no_descriptors") => no_descriptors(),
        Some("address_space_limit") => address_space_limit(),
        Some("locked") => locked(),
        Some("forked") => forked(),
        Some(other) => panic!("{other}"),
    }
}

#[test]
fn a_space_leaves_nothing_behind() {
    ends("nothing_is_left", End::Exit(0));
}

#[test]
fn faults_while_a_space_goes() {
    ends("storm_sigbus", End::Exit(0));
    ends("storm_queue", End::Exit(0));
}

#[test]
fn creation_needs_no_rights() {
    // Only root can become nobody; anybody else is it already.
    ends("unprivileged", End::Exit(0));
}

#[test]
fn limits_are_told_clearly() {
    ends("table_full", End::Exit(0));
    ends("no_descriptors", End::Exit(0));
    ends("address_space_limit", End::Exit(0));
}

#[test]
fn locked_memory_is_not_the_regions() {
    ends("locked", End::Exit(0));
}

#[test]
fn a_forked_child_has_no_part_in_it() {
    ends("forked", End::Exit(0));
}

#[test]
fn impossible_sizes() {
    for bytes in [0, usize::MAX, 1 << 46] {
        let error = AddressSpace::<MmapOnly>::builder().region(bytes).build().err().expect("impossible");
        assert!(matches!(error, Error::Region(RegionError::Size { .. })), "{error}");
    }
    let space = AddressSpace::<MmapOnly>::builder().region(PAGE_SIZE + 1).build().unwrap();
    assert_eq!(space.mmu().range().pages(), 2);
}

#[test]
fn the_doctor_sees_what_works() {
    let caps = capabilities();
    assert!(caps.any_origin());
    assert!(caps.offers(feature::WP | feature::SIGBUS | feature::THREAD_ID));
    assert!(caps.feature_names().any(|name| name == "SIGBUS"));
}
