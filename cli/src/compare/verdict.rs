//! Who is faster, said only if the rounds show it.

use super::report::{Measure, SliceCount};
use super::table::percent;
use crate::statistics::{ROUNDS_TO_JUDGE, Ratio};
use crate::units::count;
use std::cmp::Ordering;

/// A subject's ratios to the baseline.
#[derive(Clone, Copy, Debug)]
pub struct Ratios {
    pub throughput: Ratio,
    /// The throughput of slices that were not disturbed.
    pub undisturbed: Ratio,
    pub p99: Ratio,
    /// Calls a second, where mutators made some beside the faults.
    pub calls: Option<Ratio>,
    /// The slices of time of its runs and the baseline's.
    pub slices: SliceCount,
}

/// What the rounds show of a subject's throughput, beside the baseline's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    More,
    Fewer,
    /// No difference.
    Open,
    /// Others had the machine for most of the time: how they shared it with
    /// each subject would be compared, not the subjects.
    Busy,
}

impl Ratios {
    fn busy(&self) -> bool {
        2 * self.slices.disturbed > self.slices.all
    }

    /// The undisturbed slices' ratio, where there are enough rounds of it.
    fn second_opinion(&self) -> Option<&Ratio> {
        Some(&self.undisturbed).filter(|ratio| ratio.rounds >= ROUNDS_TO_JUDGE)
    }
}

/// More or fewer only if the interval of all slices leaves out 1, and that of
/// the undisturbed ones too, on the same side.
pub fn call(ratios: &Ratios) -> Call {
    if ratios.busy() {
        return Call::Busy;
    }
    let all = ratios.throughput.direction().filter(|_| ratios.throughput.rounds >= ROUNDS_TO_JUDGE);
    match all.filter(|_| ratios.second_opinion().is_none_or(|ratio| ratio.direction() == all)) {
        Some(Ordering::Greater) => Call::More,
        Some(_) => Call::Fewer,
        None => Call::Open,
    }
}

/// More rounds that would likely end in [`Call::More`] or [`Call::Fewer`].
pub fn more_rounds(ratios: &Ratios) -> Option<usize> {
    if call(ratios) != Call::Open {
        return None;
    }
    let missing = ROUNDS_TO_JUDGE.saturating_sub(ratios.throughput.rounds);
    let undecided = [Some(&ratios.throughput), ratios.second_opinion()].into_iter().flatten();
    undecided.filter_map(Ratio::more_rounds).chain((missing > 0).then_some(missing)).max()
}

/// Mutators' calls that differ by less, relatively, are taken for the same.
const CALLS_ALIKE: f64 = 0.05;

/// Most rounds that anybody is advised to run.
const ROUNDS_MAX: usize = 1000;

/// One sentence, which names a winner only when the rounds do.
pub fn sentence(baseline: &str, measure: Measure, ratios: &Ratios) -> String {
    let (throughput, ..) = measure.names();
    let rounds = ratios.throughput.rounds;
    let Some(times) = ratios.throughput.median else {
        return "not judged: no round was completed".to_owned();
    };
    if rounds < ROUNDS_TO_JUDGE {
        return format!(
            "{times:.2} times the {throughput} of {baseline} in {rounds} round{}: too few to call, take --rounds \
             {ROUNDS_TO_JUDGE} or more",
            if rounds == 1 { "" } else { "s" }
        );
    }
    let first = match call(ratios) {
        Call::More => format!("more {throughput} than {baseline}"),
        Call::Fewer => format!("fewer {throughput} than {baseline}"),
        Call::Open => no_difference(baseline, throughput, ratios),
        Call::Busy => {
            return format!(
                "not judged: others had the machine in {} of the slices of time, repeat when it is idle",
                percent(ratios.slices)
            );
        }
    };
    let second = match ratios.p99.direction() {
        Some(Ordering::Greater) => "a higher p99",
        Some(Ordering::Less) => "a lower p99",
        _ if ratios.p99.median.is_none() => "p99 not measured",
        _ => "no difference in p99 shown",
    };
    let calls = ratios.calls.filter(|calls| calls.rounds >= ROUNDS_TO_JUDGE && calls.direction().is_some());
    let third = match calls.and_then(|calls| calls.median) {
        Some(times) if (times - 1.0).abs() > CALLS_ALIKE => format!("; {times:.2} times the mutators' calls/s"),
        _ => String::new(),
    };
    format!("{first}; {second}{third}")
}

fn no_difference(baseline: &str, throughput: &str, ratios: &Ratios) -> String {
    let where_ = match ratios.throughput.direction() {
        None => "the interval holds 1",
        Some(_) => "only the disturbed slices of time differ",
    };
    let more = match more_rounds(ratios) {
        Some(more) if more <= ROUNDS_MAX => {
            format!(" ({} more round{} like these may show one)", count(more as u64), if more == 1 { "" } else { "s" })
        }
        Some(_) => format!(" (nor would {} rounds like these)", count(ROUNDS_MAX as u64)),
        None => String::new(),
    };
    format!("no difference in {throughput} from {baseline} shown, {where_}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratio(low: f64, median: f64, high: f64) -> Ratio {
        Ratio { median: Some(median), low: Some(low), high: Some(high), rounds: 5 }
    }

    const NONE: Ratio = Ratio { median: None, low: None, high: None, rounds: 0 };

    fn ratios(throughput: Ratio, undisturbed: Ratio) -> Ratios {
        let slices = SliceCount { disturbed: 50, all: 100 };
        Ratios { throughput, undisturbed, p99: ratio(0.2, 0.3, 0.4), calls: None, slices }
    }

    #[test]
    fn nothing_is_said_when_others_had_the_machine() {
        let (more, slices) = (ratio(1.1, 1.2, 1.3), SliceCount { disturbed: 51, all: 100 });
        let busy = Ratios { slices, ..ratios(more, more) };
        assert_eq!((call(&busy), more_rounds(&busy)), (Call::Busy, None));
        let text = sentence("mmap", Measure::Faults, &busy);
        assert!(text.starts_with("not judged: others had the machine in 51 % of"), "{text}");
    }

    #[test]
    fn both_intervals_must_leave_out_1_on_the_same_side() {
        let (more, less, even) = (ratio(1.1, 1.2, 1.3), ratio(0.7, 0.8, 0.9), ratio(0.9, 1.1, 1.3));
        for (all, undisturbed, expected) in [
            (more, more, Call::More),
            (less, less, Call::Fewer),
            (more, NONE, Call::More),
            (more, Ratio { rounds: 4, ..even }, Call::More),
            (more, even, Call::Open),
            (even, more, Call::Open),
            (more, less, Call::Open),
            (Ratio { rounds: 4, ..more }, more, Call::Open),
            (NONE, NONE, Call::Open),
        ] {
            assert_eq!(call(&ratios(all, undisturbed)), expected, "{all:?} {undisturbed:?}");
        }
    }

    #[test]
    fn what_is_said() {
        let say = |all, undisturbed| sentence("mmap", Measure::Faults, &ratios(all, undisturbed));
        let (more, even) = (ratio(1.1, 1.2, 1.3), ratio(0.9, 1.1, 1.3));
        assert_eq!(say(more, more), "more faults/s than mmap; a lower p99");
        assert_eq!(
            say(even, NONE),
            "no difference in faults/s from mmap shown, the interval holds 1 (18 more rounds like these may show one); \
             a lower p99"
        );
        assert_eq!(
            say(more, even),
            "no difference in faults/s from mmap shown, only the disturbed slices of time differ (18 more rounds like \
             these may show one); a lower p99"
        );
        let with = |calls| Ratios { calls: Some(calls), ..ratios(more, more) };
        let say_calls = |calls| sentence("mmap", Measure::Faults, &with(calls));
        assert_eq!(say_calls(more), "more faults/s than mmap; a lower p99; 1.20 times the mutators' calls/s");
        assert!(say_calls(ratio(0.1, 0.2, 0.3)).ends_with("p99; 0.20 times the mutators' calls/s"));
        assert!(say_calls(ratio(0.98, 0.985, 0.99)).ends_with("a lower p99"), "they are held to a rate, say");
        assert!(say_calls(even).ends_with("a lower p99"));
        assert!(say(ratio(0.9, 1.001, 1.1), NONE).contains("(nor would 1,000 rounds like these)"));
        assert!(say(ratio(0.9, 1.0, 1.1), NONE).contains("the interval holds 1; a lower p99"));
        assert_eq!(say(NONE, NONE), "not judged: no round was completed");
    }

    #[test]
    fn too_few_rounds_want_as_many_as_it_takes_to_judge() {
        let few = Ratio { rounds: 3, ..ratio(1.1, 1.2, 1.3) };
        assert_eq!(more_rounds(&ratios(few, NONE)), Some(2));
        assert_eq!(more_rounds(&ratios(ratio(1.1, 1.2, 1.3), NONE)), None);
    }
}
