//! Latency by percentile: a distribution function lying on its side, its tail
//! stretched so that each nine takes the same room.

use super::plot::{Scale, Size, figure, line, path, px, spread, text};
use super::{Colour, colour_of};
use crate::compare::report::{CompareReport, Measure, SubjectReport};
use crate::statistics::median;
use crate::units::nanoseconds;
use maud::{Markup, html};

/// Height of the frame.
const HEIGHT: f64 = 320.0;

/// One quantile over the rounds.
struct Point {
    /// Nines: 1 is p90, 2 is p99.
    nines: f64,
    least: f64,
    middle: f64,
    most: f64,
}

/// As far as all its runs go.
fn curve(subject: &SubjectReport, key: &str) -> Vec<Point> {
    let cdfs: Vec<_> = subject.whole_runs().filter_map(|run| run.cdf_ns.get(key)).collect();
    let points = cdfs.iter().map(|cdf| cdf.len()).min().unwrap_or(0);
    let point = |i: usize| {
        let mut values: Vec<f64> = cdfs.iter().map(|cdf| cdf[i].1.max(1) as f64).collect();
        let middle = median(&mut values);
        let nines = -(1.0 - cdfs[0][i].0).log10();
        Point { nines, least: values[0], middle, most: values[values.len() - 1] }
    };
    (0..points).map(point).collect()
}

/// The chart.
pub fn chart(report: &CompareReport) -> Markup {
    let measure = report.measure();
    let key = measure.cdf();
    let curves: Vec<(&SubjectReport, Vec<Point>)> =
        report.subjects.iter().map(|subject| (subject, curve(subject, key))).filter(|(_, c)| !c.is_empty()).collect();
    if curves.is_empty() {
        return html! {};
    }
    let floor = report.floor.as_ref().filter(|_| measure == Measure::Faults);
    let points = || curves.iter().flat_map(|(_, curve)| curve);
    let low = points().map(|p| p.least).chain(floor.map(|floor| floor.ns as f64)).fold(f64::INFINITY, f64::min);
    let high = points().map(|p| p.most).fold(0.0, f64::max);
    let nines = points().map(|p| p.nines).fold(1.0, f64::max);
    let what = if measure == Measure::Faults { "fault" } else { "mmap call" };
    let note = html! {
        "Line: median over the rounds of that percentile. Band: from the lowest round to the highest. Reading the clock is included."
        @if floor.is_some() { " Floor: the bare mechanism of a fault (" (floor.map_or("", |floor| &floor.title)) "), without a lock or a tree, its median right after the rounds." }
    };
    figure(&format!("Latency of a {what}: distribution (CDF) up to p99.99"), &note, Size::Wide, |size| {
        let label_room = if size == Size::Narrow { 80.0 } else { 92.0 };
        let (left, right, top, bottom) = (58.0, size.width() - label_room, 26.0, 26.0 + HEIGHT);
        let x = Scale::linear((0.0, nines), (left, right));
        // Room for the floor's label below it.
        let y = Scale::log((low / if floor.is_some() { 2.0 } else { 1.15 }, high * 1.15), (bottom, top));
        let ends: Vec<f64> = curves.iter().map(|(_, curve)| y.at(curve[curve.len() - 1].middle)).collect();
        let labels = spread(&ends, 15.0, bottom);
        let drawing = html! {
            (text("axis", "start", (4.0, 12.0), &format!("latency of a {what}, log scale")))
            @for tick in y.ticks(7) {
                (line("grid", (left, y.at(tick)), (right, y.at(tick))))
                (text("tick", "end", (left - 7.0, y.at(tick) + 4.0), &short(tick)))
            }
            @for (name, at) in [("min", 0.0), ("p50", 2_f64.log10()), ("p90", 1.0), ("p99", 2.0), ("p99.9", 3.0), ("p99.99", 4.0)] {
                @if at <= nines + 0.01 && !(size == Size::Narrow && at == 0.0) {
                    (line("grid", (x.at(at), top), (x.at(at), bottom)))
                    (text("tick", "middle", (x.at(at), bottom + 17.0), name))
                }
            }
            (text("axis", "middle", (f64::midpoint(left, right), bottom + 38.0), "percentile, each nine as wide as the one before"))
            @if let Some(floor) = floor {
                @let place = y.at(floor.ns as f64);
                @let title = if size == Size::Narrow { String::new() } else { format!(": {},", floor.title) };
                (line("floor", (left, place), (right, place)))
                (text("tick", "end", (right - 4.0, place + 15.0), &format!("floor{title} {}", nanoseconds(floor.ns as f64))))
            }
            @for ((subject, curve), label) in curves.iter().zip(&labels) {
                @let Colour(colour) = colour_of(report, &subject.name);
                g class=(colour) {
                    path.band d=(path(curve.iter().map(|p| (x.at(p.nines), y.at(p.most))).chain(curve.iter().rev().map(|p| (x.at(p.nines), y.at(p.least)))))) {}
                    path.line d=(path(curve.iter().map(|p| (x.at(p.nines), y.at(p.middle))))) { title { (subject.name) } }
                    (text("name", "start", (right + 8.0, label + 4.0), &subject.name))
                }
            }
            rect.frame x=(px(left)) y=(px(top)) width=(px(right - left)) height=(px(bottom - top)) {}
        };
        (bottom + 46.0, drawing)
    })
}

/// `1 us`, `500 ns`: of a tick.
fn short(ns: f64) -> String {
    nanoseconds(ns).replace(".00 ", " ").replace(".0 ", " ")
}
