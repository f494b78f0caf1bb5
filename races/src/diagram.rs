//! A script as a picture: a column for each thread, time downwards.

use crate::race::{Race, Step};
use std::fmt::Write;

/// No line is longer.
pub const WIDTH: usize = 100;
/// Widest column.
const COLUMN_MAX: usize = 44;
const NUMBER: usize = 4;
const GAP: usize = 3;

const RUNS: &str = "┃";
const STOPS: &str = "┻";
const STANDS: &str = "┊";

/// What a thread is between its steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    NotBegun,
    Stands,
    Done,
}

/// Lines of at most [`WIDTH`] characters.
pub fn diagram(race: &Race) -> String {
    let threads = race.actors.len();
    let column = COLUMN_MAX.min((WIDTH - NUMBER) / threads - GAP);
    let mut rows = Rows { text: String::new(), column };
    let header: Vec<Vec<String>> =
        race.actors.iter().map(|actor| [vec![actor.name.to_string()], wrap(actor.does, column)].concat()).collect();
    let height = header.iter().map(Vec::len).max().unwrap_or(0);
    for i in 0..height {
        rows.push("", header.iter().map(|lines| lines.get(i).map_or("", String::as_str)));
    }
    let rule = "─".repeat(column);
    rows.push("", race.actors.iter().map(|_| rule.as_str()));

    let mut states = vec![State::NotBegun; threads];
    for (i, step) in race.script.iter().enumerate() {
        let last = !race.script[i + 1..].iter().any(|later| later.actor == step.actor);
        let first = states[step.actor] == State::NotBegun;
        for (line, text) in step_lines(step, first, last, column).iter().enumerate() {
            let number = if line == 0 { format!("{:>2}", i + 1) } else { String::new() };
            rows.push(
                &number,
                states.iter().enumerate().map(|(actor, state)| match (actor == step.actor, state) {
                    (true, _) => text.as_str(),
                    (false, State::Stands) => STANDS,
                    (false, State::NotBegun | State::Done) => "",
                }),
            );
        }
        states[step.actor] = if last && step.until.is_none() { State::Done } else { State::Stands };
    }
    if states.iter().any(|&state| state != State::Done) {
        rows.push("", states.iter().map(|&state| if state == State::Done { "" } else { RUNS }));
        rows.push("", states.iter().map(|&state| if state == State::Done { "" } else { "┻ runs freely, to its end" }));
    }
    rows.text
}

/// What the thread that runs shows.
fn step_lines(step: &Step, first: bool, last: bool, column: usize) -> Vec<String> {
    let mut lines = vec![format!("{RUNS} {}", if first { "starts" } else { "goes on" })];
    match step.until {
        Some(point) => {
            lines.push(format!("{STOPS} held at {}:", point.name()));
            let place = wrap(point.place(), column - 2);
            lines.extend(place.iter().map(|line| format!("{STANDS} {line}")));
        }
        None if last => lines.push(format!("{STOPS} to its end")),
        None => lines.push(format!("{STOPS} until it has to wait")),
    }
    lines
}

struct Rows {
    text: String,
    column: usize,
}

impl Rows {
    fn push<'a>(&mut self, number: &str, cells: impl Iterator<Item = &'a str>) {
        let mut line = format!("{number:NUMBER$}");
        for cell in cells {
            let _ = write!(line, "{cell:0$}{1:GAP$}", self.column, "");
        }
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }
}

/// Lines of at most `width` characters, broken at spaces.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("never empty");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_string());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CATALOGUE, find};

    #[test]
    fn who_runs_and_who_stands_still() {
        let text = diagram(find("reuse-other-mm").unwrap());
        let expected = "
    fault                                          mutator
    loads from page 1 of address space A           unmaps page 1 of A, then maps page 1 of B
    ────────────────────────────────────────────   ────────────────────────────────────────────
 1  ┃ starts
    ┻ held at H1:
    ┊ after the tree walk
 2  ┊                                              ┃ starts
    ┊                                              ┻ to its end
 3  ┃ goes on
    ┻ to its end
";
        assert_eq!(text, expected.trim_start_matches('\n'));
    }

    #[test]
    fn every_entry_fits() {
        for race in CATALOGUE {
            for line in diagram(race).lines() {
                assert!(line.chars().count() <= WIDTH, "{}: {line}", race.name);
            }
        }
    }

    #[test]
    fn wraps_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("unbreakable", 3), ["unbreakable"]);
        assert_eq!(wrap("", 3), [""]);
    }
}
