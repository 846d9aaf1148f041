//! The whole machine: processors and memory as `/proc` tells them, disks as the system call does.

use super::figure::Figure;
use anyhow::Context as _;
use std::{fs, path::Path};

/// Times of all processors since the start, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CpuTimes {
    idle: u64,
    all: u64,
    count: u32,
}

pub(super) fn cpu() -> anyhow::Result<CpuTimes> {
    parse_cpu(&read("/proc/stat")?).context("/proc/stat cannot be understood")
}

/// The kernel's files; other systems have none, which is told.
fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}: figures of the machine need Linux"))
}

fn parse_cpu(text: &str) -> Option<CpuTimes> {
    let ticks: Vec<u64> = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|t| t.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are counted as user already.
    let all = ticks.iter().take(8).sum();
    let count = text.lines().filter(|l| l.strip_prefix("cpu").is_some_and(|l| l.starts_with(|c: char| c.is_ascii_digit())));
    let idle = ticks.get(3)? + ticks.get(4).copied().unwrap_or(0);
    Some(CpuTimes { idle, all, count: u32::try_from(count.count()).ok()? })
}

/// How many processors were busy between two looks.
#[expect(clippy::cast_precision_loss, reason = "differences of ticks are small")]
pub(super) fn busy(before: &CpuTimes, after: &CpuTimes) -> Figure {
    let all = after.all.saturating_sub(before.all);
    let idle = after.idle.saturating_sub(before.idle).min(all);
    let share = if all == 0 { 0.0 } else { (all - idle) as f64 / all as f64 };
    let total = f64::from(after.count);
    Figure { used: share * total, total: Some(total), unit: "cores" }
}

pub(super) fn memory() -> anyhow::Result<Figure> {
    parse_memory(&read("/proc/meminfo")?).context("/proc/meminfo cannot be understood")
}

/// Used is what programs could not get any more.
#[expect(clippy::cast_precision_loss, reason = "no memory is that large")]
fn parse_memory(text: &str) -> Option<Figure> {
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let total = field("MemTotal:")?;
    let available = field("MemAvailable:").or_else(|| field("MemFree:"))?;
    Some(Figure { used: total.saturating_sub(available) as f64 * 1024.0, total: Some(total as f64 * 1024.0), unit: "B" })
}

#[expect(clippy::cast_precision_loss, reason = "no disk is that large")]
pub(super) fn disk(path: &Path) -> anyhow::Result<Figure> {
    let found = rustix::fs::statvfs(path).with_context(|| format!("cannot look at the disk of {}", path.display()))?;
    let bytes = |blocks: u64| blocks as f64 * found.f_frsize as f64;
    Ok(Figure { used: bytes(found.f_blocks.saturating_sub(found.f_bfree)), total: Some(bytes(found.f_blocks)), unit: "B" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let before = parse_cpu("cpu  100 0 50 800 50 0 0 0 9 9\ncpu0 1\ncpu1 1\nintr 1\n").unwrap();
        let after = parse_cpu("cpu  160 0 90 890 60 0 0 0 9 9\ncpu0 1\ncpu1 1\nintr 1\n").unwrap();
        assert_eq!(before, CpuTimes { idle: 850, all: 1000, count: 2 });
        assert_eq!(busy(&before, &after), Figure { used: 1.0, total: Some(2.0), unit: "cores" });
        assert_eq!(busy(&after, &after).used, 0.0);
        let memory = parse_memory("MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:  750 kB\n").unwrap();
        assert_eq!(memory, Figure { used: 256_000.0, total: Some(1_024_000.0), unit: "B" });
        assert!(parse_cpu("").is_none() && parse_memory("x").is_none());
    }

    #[test]
    fn this_machine_has_figures() {
        let disk = disk(Path::new("/")).unwrap();
        assert!(disk.used > 0.0 && disk.total.unwrap() >= disk.used);
        assert!(super::disk(Path::new("/nowhere")).unwrap_err().to_string().contains("/nowhere"));
        assert!(memory().unwrap().used > 0.0 && cpu().unwrap().count > 0);
    }
}
