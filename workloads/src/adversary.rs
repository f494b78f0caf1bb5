//! A run under the adversary (`--adversary`), with the feature `races` only:
//! switches the core's part on and off ([`vmalab::races::adversary`]), puts
//! every target under [`Adverse`] and sums up what was done.

use crate::RunError;
use crate::report::{AdversaryReport, DelaysReport};
use crate::runner::Driven;
use crate::target::Target;
use crate::target::adverse::{Adverse, Deeds};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vmalab::lock::LockScheme;
use vmalab::pager::AnyPager;
use vmalab::races::adversary::{self, Counts};
use vmalab::races::{Mutant, Point, report, set_mutant};

/// The adversary, on while this lives.
struct On;

impl On {
    fn switch(seed: u64) -> On {
        adversary::start(seed);
        On
    }
}

impl Drop for On {
    fn drop(&mut self) {
        adversary::stop();
    }
}

/// Runs `drive` over the targets, each under the adversary.
pub(crate) fn drive<S: LockScheme, T: Target>(
    targets: Vec<T>,
    pager: AnyPager,
    seed: u64,
    drive: impl FnOnce(Vec<Adverse<S, T>>) -> Result<Driven, RunError>,
) -> Result<Driven, RunError> {
    let deeds = Arc::new(Deeds::default());
    let _on = On::switch(seed);
    let targets: Result<Vec<_>, _> =
        targets.into_iter().map(|target| Adverse::new(target, pager, Arc::clone(&deeds))).collect();
    let driven = drive(targets?)?;
    Ok(Driven { adversary: Some(sum_up(&adversary::counts(), &deeds)), ..driven })
}

fn sum_up(counts: &Counts, deeds: &Deeds) -> AdversaryReport {
    let points = Point::ALL.iter().zip(counts.points).map(|(point, hits)| (point.name().to_owned(), hits));
    AdversaryReport {
        points: points.collect(),
        delays: DelaysReport {
            spins: counts.spins,
            yields: counts.yields,
            sleeps: counts.sleeps,
            awaits: counts.awaits,
        },
        reused: counts.reused,
        reused_other_mm: counts.reused_other_mm,
        poisoned: counts.poisoned,
        same_address: deeds.same_address.load(Ordering::Relaxed),
        twin_mappings: deeds.twin_mappings.load(Ordering::Relaxed),
        ghosts: deeds.ghosts.load(Ordering::Relaxed),
        twin_deaths: deeds.twin_deaths.load(Ordering::Relaxed),
    }
}

/// The mutant in force for one run, and where violations go: standard error,
/// with the run's seed, and the end of the process.
pub(crate) struct Rules;

impl Rules {
    /// For a run that is about to make its address spaces.
    pub(crate) fn set(mutant: Option<Mutant>, seed: u64) -> Rules {
        set_mutant(mutant);
        report::exit_at_violation(seed);
        Rules
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        set_mutant(None);
    }
}
