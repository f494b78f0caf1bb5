//! From accesses to the lines that are shared with a write.

use crate::report::{Line, Shared, Touch};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use vmalab::sync::record::{Access, LINE_BYTES, describe};

/// An operation and who did it.
pub struct Operation<'a> {
    /// The thread.
    pub thread: u64,
    /// Its name in reports.
    pub name: &'a str,
    /// What it touched.
    pub accesses: &'a [Access],
}

/// What a thread did to a line: bytes read and bytes written, a bit each.
#[derive(Default)]
struct Bytes {
    read: u64,
    written: u64,
}

/// One line, over all operations.
#[derive(Default)]
struct Seen<'a> {
    by_thread: BTreeMap<u64, Bytes>,
    /// Visits that write, and that only read.
    writes: u64,
    reads: u64,
    /// Those of them that found the line in another thread's cache only.
    write_transfers: u64,
    read_transfers: u64,
    /// The threads in whose caches it is, if caches never lost a line otherwise.
    holders: BTreeSet<u64>,
    /// Accesses by operation, kind and line of source.
    touches: BTreeMap<(&'a str, bool, &'static str, u32), u64>,
}

/// The bits of a line that an access covers.
fn bits(access: &Access, line: usize) -> u64 {
    let start = access.addr.max(line * LINE_BYTES) - line * LINE_BYTES;
    let end = (access.addr + access.bytes).min((line + 1) * LINE_BYTES) - line * LINE_BYTES;
    (u64::MAX >> (LINE_BYTES - (end - start))) << start
}

impl Seen<'_> {
    /// An operation of `thread` has touched the line.
    fn visit(&mut self, thread: u64, wrote: bool) {
        let mine = self.holders.contains(&thread);
        let others = self.holders.len() > usize::from(mine);
        if wrote {
            self.writes += 1;
            self.write_transfers += u64::from(others);
            self.holders.clear();
        } else {
            self.reads += 1;
            self.read_transfers += u64::from(others && !mine);
        }
        self.holders.insert(thread);
    }

    fn is_shared(&self) -> bool {
        self.by_thread.len() > 1 && self.by_thread.values().any(|bytes| bytes.written != 0)
    }

    /// No byte is touched by two threads, one of them writing.
    fn is_false(&self) -> bool {
        self.by_thread.iter().all(|(thread, mine)| {
            let others = self.by_thread.iter().filter(|(other, _)| *other != thread);
            others.into_iter().all(|(_, theirs)| mine.written & (theirs.read | theirs.written) == 0)
        })
    }
}

/// The lines that two threads touch and one writes.
pub struct Lines<'a>(HashMap<usize, Seen<'a>>);

impl<'a> Lines<'a> {
    /// Of these operations.
    pub fn of<'o>(operations: impl IntoIterator<Item = Operation<'a>> + 'o) -> Lines<'a> {
        let mut lines: HashMap<usize, Seen<'a>> = HashMap::new();
        for Operation { thread, name, accesses } in operations {
            let mut visited: BTreeMap<usize, bool> = BTreeMap::new();
            for access in accesses {
                for line in access.lines() {
                    *visited.entry(line).or_default() |= access.write;
                    let seen = lines.entry(line).or_default();
                    let bytes = seen.by_thread.entry(thread).or_default();
                    *(if access.write { &mut bytes.written } else { &mut bytes.read }) |= bits(access, line);
                    *seen.touches.entry((name, access.write, access.at.file(), access.at.line())).or_default() += 1;
                }
            }
            for (line, wrote) in visited {
                lines.get_mut(&line).expect("entered above").visit(thread, wrote);
            }
        }
        lines.retain(|_, seen| seen.is_shared());
        Lines(lines)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// How many are shared falsely.
    pub fn false_sharing(&self) -> usize {
        self.0.values().filter(|seen| seen.is_false()).count()
    }

    /// Each by itself, per unit of work, those handed on most first.
    pub fn each(&self, units: f64, threads: usize) -> Vec<Line> {
        let mut each: Vec<Line> = (self.0.iter())
            .map(|(&line, seen)| Line {
                object: name(line),
                writes: seen.writes as f64 / units,
                reads: seen.reads as f64 / units,
                write_transfers: seen.write_transfers as f64 / units,
                read_transfers: seen.read_transfers as f64 / units,
                threads: seen.by_thread.len() as f64 / threads as f64,
            })
            .collect();
        let transfers = |line: &Line| line.write_transfers + line.read_transfers;
        each.sort_by(|a, b| transfers(b).total_cmp(&transfers(a)).then(a.object.cmp(&b.object)));
        each
    }
}

/// Object and offset of the line, if the core has told of it. A line that
/// begins before its first object is called after that.
fn name(line: usize) -> Option<String> {
    let place = (line * LINE_BYTES..(line + 1) * LINE_BYTES).step_by(8).find_map(describe)?;
    let offset = (line * LINE_BYTES).saturating_sub(place.start);
    // Where in a node it lies says nothing: which entry is used is chance.
    if place.object == "Node" { Some("tree node".to_owned()) } else { Some(format!("{}+{offset:#x}", place.object)) }
}

/// Lines that are alike, summed up over repetitions.
#[derive(Default)]
pub struct Groups {
    groups: BTreeMap<Key, Group>,
    sources: Sources,
}

/// The same place in an object of the same kind, or the same line.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Object(String, bool),
    Line(usize),
}

#[derive(Default)]
struct Group {
    lines: BTreeSet<usize>,
    total: u64,
    found: u64,
    false_sharing: bool,
    writes: u64,
    reads: u64,
    transfers: u64,
    touches: BTreeMap<(String, bool, &'static str, u32), u64>,
}

impl Groups {
    /// Adds what one repetition, or a whole workload, has shared.
    pub fn add(&mut self, lines: &Lines<'_>) {
        let mut found = BTreeSet::new();
        for (&line, seen) in &lines.0 {
            let key = match name(line) {
                Some(object) => Key::Object(object, seen.is_false()),
                None => Key::Line(line),
            };
            let group = self.groups.entry(key.clone()).or_default();
            group.lines.insert(line);
            group.total += 1;
            group.false_sharing = seen.is_false();
            group.writes += seen.writes;
            group.reads += seen.reads;
            group.transfers += seen.write_transfers + seen.read_transfers;
            for (&(op, write, file, line), accesses) in &seen.touches {
                *group.touches.entry((op.to_owned(), write, file, line)).or_default() += accesses;
            }
            found.insert(key);
        }
        found.iter().for_each(|key| self.groups.get_mut(key).expect("entered above").found += 1);
    }

    /// Per repetition, or per unit of a workload; those found most often and
    /// handed on most first.
    pub fn report(mut self, per: f64) -> Vec<Shared> {
        let mut shared = Vec::new();
        for (key, group) in self.groups {
            let mut touches: Vec<Touch> = (group.touches.into_iter())
                .map(|((op, write, file, line), accesses)| Touch {
                    code: self.sources.line(file, line),
                    file: file.to_owned(),
                    op,
                    write,
                    accesses,
                    line,
                })
                .collect();
            touches.sort_by_key(|touch| (!touch.write, std::cmp::Reverse(touch.accesses)));
            shared.push(Shared {
                object: if let Key::Object(object, _) = key { Some(object) } else { None },
                lines: group.total as f64,
                found: group.found,
                false_sharing: group.false_sharing,
                writes: group.writes as f64 / per,
                reads: group.reads as f64 / per,
                transfers: group.transfers as f64 / per,
                touches,
            });
        }
        shared.sort_by(|a, b| b.found.cmp(&a.found).then(b.transfers.total_cmp(&a.transfers)));
        shared
    }
}

/// Source files, read as they are needed.
#[derive(Default)]
struct Sources(HashMap<&'static str, Vec<String>>);

impl Sources {
    fn line(&mut self, file: &'static str, line: u32) -> Option<String> {
        let lines = self.0.entry(file).or_insert_with(|| {
            fs::read_to_string(file).unwrap_or_default().lines().map(|line| line.trim().to_owned()).collect()
        });
        lines.get(line as usize - 1).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::Location;
    use vmalab::sync::record::operation;
    use vmalab::sync::{AtomicU32, CachePadded, Ordering};

    fn two<'a>(a: &'a [Access], b: &'a [Access]) -> Lines<'a> {
        let by = |thread, name, accesses| Operation { thread, name, accesses };
        Lines::of([by(0, "a", a), by(1, "b", b)])
    }

    #[test]
    fn a_shared_counter_is_one_line_and_a_neighbour_is_false_sharing() {
        let words = CachePadded::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let add = |i: usize| operation(|| words[i].fetch_add(1, Ordering::Relaxed)).1;
        let load = |i: usize| operation(|| words[i].load(Ordering::Relaxed)).1;
        let counts = |lines: Lines<'_>| (lines.len(), lines.false_sharing());
        assert_eq!(counts(two(&add(0), &add(0))), (1, 0));
        assert_eq!(counts(two(&add(0), &load(0))), (1, 0));
        assert_eq!(counts(two(&add(0), &load(1))), (1, 1));
        assert_eq!(counts(two(&load(0), &load(0))), (0, 0));
        assert_eq!(counts(two(&add(0), &[])), (0, 0));
    }

    #[test]
    fn an_access_may_reach_over_several_lines() {
        let at = Location::caller();
        let access = |addr, bytes, write| [Access { addr, bytes, write, at }];
        assert_eq!(two(&access(100, 400, true), &access(448, 64, false)).len(), 1);
        assert_eq!(two(&access(100, 400, true), &access(64, 500, false)).len(), 7);
        assert_eq!(bits(&access(60, 8, true)[0], 0), 0xf << 60);
        assert_eq!(bits(&access(60, 8, true)[0], 1), 0xf);
        assert_eq!(bits(&access(0, 640, true)[0], 5), u64::MAX);
    }

    #[test]
    fn a_line_is_handed_on_when_another_has_it() {
        let mut line = Seen::default();
        let mut transfers = |visits: &[(u64, bool)]| {
            let before = (line.write_transfers, line.read_transfers);
            visits.iter().for_each(|&(thread, wrote)| line.visit(thread, wrote));
            (line.write_transfers - before.0, line.read_transfers - before.1)
        };
        assert_eq!(transfers(&[(1, true), (1, false), (1, true)]), (0, 0), "one's own");
        assert_eq!(transfers(&[(2, false), (2, false), (1, false)]), (0, 1), "fetched once");
        assert_eq!(transfers(&[(1, true)]), (1, 0), "taken away");
        assert_eq!(transfers(&[(2, true), (1, true), (2, true)]), (3, 0), "to and fro");
    }

    #[test]
    fn visits_are_counted_once_an_operation() {
        let word = AtomicU32::new(0);
        let (_, thrice) = operation(|| [1, 2, 3].map(|n| word.fetch_add(n, Ordering::Relaxed)));
        let (_, once) = operation(|| word.load(Ordering::Relaxed));
        let lines = two(&thrice, &once);
        let line = &lines.each(2.0, 2)[0];
        assert_eq!((line.writes, line.reads, line.threads), (0.5, 0.5, 1.0));
        assert_eq!((line.write_transfers, line.read_transfers), (0.0, 0.5));
        let mut groups = Groups::default();
        groups.add(&lines);
        let shared = &groups.report(1.0)[0];
        assert_eq!((shared.found, shared.lines, shared.writes, shared.reads), (1, 1.0, 1.0, 1.0));
        let touches: Vec<_> = shared.touches.iter().map(|t| (t.op.as_str(), t.write, t.accesses)).collect();
        assert_eq!(touches, [("a", true, 3), ("b", false, 1)]);
    }
}
