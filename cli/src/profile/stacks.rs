//! Samples as `perf script` tells them, and their folded form.

use super::phases::{self, Phase};
use std::collections::BTreeMap;
use std::fmt;

/// A function on a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its name; `None` if perf found none.
    pub function: Option<String>,
    /// It is the kernel's.
    pub kernel: bool,
}

impl Frame {
    fn name(&self) -> &str {
        self.function.as_deref().unwrap_or("[unknown]")
    }
}

/// One sample.
#[derive(Clone, Debug)]
pub struct Sample {
    thread: String,
    /// From the thread's first function to the one that ran.
    frames: Vec<Frame>,
    /// What the thread was about.
    pub phase: Phase,
    /// Frames before the phase began.
    before: usize,
}

impl Sample {
    /// The function that ran.
    pub fn function(&self) -> &str {
        self.frames.last().map_or("[unknown]", Frame::name)
    }

    /// The stack from the outermost on, with the phase as a step of its own
    /// where it begins.
    pub fn steps(&self) -> impl Iterator<Item = Step<'_>> {
        // fault-0 and fault-1 do the same.
        let threads = self.thread.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['-', '/']);
        let functions = self.frames.iter().enumerate().flat_map(|(place, frame)| {
            let begins = (place == self.before).then_some(Step::Phase(self.phase));
            begins.into_iter().chain([Step::Function { name: frame.name(), kernel: frame.kernel }])
        });
        [Step::Threads(threads)].into_iter().chain(functions)
    }
}

/// What a stack is made of in its folded form and in the flame graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step<'a> {
    /// Threads that do the same.
    Threads(&'a str),
    /// A phase begins.
    Phase(Phase),
    Function {
        name: &'a str,
        kernel: bool,
    },
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Threads(name) | Step::Function { name, kernel: false } => f.write_str(name),
            Step::Phase(phase) => write!(f, "[{}]", phase.name()),
            Step::Function { name, kernel: true } => write!(f, "{name}_[k]"),
        }
    }
}

/// All samples of a recording.
#[derive(Debug, Default)]
pub struct Stacks {
    pub samples: Vec<Sample>,
}

impl Stacks {
    /// Reads what `perf script -F comm,tid,ip,sym,dso` has printed. Samples
    /// without a frame are left out.
    pub fn parse(text: &str) -> Stacks {
        let samples = text.split("\n\n").filter_map(|block| {
            let mut lines = block.lines().filter(|line| !line.trim().is_empty());
            let (name, _tid) = lines.next()?.trim().rsplit_once(char::is_whitespace)?;
            let mut frames: Vec<Frame> = lines.filter_map(frame).collect();
            frames.reverse();
            if frames.is_empty() {
                return None;
            }
            let (phase, before) = phases::of(name.trim(), &frames);
            Some(Sample { thread: name.trim().to_owned(), frames, phase, before })
        });
        Stacks { samples: samples.collect() }
    }

    /// User-space samples whose function has a name, and all user-space samples.
    pub fn user_space(&self) -> (usize, usize) {
        let user: Vec<&Frame> =
            self.samples.iter().filter_map(|sample| sample.frames.last()).filter(|frame| !frame.kernel).collect();
        (user.iter().filter(|frame| frame.function.is_some()).count(), user.len())
    }

    /// One line for each stack, `thread;function;...;function samples`.
    pub fn folded(&self) -> String {
        let mut folded: BTreeMap<String, usize> = BTreeMap::new();
        for sample in &self.samples {
            let steps: Vec<String> = sample.steps().map(|step| step.to_string().replace(';', ":")).collect();
            *folded.entry(steps.join(";")).or_default() += 1;
        }
        folded.into_iter().map(|(line, n)| format!("{line} {n}\n")).collect()
    }
}

/// `ADDRESS FUNCTION (FILE)`
fn frame(line: &str) -> Option<Frame> {
    let (_address, rest) = line.trim().split_once(' ')?;
    let (function, file) = match rest.rfind(" (") {
        Some(at) => (&rest[..at], &rest[at + 2..]),
        None => (rest, ""),
    };
    let kernel = file.starts_with("[kernel") || file.starts_with("[guest.kernel") || file.ends_with(".ko)");
    let function = (function != "[unknown]").then(|| demangled(function));
    Some(Frame { function, kernel })
}

/// perf knows Rust's names, older ones not those of newer compilers.
fn demangled(name: &str) -> String {
    if name.starts_with("_R") || name.starts_with("_ZN") {
        format!("{:#}", rustc_demangle::demangle(name))
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
fault-1 13685 
	ffffffff8169b597 mfill_atomic_copy ([kernel.kallsyms])
	           fdd6b __GI___ioctl (/usr/lib/libc.so.6)
	          59a062 <vmalab_fault_handler::mmu::UffdMmu as vmalab::mmu::Mmu>::install (/there/vmalab)
	          5a6de6 vmalab_fault_handler::sigbus::on_sigbus (/there/vmalab)
	           3c050 __restore_rt (/usr/lib/libc.so.6)
	          2d8f42 vmalab_workloads::runner::thread (/there/vmalab)

fault-0 13684 
	          50a160 [unknown] (/there/vmalab)

vmalab-fault/0 13690 
	          50a160 _RNvC6_123foo3bar (/there/vmalab)

";

    #[test]
    fn stacks_are_read_and_folded() {
        let stacks = Stacks::parse(SCRIPT);
        assert_eq!(stacks.samples.len(), 3);
        assert_eq!(stacks.user_space(), (1, 2));
        assert_eq!(stacks.samples[0].phase, Phase::Install);
        assert_eq!(stacks.samples[0].function(), "mfill_atomic_copy");
        let folded = stacks.folded();
        let mut lines = folded.lines();
        assert_eq!(lines.next(), Some("fault;[other];[unknown] 1"));
        assert_eq!(
            lines.next(),
            Some(
                "fault;vmalab_workloads::runner::thread;[install];__restore_rt;vmalab_fault_handler::sigbus::on_sigbus;\
                 <vmalab_fault_handler::mmu::UffdMmu as vmalab::mmu::Mmu>::install;__GI___ioctl;mfill_atomic_copy_[k] 1"
            )
        );
        assert_eq!(lines.next(), Some("vmalab-fault;[other];123foo::bar 1"));
    }
}
