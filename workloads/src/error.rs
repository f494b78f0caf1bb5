//! [`RunError`]: why there is no report.

use std::fmt;

/// Why a run gave no report. (A violation is in the report.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunError {
    /// The configuration makes no sense; the text says what would (exit status 2).
    Usage(String),
    /// This machine or user cannot do it; the text says why and what would
    /// help (exit status 3).
    Unsupported(String),
    /// The run itself failed: a call that must succeed did not, or a thread
    /// panicked. Never expected.
    Internal(String),
}

impl RunError {
    /// The exit status of the command for it.
    pub const fn exit_code(&self) -> u8 {
        match self {
            RunError::Usage(_) => 2,
            RunError::Unsupported(_) => 3,
            RunError::Internal(_) => 1,
        }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Usage(text) | RunError::Unsupported(text) => f.write_str(text),
            RunError::Internal(text) => write!(f, "the run failed: {text}"),
        }
    }
}

impl std::error::Error for RunError {}
