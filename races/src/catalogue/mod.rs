//! The entries, one file each.

mod reuse_other_mm;

use crate::race::Race;

/// Every entry, in the order of the docs.
pub static CATALOGUE: &[&Race] = &[&reuse_other_mm::RACE];

/// The entry of that name.
pub fn find(name: &str) -> Option<&'static Race> {
    CATALOGUE.iter().copied().find(|race| race.name == name)
}
