//! Every rwsem as a whole, on real threads.

use super::*;
use crate::sync::{AtomicBool, AtomicUsize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Makes a test of every algorithm, or of some.
macro_rules! tests {
    ($($name:ident of $($module:ident $rwsem:ident),*;)*) => {
        $(mod $name {
            $(#[test]
            fn $module() {
                super::$name(super::Rwsem::$rwsem);
            })*
        })*
    };
}

tests! {
    excludes_and_balances of futex Futex, kernel Kernel, std Std, parking_lot ParkingLot;
    a_lock_is_had_at_the_first_try_or_not of futex Futex, kernel Kernel, std Std, parking_lot ParkingLot;
    overlapping_readers_do_not_starve_a_writer of futex Futex, kernel Kernel, std Std, parking_lot ParkingLot;
    // std's can: its writers go first.
    a_busy_writer_does_not_starve_a_reader of futex Futex, kernel Kernel, parking_lot ParkingLot;
    a_writer_that_faults_on_itself_is_told of futex Futex, kernel Kernel, std Std, parking_lot ParkingLot;
    waits_are_timed_when_there_is_a_clock of futex Futex, kernel Kernel, std Std, parking_lot ParkingLot;
}

fn excludes_and_balances(rwsem: Rwsem) {
    let lock = Arc::new((MmapLock::of(rwsem), [AtomicUsize::new(0), AtomicUsize::new(0)]));
    let threads: Vec<_> = (0..4)
        .map(|me| {
            let lock = lock.clone();
            std::thread::spawn(move || {
                for round in 0..20_000 {
                    let (lock, pair) = &*lock;
                    if (round + me) % 4 == 0 {
                        let guard = lock.write();
                        pair[0].store(pair[0].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        pair[1].store(pair[1].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                        if round % 8 == 0 {
                            let _reader = guard.downgrade();
                            assert_eq!(pair[0].load(Ordering::Relaxed), pair[1].load(Ordering::Relaxed));
                        }
                    } else {
                        let _guard = lock.read();
                        assert_eq!(pair[0].load(Ordering::Relaxed), pair[1].load(Ordering::Relaxed));
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(lock.1[0].load(Ordering::Relaxed), 20_000);
    assert!(lock.0.is_idle());
}

fn a_lock_is_had_at_the_first_try_or_not(rwsem: Rwsem) {
    let lock = MmapLock::of(rwsem);
    let first = lock.try_read().expect("a free lock");
    let second = lock.try_read().expect("readers do not exclude each other");
    assert!(!lock.try_lock_write());
    drop((first, second));
    assert!(lock.try_lock_write());
    let writer = WriteGuard { lock: &lock, _not_send: PhantomData };
    assert!(lock.try_read().is_none() && !lock.try_lock_write());
    drop(writer);
    assert!(lock.is_idle());
}

/// Readers that always overlap: without the waiting-writer rule no writer
/// would ever see the lock free.
fn overlapping_readers_do_not_starve_a_writer(rwsem: Rwsem) {
    let lock = Arc::new(MmapLock::of(rwsem));
    let stop = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (lock, stop) = (lock.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _guard = lock.read();
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    for _ in 0..20 {
        drop(lock.write());
    }
    stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|r| r.join().unwrap());
}

/// A writer that takes the lock again at once: without the hand-over a
/// sleeping reader would always come too late.
fn a_busy_writer_does_not_starve_a_reader(rwsem: Rwsem) {
    let lock = Arc::new(MmapLock::of(rwsem));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (lock, stop) = (lock.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _guard = lock.write();
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    for _ in 0..20 {
        drop(lock.read());
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

fn a_writer_that_faults_on_itself_is_told(rwsem: Rwsem) {
    let lock = MmapLock::of(rwsem);
    let _guard = lock.write();
    assert!(lock.try_read().is_none());
    let message = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(lock.read()))).unwrap_err();
    assert!(message.downcast_ref::<String>().unwrap().contains("holds this address space's mmap lock"));
}

fn waits_are_timed_when_there_is_a_clock(rwsem: Rwsem) {
    fn clock() -> u64 {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
    }
    stats::set_clock(clock);
    let lock = Arc::new(MmapLock::of(rwsem));
    let longest = || {
        let before = stats::Snapshot::take();
        let guard = lock.write();
        let reader = {
            let lock = lock.clone();
            std::thread::spawn(move || drop(lock.read()))
        };
        std::thread::sleep(Duration::from_millis(30));
        drop(guard);
        reader.join().unwrap();
        stats::Snapshot::take().since(&before).waits(Wait::MmapRead).map(|(ns, _)| ns).max()
    };
    // On a busy machine the reader may begin late.
    let found: Vec<_> = (0..20).map(|_| longest()).take_while(|longest| *longest <= Some(10_000_000)).collect();
    assert!(found.len() < 20, "{found:?}");
}
