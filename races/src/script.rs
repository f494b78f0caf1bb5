//! Replays a written interleaving on real threads.
//!
//! Each actor has a thread. At any moment at most one of them has the *turn*
//! and runs; the others are held at a schedule point, asleep on a futex inside
//! vmalab, or done. The director gives the turn, step by step, and takes it
//! back when the actor has reached the step's point, has to wait for another
//! actor, or is done. An actor that is woken while it has not the turn is held
//! where it wakes. After the last step all run freely; who has not ended
//! [`PATIENCE`] later never will (oracle O5).
//!
//! Actors are held inside signal handlers: `hook` does nothing but atomics
//! and futexes.

use crate::race::Race;
use crate::stage::Stage;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vmalab::races::{Oracle, Point, set_hook, violation};

/// How long an actor may run without reaching anything.
pub const PATIENCE: Duration = Duration::from_millis(400);
/// Between two looks at an actor that is about to sleep, or was woken and does not run yet.
const TICK: Duration = Duration::from_micros(50);

const ACTORS_MAX: usize = 8;
const NOBODY: u32 = u32::MAX;

/// States of an actor.
const HELD: u32 = 0;
const RUNNING: u32 = 1;
const SLEEPING: u32 = 2;
const DONE: u32 = 3;
const STARTING: u32 = 4;

struct Seat {
    state: AtomicU32,
    /// 1 + the point to be held at, or 0.
    stop_at: AtomicU32,
    /// 1 + the point last held at, or 0 before the start.
    at: AtomicU32,
    /// The host's number of its thread.
    thread: AtomicI32,
}

impl Seat {
    const fn new() -> Seat {
        Seat {
            state: AtomicU32::new(HELD),
            stop_at: AtomicU32::new(0),
            at: AtomicU32::new(0),
            thread: AtomicI32::new(0),
        }
    }

    /// Whether its thread sleeps in the host, and has not been woken: who was is
    /// runnable from that moment, long before it runs.
    fn is_asleep(&self) -> bool {
        let path = format!("/proc/self/task/{}/stat", self.thread.load(Ordering::SeqCst));
        let stat = std::fs::read_to_string(path).expect("a thread of this process");
        // The state follows the name, which is in parentheses and may hold any.
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
    }
}

static SEATS: [Seat; ACTORS_MAX] = [const { Seat::new() }; ACTORS_MAX];
/// Who has the turn.
static TURN: AtomicU32 = AtomicU32::new(NOBODY);
/// The script is over.
static FREE: AtomicBool = AtomicBool::new(false);
/// Raised at every change of a state; the director sleeps on it.
static CHANGES: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static ROLE: Cell<u32> = const { Cell::new(NOBODY) };
}

fn futex(word: &AtomicU32, operation: i32, value: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|t| libc::timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: a static word, and a timeout that lives through the call.
    unsafe {
        let errno = *libc::__errno_location();
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation | libc::FUTEX_PRIVATE_FLAG, value, timeout);
        *libc::__errno_location() = errno;
    }
}

fn become_(seat: &Seat, state: u32) {
    seat.state.store(state, Ordering::SeqCst);
    CHANGES.fetch_add(1, Ordering::SeqCst);
    futex(&CHANGES, libc::FUTEX_WAKE, 1, None);
}

/// Stands still until it has the turn.
fn hold(seat: &Seat, at: Option<Point>) {
    seat.at.store(at.map_or(0, |point| point as u32 + 1), Ordering::SeqCst);
    become_(seat, HELD);
    while seat.state.load(Ordering::SeqCst) == HELD {
        futex(&seat.state, libc::FUTEX_WAIT, HELD, None);
    }
}

/// What every schedule point calls. Async-signal-safe.
fn hook(point: Point) {
    let role = ROLE.get();
    let Some(seat) = SEATS.get(role as usize) else { return };
    let free = FREE.load(Ordering::SeqCst);
    match point {
        Point::Sleep => become_(seat, SLEEPING),
        Point::Woken if free || TURN.load(Ordering::SeqCst) == role => become_(seat, RUNNING),
        Point::Woken => hold(seat, Some(point)),
        _ if free => {}
        _ if seat.stop_at.load(Ordering::SeqCst) == point as u32 + 1 => {
            seat.stop_at.store(0, Ordering::SeqCst);
            hold(seat, Some(point));
        }
        _ => {}
    }
}

fn let_go(seat: &Seat) {
    if seat.state.compare_exchange(HELD, RUNNING, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        futex(&seat.state, libc::FUTEX_WAKE, 1, None);
    }
}

/// Waits until the actor stands still; says where, or `None` if it does not in time.
fn wait_for(seat: &Seat) -> Option<String> {
    let began = Instant::now();
    loop {
        let changes = CHANGES.load(Ordering::SeqCst);
        match seat.state.load(Ordering::SeqCst) {
            HELD => {
                let at = seat.at.load(Ordering::SeqCst);
                let point = Point::ALL.get(at.wrapping_sub(1) as usize);
                return Some(point.map_or("at its start".to_string(), |p| format!("is held at {}", p.name())));
            }
            DONE => return Some("is done".to_string()),
            SLEEPING if seat.is_asleep() && CHANGES.load(Ordering::SeqCst) == changes => {
                return Some("has to wait".to_string());
            }
            _ if began.elapsed() > PATIENCE => return None,
            SLEEPING => std::thread::sleep(TICK),
            _ => futex(&CHANGES, libc::FUTEX_WAIT, changes, Some(Duration::from_millis(50))),
        }
    }
}

/// Plays `race` on `stage`, step by step; every step is told to `log`. One at a
/// time in a process.
pub fn play(race: &'static Race, stage: &Stage, log: &mut dyn FnMut(String)) {
    assert!(race.actors.len() <= ACTORS_MAX);
    FREE.store(false, Ordering::SeqCst);
    TURN.store(NOBODY, Ordering::SeqCst);
    for seat in &SEATS {
        seat.state.store(STARTING, Ordering::SeqCst);
        seat.stop_at.store(0, Ordering::SeqCst);
        seat.at.store(0, Ordering::SeqCst);
    }
    set_hook(Some(hook));
    std::thread::scope(|scope| {
        for (i, actor) in race.actors.iter().enumerate() {
            scope.spawn(move || {
                vmalab::thread::announce();
                // SAFETY: takes no arguments.
                SEATS[i].thread.store(unsafe { libc::gettid() }, Ordering::SeqCst);
                hold(&SEATS[i], None);
                ROLE.set(i as u32);
                (actor.act)(stage);
                ROLE.set(NOBODY);
                become_(&SEATS[i], DONE);
            });
        }
        for seat in &SEATS[..race.actors.len()] {
            wait_for(seat).expect("a thread starts");
        }
        for step in race.script {
            let (name, seat) = (race.actors[step.actor].name, &SEATS[step.actor]);
            // It may be asleep: if it was woken, by a step before, it runs on when it wakes.
            seat.stop_at.store(step.until.map_or(0, |point| point as u32 + 1), Ordering::SeqCst);
            TURN.store(step.actor as u32, Ordering::SeqCst);
            let place = loop {
                let_go(seat);
                let Some(place) = wait_for(seat) else {
                    log(format!("{} -> it neither gets there nor waits", race.tell(step)));
                    violation(Oracle::O5, &format!("{name} runs without end"));
                };
                // It woke before it could see that it has the turn.
                let held = seat.state.load(Ordering::SeqCst) == HELD;
                if !held || seat.at.load(Ordering::SeqCst) != Point::Woken as u32 + 1 {
                    break place;
                }
            };
            log(format!("{} -> {place}", race.tell(step)));
            TURN.store(NOBODY, Ordering::SeqCst);
        }
        FREE.store(true, Ordering::SeqCst);
        SEATS.iter().for_each(let_go);
        let began = Instant::now();
        for (actor, seat) in race.actors.iter().zip(&SEATS) {
            while seat.state.load(Ordering::SeqCst) != DONE {
                let changes = CHANGES.load(Ordering::SeqCst);
                let_go(seat);
                futex(&CHANGES, libc::FUTEX_WAIT, changes, Some(Duration::from_millis(20)));
                if began.elapsed() > PATIENCE && seat.state.load(Ordering::SeqCst) != DONE {
                    let how = if seat.state.load(Ordering::SeqCst) == SLEEPING { "sleeps" } else { "runs" };
                    violation(Oracle::O5, &format!("{} {how} and nothing will end that", actor.name));
                }
            }
        }
    });
    set_hook(None);
}

/// Runs what is left when the actors have ended.
pub fn afterwards(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let (done, is_done) = std::sync::mpsc::channel();
        scope.spawn(move || {
            work();
            let _ = done.send(());
        });
        if is_done.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            violation(Oracle::O5, "what follows the race never ends");
        }
    });
}
