//! Builds that a command has cargo make inside a checkout: the models of
//! `race`, the recorder of `conflicts`.

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

const TICK: Duration = Duration::from_millis(20);

/// A build that a script of the checkout makes.
pub struct Build {
    /// Whose build it is, for messages: `'--executor loom'`.
    pub what: String,
    /// The script, relative to the checkout.
    pub script: &'static str,
    /// Its only argument.
    pub argument: &'static str,
    /// What it makes, relative to the checkout.
    pub program: String,
}

/// What a build made.
pub struct Built {
    /// The checkout.
    pub root: PathBuf,
    /// The program.
    pub program: PathBuf,
}

impl Build {
    /// Has it made. `None`: interrupted.
    pub fn make(&self, interrupt: &Interrupt) -> Result<Option<Built>, Failure> {
        let here =
            std::env::current_dir().map_err(|e| Failure::cannot(format!("cannot tell the current folder: {e}")))?;
        let Some(root) = here.ancestors().find(|folder| is_checkout(folder)) else {
            let what = &self.what;
            return Err(Failure::cannot(format!(
                "{what} has a build of its own, which cargo makes: call it inside a checkout of vmalab"
            )));
        };
        let built = self.cargo(root, interrupt)?;
        Ok(built.then(|| Built { root: root.to_path_buf(), program: root.join(&self.program) }))
    }

    /// Whether it was built; not if Ctrl-C came. What cargo says is shown on a
    /// terminal, and when it fails.
    fn cargo(&self, root: &Path, interrupt: &Interrupt) -> Result<bool, Failure> {
        let failed = |why: String| Failure::cannot(format!("{} {}: {why}", self.script, self.argument));
        let terminal = std::io::stderr().is_terminal();
        let mut child = Command::new(root.join(self.script))
            .arg(self.argument)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(if terminal { Stdio::inherit() } else { Stdio::piped() })
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        let said = child.stderr.take().map(read_all);
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
        Err(failed(format!("it cannot be built ({status})")))
    }
}

impl Built {
    /// Runs the program in the checkout and returns what it prints. `None`:
    /// interrupted.
    pub fn ask(&self, argument: &str, interrupt: &Interrupt) -> Result<Option<String>, Failure> {
        let failed = |why: String| Failure::cannot(format!("{}: {why}", self.program.display()));
        let mut child = Command::new(&self.program)
            .arg(argument)
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        // Read while it runs: a full pipe would stop it.
        let out = read_all(child.stdout.take().expect("piped"));
        let err = read_all(child.stderr.take().expect("piped"));
        let status = loop {
            if interrupt.came() {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(None);
            }
            match child.try_wait().map_err(|e| failed(e.to_string()))? {
                Some(status) => break status,
                None => thread::sleep(TICK),
            }
        };
        if status.success() {
            return Ok(Some(out.join().unwrap_or_default()));
        }
        let said = err.join().unwrap_or_default();
        let said = said.trim();
        Err(if status.code() == Some(3) { Failure::cannot(said) } else { failed(format!("{status}: {said}")) })
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Whether this is the root of vmalab's workspace.
fn is_checkout(folder: &Path) -> bool {
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
    let ours = ["[workspace]", "name = \"vmalab\""].iter().all(|line| manifest.lines().any(|l| l.trim() == *line));
    ours && folder.join("races/Cargo.toml").is_file() && folder.join("scripts/models.sh").is_file()
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
