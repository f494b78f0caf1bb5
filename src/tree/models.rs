//! Models of the tree: a reader sees one state, and sees all of it.

use super::*;
use crate::addr::{PAGE_SIZE, VirtAddr};
use crate::models::{Plain, explore, join, spawn};
use std::sync::Arc;

fn pages(first: usize, end: usize) -> PageRange {
    PageRange::new(VirtAddr(first * PAGE_SIZE), VirtAddr(end * PAGE_SIZE))
}

/// What the entries map to: written before it is published, read by who finds it.
struct World {
    tree: VmaTree<Plain>,
    objects: [Box<Plain>; 2],
}

// SAFETY: mutated by one thread only, as the models are written.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}

impl World {
    fn new() -> World {
        World {
            tree: VmaTree::new(Reclaim::AfterGracePeriod),
            objects: [Box::new(Plain::new()), Box::new(Plain::new())],
        }
    }

    /// Maps pages 1..3 to object `i`, whatever was there.
    fn publish(&self, i: usize) {
        self.objects[i].change();
        let entry = Entry { range: pages(1, 3), ptr: NonNull::from(&*self.objects[i]) };
        // SAFETY: one mutator.
        unsafe { self.tree.replace(pages(1, 3), &[entry]) };
    }

    fn look(&self) {
        let section = rcu::read();
        let snapshot = self.tree.snapshot(&section);
        let found = [1, 2].map(|n| snapshot.lookup(VirtAddr(n * PAGE_SIZE)));
        assert_eq!(found[0], found[1], "one state");
        if let Some(object) = found[0] {
            // SAFETY: one of the world's.
            unsafe { object.as_ref() }.look();
        }
    }
}

/// A grace period that another mutator begins may have begun before the root was
/// stored: the nodes that fell out are stamped after that.
#[test]
fn nodes_are_retired_when_they_are_unlinked() {
    explore("tree: a publication, a reader, another's grace period", Some(2), || {
        rcu::stats();
        let world = Arc::new(World::new());
        world.publish(0);
        let reader = {
            let world = world.clone();
            spawn(move || {
                crate::thread::announce();
                world.look();
            })
        };
        let other = spawn(rcu::synchronize);
        world.publish(1);
        assert_ne!(rcu::stats().backlog, 0, "what fell out waits for its readers");
        rcu::poll();
        join([reader, other]);
    });
}

/// Needs the root's Release and Acquire: loom's [`track`](crate::sync::track)
/// knows when each node was written and given back.
#[test]
fn a_root_is_published_with_its_nodes() {
    fn model(announced: bool) {
        rcu::stats();
        let world = Arc::new(World::new());
        let reader = {
            let world = world.clone();
            spawn(move || {
                if announced {
                    crate::thread::announce();
                }
                world.look();
            })
        };
        world.publish(0);
        world.publish(1);
        rcu::poll();
        rcu::poll();
        join([reader]);
    }
    explore("tree: two publications, a reader", None, || model(true));
    explore("tree: two publications, a reader without a slot", None, || model(false));
}
