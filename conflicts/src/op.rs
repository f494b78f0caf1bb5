//! The operations that are paired.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One operation on a place of its own: a VMA of 16 pages with room around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// A load from a missing page.
    FaultRead,
    /// A store to a missing page of a VMA that was stored to before.
    FaultWrite,
    /// The first store ever to a VMA: gives it its `anon_vma`.
    FaultFirst,
    /// A mapping where there was none.
    Mmap,
    /// The end of a mapping with pages.
    Munmap,
    /// A whole mapping made read-only.
    Mprotect,
    /// A mapping moved with its pages.
    Mremap,
    /// MADV_DONTNEED of a mapping with pages.
    Dontneed,
    /// A list of all mappings.
    Maps,
}

impl Op {
    /// All, in the order of the table.
    pub const ALL: [Op; 9] = [
        Op::FaultRead,
        Op::FaultWrite,
        Op::FaultFirst,
        Op::Mmap,
        Op::Munmap,
        Op::Mprotect,
        Op::Mremap,
        Op::Dontneed,
        Op::Maps,
    ];

    /// As typed and printed.
    pub fn name(self) -> &'static str {
        match self {
            Op::FaultRead => "fault-read",
            Op::FaultWrite => "fault-write",
            Op::FaultFirst => "fault-first",
            Op::Mmap => "mmap",
            Op::Munmap => "munmap",
            Op::Mprotect => "mprotect",
            Op::Mremap => "mremap",
            Op::Dontneed => "dontneed",
            Op::Maps => "maps",
        }
    }

    /// The operation of that name.
    pub fn find(name: &str) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.name() == name)
    }

    /// Every pair once, an operation with itself too.
    pub fn pairs() -> Vec<(Op, Op)> {
        let with_later = |(i, &a): (usize, &Op)| Op::ALL[i..].iter().map(move |&b| (a, b));
        Op::ALL.iter().enumerate().flat_map(with_later).collect()
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where the second operation of a pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// In another VMA of the same address space.
    SameMm,
    /// In another address space.
    OtherMm,
}

impl Relation {
    /// Both.
    pub const ALL: [Relation; 2] = [Relation::SameMm, Relation::OtherMm];

    /// As printed.
    pub fn title(self) -> &'static str {
        match self {
            Relation::SameMm => "one address space",
            Relation::OtherMm => "two address spaces",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_json() {
        for op in Op::ALL {
            assert_eq!(serde_json::to_string(&op).unwrap(), format!("{:?}", op.name()));
            assert_eq!(Op::find(op.name()), Some(op));
        }
        assert_eq!(Op::pairs().len(), 45);
    }
}
