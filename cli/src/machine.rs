//! Where a result comes from: the machine, the build, the command.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use vmalab_workloads::Rwsem;

/// What of the machine a fault's cost depends on. What cannot be read is `null`.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// As `/proc/cpuinfo` names it.
    pub cpu: Option<String>,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Whether a hypervisor is beneath.
    pub virtual_machine: bool,
    /// Bytes.
    pub memory: Option<u64>,
    /// Release of the kernel.
    pub kernel: Option<String>,
    /// What the kernel does against each flaw of the CPU that it knows.
    pub mitigations: BTreeMap<String, String>,
    /// Transparent huge pages: the mode chosen.
    pub huge_pages: Option<String>,
    /// cpufreq's governor of the first CPU.
    pub governor: Option<String>,
}

impl Machine {
    /// Reads /proc and /sys.
    pub fn read() -> Machine {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Machine {
            cpu: field("model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            virtual_machine: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory: read("/proc/meminfo").and_then(|text| memory(&text)),
            kernel: read("/proc/sys/kernel/osrelease"),
            mitigations: mitigations(),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled").and_then(|text| chosen(&text)),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        }
    }

    /// Name and value, for people.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let unknown = || "not readable".to_owned();
        let vm = if self.virtual_machine { ", virtual machine" } else { "" };
        vec![
            ("CPU", format!("{}, {} usable{vm}", self.cpu.clone().unwrap_or_else(unknown), self.cpus)),
            (
                "memory",
                self.memory.map_or_else(unknown, |bytes| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))),
            ),
            ("kernel", self.kernel.clone().map_or_else(unknown, |release| format!("Linux {release}"))),
            ("huge pages", self.huge_pages.clone().unwrap_or_else(unknown)),
            ("governor", self.governor.clone().unwrap_or_else(unknown)),
        ]
    }
}

/// What was run.
#[derive(Clone, Debug, Serialize)]
pub struct Build {
    pub version: &'static str,
    /// Of git, and whether the sources differed from it; `None` outside a checkout.
    pub commit: Option<&'static str>,
    pub modified: Option<bool>,
    pub rustc: &'static str,
    /// Cargo's profile: `release`, `debug`.
    pub profile: &'static str,
    /// Built with the feature `races`.
    pub races: bool,
}

impl Build {
    /// As the build script found it.
    pub fn of_this() -> Build {
        let commit = option_env!("VMALAB_COMMIT");
        Build {
            version: env!("CARGO_PKG_VERSION"),
            commit,
            modified: commit.map(|_| option_env!("VMALAB_MODIFIED").is_some()),
            rustc: env!("VMALAB_RUSTC"),
            profile: env!("VMALAB_PROFILE"),
            races: cfg!(feature = "races"),
        }
    }

    /// Name and value, for people.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let commit = self.commit.map_or_else(
            || "not built in a checkout".to_owned(),
            |commit| format!("{commit}{}", if self.modified == Some(true) { ", with changes" } else { "" }),
        );
        let races = if self.races { ", feature races" } else { "" };
        vec![
            ("vmalab", format!("{}, {} build{races}", self.version, self.profile)),
            ("commit", commit),
            ("compiler", self.rustc.to_owned()),
        ]
    }
}

/// The command that runs the same once more: as typed, with the algorithm of
/// the mmap lock that was chosen.
pub fn repeat(args: impl Iterator<Item = String>, rwsem: Rwsem) -> String {
    let mut words: Vec<String> = args.skip(1).map(|arg| quoted(&arg)).collect();
    if !words.iter().any(|word| word == "--rwsem" || word.starts_with("--rwsem=")) {
        words.push(format!("--rwsem {rwsem}"));
    }
    format!("vmalab {}", words.join(" "))
}

/// A word that a POSIX shell takes as it is.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Bytes of `MemTotal`.
fn memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// `madvise` of `always [madvise] never`.
fn chosen(modes: &str) -> Option<String> {
    Some(modes.split_once('[')?.1.split_once(']')?.0.to_owned())
}

/// Flaws that this CPU has, with what is done.
fn mitigations() -> BTreeMap<String, String> {
    let Ok(folder) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else { return BTreeMap::new() };
    folder
        .flatten()
        .filter_map(|file| Some((file.file_name().into_string().ok()?, read(file.path().to_str()?)?)))
        .filter(|(_, state)| state != "Not affected")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_repeated_as_typed() {
        let of = |args: &[&str]| repeat(args.iter().map(|&arg| arg.to_owned()), Rwsem::Std);
        assert_eq!(
            of(&["/x/vmalab", "compare", "app-start", "--rounds", "5"]),
            "vmalab compare app-start --rounds 5 --rwsem std"
        );
        assert_eq!(of(&["vmalab", "compare", "--rwsem=futex"]), "vmalab compare --rwsem=futex");
        assert_eq!(
            of(&["vmalab", "--html", "it's <b>.html", "", "--rwsem", "futex"]),
            r"vmalab --html 'it'\''s <b>.html' '' --rwsem futex"
        );
    }

    #[test]
    fn files_of_proc_and_sys() {
        assert_eq!(memory("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        let here = Machine::read();
        assert!(here.kernel.is_some_and(|kernel| kernel.starts_with(|c: char| c.is_ascii_digit())) && here.cpus > 0);
    }
}
