//! Tests of RCU on real threads.

use super::*;
use crate::sync::AtomicBool;
use crate::sync::{AtomicPtr, AtomicUsize};
use std::sync::Arc;
use std::sync::mpsc;

#[test]
fn a_grace_period_waits_for_open_sections_announced_or_not() {
    for announced in [true, false] {
        let (inside_tx, inside) = mpsc::channel();
        let (leave, leave_rx) = mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            if announced {
                thread::announce();
            }
            let outer = read();
            let inner = read();
            drop(outer);
            inside_tx.send(()).unwrap();
            leave_rx.recv().unwrap();
            drop(inner);
        });
        inside.recv().unwrap();
        let stamp = READERS.stamp();
        for _ in 0..100 {
            READERS.push(stamp);
        }
        assert!(!READERS.is_over(stamp), "announced: {announced}");
        leave.send(()).unwrap();
        READERS.synchronize();
        assert!(READERS.is_over(stamp));
        reader.join().unwrap();
    }
}

#[test]
fn domains_do_not_wait_for_each_other() {
    thread::announce();
    let _fault = FAULTS.enter();
    READERS.synchronize();
}

#[test]
fn readers_never_see_a_reclaimed_object() {
    const LIVE: usize = 0x11fe;
    static RECLAIMED: AtomicUsize = AtomicUsize::new(0);
    unsafe fn poison(object: *mut ()) {
        // SAFETY: a Box<AtomicUsize> from below, handed over once.
        let object = unsafe { Box::from_raw(object.cast::<AtomicUsize>()) };
        object.store(0xdead, Ordering::Relaxed);
        RECLAIMED.fetch_add(1, Ordering::Relaxed);
    }
    let new = || Box::into_raw(Box::new(AtomicUsize::new(LIVE)));
    let shared = Arc::new(AtomicPtr::new(new()));
    let stop = Arc::new(AtomicBool::new(false));
    let started = Arc::new(std::sync::Barrier::new(4));
    let readers: Vec<_> = [true, true, false]
        .into_iter()
        .map(|announced| {
            let (shared, stop, started) = (shared.clone(), stop.clone(), started.clone());
            std::thread::spawn(move || {
                if announced {
                    thread::announce();
                }
                let mut reads = 0u64;
                started.wait();
                while reads == 0 || !stop.load(Ordering::Relaxed) {
                    let _guard = read();
                    // SAFETY: published by the writer, and we are in a section.
                    let value = unsafe { &*shared.load(Ordering::Acquire) }.load(Ordering::Relaxed);
                    assert_eq!(value, LIVE);
                    reads += 1;
                }
                reads
            })
        })
        .collect();
    started.wait();
    for _ in 0..50_000 {
        let old = shared.swap(new(), Ordering::AcqRel);
        // SAFETY: unlinked by the swap; `poison` frees it once.
        unsafe { defer(old.cast(), poison) };
        poll();
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
    barrier();
    assert_eq!(RECLAIMED.load(Ordering::Relaxed), 50_000);
    // SAFETY: the last object, never retired.
    unsafe { poison(shared.load(Ordering::Relaxed).cast()) };
}

/// No reader is in the way for long: what a mutator has deferred goes as it polls.
#[test]
fn polling_reclaims() {
    static RECLAIMED: AtomicUsize = AtomicUsize::new(0);
    unsafe fn count(_: *mut ()) {
        RECLAIMED.fetch_add(1, Ordering::Relaxed);
    }
    for _ in 0..BATCH {
        // SAFETY: nothing is reachable, and `count` may run anywhere.
        unsafe { defer(std::ptr::null_mut(), count) };
    }
    let began = std::time::Instant::now();
    while RECLAIMED.load(Ordering::Relaxed) < BATCH / 2 {
        assert!(began.elapsed().as_secs() < 20, "{:?}", stats());
        poll();
    }
}

#[test]
fn the_backlog_is_bounded() {
    unsafe fn nothing(_: *mut ()) {}
    std::thread::spawn(|| {
        for _ in 0..10 * BACKLOG_MAX {
            // SAFETY: nothing is reachable, nothing is done.
            unsafe { defer(std::ptr::null_mut(), nothing) };
            let mine = my_queue().backlog();
            assert!(mine <= BACKLOG_MAX, "{mine}");
        }
    })
    .join()
    .unwrap();
}
