//! Models of grace periods: nobody reads what has been reclaimed, and every
//! grace period ends. The data of an object is [`Plain`], so loom reports
//! every reading that is not certain to come before the reclaiming.
//!
//! Readers load the pointer Relaxed: all that protects them is the section.
//! Needed are the pair of barriers, `enter` Release and Acquire, `ReadGuard`'s
//! Release, Release in `stamp`, the Release and Acquire of `completed`, and those
//! of the shared counters. Each runs twice: with full fences, and with what
//! `membarrier` promises in their place.

use super::*;
use crate::models::{Plain, explore, join, spawn};
use crate::sync::AtomicPtr;
use std::sync::Arc;

struct Object {
    data: Plain,
    reclaimed: crate::sync::plain::AtomicU32,
}

/// Two places where a pointer is published, and the objects that the pointers
/// in the course of a model point to.
struct World {
    places: [AtomicPtr<Object>; 2],
    objects: [Box<Object>; 4],
}

impl World {
    fn new() -> World {
        let objects: [Box<Object>; 4] =
            std::array::from_fn(|_| Box::new(Object { data: Plain::new(), reclaimed: 0.into() }));
        let places = [0, 1].map(|i| AtomicPtr::new(pointer(&objects[i])));
        World { places, objects }
    }

    fn reclaimed(&self, i: usize) -> u32 {
        self.objects[i].reclaimed.load(Ordering::SeqCst)
    }
}

fn pointer(object: &Object) -> *mut Object {
    std::ptr::from_ref(object).cast_mut()
}

unsafe fn reclaim(object: *mut ()) {
    // SAFETY: an object of the world, which stays.
    let object = unsafe { &*object.cast::<Object>() };
    object.data.change();
    assert_eq!(object.reclaimed.fetch_add(1, Ordering::SeqCst), 0, "O6: reclaimed twice");
}

/// Replaces what place `i` points to by object `i + 2`; returns what it was.
fn unlink(world: &World, i: usize) -> *mut () {
    world.places[i].swap(pointer(&world.objects[i + 2]), Ordering::Relaxed).cast()
}

fn look(world: &World, i: usize) {
    let object = world.places[i].load(Ordering::Relaxed);
    // SAFETY: an object of the world, which stays.
    unsafe { &*object }.data.look();
}

type Actor = fn(&World);

/// An announced reader.
fn reads(world: &World) {
    thread::announce();
    let _section = read();
    look(world, 0);
}

/// One without a slot.
fn reads_unannounced(world: &World) {
    let _section = read();
    look(world, 0);
}

/// What either mutator unlinks: one of the two may reclaim its own after a grace
/// period that the other has finished.
fn reads_both(world: &World) {
    thread::announce();
    reads_both_unannounced(world);
}

fn reads_both_unannounced(world: &World) {
    let _section = read();
    look(world, 0);
    look(world, 1);
}

/// Two sections, one after the other: a grace period may see the second begin
/// and not the first end.
fn reads_twice(world: &World) {
    thread::announce();
    drop_after_look(world);
    drop_after_look(world);
}

fn drop_after_look(world: &World) {
    let _section = read();
    look(world, 0);
}

/// Two sections, and one inside the second: a grace period may see nothing but
/// that one begin.
fn reads_then_nests(world: &World) {
    thread::announce();
    drop_after_look(world);
    let _outer = read();
    drop(read());
}

/// A section inside another that ends first.
fn reads_nested(world: &World) {
    thread::announce();
    let outer = read();
    let inner = read();
    drop(outer);
    look(world, 0);
    drop(inner);
}

/// A section inside another, which looks when the inner one is over.
fn reads_around(world: &World) {
    thread::announce();
    let _outer = read();
    drop(read());
    look(world, 0);
}

/// `defer`, and pushing the grace period along as mutators do.
fn defers(world: &World) {
    // SAFETY: unlinked; `reclaim` may run anywhere.
    unsafe { defer(unlink(world, 0), reclaim) };
    poll();
    poll();
}

/// The same elsewhere: two mutators start and finish each other's grace periods.
fn defers_elsewhere(world: &World) {
    // SAFETY: as above.
    unsafe { defer(unlink(world, 1), reclaim) };
    poll();
}

/// `defer`, and a grace period begun.
fn begins(world: &World) {
    // SAFETY: as above.
    unsafe { defer(unlink(world, 0), reclaim) };
    poll();
}

/// A section that another's grace period must wait for; then this thread ends the
/// grace period, and reclaims.
fn reads_and_ends(world: &World) {
    thread::announce();
    drop_after_look(world);
    READERS.push(2);
    for queue in QUEUES.iter() {
        run_due(queue);
    }
}

fn synchronizes(world: &World) {
    let old = unlink(world, 0);
    synchronize();
    // SAFETY: unlinked before the grace period.
    unsafe { reclaim(old) };
}

/// Two grace periods, each for an object of its own.
fn synchronizes_twice(world: &World) {
    synchronizes(world);
    let old = world.places[0].swap(pointer(&world.objects[3]), Ordering::Relaxed);
    synchronize();
    // SAFETY: as above.
    unsafe { reclaim(old.cast()) };
}

fn run(name: &'static str, preemptions: Option<usize>, actors: &'static [Actor]) {
    let barriers = [(false, ""), (true, ", membarrier")];
    for (here, with) in barriers {
        membarrier::asymmetric::HERE.set(here);
        run_once(&format!("{name}{with}"), preemptions, actors);
    }
    membarrier::asymmetric::HERE.set(false);
}

fn run_once(name: &str, preemptions: Option<usize>, actors: &'static [Actor]) {
    explore(name, preemptions, move || {
        // Main keeps its slot: one that passes on orders its two owners.
        thread::announce();
        // Statics are made by main: a model's carry an ordering from whoever
        // makes them to whoever uses them.
        stats();
        thread::all().for_each(|slot| slot.rcu.assert_idle());
        let world = Arc::new(World::new());
        let (first, others) = actors.split_first().unwrap();
        let others: Vec<_> = others
            .iter()
            .map(|actor| {
                let world = world.clone();
                spawn(move || actor(&world))
            })
            .collect();
        first(&world);
        join(others);
        barrier();
        assert_eq!(world.reclaimed(0), 1, "O4: never reclaimed");
    });
}

#[test]
fn deferred_work_waits_for_a_reader() {
    run("rcu: defer, a reader", None, &[defers, reads]);
    run("rcu: defer, a reader without a slot", None, &[defers, reads_unannounced]);
}

#[test]
fn synchronize_waits_for_a_reader() {
    run("rcu: synchronize, a reader", None, &[synchronizes, reads]);
    run("rcu: synchronize, a reader without a slot", None, &[synchronizes, reads_unannounced]);
}

#[test]
fn sections_in_a_row_and_in_each_other() {
    run("rcu: synchronize, two sections", None, &[synchronizes, reads_twice]);
    run("rcu: synchronize, a section in the second", Some(3), &[synchronizes, reads_then_nests]);
    run("rcu: synchronize, a section that outlives its outer one", None, &[synchronizes, reads_nested]);
    run("rcu: synchronize, a section around another", None, &[synchronizes, reads_around]);
}

/// The shared counters flip twice in each grace period; a reader that chose its
/// counter before the first may add to it after the last.
#[test]
fn two_grace_periods() {
    run("rcu: two grace periods, a reader without a slot", None, &[synchronizes_twice, reads_unannounced]);
    run("rcu: two grace periods, a reader", None, &[synchronizes_twice, reads]);
}

#[test]
fn two_mutators() {
    run("rcu: two mutators, a reader", Some(2), &[defers, defers_elsewhere, reads_both]);
    run("rcu: two mutators, a reader without a slot", Some(2), &[defers, defers_elsewhere, reads_both_unannounced]);
}

/// Needs the Release half of `advance`'s addition: a section that begins after it
/// must see what was unlinked before another thread's barrier.
#[test]
fn another_ends_what_one_began() {
    let actors: &[Actor] = &[reads_and_ends, begins, reads_unannounced];
    run("rcu: another ends the grace period, a reader without a slot", Some(2), actors);
}
