//! The models' own builds, made by cargo inside a checkout.

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;
use vmalab_races::Executor;

const TICK: Duration = Duration::from_millis(20);

/// Builds `race-child` for the model and says where it is. `None`: interrupted.
pub fn model(executor: Executor, interrupt: &Interrupt) -> Result<Option<PathBuf>, Failure> {
    let here = std::env::current_dir().map_err(|e| Failure::cannot(format!("cannot tell the current folder: {e}")))?;
    let Some(root) = here.ancestors().find(|folder| is_checkout(folder)) else {
        return Err(Failure::cannot(format!(
            "'--executor {executor}' has a build of its own, which cargo makes: call it inside a checkout of vmalab"
        )));
    };
    let built = cargo(root, executor, interrupt)?;
    Ok(built.then(|| root.join("target").join(executor.name()).join("release/race-child")))
}

/// Whether this is the root of vmalab's workspace.
fn is_checkout(folder: &Path) -> bool {
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let ours = ["[workspace]", "name = \"vmalab\""].iter().all(|line| manifest.lines().any(|l| l.trim() == *line));
    ours && folder.join("races/Cargo.toml").is_file() && folder.join("scripts/models.sh").is_file()
}

/// Whether it was built; not if Ctrl-C came. What cargo says is shown on a
/// terminal, and when it fails.
fn cargo(root: &Path, executor: Executor, interrupt: &Interrupt) -> Result<bool, Failure> {
    let failed = |why: String| Failure::cannot(format!("scripts/models.sh {executor}: {why}"));
    let terminal = std::io::stderr().is_terminal();
    let mut child = Command::new(root.join("scripts/models.sh"))
        .arg(executor.name())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(if terminal { Stdio::inherit() } else { Stdio::piped() })
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let said = child.stderr.take().map(|mut pipe| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    });
    let status = loop {
        if interrupt.came() {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(false);
        }
        match child.try_wait().map_err(|e| failed(e.to_string()))? {
            Some(status) => break status,
            None => thread::sleep(TICK),
        }
    };
    if status.success() {
        return Ok(true);
    }
    if interrupt.came() {
        return Ok(false);
    }
    if let Some(said) = said {
        eprint!("{}", said.join().unwrap_or_default());
    }
    Err(failed(format!("the model cannot be built ({status})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_checkout() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(!is_checkout(here));
        assert!(is_checkout(here.parent().unwrap()));
        assert!(!is_checkout(Path::new("/")));
    }
}
