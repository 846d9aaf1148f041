//! The limits of the container that this process runs in: control groups of both versions.

use super::figure::Figure;
use anyhow::{Context as _, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// The control group of a container, seen from inside: its own is the root of the mounted tree.
#[derive(Debug, Clone)]
pub(super) struct Cgroup {
    root: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Cgroup {
    /// `None` outside a container.
    pub(super) fn of_container() -> Option<Self> {
        Self::find(Path::new("/"))
    }

    /// The same with the files below `base`.
    fn find(base: &Path) -> Option<Self> {
        in_container(base).then(|| Self::open(base.join("sys/fs/cgroup")))?
    }

    fn open(root: PathBuf) -> Option<Self> {
        if root.join("cpu.stat").exists() || root.join("cgroup.controllers").exists() {
            Some(Self { root, version: Version::Two })
        } else if root.join("memory").is_dir() || root.join("cpuacct").is_dir() {
            Some(Self { root, version: Version::One })
        } else {
            None
        }
    }

    fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.root.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// A file that holds one number; `None` for `max`, a negative number or what no machine has.
    fn limit(&self, name: &str) -> anyhow::Result<Option<u64>> {
        // Version 1 writes "no limit" as the largest multiple of a page.
        const UNLIMITED: u64 = 1 << 60;
        match self.read(name) {
            Ok(text) => Ok(text.trim().parse().ok().filter(|n| *n < UNLIMITED)),
            // The root of a tree has no limits, and no files for them.
            Err(_) if !self.root.join(name).exists() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the container's processes have used of the processors.
    pub(super) fn cpu_time(&self) -> anyhow::Result<Duration> {
        match self.version {
            Version::Two => {
                let text = self.read("cpu.stat")?;
                let micros = field(&text, "usage_usec").context("cpu.stat tells no usage")?;
                Ok(Duration::from_micros(micros))
            }
            Version::One => {
                for name in ["cpuacct/cpuacct.usage", "cpu,cpuacct/cpuacct.usage"] {
                    if let Ok(text) = self.read(name) {
                        return Ok(Duration::from_nanos(text.trim().parse().context("cpuacct.usage is no number")?));
                    }
                }
                bail!("the control group does not tell what it used of the processors");
            }
        }
    }

    /// How many processors it may use at once, if it has a limit.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of one period")]
    pub(super) fn cpu_limit(&self) -> anyhow::Result<Option<f64>> {
        let cores = |quota: Option<u64>, period: Option<u64>| match (quota, period) {
            (Some(quota), Some(period)) if period > 0 => Some(quota as f64 / period as f64),
            _ => None,
        };
        match self.version {
            Version::Two => {
                let Ok(text) = self.read("cpu.max") else { return Ok(None) };
                let mut words = text.split_whitespace().map(|w| w.parse().ok());
                Ok(cores(words.next().flatten(), words.next().flatten()))
            }
            Version::One => Ok(cores(self.limit("cpu/cpu.cfs_quota_us")?, self.limit("cpu/cpu.cfs_period_us")?)),
        }
    }

    /// What it uses of the memory, without files that the kernel may drop.
    #[expect(clippy::cast_precision_loss, reason = "no memory is that large")]
    pub(super) fn memory(&self) -> anyhow::Result<Figure> {
        let (used, inactive, total) = match self.version {
            Version::Two => {
                let used = self.limit("memory.current")?;
                (used, field(&self.read("memory.stat").unwrap_or_default(), "inactive_file"), self.limit("memory.max")?)
            }
            Version::One => {
                let used = self.limit("memory/memory.usage_in_bytes")?;
                let stat = self.read("memory/memory.stat").unwrap_or_default();
                (used, field(&stat, "total_inactive_file"), self.limit("memory/memory.limit_in_bytes")?)
            }
        };
        let used = used.context("the control group does not tell how much memory it uses")?;
        let used = used.saturating_sub(inactive.unwrap_or(0));
        Ok(Figure { used: used as f64, total: total.map(|t| t as f64), unit: "B" })
    }
}

/// A number in a file of `NAME NUMBER` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Container runtimes leave a mark: a file, or the group of the first process.
fn in_container(base: &Path) -> bool {
    const MARKS: [&str; 6] = ["docker", "kubepods", "containerd", "libpod", "lxc", "sysbox"];
    if base.join(".dockerenv").exists() || base.join("run/.containerenv").exists() {
        return true;
    }
    let groups = fs::read_to_string(base.join("proc/1/cgroup")).unwrap_or_default();
    let mounts = || fs::read_to_string(base.join("proc/mounts")).unwrap_or_default();
    MARKS.iter().any(|mark| groups.contains(mark)) || mounts().lines().any(|l| l.starts_with("sysboxfs "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn a_container_of_the_second_version_has_its_own_limits() {
        let dir = tree(&[
            (".dockerenv", ""),
            ("sys/fs/cgroup/cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
            ("sys/fs/cgroup/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/memory.current", "3000\n"),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 1000\n"),
        ]);
        let cgroup = Cgroup::find(dir.path()).unwrap();
        assert_eq!(cgroup.cpu_time().unwrap(), Duration::from_millis(2_500));
        assert_eq!(cgroup.cpu_limit().unwrap(), Some(1.5));
        assert_eq!(cgroup.memory().unwrap(), Figure { used: 2_000.0, total: None, unit: "B" });
    }

    #[test]
    fn a_container_of_the_first_version_has_its_own_limits() {
        let dir = tree(&[
            ("proc/1/cgroup", "5:cpu:/kubepods/pod1\n"),
            ("sys/fs/cgroup/cpuacct/cpuacct.usage", "7000000000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "9000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "10000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 4000\n"),
        ]);
        let cgroup = Cgroup::find(dir.path()).unwrap();
        assert_eq!((cgroup.cpu_time().unwrap(), cgroup.cpu_limit().unwrap()), (Duration::from_secs(7), None));
        assert_eq!(cgroup.memory().unwrap(), Figure { used: 5_000.0, total: Some(10_000.0), unit: "B" });
    }

    #[test]
    fn outside_a_container_there_is_none() {
        let dir = tree(&[("proc/1/cgroup", "0::/init.scope\n"), ("sys/fs/cgroup/cpu.stat", "usage_usec 1\n")]);
        assert!(Cgroup::find(dir.path()).is_none());
    }
}
