//! A reporter for programs that stress: says on standard error what was
//! violated, and ends the process. Only with the feature `races`.
//!
//! Async-signal-safe: oracles fire inside the fault path as well, where nobody
//! can unwind. One buffer, one write(2), `_exit`.

use super::{Mutant, Oracle, mutant, set_reporter};
use crate::sync::plain::{AtomicU64, Ordering};

static SEED: AtomicU64 = AtomicU64::new(0);

/// From now on a violation prints oracle, text, seed and thread to standard
/// error, and the process ends with status 1.
pub fn exit_at_violation(seed: u64) {
    SEED.store(seed, Ordering::Relaxed);
    set_reporter(report);
}

/// As much text as fits.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl Line {
    fn new() -> Line {
        Line { bytes: [0; 512], len: 0 }
    }

    fn text(&mut self, text: &str) -> &mut Line {
        // The last byte is for the end of the line.
        let n = text.len().min(self.bytes.len() - 1 - self.len);
        self.bytes[self.len..self.len + n].copy_from_slice(&text.as_bytes()[..n]);
        self.len += n;
        self
    }

    fn number(&mut self, mut number: u64) -> &mut Line {
        let mut digits = [0; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.text(std::str::from_utf8(&digits[at..]).unwrap_or("?"))
    }

    fn end(&mut self) -> &[u8] {
        self.bytes[self.len] = b'\n';
        &self.bytes[..=self.len]
    }
}

fn compose(line: &mut Line, oracle: Oracle, what: &str, seed: u64, thread: &str) {
    line.text("error: violation of ").text(oracle.name()).text(" (").text(oracle.title()).text("): ").text(what);
    line.text(" [seed ").number(seed).text(", thread ").text(thread);
    if let Some(mutant) = Mutant::ALL.iter().find(|&&m| mutant(m)) {
        line.text(", mutant ").text(mutant.name());
    }
    line.text("]");
}

fn report(oracle: Oracle, what: &str) -> ! {
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, the last of them zero.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
    let thread = std::str::from_utf8(&name[..end]).unwrap_or("?");
    let mut line = Line::new();
    compose(&mut line, oracle, what, SEED.load(Ordering::Relaxed), thread);
    let bytes = line.end();
    // SAFETY: writes the buffer; `_exit` runs nothing and does not return.
    unsafe {
        libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_oracle_text_seed_and_thread_on_one_line() {
        let mut line = Line::new();
        compose(&mut line, Oracle::O3, "a VMA changed", 1_234_567_890, "fault-0");
        assert_eq!(
            std::str::from_utf8(line.end()).unwrap(),
            "error: violation of O3 (exclusion): a VMA changed [seed 1234567890, thread fault-0]\n"
        );
    }

    #[test]
    fn a_long_text_is_cut() {
        let mut line = Line::new();
        compose(&mut line, Oracle::O1, &"x".repeat(1000), u64::MAX, "mutator-0");
        assert_eq!((line.end().len(), line.end().last()), (512, Some(&b'\n')));
    }
}
