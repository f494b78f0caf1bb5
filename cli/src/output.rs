//! Where results go: standard output, and the file of `--json`.

use crate::failure::Failure;
use serde::Serialize;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Where `--json FILE|-` sends its object. Opened before the run, so that a
/// bad path costs nobody a measurement.
#[derive(Debug)]
pub enum Json {
    /// No `--json`: the table goes to standard output.
    None,
    /// `-`: the object takes the place of the table.
    Stdout,
    /// The object goes to the file, the table to standard output.
    File(File, PathBuf),
}

impl Json {
    /// Opens what `--json` names.
    pub fn open(path: Option<&Path>) -> Result<Json, Failure> {
        match path {
            None => Ok(Json::None),
            Some(path) if path == "-" => Ok(Json::Stdout),
            Some(path) => {
                // Not truncated here: if the run fails, an older result stays.
                let file = File::options().write(true).create(true).truncate(false).open(path).map_err(|e| {
                    Failure::usage(format!(
                        "cannot write --json {}: {}; name a file in a folder you may write to, or '-'",
                        path.display(),
                        reason(&e)
                    ))
                })?;
                Ok(Json::File(file, path.to_path_buf()))
            }
        }
    }

    /// Writes the object where `--json` asked for it, and the table if standard output is free.
    pub fn write(self, object: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), Failure> {
        match self {
            Json::None => print(&table()),
            Json::Stdout => print(&to_line(object)),
            Json::File(mut file, path) => {
                // The table first: it must not be lost with a full disk.
                let printed = print(&table());
                rewrite(&mut file, &to_line(object))
                    .map_err(|e| Failure::cannot(format!("cannot write {}: {}", path.display(), reason(&e))))?;
                printed
            }
        }
    }
}

/// Replaces what the file held. A device or a pipe is only written to.
fn rewrite(file: &mut File, text: &str) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    file.write_all(text.as_bytes())?;
    file.flush()
}

fn to_line(object: &impl Serialize) -> String {
    let mut text = serde_json::to_string(object).expect("plain structs with string keys always serialise");
    text.push('\n');
    text
}

/// Prints an object on standard output.
pub fn print_json(object: &impl Serialize) -> Result<(), Failure> {
    print(&to_line(object))
}

/// Prints on standard output. A reader that left early (`| head`) is no failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::cannot(format!("cannot write to standard output: {}", reason(&e))))
        }
        _ => Ok(()),
    }
}

/// An error's text without "(os error N)".
fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
