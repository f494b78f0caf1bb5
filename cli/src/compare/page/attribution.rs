//! Where a fault's time goes, beside the floor: what the host does in grey,
//! what vmalab does in gold.

use super::plot::{Scale, Size, figure, line, px, text};
use super::{Colour, colour_of};
use crate::compare::report::{CompareReport, SubjectReport};
use crate::units::nanoseconds;
use maud::{Markup, html};

/// Height of a row.
const ROW: f64 = 54.0;
/// Above the first row, for the floor's label.
const TOP: f64 = 26.0;
/// Height of a bar.
const BAR: f64 = 22.0;

/// A subject's phases in order, each with its mean, ns.
struct Bar<'a> {
    subject: &'a SubjectReport,
    phases: Vec<(String, f64)>,
}

/// Means of all runs, weighted by the faults that were watched.
fn bar(subject: &SubjectReport) -> Option<Bar<'_>> {
    let runs: Vec<_> = subject.whole_runs().filter_map(|run| run.attribution.as_ref()).collect();
    let faults: u64 = runs.iter().map(|run| run.faults).sum();
    let mut phases: Vec<(String, f64)> = Vec::new();
    for run in &runs {
        for phase in &run.phases {
            let part = phase.ns.mean * run.faults as f64 / faults as f64;
            match phases.iter_mut().find(|(name, _)| *name == phase.phase) {
                Some((_, mean)) => *mean += part,
                None => phases.push((phase.phase.clone(), part)),
            }
        }
    }
    (faults > 0).then_some(Bar { subject, phases })
}

/// The chart, if any run was watched.
pub fn chart(report: &CompareReport) -> Markup {
    let bars: Vec<Bar> = report.subjects.iter().filter_map(bar).collect();
    let whole = |bar: &Bar| bar.phases.iter().map(|(_, ns)| ns).sum::<f64>();
    let Some(first) = bars.first() else { return html! {} };
    let floor = report.floor.as_ref();
    let most = bars.iter().map(whole).chain(floor.map(|floor| floor.ns as f64)).fold(1.0, f64::max);
    let note = html! {
        ul.keys {
            @for (phase, _) in &first.phases { li { span class={ "key " (phase) } {} (phase) } }
        }
        "Means over the faults that were watched, all rounds together. Grey is the host's part: the exception, the signal, the \
         installation of the page. Gold is vmalab's."
        @if floor.is_some() { " The floor is the bare mechanism's median (" (floor.map_or("", |floor| &floor.title)) ")." }
    };
    figure("Where the time of a fault goes: mean, by phase", &note, Size::Wide, |size| {
        let (left, right) = (8.0, size.width() - 12.0);
        let bottom = TOP + ROW * bars.len() as f64;
        let x = Scale::linear((0.0, most * 1.02), (left, right));
        let drawing = html! {
            @for tick in x.ticks(if size == Size::Narrow { 4 } else { 8 }) {
                (line("grid", (x.at(tick), TOP), (x.at(tick), bottom)))
                (text("tick", if tick == 0.0 { "start" } else { "middle" }, (x.at(tick), bottom + 16.0), &short(tick)))
            }
            @if let Some(floor) = floor {
                @let place = x.at(floor.ns as f64);
                @let title = if size == Size::Narrow { String::new() } else { format!(": {},", floor.title) };
                (line("floor", (place, TOP - 6.0), (place, bottom)))
                (text("tick", if place > size.width() / 2.0 { "end" } else { "start" }, (place, TOP - 11.0),
                    &format!("floor{title} {}", nanoseconds(floor.ns as f64))))
            }
            @for (row, bar) in bars.iter().enumerate() {
                @let top = TOP + ROW * row as f64;
                (one(report, bar, &x, top, right))
                // Once more over the bar, not over the name.
                @if let Some(place) = floor.map(|floor| x.at(floor.ns as f64)) {
                    (line("floor over", (place, top + 21.0), (place, top + 25.0 + BAR)))
                }
            }
            (text("axis", "middle", (f64::midpoint(left, right), bottom + 36.0), "time of a fault"))
        };
        (bottom + 44.0, drawing)
    })
}

fn one(report: &CompareReport, bar: &Bar, x: &Scale, top: f64, right: f64) -> Markup {
    let Colour(colour) = colour_of(report, &bar.subject.name);
    let ends = bar.phases.iter().scan(0.0, |end, (_, ns)| {
        *end += ns;
        Some(*end)
    });
    html! {
        g class=(colour) { (text("name", "start", (x.at(0.0), top + 16.0), &bar.subject.name)) }
        (text("value", "end", (right, top + 16.0), &nanoseconds(bar.phases.iter().map(|(_, ns)| ns).sum())))
        @for ((phase, ns), end) in bar.phases.iter().zip(ends) {
            @let (start, width) = (x.at(end - ns), x.at(end) - x.at(end - ns));
            @let label = format!("{phase} {}", nanoseconds(*ns));
            rect class={ "phase " (phase) } x=(px(start)) y=(px(top + 23.0)) width=(px(width)) height=(px(BAR)) { title { (label) } }
            @if let Some(fits) = fitting(&label, phase, width) {
                (text(&format!("inside {phase}"), "start", (start + 6.0, top + 23.0 + 15.5), fits))
            }
        }
    }
}

/// The longer of two labels that fits into a bar.
fn fitting<'a>(long: &'a str, short: &'a str, width: f64) -> Option<&'a str> {
    [long, short].into_iter().find(|label| label.chars().count() as f64 * 7.2 + 8.0 < width)
}

/// `1 us`: of a tick.
fn short(ns: f64) -> String {
    if ns == 0.0 { "0".to_owned() } else { nanoseconds(ns).replace(".00 ", " ").replace(".0 ", " ") }
}
