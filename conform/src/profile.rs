//! Named profiles: where kernel versions differ (kernel lineage §4.11).

use std::fmt;

/// Behaviour of a range of kernel versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Profile {
    /// Major and minor version of the kernel.
    pub version: (u32, u32),
}

impl Profile {
    /// The running kernel's.
    pub fn running() -> Profile {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Profile::parse(&release).unwrap_or(Profile { version: (6, 18) })
    }

    /// Of `6.18.44-something`.
    fn parse(release: &str) -> Option<Profile> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Profile { version: (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?) })
    }

    /// The version at which behaviour last changed: versions of one name behave
    /// alike in all that is compared.
    pub fn name(&self) -> &'static str {
        match self.version {
            v if v >= (6, 19) => "6.19",
            v if v >= (6, 17) => "6.17",
            v if v >= (6, 16) => "6.16",
            v if v >= (6, 15) => "6.15",
            v if v >= (6, 13) => "6.13",
            _ => "6.12",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (this is Linux {}.{})", self.name(), self.version.0, self.version.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_names() {
        assert_eq!(Profile::parse("6.18.44-fc-v669\n").unwrap().name(), "6.17");
        assert_eq!(Profile::parse("7.3.0").unwrap().name(), "6.19");
        assert_eq!(Profile::parse("x"), None);
    }
}
