//! Names of flags, for people.

/// Names of bits, or of values.
pub type Names = &'static [(u32, &'static str)];

/// PROT_*
pub const PROT: Names =
    &[(1, "READ"), (2, "WRITE"), (4, "EXEC"), (8, "SEM"), (0x0100_0000, "GROWSDOWN"), (0x0200_0000, "GROWSUP")];

/// MREMAP_*
pub const MREMAP: Names = &[(1, "MAYMOVE"), (2, "FIXED"), (4, "DONTUNMAP")];

/// MS_*
pub const MSYNC: Names = &[(1, "ASYNC"), (2, "INVALIDATE"), (4, "SYNC")];

/// MLOCK_*
pub const MLOCK2: Names = &[(1, "ONFAULT")];

/// MCL_*
pub const MCL: Names = &[(1, "CURRENT"), (2, "FUTURE"), (4, "ONFAULT")];

const MAP: Names = &[
    (0x10, "FIXED"),
    (0x20, "ANONYMOUS"),
    (0x40, "32BIT"),
    (0x100, "GROWSDOWN"),
    (0x800, "DENYWRITE"),
    (0x1000, "EXECUTABLE"),
    (0x2000, "LOCKED"),
    (0x4000, "NORESERVE"),
    (0x8000, "POPULATE"),
    (0x1_0000, "NONBLOCK"),
    (0x2_0000, "STACK"),
    (0x4_0000, "HUGETLB"),
    (0x8_0000, "SYNC"),
    (0x10_0000, "FIXED_NOREPLACE"),
];

/// MADV_*
pub const ADVICE: Names = &[
    (0, "NORMAL"),
    (1, "RANDOM"),
    (2, "SEQUENTIAL"),
    (3, "WILLNEED"),
    (4, "DONTNEED"),
    (8, "FREE"),
    (9, "REMOVE"),
    (10, "DONTFORK"),
    (11, "DOFORK"),
    (12, "MERGEABLE"),
    (13, "UNMERGEABLE"),
    (14, "HUGEPAGE"),
    (15, "NOHUGEPAGE"),
    (16, "DONTDUMP"),
    (17, "DODUMP"),
    (18, "WIPEONFORK"),
    (19, "KEEPONFORK"),
    (20, "COLD"),
    (21, "PAGEOUT"),
    (22, "POPULATE_READ"),
    (23, "POPULATE_WRITE"),
    (24, "DONTNEED_LOCKED"),
    (25, "COLLAPSE"),
    (102, "GUARD_INSTALL"),
    (103, "GUARD_REMOVE"),
];

/// `READ|WRITE`, unknown bits as a number.
pub fn bits(value: u32, names: Names) -> String {
    let mut parts: Vec<String> =
        names.iter().filter(|(bit, _)| value & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
    let unknown = names.iter().fold(value, |rest, (bit, _)| rest & !bit);
    if unknown != 0 || parts.is_empty() {
        parts.push(format!("{unknown:#x}"));
    }
    parts.join("|")
}

/// MAP_*, of which the low four bits are a number.
pub fn map_flags(flags: u32) -> String {
    let kind = match flags & 0xf {
        1 => "SHARED".to_owned(),
        2 => "PRIVATE".to_owned(),
        3 => "SHARED_VALIDATE".to_owned(),
        8 => "DROPPABLE".to_owned(),
        other => format!("type {other}"),
    };
    if flags & !0xf == 0 { kind } else { format!("{kind}|{}", bits(flags & !0xf, MAP)) }
}

/// The name of a value.
pub fn name(value: i32, names: Names) -> String {
    let known = names.iter().find(|(known, _)| i64::from(*known) == i64::from(value));
    known.map_or_else(|| value.to_string(), |(_, name)| (*name).to_owned())
}
