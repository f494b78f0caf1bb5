//! Floors: what a mechanism costs on this machine with nothing of vmalab
//! around it. Nobody's page fault can be cheaper than the signal, the ioctl and
//! the return that it consists of; a result means something only beside them.
//!
//! [`Floor::all`] lists them, [`Floor::measure`] measures one. Used by `vmalab
//! limits`, and by `vmalab stress` for the floor of what it has just run.
//!
//! How it is measured:
//! - each thread is pinned to a CPU of its own, and does the same as the others
//!   (or, where a lone caller is the point, the others spin);
//! - the first pass of every thread is thrown away: memory that was not used
//!   lately costs ten times as much where a hypervisor takes it back. Later
//!   passes work on the very same pages;
//! - a sample is one operation with the clock's own time in it, as in the
//!   workloads; of what takes less than a microsecond, the mean of a few dozen;
//! - where one operation installs several pages, a sample is the time in which
//!   all of them were touched, divided by their number.
//!
//! | module | what |
//! |---|---|
//! | `crew` | threads, pinning, passes, samples |
//! | `calls` | system calls, the host's own faults |
//! | `bare` | memory under userfaultfd and the one ioctl that serves a fault |
//! | `signal` | the signal handler around that ioctl |
//! | `queue` | the handler thread around it |
//! | `foreign` | how busy others kept the machine |
//! | [`mod@bench`] | the floors that a benchmark wants to run itself, beside what it measures |
//! | `lookup` | vmalab's tree: the one floor that is our own |

mod bare;
pub mod bench;
mod calls;
mod crew;
mod foreign;
mod lookup;
mod memory;
mod queue;
mod signal;

use bare::Install;
use crew::{Probe, Spin, run};
pub use foreign::Foreign;
pub use hdrhistogram::Histogram;
use nix::errno::Errno;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Why a floor cannot be measured here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    fn call(call: &str, errno: Errno) -> Reason {
        Reason(format!("{call}: {errno}"))
    }

    /// The calling thread's errno.
    fn last(call: &str) -> Reason {
        Reason::call(call, Errno::last())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reason {}

/// How a page is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Read.
    Load,
    /// Written.
    Store,
}

/// Where the handler thread of a queue runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    /// On the CPU of the thread that faults.
    Same,
    /// On another one.
    Apart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Syscall,
    Membarrier,
    SignalRoundTrip,
    SigbusRoundTrip,
    NativeFault(Touch),
    MmapMunmap,
    DontNeed,
    Lookup,
    Sigbus(Install, Touch),
    Queue(Install, Touch, Handler),
}

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    base: &'static str,
    title: &'static str,
    kind: Kind,
    pages: usize,
}

/// Pages that one installation brings.
const BATCHES: [usize; 3] = [1, 16, 64];

impl Floor {
    /// Every floor, in the order of a report.
    pub fn all() -> Vec<Floor> {
        use Install::*;
        use Touch::*;
        let one = |base, title, kind| Floor { base, title, kind, pages: 1 };
        let mut all = vec![
            one("syscall", "system call (getppid)", Kind::Syscall),
            one("membarrier", "membarrier, others running", Kind::Membarrier),
            one("signal_round_trip", "SIGSEGV and back", Kind::SignalRoundTrip),
            one("sigbus_round_trip", "SIGBUS of a uffd page and back", Kind::SigbusRoundTrip),
            one("native_fault", "host fault, store", Kind::NativeFault(Store)),
            one("native_fault_load", "host fault, load", Kind::NativeFault(Load)),
            one("native_mmap_munmap", "host mmap + munmap", Kind::MmapMunmap),
        ];
        let mut batched = |base, title, kind| all.extend(BATCHES.map(|pages| Floor { base, title, kind, pages }));
        batched("dontneed", "MADV_DONTNEED", Kind::DontNeed);
        batched("sigbus_zeropage", "sigbus ZEROPAGE, load", Kind::Sigbus(ZeroPage, Load));
        batched("sigbus_copy", "sigbus COPY, store", Kind::Sigbus(Copy, Store));
        batched("sigbus_move", "sigbus MOVE, store", Kind::Sigbus(Move, Store));
        batched("sigbus_continue", "sigbus CONTINUE, store", Kind::Sigbus(Continue, Store));
        batched("queue_zeropage", "queue ZEROPAGE, load", Kind::Queue(ZeroPage, Load, Handler::Same));
        batched("queue_copy", "queue COPY, store", Kind::Queue(Copy, Store, Handler::Same));
        batched("queue_move", "queue MOVE, store", Kind::Queue(Move, Store, Handler::Same));
        batched("queue_continue", "queue CONTINUE, store", Kind::Queue(Continue, Store, Handler::Same));
        all.extend([
            one("sigbus_zeropage_store", "sigbus ZEROPAGE, store", Kind::Sigbus(ZeroPage, Store)),
            one("queue_copy_apart", "queue COPY, handler elsewhere", Kind::Queue(Copy, Store, Handler::Apart)),
            one("lookup", "look-up among 1000 VMAs", Kind::Lookup),
        ]);
        all
    }

    /// The floor named `base`, of one page.
    pub fn find(base: &str) -> Option<Floor> {
        Floor::all().into_iter().find(|floor| floor.base == base && floor.pages == 1)
    }

    /// What people call it.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// Pages that one operation brings or drops, where it is about pages.
    pub fn pages(&self) -> Option<usize> {
        let paged = !matches!(
            self.kind,
            Kind::Syscall
                | Kind::Membarrier
                | Kind::SignalRoundTrip
                | Kind::SigbusRoundTrip
                | Kind::MmapMunmap
                | Kind::Lookup
        );
        paged.then_some(self.pages)
    }

    /// Its key in JSON: `sigbus_copy`, `sigbus_copy_16`, `sigbus_copy_16_2t`.
    pub fn key(&self, threads: usize) -> String {
        let pages = if self.pages > 1 { format!("_{}", self.pages) } else { String::new() };
        let threads = if threads > 1 { format!("_{threads}t") } else { String::new() };
        format!("{}{pages}{threads}", self.base)
    }

    /// Whether it is a floor with so many threads: a handler on a CPU of its
    /// own is for one thread only.
    pub fn takes(&self, threads: usize) -> bool {
        threads == 1 || !matches!(self.kind, Kind::Queue(.., Handler::Apart))
    }

    /// Measures it with so many threads for about `budget` (at least two
    /// passes): ns per operation, or per page. One measurement at a time in a
    /// process: others wait. While it runs, SIGBUS and SIGSEGV have the
    /// handlers of this crate: nobody else may fault on a region meanwhile.
    ///
    /// # Errors
    /// [`Reason`]: what this machine or user lacks.
    pub fn measure(&self, threads: usize, budget: Duration) -> Result<Histogram<u64>, Reason> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = self.pages;
        match self.kind {
            Kind::Syscall => run(threads, budget, |_| boxed(Ok(calls::Getppid))),
            Kind::Membarrier => run(threads, budget, |place| match place.worker {
                0 => boxed(calls::Membarrier::new()),
                _ => boxed(Ok(Spin)),
            }),
            Kind::SignalRoundTrip => {
                let _handler = signal::install(libc::SIGSEGV)?;
                run(threads, budget, |_| boxed(signal::RoundTrip::sigsegv()))
            }
            Kind::SigbusRoundTrip => {
                let _handler = signal::install(libc::SIGBUS)?;
                run(threads, budget, |_| boxed(signal::RoundTrip::sigbus()))
            }
            Kind::NativeFault(touch) => run(threads, budget, |_| boxed(calls::NativeFault::new(touch))),
            Kind::MmapMunmap => run(threads, budget, |_| boxed(Ok(calls::MmapMunmap))),
            Kind::DontNeed => run(threads, budget, |_| boxed(calls::DontNeed::new(pages))),
            Kind::Lookup => {
                let map = lookup::Map::new()?;
                run(threads, budget, |place| boxed(Ok(map.probe(place.worker))))
            }
            Kind::Sigbus(install, touch) => {
                let _handler = signal::install(libc::SIGBUS)?;
                run(threads, budget, |_| boxed(signal::Served::new(install, touch, pages)))
            }
            Kind::Queue(install, touch, handler) => {
                run(threads, budget, |place| boxed(queue::Served::new(install, touch, pages, handler, place)))
            }
        }
    }
}

/// CPUs that this process may use.
pub fn cpus() -> usize {
    crew::cpus().map_or(1, |cpus| cpus.len())
}

/// Keeps the calling thread on the `worker`-th of the CPUs that this process may use.
///
/// # Errors
/// [`Reason`]: there are fewer.
pub fn pin_to_nth_cpu(worker: usize) -> Result<(), Reason> {
    let cpus = crew::cpus()?;
    let cpu = cpus.get(worker).ok_or_else(|| Reason(format!("this process may use {} CPUs only", cpus.len())))?;
    crew::pin(*cpu)
}

fn boxed<P: Probe + 'static>(probe: Result<P, Reason>) -> Result<Box<dyn Probe>, Reason> {
    Ok(Box::new(probe?))
}

#[cfg(test)]
mod tests;
