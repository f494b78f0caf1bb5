//! From trace points to Chrome's trace event format: slices with a beginning
//! and an end, nested on a track for each thread, and instants.
//!
//! The slices of a thread form a stack. A lock that is let go of below the top
//! cuts what lies above in two, so that slices always nest.

use super::timeline::{Entry, Track};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use vmalab::trace::{Event, OPERATIONS};

/// What a slice shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fault,
    /// A part of a fault, by name.
    Phase(&'static str),
    /// By name.
    Operation(&'static str),
    /// The mmap lock is waited for, or held; to write?
    MmapWait(bool),
    MmapHeld(bool),
    /// A VMA's readers are waited for; it is write-locked; it is held by a fault.
    VmaWait,
    VmaWrite,
    VmaRead,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Fault => "fault",
            Kind::Phase(name) | Kind::Operation(name) => name,
            Kind::MmapWait(false) => "wait for mmap_lock (read)",
            Kind::MmapWait(true) => "wait for mmap_lock (write)",
            Kind::MmapHeld(false) => "mmap_lock (read)",
            Kind::MmapHeld(true) => "mmap_lock (write)",
            Kind::VmaWait => "wait for VMA's readers",
            Kind::VmaWrite => "VMA (write)",
            Kind::VmaRead => "VMA (read)",
        }
    }

    fn category(self) -> &'static str {
        match self {
            Kind::Fault | Kind::Phase(_) => "fault",
            Kind::Operation(_) => "operation",
            Kind::MmapWait(_) | Kind::MmapHeld(_) => "mmap_lock",
            Kind::VmaWait | Kind::VmaWrite | Kind::VmaRead => "vma_lock",
        }
    }

    fn is_wait(self) -> bool {
        matches!(self, Kind::MmapWait(_) | Kind::VmaWait)
    }

    fn is_hold(self) -> bool {
        matches!(self, Kind::MmapHeld(_) | Kind::VmaWrite | Kind::VmaRead)
    }
}

/// A slice of a track.
#[derive(Clone, Copy, Debug)]
struct Slice {
    kind: Kind,
    /// The lock or the VMA, or the address.
    what: u64,
    /// Of a fault: its access and its outcome.
    extra: [u64; 2],
    start_ns: u64,
    end_ns: u64,
}

/// Something at one moment.
struct Instant {
    name: &'static str,
    what: u64,
    ns: u64,
}

/// A thread's slices, out of its events.
#[derive(Default)]
struct Drawing {
    open: Vec<Slice>,
    done: Vec<Slice>,
    instants: Vec<Instant>,
    /// When the last event was: where a phase begins.
    last_ns: u64,
}

const ABORTS: [&str; 7] = [
    "abort: no VMA",
    "abort: write-locked early",
    "abort: contended",
    "abort: write-locked late",
    "abort: other mm",
    "abort: other range",
    "abort: miss limit",
];

impl Drawing {
    fn of(entries: &[Entry]) -> Drawing {
        let mut drawing = Drawing { last_ns: entries.first().map_or(0, |entry| entry.ns), ..Drawing::default() };
        for entry in entries {
            drawing.add(entry);
            drawing.last_ns = entry.ns;
        }
        // What had not ended when the recording did.
        while let Some(slice) = drawing.open.pop() {
            drawing.done.push(Slice { end_ns: drawing.last_ns, ..slice });
        }
        drawing
    }

    fn add(&mut self, entry: &Entry) {
        let &Entry { ns, event, a, b } = entry;
        let write = b == 1;
        match event {
            Event::FaultDelivered => self.begin(Kind::Fault, a, ns),
            // In `software` delivery nothing comes before it.
            Event::FaultEntry => {
                if !self.open.iter().any(|slice| slice.kind == Kind::Fault) {
                    self.begin(Kind::Fault, a, ns);
                }
                if let Some(fault) = self.open.iter_mut().rfind(|slice| slice.kind == Kind::Fault) {
                    fault.extra[0] = b;
                }
            }
            Event::FaultReturn => {
                if let Some(fault) = self.open.iter_mut().rfind(|slice| slice.kind == Kind::Fault) {
                    fault.extra[1] = b;
                }
                self.end(|slice| slice.kind == Kind::Fault, ns);
            }
            Event::Lookup => self.phase("lookup", a, ns),
            Event::Lock => {
                self.phase("lock", a, ns);
                self.begin(Kind::VmaRead, a, ns);
            }
            Event::Unlock => self.end(|slice| slice.kind == Kind::VmaRead && slice.what == a, ns),
            Event::Abort => {
                self.phase("lock", a, ns);
                self.instant(ABORTS.get(b as usize).copied().unwrap_or("abort"), a, ns);
            }
            Event::Fallback => self.instant("fallback to mmap_lock", a, ns),
            Event::Install => self.begin(Kind::Phase("install"), a, ns),
            Event::InstallReturn => self.end(|slice| slice.kind == Kind::Phase("install"), ns),
            Event::MmapLockWait => self.begin(Kind::MmapWait(write), a, ns),
            Event::MmapLockAcquired => {
                self.end(|slice| slice.kind == Kind::MmapWait(write) && slice.what == a, ns);
                self.begin(Kind::MmapHeld(write), a, ns);
            }
            Event::MmapLockDowngraded => {
                self.end_write_all(ns);
                self.end(|slice| slice.kind == Kind::MmapHeld(true) && slice.what == a, ns);
                self.begin(Kind::MmapHeld(false), a, ns);
            }
            Event::MmapLockReleased => {
                if write {
                    self.end_write_all(ns);
                }
                self.end(|slice| slice.kind == Kind::MmapHeld(write) && slice.what == a, ns);
            }
            Event::VmaStartWrite => self.begin(Kind::VmaWait, a, ns),
            Event::VmaWriteLocked => {
                self.end(|slice| slice.kind == Kind::VmaWait && slice.what == a, ns);
                if write {
                    self.begin(Kind::VmaWrite, a, ns);
                }
            }
            Event::Reuse => self.instant("VMA object reused", a, ns),
            _ => {
                if let Some(&(.., name)) = OPERATIONS.iter().find(|(begin, ..)| *begin == event) {
                    self.begin(Kind::Operation(name), a, ns);
                }
                if let Some(&(.., name)) = OPERATIONS.iter().find(|(_, end, _)| *end == event) {
                    self.end(|slice| slice.kind == Kind::Operation(name), ns);
                }
            }
        }
    }

    fn begin(&mut self, kind: Kind, what: u64, ns: u64) {
        self.open.push(Slice { kind, what, extra: [0; 2], start_ns: ns, end_ns: ns });
    }

    /// From the event before to now.
    fn phase(&mut self, name: &'static str, what: u64, ns: u64) {
        self.done.push(Slice { kind: Kind::Phase(name), what, extra: [0; 2], start_ns: self.last_ns, end_ns: ns });
    }

    fn instant(&mut self, name: &'static str, what: u64, ns: u64) {
        self.instants.push(Instant { name, what, ns });
    }

    /// Ends the innermost open slice like this. Those inside it are cut in two.
    /// (None is open: it began before the ring's oldest event.)
    fn end(&mut self, like: impl Fn(&Slice) -> bool, ns: u64) {
        let Some(at) = self.open.iter().rposition(like) else { return };
        for inside in &mut self.open[at + 1..] {
            self.done.push(Slice { end_ns: ns, ..*inside });
            inside.start_ns = ns;
        }
        self.done.push(Slice { end_ns: ns, ..self.open.remove(at) });
    }

    /// All VMA write locks are released together.
    fn end_write_all(&mut self, ns: u64) {
        while self.open.iter().any(|slice| slice.kind == Kind::VmaWrite) {
            self.end(|slice| slice.kind == Kind::VmaWrite, ns);
        }
    }
}

/// Who held what, and when: slices that hold a lock, by lock.
struct Holders<'a>(HashMap<u64, Vec<(u64, u64, &'a str)>>);

/// Holders looked at for one wait, from the latest that began before it ended.
const LOOK_BACK: usize = 256;

impl<'a> Holders<'a> {
    fn of(tracks: &'a [(Track, Drawing)]) -> Holders<'a> {
        let mut held: HashMap<u64, Vec<_>> = HashMap::new();
        for (track, drawing) in tracks {
            for slice in drawing.done.iter().filter(|slice| slice.kind.is_hold()) {
                held.entry(slice.what).or_default().push((slice.start_ns, slice.end_ns, track.name.as_str()));
            }
        }
        held.values_mut().for_each(|held| held.sort_unstable());
        Holders(held)
    }

    /// The threads but `waiter` that held the lock during the wait.
    fn during(&self, wait: &Slice, waiter: &str) -> Vec<&'a str> {
        let Some(held) = self.0.get(&wait.what) else { return Vec::new() };
        let last = held.partition_point(|&(start, ..)| start < wait.end_ns);
        let looked_at = &held[last.saturating_sub(LOOK_BACK)..last];
        let mut names: Vec<&str> = looked_at
            .iter()
            .filter(|&&(_, end, name)| end > wait.start_ns && name != waiter)
            .map(|held| held.2)
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// An event of the format. Times are microseconds.
#[derive(Serialize)]
struct Traced<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    cat: &'a str,
    ph: &'a str,
    pid: u32,
    tid: i32,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    /// Of an instant: it belongs to its thread.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'a str>,
    args: BTreeMap<&'a str, String>,
}

const PROCESS: u32 = 1;

fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// Writes the trace.
pub(super) fn write(threads: &[(Track, Vec<Entry>)], dropped: u64, out: &mut dyn Write) -> io::Result<()> {
    let tracks: Vec<(Track, Drawing)> =
        threads.iter().map(|(track, entries)| (track.clone(), Drawing::of(entries))).collect();
    let holders = Holders::of(&tracks);
    write!(out, "{{\"displayTimeUnit\":\"ns\",\"otherData\":{{\"dropped\":{dropped}}},\"traceEvents\":[")?;
    let mut first = true;
    let mut put = |traced: &Traced<'_>| -> io::Result<()> {
        out.write_all(if std::mem::take(&mut first) { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, traced).map_err(io::Error::from)
    };
    put(&named("process_name", 0, "vmalab"))?;
    for (track, drawing) in &tracks {
        put(&named("thread_name", track.tid, &track.name))?;
        let mut slices: Vec<&Slice> = drawing.done.iter().collect();
        // The outer first where both begin together.
        slices.sort_by_key(|slice| (slice.start_ns, std::cmp::Reverse(slice.end_ns)));
        for slice in slices {
            put(&traced_slice(slice, track, &holders))?;
        }
        for instant in &drawing.instants {
            put(&Traced {
                name: instant.name,
                cat: "event",
                ph: "i",
                pid: PROCESS,
                tid: track.tid,
                ts: microseconds(instant.ns),
                dur: None,
                s: Some("t"),
                args: BTreeMap::from([("what", format!("{:#x}", instant.what))]),
            })?;
        }
    }
    out.write_all(b"\n]}\n")
}

fn named<'a>(what: &'a str, tid: i32, name: &str) -> Traced<'a> {
    let args = BTreeMap::from([("name", name.to_owned())]);
    Traced { name: what, cat: "", ph: "M", pid: PROCESS, tid, ts: 0.0, dur: None, s: None, args }
}

fn traced_slice<'a>(slice: &Slice, track: &Track, holders: &Holders<'_>) -> Traced<'a> {
    let what = match slice.kind {
        Kind::MmapWait(_) | Kind::MmapHeld(_) => "mmap_lock",
        Kind::VmaWait | Kind::VmaWrite | Kind::VmaRead | Kind::Phase("lock") => "vma",
        _ => "addr",
    };
    let mut args = BTreeMap::from([(what, format!("{:#x}", slice.what))]);
    if slice.kind == Kind::Fault {
        let [access, outcome] = slice.extra;
        args.insert("access", if access & 1 == 1 { "store" } else { "load" }.to_owned());
        args.insert("page", if access & 2 == 2 { "present" } else { "missing" }.to_owned());
        let outcome = ["done", "SIGSEGV (SEGV_MAPERR)", "SIGSEGV (SEGV_ACCERR)", "SIGBUS"].get(outcome as usize);
        args.insert("outcome", outcome.copied().unwrap_or_default().to_owned());
    }
    if slice.kind.is_wait() {
        args.insert("held_by", holders.during(slice, &track.name).join(", "));
    }
    Traced {
        name: slice.kind.name(),
        cat: slice.kind.category(),
        ph: "X",
        pid: PROCESS,
        tid: track.tid,
        ts: microseconds(slice.start_ns),
        dur: Some(microseconds(slice.end_ns - slice.start_ns)),
        s: None,
        args,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::timeline::Timeline;
    use crate::{Control, Delivery, Lock, StressConfig};
    use serde_json::Value;
    use std::time::Duration;

    fn parsed(timeline: &Timeline) -> Vec<Value> {
        let mut text = Vec::new();
        timeline.write_chrome(&mut text).unwrap();
        let trace: Value = serde_json::from_slice(&text).unwrap();
        trace["traceEvents"].as_array().unwrap().clone()
    }

    /// Picoseconds, so that sums are exact.
    fn span(event: &Value) -> (i64, i64) {
        let picoseconds = |key: &str| (event[key].as_f64().unwrap() * 1e6).round() as i64;
        (picoseconds("ts"), picoseconds("ts") + picoseconds("dur"))
    }

    /// Panics unless the slices of each thread nest.
    fn check_nesting(events: &[Value]) {
        let mut open: HashMap<i64, Vec<(i64, i64)>> = HashMap::new();
        for event in events.iter().filter(|event| event["ph"] == "X") {
            let stack = open.entry(event["tid"].as_i64().unwrap()).or_default();
            let (start, end) = span(event);
            while stack.last().is_some_and(|&(_, outer_end)| outer_end <= start) {
                stack.pop();
            }
            if let Some(&(outer_start, outer_end)) = stack.last() {
                assert!(outer_start <= start && end <= outer_end, "{event} reaches out of what it lies in");
            }
            stack.push((start, end));
        }
    }

    fn entries(list: &[(u64, Event, u64, u64)]) -> Vec<Entry> {
        list.iter().map(|&(ns, event, a, b)| Entry { ns, event, a, b }).collect()
    }

    fn named_slices<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
        events.iter().filter(|event| event["name"] == name && event["ph"] == "X").collect()
    }

    #[test]
    fn a_wait_names_who_held_the_lock() {
        const LOCK: u64 = 0x10;
        let writer = entries(&[
            (0, Event::Munmap, 0x1000, 0x1000),
            (10, Event::MmapLockAcquired, LOCK, 1),
            (20, Event::VmaStartWrite, 0x50, 0x1000),
            (25, Event::VmaWriteLocked, 0x50, 1),
            (90, Event::MmapLockReleased, LOCK, 1),
            (95, Event::MunmapReturn, 0, 0),
        ]);
        let reader = entries(&[
            (30, Event::FaultDelivered, 0x1234, 0),
            (31, Event::FaultEntry, 0x1234, 1),
            (35, Event::Lookup, 0x1234, 0x50),
            (36, Event::Abort, 0x1234, 2),
            (37, Event::Fallback, 0x1234, 0),
            (40, Event::MmapLockWait, LOCK, 0),
            (92, Event::MmapLockAcquired, LOCK, 0),
            (95, Event::Lookup, 0x1234, 0),
            (96, Event::MmapLockReleased, LOCK, 0),
            (99, Event::FaultReturn, 0x1234, 1),
        ]);
        let track = |tid, name: &str| Track { tid, name: name.to_owned() };
        let timeline = Timeline::of(vec![(track(1, "mutator-0"), writer), (track(2, "fault-0"), reader)]);
        let events = parsed(&timeline);
        check_nesting(&events);
        let wait = named_slices(&events, "wait for mmap_lock (read)");
        assert_eq!(wait.len(), 1);
        assert_eq!((wait[0]["tid"].as_i64(), span(wait[0])), (Some(2), (40_000, 92_000)));
        assert_eq!(wait[0]["args"]["held_by"], "mutator-0");
        let fault = named_slices(&events, "fault");
        assert_eq!(span(fault[0]), (30_000, 99_000));
        assert_eq!(fault[0]["args"]["outcome"], "SIGSEGV (SEGV_MAPERR)");
        assert_eq!(span(named_slices(&events, "VMA (write)")[0]), (25_000, 90_000));
        let instants: Vec<&Value> = events.iter().filter(|event| event["ph"] == "i").collect();
        assert_eq!(instants[0]["name"], "abort: contended");
        assert_eq!(instants[1]["name"], "fallback to mmap_lock");
    }

    #[test]
    fn locks_released_in_another_order_still_nest() {
        let list = entries(&[
            (1, Event::MmapLockReleased, 0x9, 0),
            (2, Event::MmapLockAcquired, 0x1, 0),
            (3, Event::MmapLockAcquired, 0x2, 0),
            (5, Event::MmapLockReleased, 0x1, 0),
            (8, Event::MmapLockReleased, 0x2, 0),
            (9, Event::MmapLockAcquired, 0x3, 1),
            (12, Event::Reuse, 0x4, 1),
        ]);
        let events = parsed(&Timeline::of(vec![(Track::default(), list)]));
        check_nesting(&events);
        let spans: Vec<_> = events.iter().filter(|event| event["ph"] == "X").map(span).collect();
        assert_eq!(spans, [(2_000, 5_000), (3_000, 5_000), (5_000, 8_000), (9_000, 12_000)]);
    }

    /// A run of every delivery that this machine has, with the ring too small
    /// for all of it.
    #[test]
    fn a_run_is_told_as_nested_slices() {
        for (lock, delivery) in [
            (Lock::TypeSafe, Delivery::Software),
            (Lock::Mmap, Delivery::Sigbus),
            (Lock::RefCount, Delivery::Queue),
            (Lock::Rcu, Delivery::Sigbus),
        ] {
            let config = StressConfig {
                lock,
                delivery,
                duration: Some(Duration::from_millis(200)),
                warmup: Duration::ZERO,
                ..StressConfig::new("app-start")
            };
            let (report, timeline) = crate::run_recorded(&config, &Control::new(), 1 << 12).unwrap();
            let events = parsed(&timeline);
            check_nesting(&events);
            assert!(timeline.threads() >= 3, "{delivery}: {} threads", timeline.threads());
            for name in ["fault", "lookup", "lock", "install", "VMA (read)", "mmap_lock (write)"] {
                assert!(!named_slices(&events, name).is_empty(), "{lock}, {delivery}: no slice {name}");
            }
            assert!(["mmap", "munmap", "mprotect"].iter().any(|name| !named_slices(&events, name).is_empty()));
            let attribution = report.attribution.expect("faults enough");
            assert!(attribution.error.abs() < 1e-3, "{}", attribution.error);
        }
    }
}
