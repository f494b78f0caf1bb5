//! Failure injection, for tests: the n-th thing of this thread that may fail,
//! does. In every other build [`fails`] is `false`.

#[cfg(all(test, not(any(loom, shuttle))))]
mod on {
    use std::cell::Cell;

    thread_local! {
        /// How many more succeed; `None`: all.
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
        static STRUCK: Cell<bool> = const { Cell::new(false) };
    }

    /// After `n` successes the next one fails, once.
    pub(crate) fn fail_after(n: u32) {
        LEFT.set(Some(n));
        STRUCK.set(false);
    }

    /// Nothing fails any more; whether something has.
    pub(crate) fn stop() -> bool {
        LEFT.set(None);
        STRUCK.get()
    }

    /// Whether this one is to fail.
    pub(crate) fn fails() -> bool {
        match LEFT.get() {
            None => false,
            Some(0) => {
                LEFT.set(None);
                STRUCK.set(true);
                true
            }
            Some(n) => {
                LEFT.set(Some(n - 1));
                false
            }
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
pub(crate) use on::{fail_after, fails, stop};

/// Whether this one is to fail.
#[cfg(not(all(test, not(any(loom, shuttle)))))]
#[inline(always)]
pub(crate) const fn fails() -> bool {
    false
}
