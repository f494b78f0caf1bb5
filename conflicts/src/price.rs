//! The price of a contended line, measured: two threads on two CPUs hand one
//! cache line to and fro, each waiting for the other's store before its own.
//! One hand-over is what the model charges whenever a core needs a line that
//! another has changed. Between sockets it is several times as much.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Hand-overs that are timed together: some microseconds.
const BATCH: u64 = 64;
/// Of all batches this part took less than what is reported: on a busy machine
/// most batches also measure that one of the two threads does not run.
const QUANTILE: usize = 10;
/// Fewer batches than this tell nothing.
const BATCHES_MIN: usize = 20;

/// A line of its own.
#[repr(align(128))]
struct Line(AtomicU64);

/// What ends the threads: no value that is ever handed over.
const STOP: u64 = u64::MAX;

/// Nanoseconds to hand a line from one CPU to another, measured for `budget`.
/// `None` where this process has only one CPU, or never two at a time.
pub fn hand_over_ns(budget: Duration) -> Option<f64> {
    let set = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let cpus: Vec<usize> = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).take(2).collect();
    let [first, second] = cpus[..] else { return None };
    let line = Line(AtomicU64::new(0));
    let mut batches = thread::scope(|scope| {
        // Both are threads of their own: the caller keeps its CPUs.
        scope.spawn(|| play(&line, first, 0, budget));
        let timed = scope.spawn(|| play(&line, second, 1, budget));
        timed.join().unwrap_or_default()
    });
    if batches.len() < BATCHES_MIN {
        return None;
    }
    batches.sort_by(f64::total_cmp);
    Some(batches[batches.len() / QUANTILE])
}

/// Waits for each number with the bit `odd`, and puts the next one in its place.
/// Returns the mean of each batch.
fn play(line: &Line, cpu: usize, odd: u64, budget: Duration) -> Vec<f64> {
    let mut batches = Vec::new();
    let mut set = CpuSet::new();
    if set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).is_err() {
        line.0.store(STOP, Ordering::Relaxed);
        return batches;
    }
    let began = Instant::now();
    let mut next = odd;
    while began.elapsed() < budget {
        let batch = Instant::now();
        // Each of the two does half of the hand-overs.
        for _ in 0..BATCH / 2 {
            // Relaxed: nothing goes with the number.
            while line.0.load(Ordering::Relaxed) != next {
                if line.0.load(Ordering::Relaxed) == STOP {
                    return batches;
                }
                spin_loop();
            }
            if line.0.compare_exchange(next, next + 1, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                return batches;
            }
            next += 2;
        }
        batches.push(batch.elapsed().as_nanos() as f64 / BATCH as f64);
    }
    line.0.store(STOP, Ordering::Relaxed);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_over_takes_a_while() {
        if let Some(ns) = hand_over_ns(Duration::from_millis(50)) {
            assert!(ns > 1.0, "{ns}");
        }
    }
}
