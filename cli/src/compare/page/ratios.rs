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
const TOP: f64 = 22.0;

/// What a ratio is of.
struct Of<'a> {
    ratio: fn(&SubjectReport) -> Ratio,
    /// The same without disturbed slices, where that is known.
    undisturbed: Option<fn(&SubjectReport) -> Ratio>,
    /// What each round's ratio is of.
    value: &'a dyn Fn(&StressReport) -> Option<f64>,
    axis: String,
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
        let drawing = html! {
            @for tick in x.ticks(6) {
                (line("grid", (x.at(tick), TOP), (x.at(tick), bottom)))
                (text("tick", anchor(x.at(tick), 16.0, size), (x.at(tick), bottom + 16.0), &factor(tick)))
            }
            (line("one", (x.at(1.0), TOP - 4.0), (x.at(1.0), bottom)))
            (text("tick", anchor(x.at(1.0), 50.0, size), (x.at(1.0), TOP - 9.0), &format!("{} = 1", report.baseline)))
            @for (row, (subject, rounds)) in rows.iter().enumerate() {
                (one(report, subject, rounds, of, &x, TOP + ROW * row as f64, (left, right)))
            }
            (text("axis", "middle", (f64::midpoint(left, right), bottom + 36.0), &of.axis))
        };
        (bottom + 44.0, drawing)
    })
}

/// One row.
fn one(
    report: &CompareReport,
    subject: &SubjectReport,
    rounds: &[f64],
    of: &Of,
    x: &Scale,
    top: f64,
    (left, right): (f64, f64),
) -> Markup {
    let ratio = (of.ratio)(subject);
    let Colour(colour) = colour_of(report, &subject.name);
    let y = top + 34.0;
    html! {
        g class=(colour) {
            (text("name", "start", (left, top + 18.0), &subject.name))
            (text("value", "end", (right, top + 18.0), &interval(&ratio)))
            @for (round, value) in rounds.iter().enumerate() {
                circle.round cx=(px(x.at(*value))) cy=(px(y)) r="3" {
                    title { "round " (round + 1) ": " (format!("{value:.2}")) }
                }
            }
            (whisker("interval", &ratio, x, y, 5.5))
            @if let Some(undisturbed) = of.undisturbed {
                (whisker("interval undisturbed", &undisturbed(subject), x, y + 13.0, 4.0))
            }
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
