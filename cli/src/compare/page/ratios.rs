//! Ratios to the baseline, with their intervals: a row for each subject.

use super::plot::{Scale, Size, figure, line, px, text};
use super::{Colour, colour_of};
use crate::compare::report::{CompareReport, Measure, SubjectReport};
use crate::compare::table::interval;
use crate::statistics::Ratio;
use maud::{Markup, html};
use vmalab_workloads::StressReport;

/// Height of a row.
const ROW: f64 = 58.0;
/// Above the first row.
const TOP: f64 = 26.0;
/// Width of a letter of a name, and of a ratio; rather too much.
const NAME: f64 = 8.5;
const RATIO: f64 = 7.2;
/// Between the two.
const GAP: f64 = 10.0;

/// What a ratio is of.
struct Of<'a> {
    ratio: fn(&SubjectReport) -> Ratio,
    /// The same without disturbed slices, where that is known.
    undisturbed: Option<fn(&SubjectReport) -> Ratio>,
    /// What each round's ratio is of.
    value: &'a dyn Fn(&StressReport) -> Option<f64>,
    axis: String,
}

/// Where the rows' names and ratios stand: clear of the line of the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Labels {
    /// The name on the left, the ratio on the right.
    Apart,
    /// Both on the left.
    Left,
    /// Both on the right.
    Right,
}

impl Labels {
    /// For the widest name and the widest ratio. `one` is the line's place.
    fn clear_of(one: f64, name: f64, ratio: f64, (left, right): (f64, f64)) -> Labels {
        let clear = |from: f64, to: f64| one < from - 4.0 || one > to + 4.0;
        let both = name + GAP + ratio;
        if clear(left, left + name) && clear(right - ratio, right) {
            Labels::Apart
        } else if clear(left, left + both) {
            Labels::Left
        } else if clear(right - both, right) {
            Labels::Right
        } else {
            Labels::Apart
        }
    }

    fn draw(self, name: &str, ratio: &str, y: f64, (left, right): (f64, f64)) -> Markup {
        let (anchor, x) = if self == Labels::Right { ("end", right) } else { ("start", left) };
        html! {
            @if self == Labels::Apart {
                (text("name", "start", (left, y), name))
                (text("value", "end", (right, y), ratio))
            } @else {
                text.name text-anchor=(anchor) x=(px(x)) y=(px(y)) { (name) tspan.value dx=(px(GAP)) { (ratio) } }
            }
        }
    }
}

/// The throughput's ratios.
pub fn throughput(report: &CompareReport) -> Markup {
    let measure = report.measure();
    let (name, ..) = measure.names();
    let told = report.slices.disturbed > 0
        && report.judged().any(|subject| subject.throughput_ratio_undisturbed.median.is_some());
    let of = Of {
        ratio: |subject| subject.throughput_ratio,
        undisturbed: told.then_some(|subject| subject.throughput_ratio_undisturbed),
        value: &|run| measure.throughput(run),
        axis: format!("times the {name} of {} \u{2014} more is better \u{2192}", report.baseline),
    };
    chart(report, &format!("Throughput: {name}, as a multiple of {}", report.baseline), &of)
}

/// The 99th percentile's ratios.
pub fn p99(report: &CompareReport) -> Markup {
    let measure = report.measure();
    let of = Of {
        ratio: |subject| subject.p99_ratio,
        undisturbed: None,
        value: &|run| measure.percentiles(run).map(|(_, p99)| p99 as f64),
        axis: format!("\u{2190} less is better \u{2014} times the p99 of {}", report.baseline),
    };
    let what = if measure == Measure::Faults { "fault" } else { "mmap call" };
    chart(report, &format!("Tail latency: p99 of a {what}, as a multiple of {}", report.baseline), &of)
}

/// Ratios of one subject, round by round.
fn by_round(report: &CompareReport, subject: &SubjectReport, of: &Of) -> Vec<f64> {
    let baseline = report.subjects.iter().find(|subject| subject.name == report.baseline);
    let pairs = subject.runs.iter().zip(baseline.iter().flat_map(|baseline| &baseline.runs));
    pairs
        .filter(|(subject, baseline)| !subject.interrupted && !baseline.interrupted)
        .filter_map(|(subject, baseline)| Some((of.value)(subject)? / (of.value)(baseline)?))
        .filter(|ratio| ratio.is_finite() && *ratio > 0.0)
        .collect()
}

fn chart(report: &CompareReport, title: &str, of: &Of) -> Markup {
    let rows: Vec<(&SubjectReport, Vec<f64>)> =
        report.judged().map(|subject| (subject, by_round(report, subject, of))).collect();
    let ends = |ratio: Ratio| [ratio.low, ratio.high, ratio.median].into_iter().flatten();
    let values = rows.iter().flat_map(|(subject, rounds)| {
        let undisturbed = of.undisturbed.into_iter().flat_map(move |ratio| ends(ratio(subject)));
        rounds.iter().copied().chain(ends((of.ratio)(subject))).chain(undisturbed)
    });
    let (low, high) = values.filter(|ratio| *ratio > 0.0).fold((1.0_f64, 1.0_f64), |(l, h), v| (l.min(v), h.max(v)));
    let room = (high / low).powf(0.06).max(1.02);
    let note = html! {
        "Dot and bar: median of the rounds and its 95 % bootstrap interval. Small rings: the rounds."
        @if of.undisturbed.is_some() { " Hollow dot and thin bar: the same without the disturbed slices of time." }
    };
    figure(title, &note, Size::Half, |size| {
        let (left, right) = (8.0, size.width() - 8.0);
        let bottom = TOP + ROW * rows.len() as f64;
        let x = Scale::log((low / room, high * room), (left, right));
        let widest = |label: &dyn Fn(&SubjectReport) -> String| {
            rows.iter().map(|(subject, _)| label(subject).chars().count()).max().unwrap_or(0) as f64
        };
        let name = NAME * widest(&|subject| subject.name.clone());
        let ratio = RATIO * widest(&|subject| interval(&(of.ratio)(subject)));
        let labels = Labels::clear_of(x.at(1.0), name, ratio, (left, right));
        let drawing = html! {
            @for tick in x.ticks(6) {
                (line("grid", (x.at(tick), TOP), (x.at(tick), bottom)))
                (text("tick", anchor(x.at(tick), 16.0, size), (x.at(tick), bottom + 16.0), &factor(tick)))
            }
            (line("one", (x.at(1.0), TOP - 4.0), (x.at(1.0), bottom)))
            (text("tick", anchor(x.at(1.0), 50.0, size), (x.at(1.0), TOP - 11.0), &format!("{} = 1", report.baseline)))
            @for (row, (subject, rounds)) in rows.iter().enumerate() {
                @let Colour(colour) = colour_of(report, &subject.name);
                @let top = TOP + ROW * row as f64;
                g class=(colour) {
                    (labels.draw(&subject.name, &interval(&(of.ratio)(subject)), top + 18.0, (left, right)))
                    (one(subject, rounds, of, &x, top + 34.0))
                }
            }
            (text("axis", "middle", (f64::midpoint(left, right), bottom + 36.0), &of.axis))
        };
        (bottom + 44.0, drawing)
    })
}

/// The marks of a row.
fn one(subject: &SubjectReport, rounds: &[f64], of: &Of, x: &Scale, y: f64) -> Markup {
    html! {
        @for (round, value) in rounds.iter().enumerate() {
            circle.round cx=(px(x.at(*value))) cy=(px(y)) r="3" {
                title { "round " (round + 1) ": " (format!("{value:.2}")) }
            }
        }
        (whisker("interval", &(of.ratio)(subject), x, y, 5.5))
        @if let Some(undisturbed) = of.undisturbed {
            (whisker("interval undisturbed", &undisturbed(subject), x, y + 13.0, 4.0))
        }
    }
}

fn whisker(class: &str, ratio: &Ratio, x: &Scale, y: f64, radius: f64) -> Markup {
    html! {
        g class=(class) {
            @if let (Some(low), Some(high)) = (ratio.low, ratio.high) {
                line x1=(px(x.at(low))) x2=(px(x.at(high))) y1=(px(y)) y2=(px(y)) {}
            }
            @if let Some(median) = ratio.median {
                circle cx=(px(x.at(median))) cy=(px(y)) r=(px(radius)) { title { (interval(ratio)) } }
            }
        }
    }
}

/// A label nearer to an edge than half its width begins or ends there.
fn anchor(place: f64, half: f64, size: Size) -> &'static str {
    match place {
        place if place < half => "start",
        place if place > size.width() - half => "end",
        _ => "middle",
    }
}

/// `0.5`, `1.25`, `20` without zeros at the end.
fn factor(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_clear_of_the_baseline() {
        let of = |one| Labels::clear_of(one, 70.0, 120.0, (8.0, 356.0));
        let expected = [
            (8.0, Labels::Right),
            (80.0, Labels::Right),
            (150.0, Labels::Apart),
            (231.0, Labels::Apart),
            (240.0, Labels::Left),
            (356.0, Labels::Left),
        ];
        for (one, labels) in expected {
            assert_eq!(of(one), labels, "{one}");
        }
        // No place is clear.
        assert_eq!(Labels::clear_of(50.0, 70.0, 300.0, (8.0, 356.0)), Labels::Apart);
    }
}
