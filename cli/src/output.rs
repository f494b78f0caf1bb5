//! Where results go: standard output, and the files of `--json` and `--html`.

use crate::failure::Failure;
use serde::Serialize;
use std::fs::{self, File};
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
    File(OutFile),
}

/// The file of an option. What it held stays until there is a result; if there
/// never is one, a file that was not there before goes away again.
#[derive(Debug)]
pub struct OutFile {
    file: File,
    path: PathBuf,
    remove: bool,
}

impl Json {
    /// Opens what `--json` names.
    pub fn open(path: Option<&Path>) -> Result<Json, Failure> {
        match path {
            None => Ok(Json::None),
            Some(path) if path == "-" => Ok(Json::Stdout),
            Some(path) => OutFile::of_option("--json", path, ", or '-'").map(Json::File),
        }
    }

    /// Writes the object where `--json` asked for it, and the table if standard output is free.
    pub fn write(self, object: &impl Serialize, table: impl FnOnce() -> String) -> Result<(), Failure> {
        match self {
            Json::None => print(&table()),
            Json::Stdout => print_json(object),
            Json::File(mut file) => {
                // The table first: it must not be lost with a full disk.
                let printed = print(&table());
                file.replace(&to_line(object))?;
                printed
            }
        }
    }
}

/// Where `--html FILE` sends its page, opened before the run.
#[derive(Debug)]
pub struct Html(Option<OutFile>);

impl Html {
    /// Opens what `--html` names.
    pub fn open(path: Option<&Path>) -> Result<Html, Failure> {
        if path.is_some_and(|path| path == "-") {
            return Err(Failure::usage("--html writes a page to a file: name one, for example --html report.html"));
        }
        path.map(|path| OutFile::of_option("--html", path, "")).transpose().map(Html)
    }

    /// Whether `--html` was given.
    pub fn wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Writes the page, if it was asked for.
    pub fn write(self, page: impl FnOnce() -> String) -> Result<(), Failure> {
        self.0.map_or(Ok(()), |mut file| file.replace(&page()))
    }
}

impl OutFile {
    /// `or`: what else could be named.
    fn of_option(option: &str, path: &Path, or: &str) -> Result<OutFile, Failure> {
        OutFile::open(path).map_err(|e| {
            Failure::usage(format!(
                "cannot write {option} {}: {}; name a file in a folder you may write to{or}",
                path.display(),
                reason(&e)
            ))
        })
    }

    fn replace(&mut self, text: &str) -> Result<(), Failure> {
        self.rewrite(text).map_err(|e| Failure::cannot(format!("cannot write {}: {}", self.path.display(), reason(&e))))
    }

    fn open(path: &Path) -> io::Result<OutFile> {
        let (file, remove) = match File::create_new(path) {
            Ok(file) => (file, true),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => (File::options().write(true).open(path)?, false),
            Err(e) => return Err(e),
        };
        Ok(OutFile { file, path: path.to_path_buf(), remove })
    }

    /// Replaces what the file held. A device or a pipe is only written to.
    fn rewrite(&mut self, text: &str) -> io::Result<()> {
        self.remove = false;
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        self.file.write_all(text.as_bytes())?;
        self.file.flush()
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        if self.remove {
            // Nothing to be done if it fails: an empty file stays.
            let _ = fs::remove_file(&self.path);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_result_is_left_as_it_was() {
        let path = std::env::temp_dir().join(format!("vmalab-output-{}.json", std::process::id()));
        drop(Json::open(Some(&path)).unwrap());
        assert!(!path.exists(), "an empty file was left behind");
        fs::write(&path, "older result, a long one").unwrap();
        drop(Json::open(Some(&path)).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "older result, a long one");
        Json::open(Some(&path)).unwrap().write(&[1], String::new).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[1]\n");
        fs::remove_file(&path).unwrap();
    }
}
