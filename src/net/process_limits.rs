//! What the process may use: memory and open files.

use std::{fs, path::Path};

use rustix::process::{Resource, Rlimit};

use crate::config;

/// The limits that the operating system sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessLimits {
    /// Bytes.
    pub memory: u64,
    /// Open files, connections included.
    pub files: u64,
}

impl ProcessLimits {
    /// Raises the soft limit of open files to the hard one, and reads the limits.
    pub fn read() -> Self {
        Self { memory: memory_limit(Path::new("/")), files: raise_file_limit() }
    }
}

/// Raises the soft limit of open files to the hard one. The soft limit is low for programs that use `select`, which this one
/// does not.
fn raise_file_limit() -> u64 {
    let limits = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    let files = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(error) => {
            tracing::warn!(%error, files = limits.current, "the limit of open files could not be raised");
            limits.current
        }
    };
    // None is no limit.
    files.unwrap_or(u64::MAX)
}

/// The lowest limit of the process's control groups (version 1 or 2) and their ancestors, or the memory of the machine.
/// `root` is the folder that holds `proc` and `sys`.
fn memory_limit(root: &Path) -> u64 {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let mut lowest = machine_memory(&read(&root.join("proc/meminfo")));
    for line in read(&root.join("proc/self/cgroup")).lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for ancestor in Path::new(group.trim_start_matches('/')).ancestors() {
            // Version 2 writes "max" where there is no limit.
            if let Ok(limit) = read(&root.join(mount).join(ancestor).join(file)).trim().parse() {
                lowest = lowest.min(limit);
            }
        }
    }
    lowest
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn machine_memory(meminfo: &str) -> u64 {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = total.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.map_or(config::net::UNKNOWN_MEMORY, |kilobytes| kilobytes.saturating_mul(1024))
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test")]
mod tests {
    use std::{fs, path::Path};

    use super::memory_limit;

    fn limit_with(files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        memory_limit(root.path())
    }

    #[test]
    fn the_lowest_memory_limit_is_found() {
        let meminfo = ("proc/meminfo", "MemTotal:       1000 kB\nMemFree: 5 kB\n");
        assert_eq!(limit_with(&[]), crate::config::net::UNKNOWN_MEMORY);
        assert_eq!(limit_with(&[meminfo]), 1_024_000);
        let version_2 = [
            meminfo,
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("sys/fs/cgroup/pod/memory.max", "5000\n"),
            ("sys/fs/cgroup/pod/container/memory.max", "max\n"),
        ];
        assert_eq!(limit_with(&version_2), 5000);
        let version_1 = [
            meminfo,
            ("proc/self/cgroup", "7:cpu,cpuacct:/\n5:memory:/not/mounted\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n"),
        ];
        assert_eq!(limit_with(&version_1), 7000);
        let unlimited = [
            meminfo,
            ("proc/self/cgroup", "5:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limit_with(&unlimited), 1_024_000);
    }
}
