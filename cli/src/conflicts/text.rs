//! What was recorded, for people.

use crate::table::{WIDTH, numbers};
use crate::units::count;
use vmalab_conflicts::Relation;
use vmalab_conflicts::report::{Pair, Recording, Shared, Spread, Touch};
use vmalab_workloads::Lock;

/// Groups of lines that are shown; the rest is in the JSON.
const GROUPS: usize = 12;

/// Every pair, and of a single one its lines.
pub fn pairs(pairs: &[Pair]) -> String {
    let locks: Vec<Lock> = Lock::ALL.iter().copied().filter(|&lock| pairs.iter().any(|p| p.lock == lock)).collect();
    let mut text = format!(
        "cache lines that two operations touch and at least one writes\n\
         each in a VMA of its own; {} repetitions, least-most\n",
        pairs[0].repetitions
    );
    for relation in Relation::ALL {
        text += &format!("\n{}\n", relation.title());
        text += &numbers(Some(header(&locks)), rows(pairs, relation, &locks));
    }
    let single = pairs.iter().all(|pair| pair.ops == pairs[0].ops);
    if !single {
        return text + "\nWhich lines: 'vmalab conflicts OP OP'. docs/conflicts.md explains every number.\n";
    }
    let told = if locks.contains(&Lock::TypeSafe) { Lock::TypeSafe } else { locks[0] };
    for pair in pairs.iter().filter(|pair| locks.len() == 1 || pair.lock == told) {
        text += &lines(pair);
    }
    text
}

fn header(locks: &[Lock]) -> Vec<String> {
    let names = locks.iter().map(|lock| lock.name().to_owned());
    [String::new()].into_iter().chain(names).collect()
}

fn rows(pairs: &[Pair], relation: Relation, locks: &[Lock]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut seen = Vec::new();
    for pair in pairs.iter().filter(|pair| pair.relation == relation) {
        if seen.contains(&pair.ops) {
            continue;
        }
        seen.push(pair.ops);
        let cell = |&lock: &Lock| {
            let of = |p: &&Pair| p.ops == pair.ops && p.relation == relation && p.lock == lock;
            pairs.iter().find(of).map_or_else(String::new, |pair| spread(pair.lines))
        };
        let name = format!("{} | {}", pair.ops[0], pair.ops[1]);
        rows.push([name].into_iter().chain(locks.iter().map(cell)).collect());
    }
    rows
}

fn spread(spread: Spread) -> String {
    match spread {
        Spread { min, max, .. } if min == max => min.to_string(),
        Spread { min, max, .. } => format!("{min}-{max}"),
    }
}

/// The lines of one pair under one lock.
fn lines(pair: &Pair) -> String {
    let [a, b] = pair.ops;
    let mut text = format!("\n{a} | {b}, {}, {}\n", pair.relation.title(), pair.lock);
    text += &format!("{:.0} and {:.0} accesses; ", pair.accesses[0], pair.accesses[1]);
    if pair.shared.is_empty() {
        return text + "no line shared with a write\n";
    }
    text += &format!("{} lines shared with a write\n", spread(pair.lines));
    for shared in pair.shared.iter().take(GROUPS) {
        let often = format!("in {} of {}", shared.found, pair.repetitions);
        text += &group(shared, &often);
    }
    text + &more(pair.shared.len())
}

fn more(groups: usize) -> String {
    if groups > GROUPS { format!("\nand {} more places: see --json\n", groups - GROUPS) } else { String::new() }
}

/// One line, or several alike, and who touches it where.
fn group(shared: &Shared, often: &str) -> String {
    let name = shared.object.as_deref().unwrap_or("static or unnamed");
    let apart = if shared.false_sharing { ", false sharing" } else { "" };
    let mut text = format!("\n{name}: {often}{apart}\n");
    if text.trim().chars().count() > usize::from(WIDTH) {
        text = format!("\n{name}:\n    {often}{apart}\n");
    }
    let mut shown: Vec<(&str, bool)> = Vec::new();
    for touch in &shared.touches {
        // Of each operation one place that writes and one that reads.
        if shown.contains(&(touch.op.as_str(), touch.write)) {
            continue;
        }
        shown.push((&touch.op, touch.write));
        let alike = shared.touches.iter().filter(|t| t.op == touch.op && t.write == touch.write).count();
        text += &place(touch, alike - 1);
    }
    text
}

fn place(touch: &Touch, others: usize) -> String {
    let verb = if touch.write { "writes" } else { "reads" };
    let others = if others > 0 { format!(" and {others} more") } else { String::new() };
    let mut text = format!("  {:<11} {verb:<6} {}:{}{others}\n", touch.op, touch.file, touch.line);
    if let Some(code) = &touch.code {
        let room = usize::from(WIDTH) - 6;
        let short: String = code.chars().take(room).collect();
        text += &format!("      {short}\n");
    }
    text
}

/// A workload under one lock.
pub fn recording(name: &str, recording: &Recording) -> String {
    let calls: Vec<String> = recording.operations.iter().map(|(name, n)| format!("{} {name}", count(*n))).collect();
    let mut text = format!(
        "{name} on {}, software delivery: lines that threads share with a write\n{} threads: {}\n\
         {:.0} accesses each on average\n",
        recording.lock,
        recording.threads,
        calls.join(", "),
        recording.accesses
    );
    if recording.shared.is_empty() {
        return text + "\nno line shared with a write\n";
    }
    let unit = if recording.operations.iter().any(|(name, _)| name == "fault") { "fault" } else { "call" };
    let mut shared: Vec<&Shared> = recording.shared.iter().collect();
    shared.sort_by(|a, b| b.transfers.total_cmp(&a.transfers));
    for shared in shared.iter().take(GROUPS) {
        let lines = if shared.lines > 1.0 { format!("{:.0} lines, ", shared.lines) } else { String::new() };
        let visits = shared.writes + shared.reads;
        text += &group(shared, &format!("{lines}{:.4} transfers in {visits:.4} visits a {unit}", shared.transfers));
    }
    text + &more(recording.shared.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmalab_conflicts::op::Op;

    fn touch(op: &str, write: bool, line: u32) -> Touch {
        let code = Some("x".repeat(200));
        Touch { op: op.to_owned(), write, accesses: 3, file: "src/mm/core.rs".to_owned(), line, code }
    }

    fn pair(relation: Relation, lock: Lock, min: u64, max: u64) -> Pair {
        let shared = Shared {
            object: Some("MmCore<TypeSafe>+0x80".to_owned()),
            lines: 1.0,
            found: 7,
            false_sharing: true,
            writes: 1.0,
            reads: 1.0,
            transfers: 1.0,
            touches: vec![touch("mmap", true, 119), touch("mmap", true, 154), touch("fault-first", false, 86)],
        };
        Pair {
            ops: [Op::FaultFirst, Op::Mmap],
            relation,
            lock,
            repetitions: 32,
            lines: Spread { min, median: min, max },
            false_sharing: Spread { min: 0, median: 0, max: 0 },
            accesses: [58.4, 398.0],
            shared: if max > 0 { vec![shared] } else { Vec::new() },
        }
    }

    #[test]
    fn a_pair_is_told_within_80_columns() {
        let all: Vec<Pair> = Relation::ALL
            .into_iter()
            .flat_map(|relation| Lock::ALL.iter().map(move |&lock| pair(relation, lock, 0, 16)))
            .collect();
        let text = pairs(&all);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        for part in [
            "fault-first | mmap  0-16  0-16",
            "one address space",
            "two address spaces",
            "MmCore<TypeSafe>+0x80: in 7 of 32, false sharing",
            "mmap        writes src/mm/core.rs:119 and 1 more",
            "fault-first reads  src/mm/core.rs:86\n",
        ] {
            let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(squeezed(&text).contains(&squeezed(part)), "{part}: {text}");
        }
        assert!(pairs(&[pair(Relation::SameMm, Lock::Rcu, 0, 0)]).contains("no line shared with a write"));
    }
}
