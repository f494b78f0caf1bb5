//! The page of `compare --html`: one file that needs nothing else, neither
//! network nor script. `maud` escapes whatever it is given.

mod attribution;
mod fallbacks;
mod latency;
mod plot;
mod ratios;
mod time;

use super::report::{CompareReport, SubjectReport};
use super::table::{heading, interval, percent};
use super::verdict::Call;
use crate::statistics::median;
use crate::units::{count, nanoseconds, rate};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use vmalab_workloads::{Distribution, StressConfig, StressReport};

const STYLE: &str = include_str!("page/style.css");

/// The class of a subject's marks: grey for the baseline, and four colours
/// that colour-blind people tell apart. Names stand beside marks all the same.
struct Colour(String);

fn colour_of(report: &CompareReport, name: &str) -> Colour {
    let place = report.judged().position(|subject| subject.name == name);
    Colour(place.map_or_else(|| "base".to_owned(), |place| format!("s{}", place % 4)))
}

/// The whole page.
pub fn page(report: &CompareReport, config: &StressConfig) -> String {
    let title = format!("{}: {}", report.workload, names(&report.subjects.iter().collect::<Vec<_>>()));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                title { "vmalab compare " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main { (body(report, config)) } }
        }
    }
    .into_string()
}

fn body(report: &CompareReport, config: &StressConfig) -> Markup {
    html! {
        header {
            p.kicker { "vmalab compare " b { (report.workload) } }
            h1 { (verdict(report)) }
            p.how { (heading(report, config).trim_end().replace('\n', "; ")) "; rwsem " (report.rwsem) }
            @if let Some(warning) = warning(report) { p.warning { (warning) } }
        }
        section.pair {
            (ratios::throughput(report))
            (ratios::p99(report))
        }
        section { h2 { "What was measured" } (numbers(report)) (verdicts(report)) }
        section { (latency::chart(report)) }
        section { (time::chart(report)) }
        section { (attribution::chart(report)) }
        (fallbacks::section(report))
        section { h2 { "Machine and build" } (origin(report)) }
        section { h2 { "Run it again" } (again(report)) }
        section { h2 { "How it was measured" } (method(report)) }
    }
}

/// `a`, `a and b`, `a, b and c`.
fn names(subjects: &[&SubjectReport]) -> String {
    let names: Vec<&str> = subjects.iter().map(|subject| subject.name.as_str()).collect();
    match names.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// One sentence.
fn verdict(report: &CompareReport) -> String {
    let (throughput, ..) = report.measure().names();
    let baseline = &report.baseline;
    if !report.subjects.iter().flat_map(|subject| &subject.runs).all(StressReport::passed) {
        return "A run found a violation: nothing is compared.".to_owned();
    }
    let judged: Vec<&SubjectReport> = report.judged().collect();
    let which = |call: Call| -> Vec<&SubjectReport> {
        judged.iter().copied().filter(|subject| subject.call == Some(call)).collect()
    };
    let (more, fewer, open) = (which(Call::More), which(Call::Fewer), which(Call::Open));
    if more.len() + fewer.len() + open.len() == 0 {
        return format!("No verdict: others had the machine in {} of the slices of time.", percent(report.slices));
    }
    if let [subject] = judged.as_slice() {
        let ratio = interval(&subject.throughput_ratio);
        return match open.is_empty() {
            true => format!("{} has {ratio} times the {throughput} of {baseline}.", subject.name),
            false => format!("No winner between {} and {baseline}: {ratio} times the {throughput}.", subject.name),
        };
    }
    let verb = |subjects: &[&SubjectReport]| if subjects.len() == 1 { "has" } else { "have" };
    let mut parts = Vec::new();
    if !more.is_empty() {
        parts.push(format!("{} {} more {throughput} than {baseline}", names(&more), verb(&more)));
    }
    if !fewer.is_empty() {
        parts.push(format!("{} {} fewer {throughput} than {baseline}", names(&fewer), verb(&fewer)));
    }
    if !open.is_empty() {
        parts.push(format!("no difference from {baseline} is shown for {}", names(&open)));
    }
    let busy = which(Call::Busy);
    if !busy.is_empty() {
        parts.push(format!("others had the machine too often to judge {}", names(&busy)));
    }
    let text = parts.join("; ");
    let mut letters = text.chars();
    // Names keep their letters, "no" begins the sentence.
    let first = letters.next().map(|c| if more.is_empty() && fewer.is_empty() { c.to_ascii_uppercase() } else { c });
    format!("{}{}.", first.map_or_else(String::new, String::from), letters.as_str())
}

/// What a reader must know before believing the rest.
fn warning(report: &CompareReport) -> Option<String> {
    if report.interrupted {
        return Some(format!("Interrupted: {} of {} rounds.", report.rounds_completed, report.rounds));
    }
    let share = report.slices.disturbed as f64 / report.slices.all.max(1) as f64;
    (share > 0.1).then(|| {
        format!(
            "A busy machine: in {} of the slices of time other programs or a hypervisor had the CPUs. The intervals are wider \
             for it; repeat on an idle machine.",
            percent(report.slices)
        )
    })
}

/// A column of a distribution: its heading, its class, its value.
type Column = (&'static str, &'static str, fn(&Distribution) -> u64);

/// The figures, medians over the rounds.
fn numbers(report: &CompareReport) -> Markup {
    let measure = report.measure();
    let (throughput, ..) = measure.names();
    let middle = |subject: &SubjectReport, value: &dyn Fn(&StressReport) -> Option<f64>, show: fn(f64) -> String| {
        let mut values: Vec<f64> = subject.whole_runs().filter_map(value).collect();
        if values.is_empty() { "\u{2013}".to_owned() } else { show(median(&mut values)) }
    };
    // Of mutators, who share the CPUs with the faults.
    let with_calls = report.subjects.iter().any(|subject| subject.calls_ratio.is_some());
    // A narrow page leaves the `extra` ones out.
    let percentiles: [Column; 5] = [
        ("p50", "", |d| d.p50),
        ("p90", "extra", |d| d.p90),
        ("p99", "", |d| d.p99),
        ("p99.9", "", |d| d.p999),
        ("max", "extra", |d| d.max),
    ];
    html! {
        div.scroll {
            table {
                caption { "Medians over " (report.rounds_completed) " rounds" @if with_calls { "; calls/s are the mutators'" } }
                thead { tr {
                    th scope="col" { "subject" }
                    th scope="col" { (throughput) }
                    @if with_calls { th scope="col" { "calls/s" } }
                    @for (name, class, _) in &percentiles { th scope="col" class=[(!class.is_empty()).then_some(class)] { (name) } }
                    th scope="col" { "disturbed" }
                } }
                tbody {
                    @for subject in &report.subjects {
                        @let Colour(colour) = colour_of(report, &subject.name);
                        tr {
                            th scope="row" class=(colour) { (subject.name) }
                            td { (middle(subject, &|run| measure.throughput(run), rate)) }
                            @if with_calls { td { (middle(subject, &|run| run.mutator_ops_per_s, rate)) } }
                            @for (_, class, of) in &percentiles {
                                td class=[(!class.is_empty()).then_some(class)] { (middle(subject, &|run| measure.distribution(run).map(|d| of(d) as f64), nanoseconds)) }
                            }
                            td { (percent(subject.slices)) }
                        }
                    }
                }
            }
        }
    }
}

fn verdicts(report: &CompareReport) -> Markup {
    html! {
        dl.verdicts {
            @for subject in report.judged() {
                @let Colour(colour) = colour_of(report, &subject.name);
                dt class=(colour) { (subject.name) }
                dd { (subject.verdict) "." }
            }
        }
    }
}

fn origin(report: &CompareReport) -> Markup {
    html! {
        dl.facts {
            @for (name, fact) in report.machine.facts().into_iter().chain(report.build.facts()) {
                div { dt { (name) } dd { (fact) } }
            }
        }
        @if !report.machine.mitigations.is_empty() {
            details {
                summary { "Mitigations of " (report.machine.mitigations.len()) " flaws of this CPU" }
                dl.facts {
                    @for (flaw, state) in &report.machine.mitigations { div { dt { (flaw) } dd { (state) } } }
                }
            }
        }
    }
}

fn again(report: &CompareReport) -> Markup {
    let checkout = report.build.commit.map(|commit| format!("git checkout {commit}\n")).unwrap_or_default();
    let cargo = format!("cargo run --release {}-- ", if report.build.races { "--features races " } else { "" });
    let command = report.repeat.strip_prefix("vmalab ").unwrap_or(&report.repeat);
    html! { pre { code { (checkout) (cargo) (command) } } }
}

fn method(report: &CompareReport) -> Markup {
    let runs: usize = report.subjects.iter().map(|subject| subject.runs.len()).sum();
    let pinned = report.subjects.iter().flat_map(|subject| &subject.runs).any(|run| run.pinned);
    html! {
        ul.method {
            li { (report.runs_thrown_away) " short runs were thrown away, one of each subject; then " (runs) " runs in "
                 (report.rounds_completed) " rounds, every subject once a round, another one first each round. Each run has a warm-up that does not count." }
            li { @if pinned { "Each thread stayed on one CPU." } @else { "Threads were free to move between CPUs." } }
            li { "A ratio is taken round by round. Its interval is the " (report.interval.method) ", "
                 (format!("{:.0} %", 100.0 * report.interval.confidence)) ", " (count(report.interval.resamples as u64))
                 " resamples of the rounds, a fixed seed." }
            li { "Each run is cut into slices of time. In each, the CPU time that its threads wanted is compared with what they got; \
                  what siblings or threads of the same process got is no loss. A slice is disturbed if more than 2 % went to others, \
                  or if a hypervisor stole time. Figures are of all slices; the ratio is told without the disturbed ones beside it." }
            li { "A winner is named only after 5 rounds or more, if both intervals leave out 1 on the same side, and if no more \
                  than half of the slices were disturbed." }
        }
    }
}

#[cfg(test)]
mod tests;
