//! `vmalab profile`: a run of `stress` under `perf record`, its flame graph,
//! and its samples by phase of a fault.

mod flame;
mod perf;
mod phases;
mod stacks;

use crate::args::{BackendArg, ProfileArgs};
use crate::failure::{Failure, status};
use crate::interrupt::Interrupt;
use crate::output;
use crate::plan;
use crate::table::facts;
use crate::units::count;
use phases::Phase;
use stacks::{Sample, Stacks};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// Width of the phases' names.
const NAMES: u16 = 16;

/// Functions named for each phase, but those of less than a thousandth of all samples.
const TOP: usize = 3;

/// Records, and tells.
pub fn run(args: &ProfileArgs) -> Result<u8, Failure> {
    // What `stress` would refuse, refused here.
    plan::profile(args)?;
    let interrupt = Interrupt::install()?;
    let event = perf::check()?;
    fs::create_dir_all(&args.out).map_err(|error| cannot_write(&args.out, &error))?;
    let file = |name: &str| args.out.join(name);

    let data = file("perf.data");
    let stress = forwarded(std::env::args_os());
    let ended = perf::record(&perf::Recording {
        event,
        frequency: args.frequency,
        data: &data,
        stress: &stress,
        report: &file("stress.json"),
        table: &file("stress.txt"),
    })?;
    if !matches!(ended, status::DONE | status::VIOLATION | status::INTERRUPTED) {
        return Err(Failure::with_status(ended, "the recorded run failed; its own message is above"));
    }
    let stacks = Stacks::parse(&perf::script(&data)?);
    if stacks.samples.is_empty() {
        return Err(Failure::cannot("perf recorded no sample: a longer --duration would help"));
    }
    write(&file("stacks.folded"), stacks.folded().as_bytes())?;
    write(&file("flamegraph.svg"), flame_graph(args, event, &stacks).as_bytes())?;
    let table = table(args, event, &stacks);
    write(&file("phases.txt"), table.as_bytes())?;
    output::print(&table)?;
    eprintln!("flame graph: {}", file("flamegraph.svg").display());
    eprintln!("more: perf report -i {} --no-children; {}", data.display(), file("stress.txt").display());
    Ok(if interrupt.came() { status::INTERRUPTED } else { ended })
}

/// What `stress` is given: all that followed `profile`, but what is meant for
/// `profile` alone.
fn forwarded(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut forwarded = Vec::new();
    let mut args = args.skip_while(|arg| arg != "profile").skip(1);
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if ["--out", "--frequency"].contains(&&*text) {
            args.next();
        } else if !["--out=", "--frequency="].iter().any(|ours| text.starts_with(ours)) {
            forwarded.push(arg);
        }
    }
    forwarded
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    fs::write(path, bytes).map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot write {}: {error}; name a folder that you may write to with --out", path.display()))
}

fn flame_graph(args: &ProfileArgs, event: &str, stacks: &Stacks) -> String {
    let title = format!("vmalab profile {}", args.run.workload);
    let samples = count(stacks.samples.len() as u64);
    let subtitle = format!("{} on {}: {samples} samples of {event}", args.run.workload, subject(args));
    flame::graph(&title, &subtitle, stacks)
}

/// The samples by phase, each with the functions that they were most often in.
fn table(args: &ProfileArgs, event: &str, stacks: &Stacks) -> String {
    let all = stacks.samples.len();
    let share = |n: usize, of: usize| 100.0 * n as f64 / of.max(1) as f64;
    let mut by_phase: BTreeMap<Phase, Vec<&Sample>> = BTreeMap::new();
    for sample in &stacks.samples {
        by_phase.entry(sample.phase).or_default().push(sample);
    }
    let mut rows = Vec::new();
    for (phase, samples) in by_phase {
        let mut functions: BTreeMap<&str, usize> = BTreeMap::new();
        samples.iter().for_each(|sample| *functions.entry(sample.function()).or_default() += 1);
        let mut functions: Vec<(&str, usize)> = functions.into_iter().collect();
        functions.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
        let top: Vec<String> = functions
            .iter()
            .take(TOP)
            .filter(|(_, n)| 1000 * n >= all)
            .map(|(name, n)| format!("{} {:.1}%", short(name), share(*n, all)))
            .collect();
        rows.push((phase.name().to_owned(), format!("{:5.1}%  {}", share(samples.len(), all), top.join(", "))));
    }
    let (named, user) = stacks.user_space();
    let how = format!(
        "{} samples of {event}, {} Hz of each CPU; {user} in user space, {:.1}% of them in named functions",
        all,
        args.frequency,
        share(named, user)
    );
    format!("{}\n\n{}\n{}", heading(args), facts(NAMES, rows), facts(NAMES, vec![("recorded".to_owned(), how)]))
}

fn heading(args: &ProfileArgs) -> String {
    format!("where {} on {} spends its time, by phase of a fault", args.run.workload, subject(args))
}

/// A lock, or `native`.
fn subject(args: &ProfileArgs) -> &str {
    match args.backend {
        BackendArg::Emulated => args.lock.as_deref().unwrap_or("typesafe"),
        BackendArg::Native => "native",
    }
}

/// A function's name without the path and the types it is of.
fn short(name: &str) -> &str {
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in name.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            // A closure is told by the function that it is in.
            ':' if depth == 0 && !name[at + 1..].starts_with(['{', ':']) => start = at + 1,
            _ => {}
        }
    }
    let name = &name[start..];
    // Past a type at the beginning, `<T as Trait>`.
    name.find(['<', ':']).filter(|&end| end > 0).map_or(name, |end| &name[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_profile_are_not_given_to_stress() {
        let typed =
            ["vmalab", "profile", "page-fault", "--out", "there", "--lock", "mmap", "--frequency=99", "--out=x"];
        assert_eq!(forwarded(typed.map(OsString::from).into_iter()), ["page-fault", "--lock", "mmap"]);
    }

    #[test]
    fn names_are_short() {
        assert_eq!(
            short("<vmalab::lock::typesafe::TypeSafe as vmalab::lock::LockScheme>::lock_vma_under_rcu"),
            "lock_vma_under_rcu"
        );
        assert_eq!(short("exc_page_fault"), "exc_page_fault");
        assert_eq!(short("core::ptr::drop_in_place<vmalab::vma::VmaRead<vmalab::lock::Rcu>>"), "drop_in_place");
        assert_eq!(short("std::rt::lang_start::{{closure}}"), "lang_start");
    }
}
