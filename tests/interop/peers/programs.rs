//! The Go programs: built once into `target/interop/`, again only when a source of `tests/interop` or Go itself changes.

use crate::harness::{run_within, text};
use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    ffi::OsStr,
    fs::{self, File},
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

/// A cold build downloads and compiles about a thousand packages.
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);

/// A Go program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// Coder's command line and agent.
    Coder,
    /// The same with the server.
    Server,
    /// Fills an empty Coder server.
    Setup,
    /// A node on Coder's tailnet package.
    Node,
    /// Coder's coordinator alone.
    Coordinator,
    /// Coder's client of a coordinator.
    CoordClient,
    /// The DERP client of Coder's nodes.
    DerpClient,
    /// What `coder netcheck` does, for any relay map.
    Netcheck,
    /// Upstream's relay server.
    Derper,
    /// Upstream's DERP client.
    UpstreamDerpClient,
    /// Upstream's STUN, both sides.
    Stun,
    /// Upstream's netcheck.
    UpstreamNetcheck,
}

const CODER: &str = "github.com/coder/coder/v2/cmd/coder";

impl Program {
    /// Module folder, package, build tags.
    const fn source(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Coder => ("coder", CODER, "slim"),
            Self::Server => ("coder", CODER, ""),
            Self::Setup => ("coder", "./cmd/setup", ""),
            Self::Node => ("coder", "./cmd/node", ""),
            Self::Coordinator => ("coder", "./cmd/coordinator", ""),
            Self::CoordClient => ("coder", "./cmd/coordclient", ""),
            Self::DerpClient => ("coder", "./cmd/derpclient", ""),
            Self::Netcheck => ("coder", "./cmd/netcheck", ""),
            Self::Derper => ("derp", "tailscale.com/cmd/derper", ""),
            // Upstream speaks WebSocket only in builds with this tag.
            Self::UpstreamDerpClient => ("derp", "./cmd/derpclient", "ts_debug_websockets"),
            Self::Stun => ("derp", "./cmd/stun", ""),
            Self::UpstreamNetcheck => ("derp", "./cmd/netcheck", ""),
        }
    }

    const fn file(self) -> &'static str {
        match self {
            Self::Coder => "go-coder",
            Self::Server => "go-coder-server",
            Self::Setup => "setup",
            Self::Node => "node",
            Self::Coordinator => "coordinator",
            Self::CoordClient => "coordclient",
            Self::DerpClient => "derpclient",
            Self::Netcheck => "netcheck",
            Self::Derper => "derper",
            Self::UpstreamDerpClient => "upstream-derpclient",
            Self::Stun => "stun",
            Self::UpstreamNetcheck => "upstream-netcheck",
        }
    }
}

/// What the newest of the two modules asks for.
const GO: (u32, u32, u32) = (1, 25, 3);

/// Says that Go is missing or too old.
pub fn missing() -> Option<String> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    let look = || {
        let wanted = format!("go {}.{}.{} or newer", GO.0, GO.1, GO.2);
        if !crate::harness::on_path("go") {
            return Some(wanted);
        }
        // In a module: a Go from 1.21 on fetches the one that it asks for.
        let mut go = go(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/coder"));
        go.args(["env", "GOVERSION"]);
        let out = run_within(go, b"", Duration::from_secs(60));
        let version = text(&out.stdout);
        let numbers = version.trim().trim_start_matches("go").split('.').map(|n| n.parse().unwrap_or(0));
        let numbers: Vec<u32> = numbers.chain([0, 0, 0]).take(3).collect();
        ((numbers[0], numbers[1], numbers[2]) < GO).then(|| format!("{wanted} (found {})", version.trim()))
    };
    MISSING.get_or_init(look).clone()
}

/// The programs of one run.
pub struct Programs {
    sources: PathBuf,
    target: PathBuf,
    built: Mutex<BTreeMap<Program, Result<PathBuf, String>>>,
}

impl Programs {
    pub fn new() -> Self {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("interop");
        Self { sources, target, built: Mutex::default() }
    }

    /// The program's file, built if need be. Why it cannot be built is remembered.
    pub fn path(&self, program: Program) -> Result<PathBuf, String> {
        let mut built = self.built.lock().map_err(|_| "a build ended in a panic".to_owned())?;
        built.entry(program).or_insert_with(|| self.build(program)).clone()
    }

    fn build(&self, program: Program) -> Result<PathBuf, String> {
        let (module, package, tags) = program.source();
        let io = |error: std::io::Error| format!("{}: {error}", self.target.display());
        fs::create_dir_all(&self.target).map_err(io)?;
        // Two runs at once build one after the other.
        let lock = File::create(self.target.join("lock")).map_err(io)?;
        lock.lock().map_err(io)?;
        let file = self.target.join(program.file());
        let stamp = self.stamp()?;
        let stamp_file = file.with_extension("stamp");
        if file.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
            return Ok(file);
        }
        eprintln!("building {} …", program.file());
        let begin = Instant::now();
        let mut go = go(&self.sources.join(module));
        go.args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath", "-ldflags", "-s -w", "-tags", tags, "-o"]);
        go.arg(&file).arg(package);
        let out = run_within(go, b"", BUILD_LIMIT);
        if !out.status.success() {
            return Err(format!("{} does not build: {}", program.file(), last_lines(&text(&out.stderr))));
        }
        fs::write(&stamp_file, stamp).map_err(io)?;
        eprintln!("built {} in {:.0} s", program.file(), begin.elapsed().as_secs_f64());
        Ok(file)
    }

    /// Changes with any source file and with Go's version.
    fn stamp(&self) -> Result<String, String> {
        let mut hash = DefaultHasher::new();
        let version = run_within(
            {
                let mut go = go(&self.sources);
                go.arg("version");
                go
            },
            b"",
            Duration::from_secs(60),
        );
        version.stdout.hash(&mut hash);
        let mut folders = vec![self.sources.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                if path.is_dir() {
                    folders.push(path);
                } else if ["go", "mod", "sum"].map(OsStr::new).iter().any(|e| path.extension() == Some(e)) {
                    files.push(path);
                }
            }
        }
        files.sort();
        for path in files {
            path.strip_prefix(&self.sources).unwrap_or(&path).hash(&mut hash);
            fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?.hash(&mut hash);
        }
        Ok(format!("{:016x}\n", hash.finish()))
    }
}

/// Go in a module's folder. The forks are not in the public checksum database; `go.sum` pins them.
fn go(folder: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(folder).env("GOWORK", "off");
    go.env("GONOSUMDB", "github.com/coder/*,github.com/kylecarbs/*,github.com/aslilac/*");
    go
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("go: downloading")).collect();
    lines[lines.len().saturating_sub(12)..].join(" | ")
}
