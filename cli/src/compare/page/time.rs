//! Throughput over time: a row for each subject, its rounds one after the
//! other, slices in which the machine was taken away in grey.

use super::plot::{Scale, Size, figure, line, path, px, text};
use super::{Colour, colour_of};
use crate::compare::report::{CompareReport, Measure, SubjectReport};
use crate::statistics::median;
use crate::units::rate;
use maud::{Markup, html};
use vmalab_workloads::{Slice, StressReport};

/// Height of a row's frame, and of a row.
const FRAME: f64 = 74.0;
const ROW: f64 = 104.0;
/// Points of a row that a screen can still show.
const POINTS_MAX: usize = 800;

/// The chart.
pub fn chart(report: &CompareReport) -> Markup {
    let measure = report.measure();
    let rounds = report.subjects.iter().map(|subject| subject.runs.len()).max().unwrap_or(0);
    let slices = |run: &StressReport| run.slices.as_ref().map_or(0, |slices| slices.each.len());
    let runs = || report.subjects.iter().flat_map(|subject| &subject.runs);
    let points = report.subjects.iter().map(|subject| subject.runs.iter().map(slices).sum::<usize>()).max();
    let Some(points) = points.filter(|points| *points > 0) else { return html! {} };
    let joined = points.div_ceil(POINTS_MAX);
    let all = || runs().filter_map(|run| run.slices.as_ref()).flat_map(|slices| slices.each.chunks(joined));
    let most = all().map(|slices| per_s(slices, measure)).fold(0.0, f64::max);
    let seconds = runs().map(|run| run.seconds).fold(0.0, f64::max);
    let (unit, ..) = measure.names();
    let mut lengths: Vec<f64> = all().map(|slices| slices.iter().map(|slice| slice.ns as f64 / 1e6).sum()).collect();
    let slice_ms = median(&mut lengths);
    let note = html! {
        "A step for each slice of about " (format!("{slice_ms:.0}")) " ms. Grey: slices in which other programs or a hypervisor had more than 2\u{a0}% of \
         the CPU time that the threads wanted: " (report.slices.disturbed) " of " (report.slices.all) "."
    };
    figure(&format!("Throughput over time: {unit}"), &note, Size::Wide, |size| {
        let (left, right) = (58.0, size.width() - 6.0);
        let gap = if rounds > 20 { 1.0 } else { 6.0 };
        let width = (right - left + gap) / rounds as f64;
        let bottom = 18.0 + ROW * report.subjects.len() as f64;
        let drawing = html! {
            (text("axis", "start", (4.0, 12.0), unit))
            @for (row, subject) in report.subjects.iter().enumerate() {
                @let top = 18.0 + ROW * row as f64 + (ROW - FRAME);
                @let y = Scale::linear((0.0, most), (top + FRAME, top));
                (frame(report, subject, &y, (left, right, top)))
                @for (round, run) in subject.runs.iter().enumerate() {
                    @let from = left + width * round as f64;
                    (one(report, subject, run, joined, &Scale::linear((0.0, seconds * 1e9), (from, from + width - gap)), &y))
                }
            }
            @for round in 0..rounds {
                @let every = (26.0 / width).ceil().max(1.0) as usize;
                @if round % every == 0 {
                    (text("tick", "middle", (left + width * round as f64 + (width - gap) / 2.0, bottom + 15.0), &(round + 1).to_string()))
                }
            }
            (text("axis", "middle", (size.width() / 2.0, bottom + 34.0), &format!("round; within each, measured time from 0 to {seconds:.1} s")))
        };
        (bottom + 42.0, drawing)
    })
}

fn per_s(slices: &[Slice], measure: Measure) -> f64 {
    let ns: u64 = slices.iter().map(|slice| slice.ns).sum();
    let done: u64 = slices.iter().map(|slice| if measure == Measure::Faults { slice.faults } else { slice.ops }).sum();
    done as f64 * 1e9 / ns.max(1) as f64
}

/// The name, the axis and the grid of a row.
fn frame(report: &CompareReport, subject: &SubjectReport, y: &Scale, (left, right, top): (f64, f64, f64)) -> Markup {
    let Colour(colour) = colour_of(report, &subject.name);
    let (unit, ..) = report.measure().names();
    let mut rates: Vec<f64> = subject.whole_runs().filter_map(|run| report.measure().throughput(run)).collect();
    let middle = if rates.is_empty() { String::new() } else { format!("median {} {unit}", rate(median(&mut rates))) };
    html! {
        g class=(colour) { (text("name", "start", (left, top - 7.0), &subject.name)) }
        (text("tick", "end", (right, top - 7.0), &middle))
        @for tick in y.ticks(2) {
            (line("grid", (left, y.at(tick)), (right, y.at(tick))))
            (text("tick", "end", (left - 7.0, y.at(tick) + 4.0), &short(tick)))
        }
    }
}

/// One run.
fn one(
    report: &CompareReport,
    subject: &SubjectReport,
    run: &StressReport,
    joined: usize,
    x: &Scale,
    y: &Scale,
) -> Markup {
    let Some(slices) = run.slices.as_ref() else { return html! {} };
    let Colour(colour) = colour_of(report, &subject.name);
    let (bottom, top) = (y.at(0.0), y.at(0.0) - FRAME);
    // Each slice from its beginning to its end.
    let steps = slices.each.chunks(joined).flat_map(|slices| {
        let (first, last) = (&slices[0], &slices[slices.len() - 1]);
        let height = y.at(per_s(slices, report.measure()));
        [first.start_ns, last.start_ns + last.ns].map(|ns| (x.at(ns as f64), height))
    });
    html! {
        @for (from, to) in disturbed(&slices.each) {
            rect.disturbed x=(px(x.at(from))) y=(px(top)) width=(px(x.at(to) - x.at(from))) height=(px(bottom - top)) {}
        }
        g class=(colour) { path.line.thin d=(path(steps)) {} }
    }
}

/// From when to when slices in a row were disturbed, in ns.
fn disturbed(slices: &[Slice]) -> Vec<(f64, f64)> {
    let mut spans: Vec<(f64, f64)> = Vec::new();
    for slice in slices.iter().filter(|slice| slice.disturbed) {
        let (from, to) = (slice.start_ns as f64, (slice.start_ns + slice.ns) as f64);
        match spans.last_mut().filter(|last| last.1 >= from) {
            Some(last) => last.1 = to,
            None => spans.push((from, to)),
        }
    }
    spans
}

/// `200 k`: of a tick.
fn short(per_s: f64) -> String {
    if per_s == 0.0 { "0".to_owned() } else { rate(per_s).replace(".00", "").replace(".0", "") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disturbed_neighbours_are_one_span() {
        let slices: Vec<Slice> = [false, true, true, false, true]
            .into_iter()
            .enumerate()
            .map(|(i, disturbed)| Slice {
                start_ns: 50 * i as u64,
                ns: 50,
                faults: 1,
                ops: 0,
                by_thread: vec![1],
                taken_ns: None,
                stolen_ns: None,
                involuntary_switches: None,
                disturbed,
            })
            .collect();
        assert_eq!(disturbed(&slices), [(50.0, 150.0), (200.0, 250.0)]);
        assert_eq!(per_s(&slices[..2], Measure::Faults), 2e7);
    }
}
