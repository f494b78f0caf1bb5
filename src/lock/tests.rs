//! What holds of every scheme with a lock in each VMA.

use super::*;
use crate::addr::{PAGE_SIZE, PageRange};
use crate::mm::{MapFlags, Mm, Prot};
use crate::mmu::soft::SoftMmu;
use crate::pager::ZeroPager;
use nix::errno::Errno;
use std::sync::Arc;
use std::time::Duration;

/// A fault that meets a write-locked VMA leaves its lock word alone.
fn a_write_locked_vma_is_refused_early<S: LockScheme>() {
    let mm: Mm<S, _, _> = Mm::new(SoftMmu::new(16 * PAGE_SIZE).unwrap(), ZeroPager);
    let addr = mm.mmap(0, PAGE_SIZE, Prot::READ, MapFlags::PRIVATE | MapFlags::ANONYMOUS).unwrap();
    let find = || S::lock_vma_under_rcu(mm.core(), addr);
    let write = mm.core().mmap_write();
    let (affected, _) = write.affected(PageRange::sized(addr, PAGE_SIZE));
    let _locked = affected[0].start_write(&write, None).unwrap();
    assert_eq!(find(), Err(Abort::WriteLockedEarly));
    drop(write);
    let vma = find().expect("nobody writes any more");
    // SAFETY: locked just now.
    unsafe { S::vma_end_read(vma) };
}

#[test]
fn write_locked_vmas_are_refused_early() {
    a_write_locked_vma_is_refused_early::<Rcu>();
    a_write_locked_vma_is_refused_early::<TypeSafe>();
    a_write_locked_vma_is_refused_early::<RefCount>();
}

/// Another address space's reader may come by an object that was reused, with a
/// stale pointer; one that never leaves is a count gone wrong (O4).
#[test]
fn a_look_at_rest_waits_for_guests_but_not_for_ever() {
    let mm: Arc<Mm<TypeSafe, _, _>> = Arc::new(Mm::new(SoftMmu::new(16 * PAGE_SIZE).unwrap(), ZeroPager));
    let addr = mm.mmap(0, PAGE_SIZE, Prot::READ, MapFlags::PRIVATE | MapFlags::ANONYMOUS).unwrap();
    let vma = TypeSafe::lock_vma_under_rcu(mm.core(), addr).expect("nobody writes");
    let at_rest = |mm: &Arc<Mm<TypeSafe, _, _>>| {
        let mm = mm.clone();
        std::thread::spawn(move || mm.validate())
    };
    let forgotten = at_rest(&mm).join().unwrap_err();
    assert!(forgotten.downcast_ref::<String>().unwrap().contains("has readers at rest"));
    let guest = at_rest(&mm);
    std::thread::sleep(Duration::from_millis(50));
    // SAFETY: locked above.
    unsafe { TypeSafe::vma_end_read(vma) };
    guest.join().expect("the guest has left");
}

/// A fault that is busy in a VMA does not hold up a mutator that is told to give up.
#[test]
fn a_killed_writer_is_woken() {
    let mm: Arc<Mm<RefCount, _, _>> = Arc::new(Mm::new(SoftMmu::new(16 * PAGE_SIZE).unwrap(), ZeroPager));
    let addr = mm.mmap(0, PAGE_SIZE, Prot::READ, MapFlags::PRIVATE | MapFlags::ANONYMOUS).unwrap();
    let vma = RefCount::lock_vma_under_rcu(mm.core(), addr).expect("nobody writes");
    let kill = Arc::new(Kill::default());
    let mutator = {
        let (mm, kill) = (mm.clone(), kill.clone());
        std::thread::spawn(move || mm.munmap_killable(addr.get(), PAGE_SIZE, &kill))
    };
    // Until it sleeps; should it not yet, it will see the flag.
    std::thread::sleep(Duration::from_millis(50));
    assert!(!mutator.is_finished(), "a reader holds the VMA");
    mm.kill(&kill);
    assert_eq!(mutator.join().unwrap(), Err(Errno::EINTR));
    // SAFETY: locked above.
    unsafe { RefCount::vma_end_read(vma) };
    assert_eq!(mm.munmap(addr.get(), PAGE_SIZE), Ok(()));
}
