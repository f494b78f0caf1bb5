//! [`Pace`]: what keeps a mutator to a number of calls a second (`--mutator-rate`).

use std::time::{Duration, Instant};

/// A thread that is ahead by less does not sleep: the host's timers are no
/// finer, and waking up costs microseconds.
const AHEAD: Duration = Duration::from_micros(100);
/// What a thread that was kept from its calls may catch up with.
const BEHIND: Duration = Duration::from_millis(5);
/// Longest sleep, so that the end of the run is seen.
const NAP: Duration = Duration::from_millis(10);

/// See the module's documentation.
pub(crate) struct Pace {
    per_call: Duration,
    /// Calls since the last look.
    calls: u32,
    /// When those before them are paid for; `None` before the first look, as
    /// what a thread does before its first round does not count.
    due: Option<Instant>,
}

impl Pace {
    /// `rate`: calls a second, at least 1.
    pub(crate) fn new(rate: u32) -> Pace {
        // Rounded up: no more than that.
        let per_call = Duration::from_nanos(1_000_000_000_u64.div_ceil(rate.into()));
        Pace { per_call, calls: 0, due: None }
    }

    /// Another call was made.
    pub(crate) fn call(&mut self) {
        self.calls += 1;
    }

    /// Adds the calls to the account; returns how long to sleep.
    fn settle(&mut self, now: Instant) -> Duration {
        let calls = std::mem::take(&mut self.calls);
        let due = match self.due {
            None => now,
            Some(due) => due.max(now.checked_sub(BEHIND).unwrap_or(now)) + self.per_call * calls,
        };
        self.due = Some(due);
        match due.saturating_duration_since(now) {
            ahead if ahead < AHEAD => Duration::ZERO,
            ahead => ahead,
        }
    }

    /// Sleeps until the calls made so far are paid for, or `over`.
    pub(crate) fn keep(&mut self, over: impl Fn() -> bool) {
        while !over() {
            match self.settle(Instant::now()) {
                Duration::ZERO => return,
                ahead => std::thread::sleep(ahead.min(NAP)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_ahead_waits() {
        let mut pace = Pace::new(10_000);
        let start = Instant::now();
        let after = |micros| start + Duration::from_micros(micros);
        (0..99).for_each(|_| pace.call());
        assert_eq!(pace.settle(after(0)), Duration::ZERO, "before the first round");
        (0..10).for_each(|_| pace.call());
        assert_eq!(pace.settle(after(50)), Duration::from_micros(950));
        assert_eq!(pace.settle(after(500)), Duration::from_micros(500), "the calls count once");
        assert_eq!(pace.settle(after(901)), Duration::ZERO, "not worth a sleep");
        pace.call();
        assert_eq!(pace.settle(after(950)), Duration::from_micros(150), "but not forgotten");
    }

    #[test]
    fn a_thread_that_was_kept_away_does_not_make_up_for_all_of_it() {
        let mut pace = Pace::new(1_000);
        let start = Instant::now();
        assert_eq!(pace.settle(start), Duration::ZERO);
        let late = start + Duration::from_secs(10);
        (0..7).for_each(|_| pace.call());
        assert_eq!(pace.settle(late), Duration::from_millis(2), "five of seven at once");
    }

    #[test]
    fn the_end_of_a_run_ends_the_wait() {
        let mut pace = Pace::new(1);
        pace.settle(Instant::now());
        (0..1_000).for_each(|_| pace.call());
        let looks = std::cell::Cell::new(0);
        pace.keep(|| looks.replace(looks.get() + 1) == 2);
        assert_eq!(looks.get(), 3);
    }
}
