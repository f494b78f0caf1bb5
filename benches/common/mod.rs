//! Rows of docs/performance.md: a subject beside what it is measured against.
//!
//! Both are [`Work`], which is also what Criterion's `iter_custom` takes. A row
//! runs them in turn, some milliseconds each, in an order that changes from
//! round to round, and takes the ratio of each round: what the machine does to
//! one it does to the other. The row's figure is the median of the ratios,
//! with an interval that holds it in 95 of 100 cases whatever the distribution.
//!
//! `ROWS=only cargo bench` leaves Criterion's own figures out. Each row is written to `target/performance/NAME.json`, from which
//! `scripts/bench-report.sh` makes the document.

use criterion::Criterion;
use serde_json::json;
use std::hint::spin_loop;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Does something so many times and says how long that took.
pub type Work<'a> = Box<dyn FnMut(u64) -> Duration + 'a>;

/// What a row's figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// For comparison only.
    None,
}

/// Rounds of a row that count; one before them does not.
const ROUNDS: usize = 61;
/// One side of a round should take so long.
const ROUND: Duration = Duration::from_millis(4);

/// All rows of one bench.
pub struct Rows {
    criterion: Criterion,
    /// `cargo bench -- FILTER`.
    filter: Option<String>,
    /// `cargo test` runs benches to see that they do.
    checking: bool,
    /// Without Criterion's own figures.
    rows_only: bool,
}

impl Rows {
    pub fn from_args() -> Rows {
        let args: Vec<String> = std::env::args().skip(1).collect();
        Rows {
            criterion: Criterion::default()
                .warm_up_time(Duration::from_millis(300))
                .measurement_time(Duration::from_millis(1000))
                .sample_size(20)
                .configure_from_args(),
            filter: args.iter().find(|arg| !arg.starts_with('-')).cloned(),
            checking: args.iter().any(|arg| arg == "--test" || arg == "--list"),
            rows_only: std::env::var_os("ROWS").is_some_and(|rows| rows == "only"),
        }
    }

    /// Whether the filter lets something through that is called, or begins with, `name`: what is costly to make is not
    /// made in vain.
    pub fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()) || filter.starts_with(name))
    }

    /// A row that is a ratio of two works' time per operation, and Criterion's figures for either.
    pub fn beside(
        &mut self,
        name: &str,
        goal: Goal,
        (subject, mut a): (&str, Work<'_>),
        (against, mut b): (&str, Work<'_>),
    ) {
        if !self.wants(name) {
            return;
        }
        self.measure(name, subject, &mut a);
        self.measure(name, against, &mut b);
        if self.checking {
            return;
        }
        let (na, nb) = (operations(&mut a), operations(&mut b));
        let rounds: Vec<[f64; 2]> = (0..=ROUNDS)
            .map(|round| {
                let mut pair = [0.0; 2];
                let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
                for side in order {
                    pair[side] = if side == 0 { per(&mut a, na) } else { per(&mut b, nb) };
                }
                pair
            })
            .skip(1)
            .collect();
        let figure = Figure::of(rounds.iter().map(|[a, b]| a / b).collect());
        let median = |side: usize| Figure::of(rounds.iter().map(|pair| pair[side]).collect()).median;
        self.write(
            name,
            "ratio",
            goal,
            figure,
            json!({ "subject": subject, "subject_ns": median(0), "against": against, "against_ns": median(1) }),
        );
    }

    /// A row that is a time: ns per operation of one work alone.
    pub fn alone(&mut self, name: &str, goal: Goal, (subject, mut work): (&str, Work<'_>)) {
        if !self.wants(name) {
            return;
        }
        self.measure(name, subject, &mut work);
        if self.checking {
            return;
        }
        let n = operations(&mut work);
        let figure = Figure::of((0..=ROUNDS).map(|_| per(&mut work, n)).skip(1).collect());
        self.write(name, "ns", goal, figure, json!({ "subject": subject }));
    }

    /// A row that was counted, or is a ratio taken otherwise: one value for each round.
    pub fn values(
        &mut self,
        name: &str,
        unit: &str,
        goal: Goal,
        subject: &str,
        values: impl FnOnce(usize) -> Vec<f64>,
    ) {
        if self.wants(name) {
            let figure = Figure::of(values(if self.checking { 1 } else { ROUNDS }));
            if !self.checking {
                self.write(name, unit, goal, figure, json!({ "subject": subject }));
            }
        }
    }

    fn measure(&mut self, group: &str, name: &str, work: &mut Work<'_>) {
        if !self.rows_only {
            self.criterion.benchmark_group(group).bench_function(name, |bencher| bencher.iter_custom(&mut *work));
        }
    }

    fn write(&self, name: &str, unit: &str, goal: Goal, figure: Figure, mut row: serde_json::Value) {
        let Figure { median, low, high, rounds } = figure;
        let (goal, met) = match goal {
            Goal::AtMost(limit) => (json!({ "at_most": limit }), json!(median <= limit)),
            Goal::AtLeast(limit) => (json!({ "at_least": limit }), json!(median >= limit)),
            Goal::None => (json!(null), json!(null)),
        };
        println!("{name}: {median:.3} {unit} ({low:.3} to {high:.3}, {rounds} rounds), goal {goal}\n");
        let figure = json!({ "name": name, "unit": unit, "value": median, "low": low, "high": high, "rounds": rounds, "goal": goal, "met": met });
        row.as_object_mut().expect("an object").extend(figure.as_object().expect("an object").clone());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/performance");
        std::fs::create_dir_all(&folder).expect("target/performance");
        let file = folder.join(format!("{}.json", name.replace([' ', '/'], "-")));
        std::fs::write(&file, serde_json::to_string_pretty(&row).expect("JSON") + "\n").expect("the row's file");
    }

    pub fn finish(self) {
        self.criterion.final_summary();
    }
}

/// A median, and where it lies.
struct Figure {
    median: f64,
    low: f64,
    high: f64,
    rounds: usize,
}

impl Figure {
    /// The interval is between two order statistics: that the median of the
    /// distribution lies outside has the probability of as many heads in a row
    /// of tosses, 5 % (normal approximation).
    fn of(mut values: Vec<f64>) -> Figure {
        values.sort_by(f64::total_cmp);
        let n = values.len() as f64;
        let reach = 0.98 * n.sqrt() + 0.5;
        let at = |rank: f64| values[(rank.max(0.0) as usize).min(values.len() - 1)];
        Figure { median: at(n / 2.0), low: at(n / 2.0 - reach), high: at(n / 2.0 + reach), rounds: values.len() }
    }
}

/// ns per operation.
fn per(work: &mut Work<'_>, operations: u64) -> f64 {
    work(operations).as_secs_f64() * 1e9 / operations as f64
}

/// How many operations take about a [`ROUND`].
fn operations(work: &mut Work<'_>) -> u64 {
    let mut n = 64;
    loop {
        let took = work(n);
        if took >= ROUND / 4 {
            return ((n as f64 * ROUND.as_secs_f64() / took.as_secs_f64()) as u64).max(64);
        }
        n *= 4;
    }
}

/// A loop around an operation, timed.
pub fn repeat<'a>(mut operation: impl FnMut() + 'a) -> Work<'a> {
    Box::new(move |n| {
        let begin = std::time::Instant::now();
        for _ in 0..n {
            operation();
        }
        begin.elapsed()
    })
}

/// Work for several threads, each on a CPU of its own, begun together. Its time
/// is the mean of theirs.
pub struct Crew {
    orders: Vec<SyncSender<u64>>,
    reports: Receiver<Duration>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// `make` is called on each thread, with its number, and makes its work.
    pub fn new<W: FnMut(u64) -> Duration>(threads: usize, make: impl Fn(usize) -> W + Send + Sync + 'static) -> Crew {
        let (make, ready) = (Arc::new(make), Arc::new(AtomicUsize::new(0)));
        let (report, reports) = sync_channel(threads);
        let mut crew = Crew { orders: Vec::new(), reports, threads: Vec::new() };
        for worker in 0..threads {
            let (order, orders) = sync_channel::<u64>(1);
            let (make, ready, report) = (make.clone(), ready.clone(), report.clone());
            crew.orders.push(order);
            crew.threads.push(std::thread::spawn(move || {
                vmalab_limits::pin_to_nth_cpu(worker).expect("a CPU for each thread");
                vmalab::thread::announce();
                let mut work = make(worker);
                for (turn, n) in orders.iter().enumerate() {
                    // They meet on their CPUs: a wake-up takes longer than a round.
                    ready.fetch_add(1, Ordering::AcqRel);
                    while ready.load(Ordering::Acquire) < (turn + 1) * threads {
                        spin_loop();
                    }
                    report.send(work(n)).expect("the crew waits");
                }
            }));
        }
        crew
    }

    pub fn run(&mut self, operations: u64) -> Duration {
        self.orders.iter().for_each(|order| order.send(operations).expect("the thread waits"));
        let times: Vec<Duration> = self.orders.iter().map(|_| self.reports.recv().expect("a thread failed")).collect();
        times.iter().sum::<Duration>() / times.len() as u32
    }

    pub fn work(mut self) -> Work<'static> {
        Box::new(move |n| self.run(n))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.orders.clear();
        for thread in self.threads.drain(..) {
            thread.join().expect("a thread of the crew failed");
        }
    }
}
