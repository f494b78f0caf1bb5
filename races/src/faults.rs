//! The executor `faults`: the script on real threads and real page faults.
//!
//! A mutant may hang, or die in a signal handler, so every run has a process
//! of its own: [`in_child`] starts `program arguments...` and waits for the
//! [`Outcome`] on its standard output; what it starts is to end in [`child`].

use crate::race::{Lock, Race, Space as Kind};
use crate::stage::{Access, Space, Stage, soft};
use crate::{Outcome, Violation, script};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmalab::addr::VirtAddr;
use vmalab::fault::Signal;
use vmalab::lock::{LockScheme, MmapOnly, Rcu, RefCount, TypeSafe};
use vmalab::mm::Mm;
use vmalab::pager::AnyPager;
use vmalab::races::{Oracle, set_knob, set_mutant, set_reporter};
use vmalab_fault_handler::{AddressSpace, access, mmu::UffdMmu};

/// Exit status of a child whose machine cannot do it.
pub const CANNOT: i32 = 3;

/// An address space with real faults.
struct Real<S: LockScheme>(AddressSpace<S>);

impl<S: LockScheme> Access for Real<S> {
    type S = S;
    type M = UffdMmu;

    fn mm(&self) -> &Mm<S, UffdMmu, AnyPager> {
        self.0.mm()
    }

    fn load_word(&self, addr: VirtAddr) -> Result<u64, Signal> {
        // SAFETY: inside the region that the space serves as long as it lives;
        // no thread of a race blocks SIGBUS or refers into the region.
        unsafe { access::load_u64(addr.get()) }
    }

    fn store_word(&self, addr: VirtAddr, value: u64) -> Result<(), Signal> {
        // SAFETY: as above.
        unsafe { access::store_u64(addr.get(), value) }
    }
}

fn real(lock: Lock) -> Result<Arc<dyn Space>, vmalab_fault_handler::Error> {
    fn new<S: LockScheme>() -> Result<Arc<dyn Space>, vmalab_fault_handler::Error> {
        let bytes = crate::stage::PAGES * vmalab::addr::PAGE_SIZE;
        let space = AddressSpace::<S>::builder().region(bytes).pager(AnyPager::Stamped).build()?;
        Ok(Arc::new(Real::<S>(space)))
    }
    match lock {
        Lock::Mmap => new::<MmapOnly>(),
        Lock::Rcu => new::<Rcu>(),
        Lock::TypeSafe => new::<TypeSafe>(),
        Lock::RefCount => new::<RefCount>(),
    }
}

/// What a run has to tell, also when it ends in a signal handler.
struct Tale {
    began: Instant,
    iterations: u64,
    interleaving: Vec<String>,
}

static TALE: Mutex<Option<Tale>> = Mutex::new(None);

/// Prints the outcome and ends the process.
fn tell(violation: Option<Violation>) -> ! {
    // Not waited for: whoever has it may be standing still.
    let tale = TALE.try_lock().ok().and_then(|mut tale| tale.take());
    let (iterations, interleaving, ns) =
        tale.map_or((0, Vec::new(), 0), |t| (t.iterations, t.interleaving, t.began.elapsed().as_nanos() as u64));
    let ns_to_catch = violation.is_some().then_some(ns);
    let outcome = Outcome { iterations, violation, ns_to_catch, interleaving };
    println!("{}", serde_json::to_string(&outcome).expect("an outcome is JSON"));
    // SAFETY: ends the process at once; actors may be held in signal handlers.
    unsafe { libc::_exit(0) }
}

fn report(oracle: Oracle, what: &str) -> ! {
    tell(Some(Violation { oracle: oracle.name().to_string(), what: what.to_string() }))
}

/// Plays `race` under `lock` `iterations` times, prints the [`Outcome`] as
/// JSON and ends the process: status 0, or [`CANNOT`] with the reason on
/// standard error.
pub fn child(race: &'static Race, lock: Lock, mutant: bool, iterations: u64) -> ! {
    if let Err(error) = real(lock) {
        eprintln!("{error}");
        std::process::exit(CANNOT);
    }
    if let Some(knob) = race.knob {
        set_knob(knob, true);
    }
    set_reporter(report);
    std::panic::set_hook(Box::new(|info| {
        let text = info
            .payload()
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| info.payload().downcast_ref::<&str>().map(|text| text.to_string()))
            .unwrap_or_else(|| info.to_string());
        tell(Some(Violation::from_message(&text)))
    }));
    let tale = |f: &mut dyn FnMut(&mut Tale)| {
        if let Some(tale) = TALE.lock().expect("tale").as_mut() {
            f(tale);
        }
    };
    *TALE.lock().expect("tale") = Some(Tale { began: Instant::now(), iterations: 0, interleaving: Vec::new() });
    for _ in 0..iterations {
        tale(&mut |tale| {
            tale.iterations += 1;
            tale.interleaving.clear();
        });
        let stage = Stage::new(race, |kind, base| match kind {
            Kind::Real => real(lock).expect("another address space"),
            Kind::Twin => soft(lock, base),
        });
        set_mutant(mutant.then_some(race.mutant));
        script::play(race, &stage, &mut |line| tale(&mut |tale| tale.interleaving.push(line.clone())));
        script::afterwards(|| {
            stage.finish(race);
            drop(stage);
        });
        set_mutant(None);
    }
    tell(None)
}

/// Runs `command`, which is to end in [`child`], and waits for what it tells.
/// One that does not end is killed: a violation of O5.
///
/// # Errors
/// What the child said if it could not do it (status [`CANNOT`]), or why it
/// could not be started.
pub fn in_child(command: &mut Command, patience: Duration) -> Result<Outcome, String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a process for the race: {error}"))?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() > patience => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(ended_badly("O5", "the run did not end and was killed".to_string(), began));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(format!("cannot wait for the race's process: {error}")),
        }
    };
    let (mut out, mut err) = (String::new(), String::new());
    let _ = child.stdout.take().expect("piped").read_to_string(&mut out);
    let _ = child.stderr.take().expect("piped").read_to_string(&mut err);
    if status.code() == Some(CANNOT) {
        return Err(err.trim().to_string());
    }
    match out.lines().last().and_then(|line| serde_json::from_str(line).ok()) {
        Some(outcome) => Ok(outcome),
        None => Ok(ended_badly("O6", format!("the run ended with {status}: {}", err.trim()), began)),
    }
}

fn ended_badly(oracle: &str, what: String, began: Instant) -> Outcome {
    Outcome {
        iterations: 1,
        violation: Some(Violation { oracle: oracle.to_string(), what }),
        ns_to_catch: Some(began.elapsed().as_nanos() as u64),
        interleaving: Vec::new(),
    }
}
