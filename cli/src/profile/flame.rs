//! The flame graph: one SVG that needs nothing else. Frames stand on their
//! callers, are as wide as their samples, and have the colour of the phase.
//!
//! Without its script it is a picture, 1200 pixels wide. With it the picture is
//! as wide as the window, a click zooms, and names can be searched for. `maud`
//! escapes whatever it is given.

use super::phases::Phase;
use super::short;
use super::stacks::{Stacks, Step};
use crate::units::count;
use maud::{Markup, PreEscaped, html};
use std::collections::BTreeMap;

const STYLE: &str = include_str!("flame/style.css");
const SCRIPT: &str = include_str!("flame/script.js");

/// Width without the script, pixels.
const WIDTH: f64 = 1200.0;
/// Height of a row of frames.
const ROW: usize = 18;
/// Above the legend.
const HEAD: usize = 78;
/// Height of a row of the legend.
const LEGEND_ROW: usize = 20;
/// Its columns: a narrow window has room for so many.
const COLUMNS: usize = 3;
/// Width of a letter, as the style sheet has it; the script measures it.
const LETTER: f64 = 7.3;
/// Frames with less than one sample in so many are left out.
const SEEN: usize = 1000;

/// The graph, with its title and a line below that.
pub fn graph(title: &str, subtitle: &str, stacks: &Stacks) -> String {
    let frames = frames(stacks);
    let all = frames[0].samples;
    let rows = 1 + frames.iter().map(|frame| frame.depth).max().unwrap_or(0);
    let phases = phases(stacks);
    let top = HEAD + LEGEND_ROW * phases.len().div_ceil(COLUMNS) + 8;
    let height = rows * ROW;
    let whole = top + height + 12;
    let svg = html! {
        svg.flame xmlns="http://www.w3.org/2000/svg" width=(WIDTH) height=(whole)
            viewBox=(format!("0 0 {WIDTH} {whole}")) {
            style { (PreEscaped(STYLE)) }
            rect.paper width="100%" height="100%" {}
            text.title x="1%" y="30" { (clean(title)) }
            text x="1%" y="50" { (clean(subtitle)) }
            text.soft x="1%" y="68" { "Fainter: the kernel. Left out: frames of less than " (percent(1, SEEN)) "." }
            text.soft.told x="99%" y="68" text-anchor="end" {}
            @for (place, (phase, samples)) in phases.into_iter().enumerate() { (key(place, phase, samples, all)) }
            svg.graph x="1%" y=(top) width="98%" height=(height) {
                @for frame in &frames { (drawn(frame, all, height - ROW * (frame.depth + 1))) }
            }
            script { (PreEscaped("//<![CDATA[\n")) (PreEscaped(SCRIPT)) (PreEscaped("//]]>\n")) }
        }
    };
    svg.into_string()
}

/// A frame that is drawn. The samples are numbered from the left.
struct Frame<'a> {
    /// `None`: all samples.
    step: Option<Step<'a>>,
    /// Once it has begun.
    phase: Option<Phase>,
    /// Its first sample.
    at: usize,
    samples: usize,
    /// Frames below it.
    depth: usize,
}

#[derive(Default)]
struct Node<'a> {
    samples: usize,
    calls: BTreeMap<Step<'a>, Node<'a>>,
}

/// The frames, callers before those they call; all samples first.
fn frames(stacks: &Stacks) -> Vec<Frame<'_>> {
    let mut all = Node::default();
    for sample in &stacks.samples {
        let mut node = &mut all;
        node.samples += 1;
        for step in sample.steps() {
            node = node.calls.entry(step).or_default();
            node.samples += 1;
        }
    }
    let mut frames = vec![Frame { step: None, phase: None, at: 0, samples: all.samples, depth: 0 }];
    above(&all, 0, &mut frames, all.samples);
    frames
}

/// Adds what the latest of the frames has called.
fn above<'a>(node: &Node<'a>, caller: usize, frames: &mut Vec<Frame<'a>>, all: usize) {
    let Frame { phase, mut at, depth, .. } = frames[caller];
    for (&step, called) in &node.calls {
        if called.samples * SEEN >= all {
            let phase = if let Step::Phase(begins) = step { Some(begins) } else { phase };
            frames.push(Frame { step: Some(step), phase, at, samples: called.samples, depth: depth + 1 });
            above(called, frames.len() - 1, frames, all);
        }
        at += called.samples;
    }
}

fn drawn(frame: &Frame, all: usize, y: usize) -> Markup {
    let name = frame.step.map_or_else(|| "all".to_owned(), |step| clean(&step.to_string()));
    let label = match frame.step {
        Some(Step::Function { name, .. }) => clean(short(name)),
        _ => name.clone(),
    };
    let kernel = matches!(frame.step, Some(Step::Function { kernel: true, .. }));
    let begins = matches!(frame.step, Some(Step::Phase(_)));
    let width = frame.samples as f64 / all.max(1) as f64;
    // Nested, so that it clips its text and all in it moves with it.
    html! {
        svg class=(frame.phase.map_or("caller", colour))
            x=(place(frame.at, all)) y=(y) width=(place(frame.samples, all)) height=(ROW - 1)
            data-name=(label) data-at=(frame.at) data-samples=(frame.samples) {
            title { (name) "\n" (count(frame.samples as u64)) " samples, " (percent(frame.samples, all)) }
            rect.kernel[kernel] width="100%" height="100%" {}
            text.begins[begins] x="3" y="12.5" { (fitted(&label, 0.98 * WIDTH * width)) }
        }
    }
}

/// A phase in the legend. A click on it searches for its frames.
fn key(place: usize, phase: Phase, samples: usize, all: usize) -> Markup {
    let y = HEAD + LEGEND_ROW * (place / COLUMNS);
    let width = 98.0 / COLUMNS as f64;
    html! {
        svg class={ "key " (colour(phase)) } x=(format!("{:.4}%", 1.0 + width * (place % COLUMNS) as f64)) y=(y)
            width=(format!("{width:.4}%")) height=(LEGEND_ROW) data-name=(Step::Phase(phase)) {
            rect y="4" width="12" height="12" {}
            text x="18" y="14" { (phase.name()) " " (percent(samples, all)) }
        }
    }
}

/// The phases that there are, with their samples.
fn phases(stacks: &Stacks) -> BTreeMap<Phase, usize> {
    let mut phases = BTreeMap::new();
    stacks.samples.iter().for_each(|sample| *phases.entry(sample.phase).or_default() += 1);
    phases
}

/// The class of a phase's frames. The host's parts of a fault have cold
/// colours, vmalab's warm ones.
fn colour(phase: Phase) -> &'static str {
    match phase {
        Phase::Mmap | Phase::Munmap | Phase::Mprotect | Phase::Mremap | Phase::Madvise | Phase::Fork => "operation",
        Phase::WriteWait => "wait",
        phase => phase.name(),
    }
}

/// As much of a name as a frame has room for.
fn fitted(name: &str, pixels: f64) -> String {
    let room = ((pixels - 6.0) / LETTER).max(0.0) as usize;
    match name.chars().count() {
        letters if letters <= room => name.to_owned(),
        _ if room < 3 => String::new(),
        _ => name.chars().take(room - 1).chain(['\u{2026}']).collect(),
    }
}

/// Without what XML has no way to write.
fn clean(name: &str) -> String {
    name.replace(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'), "\u{fffd}")
}

/// A coordinate: so many of all samples.
fn place(samples: usize, all: usize) -> String {
    format!("{:.4}%", 100.0 * samples as f64 / all.max(1) as f64)
}

fn percent(samples: usize, all: usize) -> String {
    let share = 100.0 * samples as f64 / all.max(1) as f64;
    if share > 0.0 && share < 0.1 { "<0.1\u{a0}%".to_owned() } else { format!("{share:.1}\u{a0}%") }
}

#[cfg(test)]
mod tests;
