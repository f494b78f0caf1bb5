//! What came of a run.

use serde::{Deserialize, Serialize};

/// What an oracle reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// `O1` ... `O6`.
    pub oracle: String,
    /// In words.
    pub what: String,
}

/// One run of an entry under one lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Runs of the script, or schedules explored.
    pub iterations: u64,
    /// The first violation; nothing runs after it.
    pub violation: Option<Violation>,
    /// From the start of the exploration to the violation, in ns.
    pub ns_to_catch: Option<u64>,
    /// How the script went: each step, and where it ended. Empty in a model.
    pub interleaving: Vec<String>,
}

impl Violation {
    /// From a panic's message: `O3: what`. Any other panic is an assertion about
    /// the state at rest, O4.
    pub fn from_message(message: &str) -> Violation {
        let (oracle, what) = match message.split_once(": ") {
            Some((name, what)) if vmalab::races::Oracle::ALL.iter().any(|o| o.name() == name) => (name, what),
            _ if message.contains("deadlock") => ("O5", message),
            // loom: two threads at the same memory, one of them writing.
            _ if message.contains("Causality violation") => ("O6", message),
            _ => ("O4", message),
        };
        Violation { oracle: oracle.to_string(), what: what.lines().next().unwrap_or_default().to_string() }
    }
}
