//! What the core's trace points ([`vmalab::trace`]) are used for: the
//! [`attribution`] of sampled faults, and the [`timeline`] of a run.
//!
//! Both hang on one hook, which runs on the fault path, inside signal handlers:
//! it allocates nothing, takes no lock and writes to what its thread owns. Only
//! at [`Event::Thread`] it may do more, which never comes inside a handler.

pub(crate) mod attribution;
mod chrome;
pub(crate) mod timeline;

use std::sync::OnceLock;
use vmalab::trace::{self, Event};

static CLOCK: OnceLock<quanta::Clock> = OnceLock::new();

/// The clock that trace points are stamped with; its raw readings are the
/// runner's.
pub(crate) fn clock() -> &'static quanta::Clock {
    CLOCK.get_or_init(quanta::Clock::new)
}

/// Hangs the hook on the trace points, for the rest of the process.
pub(crate) fn install() {
    clock();
    trace::set_hook(Some(hook));
}

/// The calling thread is one of a run's workers, called `name`.
pub(crate) fn enter_worker(name: String) {
    attribution::enter_worker();
    timeline::join(Some(name));
    trace::follow(timeline::is_on());
}

/// ... and is done.
pub(crate) fn leave_worker() {
    trace::follow(false);
    timeline::leave();
}

fn hook(event: Event, a: u64, b: u64) {
    let Some(clock) = CLOCK.get() else { return };
    match event {
        Event::Thread => timeline::join(None),
        _ => {
            let now = clock.raw();
            attribution::observe(event, a, now);
            timeline::record(event, a, b, now);
        }
    }
}
