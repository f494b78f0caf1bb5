//! The pair of barriers that RCU rests on: a light one for readers, which is
//! nothing but an order given to the compiler, and a heavy one for grace
//! periods, which makes every running thread of the process execute a full
//! fence (`membarrier(2)`). Where the kernel has none both are full fences.

use crate::sync::{Ordering, fence};

/// Reader's half of the barrier pair: orders the word's store before the
/// section's loads, as far as the heavy barrier needs. `set_up`: what [`set_up`]
/// has said.
#[inline]
pub(crate) fn light(set_up: bool) {
    if set_up {
        asymmetric::light();
    } else {
        fence(Ordering::SeqCst);
    }
}

/// Finds out, once, whether there is a heavy barrier that lets readers do
/// without fences.
pub(crate) fn set_up() -> bool {
    asymmetric::set_up()
}

/// Writer's half: a full fence on every running thread of the process, and on
/// this one.
pub(crate) fn heavy() {
    asymmetric::set_up();
    // SeqCst: pairs with the light barrier's. Acquire: pairs with the Release in
    // `rcu::Domain::stamp`, read by who has just started a grace period.
    fence(Ordering::SeqCst);
    asymmetric::heavy();
}

/// In a model: what `membarrier` promises, and no more. Of a light barrier and
/// a heavy one either is first, and what comes before that one comes before
/// everything behind the other.
#[cfg(any(loom, shuttle))]
pub(crate) mod asymmetric {
    use crate::sync::{AtomicU32, Ordering, statics};

    statics! {
        static ORDER: AtomicU32 = AtomicU32::new(0);
    }

    std::thread_local! {
        /// Whether this model has it. (A model's threads are one of the machine.)
        pub(crate) static HERE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }

    pub(super) fn set_up() -> bool {
        HERE.get()
    }

    pub(super) fn light() {
        ORDER.fetch_add(0, Ordering::AcqRel);
    }

    pub(super) fn heavy() {
        if HERE.get() {
            ORDER.fetch_add(0, Ordering::AcqRel);
        }
    }
}

/// `membarrier(2)`, where the kernel has it.
#[cfg(not(any(loom, shuttle)))]
mod asymmetric {
    use crate::sync::{AtomicBool, Ordering, compiler_fence};
    use std::sync::Once;

    const REGISTER: i32 = 1 << 4; // MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
    const EXPEDITED: i32 = 1 << 3; // MEMBARRIER_CMD_PRIVATE_EXPEDITED

    /// Sections rely on `membarrier`, not on a fence of their own.
    static ASYMMETRIC: AtomicBool = AtomicBool::new(false);

    fn membarrier(command: i32) -> libc::c_long {
        // SAFETY: membarrier takes no pointers.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
    }

    pub(super) fn set_up() -> bool {
        static SETUP: Once = Once::new();
        SETUP.call_once(|| {
            if membarrier(REGISTER) == 0 {
                // Relaxed: readers that see it early rely on the membarrier that
                // follows, as all others do.
                ASYMMETRIC.store(true, Ordering::Relaxed);
            }
        });
        ASYMMETRIC.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn light() {
        compiler_fence(Ordering::SeqCst);
    }

    pub(super) fn heavy() {
        if ASYMMETRIC.load(Ordering::Relaxed) {
            let result = membarrier(EXPEDITED);
            assert_eq!(result, 0, "membarrier failed after it was registered");
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::sync::{AtomicU32, CachePadded};
    use std::time::{Duration, Instant};

    /// Each side stores its word and then looks at the other's: one of the two must
    /// see the other's store. Without the heavy barrier the reader's may still be in
    /// its processor's store buffer; to see that takes two processors at once.
    #[test]
    fn one_side_sees_the_other() {
        let set_up = set_up();
        let [go, mine, other, saw] = [(); 4].map(|()| CachePadded::new(AtomicU32::new(0)));
        let wait = |arrived: &dyn Fn() -> bool| {
            for spins in 1.. {
                if arrived() {
                    return;
                }
                if spins % 1000 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        };
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1.. {
                    wait(&|| go.load(Ordering::Acquire) >= round);
                    if go.load(Ordering::Acquire) == u32::MAX {
                        return;
                    }
                    other.store(round, Ordering::Relaxed);
                    light(set_up);
                    let seen = mine.load(Ordering::Relaxed) == round;
                    saw.store(round << 1 | u32::from(seen), Ordering::Release);
                }
            });
            let mut missed = 0;
            for round in (1..100_000).take_while(|_| began.elapsed() < Duration::from_secs(2)) {
                go.store(round, Ordering::Release);
                // A little later, or much: whatever it takes to meet.
                (0..round % 256).for_each(|i| _ = std::hint::black_box(i));
                mine.store(round, Ordering::Relaxed);
                heavy();
                let seen = other.load(Ordering::Relaxed) == round;
                wait(&|| saw.load(Ordering::Acquire) >> 1 == round);
                missed += u32::from(!seen && saw.load(Ordering::Acquire) & 1 == 0);
            }
            go.store(u32::MAX, Ordering::Release);
            assert_eq!(missed, 0);
        });
    }
}
