//! The pair of barriers that RCU rests on: a light one for readers, which is
//! nothing but an order given to the compiler, and a heavy one for grace
//! periods, which makes every running thread of the process execute a full
//! fence (`membarrier(2)`). Where the kernel has none, and in model builds,
//! both are full fences.

use crate::sync::Ordering;
use crate::sync::fence;
#[cfg(not(any(loom, shuttle)))]
use crate::sync::{AtomicBool, compiler_fence};

#[cfg(any(loom, shuttle))]
mod imp {
    use super::{Ordering, fence};

    pub(crate) fn light() {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn heavy() {
        fence(Ordering::SeqCst);
    }
}

#[cfg(not(any(loom, shuttle)))]
mod imp {
    use super::{AtomicBool, Ordering, compiler_fence, fence};
    use std::sync::Once;

    /// Sections rely on `membarrier`, not on a fence of their own.
    static ASYMMETRIC: AtomicBool = AtomicBool::new(false);

    /// Reader's half of the barrier pair: orders the word's store before the
    /// section's loads, as far as the heavy barrier needs.
    #[inline]
    pub(crate) fn light() {
        // Relaxed: set once, before the first grace period ([`heavy`]); a
        // reader that still sees false only does more than it must.
        if ASYMMETRIC.load(Ordering::Relaxed) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// Writer's half: a full fence on every running thread of the process.
    pub(crate) fn heavy() {
        const REGISTER: i32 = 1 << 4; // MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
        const EXPEDITED: i32 = 1 << 3; // MEMBARRIER_CMD_PRIVATE_EXPEDITED
        static SETUP: Once = Once::new();
        // SAFETY: membarrier takes no pointers.
        let membarrier = |command: i32| unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
        SETUP.call_once(|| {
            if membarrier(REGISTER) == 0 {
                // Readers that began before this store have fenced by themselves.
                ASYMMETRIC.store(true, Ordering::SeqCst);
            }
        });
        fence(Ordering::SeqCst);
        if ASYMMETRIC.load(Ordering::Relaxed) {
            let result = membarrier(EXPEDITED);
            assert_eq!(result, 0, "membarrier failed after it was registered");
        }
    }
}

pub(crate) use imp::{heavy, light};
