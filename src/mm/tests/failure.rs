//! Failure injected at every allocation and every call to the `Mmu`: an
//! operation that fails leaves mappings, counts and contents as they were, or
//! as the kernel leaves them (mremap's destination, a first split).

use super::*;
use crate::inject;
use crate::lock::{MmapOnly, Rcu, RefCount, TypeSafe};
use crate::mm::{Advice, MapsEntry, RemapFlags};
use nix::errno::Errno;

const PAGES: usize = 32;

/// Pages of the mappings that [`prepared`] makes, and where `mremap` may move.
const FREE: usize = 20;

fn prepared<S: LockScheme>() -> SoftMm<S> {
    let mm = soft::<S>(PAGES);
    let map = |first: usize, pages: usize, prot| {
        mm.mmap(page(first), pages * PAGE_SIZE, prot, FIXED).unwrap();
    };
    map(1, 6, RW);
    map(7, 3, Prot::READ);
    map(12, 4, RW);
    for n in [1, 2, 4, 6, 12, 15] {
        store(&mm, page(n) + VALUE, n as u64).unwrap();
    }
    mm.mprotect(page(13), PAGE_SIZE, Prot::NONE).unwrap();
    // Hidden, and not yet seen again.
    mm.mprotect(page(15), PAGE_SIZE, Prot::NONE).unwrap();
    mm.mprotect(page(15), PAGE_SIZE, RW).unwrap();
    mm.madvise(page(14), PAGE_SIZE, Advice::GuardInstall as i32).unwrap();
    mm.mmap(page(17), 2 * PAGE_SIZE, RW, MapFlags::SHARED | MapFlags::ANONYMOUS | MapFlags::FIXED).unwrap();
    store(&mm, page(17) + VALUE, 17).unwrap();
    mm
}

/// Everything that can be seen, apart from incarnations.
fn state<S: LockScheme>(mm: &SoftMm<S>) -> (Vec<MapsEntry>, Vec<crate::addr::PageRange>, Vec<Result<u64, Signal>>) {
    let mut maps = mm.maps();
    maps.iter_mut().for_each(|entry| entry.incarnation = 0);
    // Presence before contents: a load makes pages present.
    let present = mm.populated(mm.range());
    let contents = (0..PAGES).map(|n| load(mm, page(n) + VALUE)).collect();
    (maps, present, contents)
}

/// What a system call says of an access that earned a signal.
fn fault(result: Result<(), Signal>) -> Result<(), Errno> {
    result.map_err(|_| Errno::EFAULT)
}

type Operation<S> = fn(&SoftMm<S>) -> Result<(), Errno>;

/// Name, the call, and whether a failure may leave what the kernel leaves.
fn operations<S: LockScheme>() -> Vec<(&'static str, Operation<S>, bool)> {
    const MOVE: RemapFlags = RemapFlags::MAYMOVE.union(RemapFlags::FIXED);
    vec![
        ("mmap", |mm| mm.mmap(0, 2 * PAGE_SIZE, Prot::READ, ANON).map(drop), false),
        ("mmap shared", |mm| mm.mmap(0, PAGE_SIZE, RW, MapFlags::SHARED | MapFlags::ANONYMOUS).map(drop), false),
        ("MAP_FIXED", |mm| mm.mmap(page(2), 12 * PAGE_SIZE, Prot::READ, FIXED).map(drop), false),
        ("MAP_FIXED inside", |mm| mm.mmap(page(3), PAGE_SIZE, Prot::READ, FIXED).map(drop), false),
        ("munmap", |mm| mm.munmap(page(2), 11 * PAGE_SIZE), false),
        ("munmap inside", |mm| mm.munmap(page(3), PAGE_SIZE), false),
        ("mprotect", |mm| mm.mprotect(page(2), 6 * PAGE_SIZE, Prot::READ), false),
        ("mprotect none", |mm| mm.mprotect(page(2), 3 * PAGE_SIZE, Prot::NONE), false),
        ("mprotect back", |mm| mm.mprotect(page(13), PAGE_SIZE, RW), false),
        ("mremap grow", |mm| mm.mremap(page(7), 3 * PAGE_SIZE, 5 * PAGE_SIZE, RemapFlags::empty(), 0).map(drop), false),
        ("mremap away", |mm| mm.mremap(page(1), 6 * PAGE_SIZE, 8 * PAGE_SIZE, RemapFlags::MAYMOVE, 0).map(drop), false),
        ("mremap fixed", |mm| mm.mremap(page(2), 3 * PAGE_SIZE, 3 * PAGE_SIZE, MOVE, page(FREE)).map(drop), false),
        ("mremap over", |mm| mm.mremap(page(2), 3 * PAGE_SIZE, 3 * PAGE_SIZE, MOVE, page(7)).map(drop), true),
        (
            "mremap dontunmap",
            |mm| {
                let flags = RemapFlags::MAYMOVE | RemapFlags::DONTUNMAP;
                mm.mremap(page(12), PAGE_SIZE, PAGE_SIZE, flags, page(FREE)).map(drop)
            },
            false,
        ),
        ("mremap several", |mm| mm.mremap(page(12), 4 * PAGE_SIZE, 4 * PAGE_SIZE, MOVE, page(FREE)).map(drop), true),
        ("madvise", |mm| mm.madvise(page(3), 5 * PAGE_SIZE, Advice::DontFork as i32), false),
        ("mseal", |mm| mm.mseal(page(3), PAGE_SIZE, 0), false),
        ("mlock", |mm| mm.mlock2(page(3), PAGE_SIZE, 1), false),
        ("load", |mm| fault(load(mm, page(3)).map(drop)), false),
        ("store", |mm| fault(store(mm, page(3) + VALUE, 3)), false),
        ("store after load", |mm| fault(load(mm, page(3)).and_then(|_| store(mm, page(3) + VALUE, 3))), true),
        ("load of hidden contents", |mm| fault(load(mm, page(15) + VALUE).map(|value| assert_eq!(value, 15))), false),
        ("store to shared memory", |mm| fault(store(mm, page(18) + VALUE, 18)), false),
        ("populate", |mm| mm.madvise(page(1), 6 * PAGE_SIZE, Advice::PopulateWrite as i32), true),
        ("remove", |mm| mm.madvise(page(17), PAGE_SIZE, Advice::Remove as i32), false),
        ("msync", |mm| mm.msync(page(17), 2 * PAGE_SIZE, libc::MS_SYNC as u32), false),
        ("fork", |mm| mm.fork(SoftMmu::new(PAGES * PAGE_SIZE).unwrap()).map(drop), false),
    ]
}

fn every_failure<S: LockScheme>() {
    for (name, operation, may_leave) in operations::<S>() {
        let mut failures = 0;
        for n in 0.. {
            let mm = prepared::<S>();
            let before = state(&mm);
            let mm = prepared::<S>();
            inject::fail_after(n);
            let result = operation(&mm);
            let struck = inject::stop();
            mm.validate();
            if !struck {
                result.unwrap_or_else(|errno| panic!("{name} without a failure: {errno}"));
                break;
            }
            failures += 1;
            match result {
                // Something was done without it, or in another way.
                Ok(()) => {}
                Err(errno) => {
                    assert!(
                        matches!(errno, Errno::ENOMEM | Errno::EAGAIN | Errno::EFAULT | Errno::EIO),
                        "{name}: {errno}"
                    );
                    if !may_leave {
                        // Which file a shared mapping has differs from one address space to the next.
                        let anonymous = |mut state: (Vec<MapsEntry>, _, _)| {
                            state.0.iter_mut().for_each(|entry| entry.file = entry.file.min(1));
                            state
                        };
                        assert_eq!(anonymous(state(&mm)), anonymous(before), "{name}, failure {n}");
                    }
                }
            }
            assert!(n < 100, "{name} has no end");
        }
        let none = ["munmap", "mremap grow"];
        assert!(failures > 0 || none.contains(&name), "{name}: nothing was injected");
    }
}

#[test]
fn what_fails_leaves_everything_as_it_was() {
    every_failure::<TypeSafe>();
    every_failure::<MmapOnly>();
    every_failure::<Rcu>();
    every_failure::<RefCount>();
}

/// An mprotect of two VMAs that fails at the second has given no page of the
/// first the right to be stored to.
#[test]
fn a_failed_mprotect_takes_back_what_it_gave() {
    let mut failures = 0;
    for n in 0.. {
        let mm = soft::<TypeSafe>(PAGES);
        mm.mmap(page(1), 2 * PAGE_SIZE, RW, FIXED).unwrap();
        for n in [1, 2] {
            store(&mm, page(n) + VALUE, 1).unwrap();
        }
        mm.mprotect(page(1), PAGE_SIZE, Prot::READ).unwrap();
        mm.mprotect(page(2), PAGE_SIZE, Prot::NONE).unwrap();
        inject::fail_after(n);
        let result = mm.mprotect(page(1), 2 * PAGE_SIZE, RW);
        if !inject::stop() {
            result.unwrap();
            break;
        }
        failures += 1;
        assert_eq!(result, Err(Errno::ENOMEM));
        assert_eq!(store(&mm, page(1) + VALUE, 2), Err(Signal::AccErr), "failure {n}");
        assert_eq!(load(&mm, page(2) + VALUE), Err(Signal::AccErr), "failure {n}");
    }
    assert!(failures >= 2, "both VMAs' pages are protected by calls that may fail");
}
