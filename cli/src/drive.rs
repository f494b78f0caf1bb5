//! Runs workloads: watches for Ctrl-C and shows progress meanwhile.

use crate::failure::{Failure, status};
use crate::interrupt::Interrupt;
use crate::units::{nanoseconds, rate};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;
use vmalab_workloads::{Control, Progress, RunError, Stage, StressConfig, StressReport, Timeline};

/// How often Ctrl-C is looked for and the progress line renewed.
const TICK: Duration = Duration::from_millis(50);

/// Runs workloads one after the other, all ended by the same Ctrl-C.
pub struct Driver {
    interrupt: Interrupt,
    control: Control,
    terminal: bool,
}

impl Driver {
    /// Catches Ctrl-C from now on.
    pub fn new() -> Result<Driver, Failure> {
        Ok(Driver {
            interrupt: Interrupt::install()?,
            control: Control::new(),
            terminal: std::io::stderr().is_terminal(),
        })
    }

    /// Whether Ctrl-C came.
    pub fn interrupted(&self) -> bool {
        self.interrupt.came()
    }

    /// What catches Ctrl-C.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// One run. `label` begins the progress line.
    pub fn run(&self, config: &StressConfig, label: &str) -> Result<StressReport, Failure> {
        self.watch(config, label, |control| vmalab_workloads::run(config, control))
    }

    /// The same with a timeline of the last `events` of each thread.
    pub fn run_recorded(
        &self,
        config: &StressConfig,
        label: &str,
        events: usize,
    ) -> Result<(StressReport, Timeline), Failure> {
        self.watch(config, label, |control| vmalab_workloads::run_recorded(config, control, events))
    }

    fn watch<V>(
        &self,
        config: &StressConfig,
        label: &str,
        run: impl FnOnce(&Control) -> Result<V, RunError>,
    ) -> Result<V, Failure> {
        let bar = self.progress_bar(config, label);
        let (done, watch) = mpsc::channel::<()>();
        let report = thread::scope(|scope| {
            let bar = &bar;
            scope.spawn(move || {
                // Ends when `done` is dropped.
                while watch.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    if self.interrupt.came() {
                        self.control.stop();
                    }
                    if self.terminal {
                        show(bar, config, &self.control.progress());
                    }
                }
            });
            let report = run(&self.control);
            drop(done);
            report
        });
        bar.finish_and_clear();
        report.map_err(failure)
    }

    /// Sets a run up and ends it at once: whether it can be made at all.
    pub fn rehearse(&self, config: &StressConfig) -> Result<(), Failure> {
        let stopped = Control::new();
        stopped.stop();
        vmalab_workloads::run(config, &stopped).map(drop).map_err(failure)
    }

    fn progress_bar(&self, config: &StressConfig, label: &str) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        }
        let (bar, template) = match config.ops.or_else(|| duration_ms(config)) {
            Some(total) => (ProgressBar::new(total), "{prefix} [{bar:12}] {wide_msg}"),
            None => (ProgressBar::new_spinner(), "{prefix} {spinner} {wide_msg}"),
        };
        let style = ProgressStyle::with_template(template).expect("the templates above are valid");
        bar.with_style(style.progress_chars("=> ")).with_prefix(label.to_owned())
    }
}

fn duration_ms(config: &StressConfig) -> Option<u64> {
    config.effective_duration().map(|duration| duration.as_millis() as u64)
}

fn show(bar: &ProgressBar, config: &StressConfig, progress: &Progress) {
    let seconds = progress.elapsed.as_secs_f64();
    match progress.stage {
        Stage::SetUp => bar.set_message("setting up"),
        Stage::WarmUp => bar.set_message("warming up"),
        Stage::TearDown => bar.set_message("checking"),
        Stage::Measure => {
            bar.set_position(if config.ops.is_some() { progress.ops } else { progress.elapsed.as_millis() as u64 });
            bar.set_message(measured(progress, seconds));
        }
    }
    bar.tick();
}

fn measured(progress: &Progress, seconds: f64) -> String {
    let faults_per_s = if seconds > 0.0 { progress.faults as f64 / seconds } else { 0.0 };
    let p99 = progress.recent_fault_ns_p99.map_or_else(String::new, |ns| format!(", p99 {}", nanoseconds(ns as f64)));
    let fallbacks = 100.0 * progress.fallbacks as f64 / progress.faults.max(1) as f64;
    format!("{seconds:.1} s, {} faults/s{p99}, fallbacks {fallbacks:.1}%", rate(faults_per_s))
}

fn failure(error: RunError) -> Failure {
    match error {
        RunError::Usage(_) => Failure::usage(error.to_string()),
        RunError::Unsupported(_) => Failure::cannot(format!("{error} ('vmalab doctor' checks this machine)")),
        RunError::Internal(_) => Failure::with_status(status::VIOLATION, error.to_string()),
    }
}
