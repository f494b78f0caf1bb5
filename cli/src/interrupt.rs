//! Ctrl-C: the first asks the run to end and print what it has, the second kills.

use crate::failure::{Failure, status};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once SIGINT or SIGTERM came.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches the signals from now on. The second one ends the process from
    /// within the signal handler, so it works whatever the other threads do.
    pub fn install() -> Result<Interrupt, Failure> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the shutdown looks at the flag before it is set.
            flag::register_conditional_shutdown(signal, i32::from(status::INTERRUPTED), Arc::clone(&flag))
                .and_then(|_| flag::register(signal, Arc::clone(&flag)))
                .map_err(|e| Failure::cannot(format!("cannot catch Ctrl-C: {e}")))?;
        }
        Ok(Interrupt(flag))
    }

    /// Whether a signal came.
    pub fn came(&self) -> bool {
        // Relaxed: nothing is published with the flag, and it is polled.
        self.0.load(Ordering::Relaxed)
    }
}
