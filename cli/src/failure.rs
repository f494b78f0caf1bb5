//! Why a command ends without having done its work.

use std::fmt;

/// Exit statuses that scripts rely on.
pub mod status {
    /// Done, nothing wrong.
    pub const DONE: u8 = 0;
    /// A violation was found.
    pub const VIOLATION: u8 = 1;
    /// Bad usage.
    pub const USAGE: u8 = 2;
    /// This machine, user or build cannot do it.
    pub const CANNOT: u8 = 3;
    /// Interrupted; what was measured until then was printed.
    pub const INTERRUPTED: u8 = 130;
}

/// One line for standard error, and the exit status.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    message: String,
}

impl Failure {
    /// The command line asks for what cannot be meant.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { status: status::USAGE, message: message.into() }
    }

    /// This machine, user or build cannot do it.
    pub fn cannot(message: impl Into<String>) -> Failure {
        Failure { status: status::CANNOT, message: message.into() }
    }

    /// Another reason.
    pub fn with_status(status: u8, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into() }
    }

    /// Says which subject of a comparison it befell.
    pub fn in_subject(self, name: &str) -> Failure {
        Failure { message: format!("{name}: {}", self.message), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
