//! The pair of barriers that RCU rests on: a light one for readers, which is
//! nothing but an order given to the compiler, and a heavy one for grace
//! periods, which makes every running thread of the process execute a full
//! fence (`membarrier(2)`). Where the kernel has none, and in model builds,
//! both are full fences.

use crate::sync::{Ordering, compiler_fence, fence};

/// Reader's half of the barrier pair: orders the word's store before the
/// section's loads, as far as the heavy barrier needs.
#[inline]
pub(crate) fn light() {
    if asymmetric::is_set_up() {
        compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// Writer's half: a full fence on every running thread of the process.
pub(crate) fn heavy() {
    asymmetric::set_up();
    fence(Ordering::SeqCst);
    asymmetric::fence_everybody();
}

/// A model's threads fence by themselves.
#[cfg(any(loom, shuttle))]
mod asymmetric {
    pub(super) fn is_set_up() -> bool {
        false
    }

    pub(super) fn set_up() {}

    pub(super) fn fence_everybody() {}
}

/// `membarrier(2)`, where the kernel has it.
#[cfg(not(any(loom, shuttle)))]
mod asymmetric {
    use crate::sync::{AtomicBool, Ordering};
    use std::sync::Once;

    const REGISTER: i32 = 1 << 4; // MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED
    const EXPEDITED: i32 = 1 << 3; // MEMBARRIER_CMD_PRIVATE_EXPEDITED

    /// Sections rely on `membarrier`, not on a fence of their own.
    static ASYMMETRIC: AtomicBool = AtomicBool::new(false);

    fn membarrier(command: i32) -> libc::c_long {
        // SAFETY: membarrier takes no pointers.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
    }

    #[inline]
    pub(super) fn is_set_up() -> bool {
        // Relaxed: set once, before the first grace period; a reader that still
        // sees false only does more than it must.
        ASYMMETRIC.load(Ordering::Relaxed)
    }

    pub(super) fn set_up() {
        static SETUP: Once = Once::new();
        SETUP.call_once(|| {
            if membarrier(REGISTER) == 0 {
                // Relaxed: readers that see it early rely on the membarrier that
                // follows, as all others do.
                ASYMMETRIC.store(true, Ordering::Relaxed);
            }
        });
    }

    pub(super) fn fence_everybody() {
        if ASYMMETRIC.load(Ordering::Relaxed) {
            let result = membarrier(EXPEDITED);
            assert_eq!(result, 0, "membarrier failed after it was registered");
        }
    }
}
