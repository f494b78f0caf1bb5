//! How busy everybody else kept the machine: where others take the CPUs the
//! threads of a crew seldom run at the same time, and what they cost each other
//! is not seen.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::fs;
use std::time::Duration;

/// From its making on.
#[derive(Debug)]
pub struct Foreign {
    start: Option<Reading>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Clock ticks of all CPUs: all, and not idle.
    total: u64,
    busy: u64,
    /// CPU time of this process.
    own: Duration,
}

impl Reading {
    fn take() -> Option<Reading> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let (total, busy) = ticks(stat.lines().next()?)?;
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let own = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Some(Reading { total, busy, own: Duration::from_micros(own.try_into().ok()?) })
    }
}

/// All ticks and the busy ones, of the first line of `/proc/stat`.
fn ticks(line: &str) -> Option<(u64, u64)> {
    let ticks: Vec<u64> = line.strip_prefix("cpu ")?.split_whitespace().map_while(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guest time is in user.
    let total = ticks.get(..8)?.iter().sum();
    Some((total, total - ticks[3] - ticks[4]))
}

impl Foreign {
    /// Begins now.
    #[allow(clippy::new_without_default, reason = "it begins to count")]
    pub fn new() -> Foreign {
        Foreign { start: Reading::take() }
    }

    /// The share of all CPUs' time that others used since then, or `None` if
    /// /proc does not tell, or too little time has passed.
    pub fn share(&self) -> Option<f64> {
        let (start, end) = (self.start?, Reading::take()?);
        let (total, busy) = (end.total - start.total, end.busy - start.busy);
        if total < 10 {
            return None;
        }
        // USER_HZ is 100 on every x86 kernel.
        let own = (end.own - start.own).as_secs_f64() * 100.0;
        Some(((busy as f64 - own) / total as f64).clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_iowait_are_not_busy() {
        assert_eq!(ticks("cpu  10 1 20 300 40 5 6 7 0 0"), Some((389, 49)));
        assert_eq!(ticks("cpu0 1 2"), None);
    }
}
