//! TLB shootdowns: how often the host interrupted a CPU because another one
//! removed or protected pages. A fault that meets one waits for it, so where
//! they are more than one for a hundred faults they are the p99.

use std::fs;

/// Interrupts of all CPUs since the host began, whatever process they were for;
/// `None` where the host does not tell.
pub(crate) fn total() -> Option<u64> {
    of_text(&fs::read_to_string("/proc/interrupts").ok()?)
}

/// The numbers of the row `TLB`, one for each CPU, before its description.
fn of_text(interrupts: &str) -> Option<u64> {
    let row = interrupts.lines().find_map(|line| line.trim_start().strip_prefix("TLB:"))?;
    Some(row.split_whitespace().map_while(|word| word.parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_cpus_count() {
        let text = "            CPU0       CPU1\n  0:  12  0  IO-APIC  2-edge  timer\nCAL: 9 9 Function call interrupts\n\
                    TLB:        120         34   TLB shootdowns\nTRM: 5 5 Thermal event interrupts\n";
        assert_eq!(of_text(text), Some(154));
        assert_eq!(of_text("CPU0\nLOC: 5 Local timer interrupts\n"), None);
    }
}
