//! Why faults could not be served under the lock of their VMA.

use super::{Colour, colour_of};
use crate::compare::report::{CompareReport, SubjectReport};
use maud::{Markup, html};
use vmalab_workloads::{Lock, VmaLockReport};

/// A reason: its name, what it means, how often.
type Reason = (&'static str, &'static str, fn(&VmaLockReport) -> u64);

const REASONS: [Reason; 8] = [
    ("no VMA", "nothing was mapped there", |v| v.abort_reasons.no_vma),
    ("write-locked early", "a call was changing the VMA, seen before the attempt", |v| {
        v.abort_reasons.write_locked_early
    }),
    ("contended", "a writer was draining readers", |v| v.abort_reasons.contended),
    ("write-locked late", "a call was changing the VMA, seen after locking", |v| v.abort_reasons.write_locked_late),
    ("other mm", "the object had been reused in another address space", |v| v.abort_reasons.other_mm),
    ("other range", "the object had come to cover another range", |v| v.abort_reasons.other_range),
    ("miss limit", "detached VMAs were met too often", |v| v.abort_reasons.miss_limit),
    ("retry", "the VMA lock was held, but the fault needed the mmap lock", |v| v.retry),
];

/// A subject's faults, and those that fell back by reason,
/// as shares of all faults.
struct Counts<'a> {
    subject: &'a SubjectReport,
    by_reason: [f64; REASONS.len()],
}

/// `None` if it has no VMA lock, or no faults.
fn counted(subject: &SubjectReport) -> Option<Counts<'_>> {
    let faults: u64 = subject.runs.iter().filter_map(|run| run.faults).sum();
    let locks: Vec<&VmaLockReport> = subject.runs.iter().filter_map(|run| run.vma_lock.as_ref()).collect();
    if subject.name == Lock::Mmap.name() || locks.is_empty() || faults == 0 {
        return None;
    }
    let share = |of: fn(&VmaLockReport) -> u64| locks.iter().map(|lock| of(lock)).sum::<u64>() as f64 / faults as f64;
    Some(Counts { subject, by_reason: REASONS.map(|(.., of)| share(of)) })
}

/// The section, if any subject has such a lock.
pub fn section(report: &CompareReport) -> Markup {
    let counts: Vec<Counts> = report.subjects.iter().filter_map(counted).collect();
    if counts.is_empty() {
        return html! {};
    }
    let total = |counts: &Counts| counts.by_reason.iter().sum::<f64>();
    let most = counts.iter().map(total).fold(f64::MIN_POSITIVE, f64::max);
    let rows = REASONS.iter().enumerate().filter(|(i, _)| counts.iter().any(|counts| counts.by_reason[*i] > 0.0));
    html! {
        section {
            h2 { "Faults that fell back to the mmap lock" }
            div.scroll {
                table.bars {
                    caption { "Share of all faults, by reason" }
                    thead { tr {
                        th scope="col" { "reason" }
                        @for counts in &counts {
                            @let Colour(colour) = colour_of(report, &counts.subject.name);
                            th scope="col" class=(colour) { (counts.subject.name) }
                        }
                    } }
                    tbody {
                        @for (i, (name, meaning, _)) in rows {
                            tr {
                                th scope="row" title=(meaning) { (name) small { (meaning) } }
                                @for counts in &counts { (cell(report, counts, counts.by_reason[i], most)) }
                            }
                        }
                        tr.total {
                            th scope="row" { "all" }
                            @for counts in &counts { (cell(report, counts, total(counts), most)) }
                        }
                    }
                }
            }
            p.note {
                "The other faults were served under the lock of their VMA."
                @if report.subjects.iter().any(|subject| subject.name == Lock::Mmap.name()) { " The lock mmap has none: all its faults take the mmap lock." }
            }
        }
    }
}

fn cell(report: &CompareReport, counts: &Counts, share: f64, most: f64) -> Markup {
    let Colour(colour) = colour_of(report, &counts.subject.name);
    html! {
        td class=(colour) {
            (percent(share))
            // An attribute, not a style: the width is a number of ours.
            span.bar { span style=(format!("width:{:.1}%", 100.0 * share / most)) {} }
        }
    }
}

/// `0`, `0.0031 %`, `12 %`: two digits.
fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match percent {
        p if p <= 0.0 => "0".to_owned(),
        p if p < 0.0001 => "<0.0001 %".to_owned(),
        p if p >= 10.0 => format!("{p:.0} %"),
        p => {
            let decimals = (1.0 - p.log10().floor()) as usize;
            format!("{p:.decimals$} %")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_two_digits() {
        let all = [0.0, 0.000_000_1, 0.000_031, 0.004_2, 0.035, 0.257].map(percent);
        assert_eq!(all, ["0", "<0.0001 %", "0.0031 %", "0.42 %", "3.5 %", "26 %"]);
    }
}
