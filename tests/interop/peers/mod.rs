//! What the cells run against: Go programs, PostgreSQL, servers, agents, command lines. Each is a guard that ends its
//! processes; what several cells use is started once.

pub mod deployment;
pub mod front;
pub mod lines;
pub mod postgres;
pub mod programs;
pub mod relays;

pub use crate::harness::free_port;
pub use deployment::{Deployment, Side};
pub use front::Front;
pub use lines::Lines;
pub use postgres::Postgres;
pub use programs::{Program, Programs};
pub use relays::{Kind, Relay, netcheck, region, region_id, secret};

use crate::figures::Figures;
use rustix::process::Pid;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::runtime::{Builder, Runtime};

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every cell in its short form.
    Short,
    /// The long forms.
    Full,
}

impl Mode {
    /// What `TAILNET_INTEROP` says; nothing runs without it.
    pub fn from_environment() -> Result<Option<Self>, String> {
        match std::env::var("TAILNET_INTEROP").as_deref() {
            Err(_) | Ok("" | "0") => Ok(None),
            Ok("1") => Ok(Some(Self::Short)),
            Ok("full") => Ok(Some(Self::Full)),
            Ok(other) => Err(format!("TAILNET_INTEROP is 1, full or unset, not {other:?}")),
        }
    }
}

/// What a cell cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Built from `tests/interop`.
    Program(Program),
    /// A PostgreSQL server of its own.
    Postgres,
    /// A tool on the path.
    Tool(&'static str),
    /// Network namespaces, as root.
    Namespaces,
}

/// All of a Go server: the binary, its database and the program that fills it.
pub const GO_SERVER: [Need; 3] = [Need::Program(Program::Server), Need::Program(Program::Setup), Need::Postgres];

impl Need {
    /// What is missing here, in words.
    fn missing(self) -> Option<String> {
        match self {
            Self::Program(_) => programs::missing(),
            Self::Postgres => postgres::missing(),
            Self::Tool(tool) => (!crate::harness::on_path(tool)).then(|| tool.to_owned()),
            Self::Namespaces => {
                let tools = ["ip", "nft"].into_iter().find(|tool| !crate::harness::on_path(tool)).map(str::to_owned);
                tools.or_else(|| (!rustix::process::geteuid().is_root()).then(|| "root, for network namespaces".to_owned()))
            }
        }
    }

    /// Why nothing runs when nobody asked for it.
    pub fn why_not_by_default<'a>(needs: impl Iterator<Item = &'a Self>) -> String {
        let missing: BTreeSet<String> = needs.filter_map(|need| need.missing()).collect();
        if missing.is_empty() {
            return "real Go peers take minutes to build; run them with TAILNET_INTEROP=1".to_owned();
        }
        let missing: Vec<String> = missing.into_iter().collect();
        format!("missing {}; with them, TAILNET_INTEROP=1 runs real Go peers", missing.join(", "))
    }
}

/// What all cells share.
pub struct Context {
    mode: Mode,
    programs: Arc<Programs>,
    postgres: Mutex<Option<Result<Arc<Postgres>, String>>>,
    go_server: Mutex<Option<Result<Arc<Deployment>, String>>>,
    /// What was measured, for the summary at the end.
    pub figures: Figures,
}

impl Context {
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            programs: Arc::new(Programs::new()),
            postgres: Mutex::default(),
            go_server: Mutex::default(),
            figures: Figures::default(),
        }
    }

    /// Whether the long forms are asked for.
    pub fn full(&self) -> bool {
        self.mode == Mode::Full
    }

    /// Builds and starts what is needed. A missing tool is an error: somebody has asked for the run.
    pub fn prepare(&self, needs: &[Need]) -> Result<(), String> {
        for need in needs {
            if let Some(missing) = need.missing() {
                return Err(format!("missing {missing}"));
            }
            match need {
                Need::Program(program) => drop(self.programs.path(*program)?),
                Need::Postgres => drop(self.try_postgres()?),
                Need::Tool(_) | Need::Namespaces => {}
            }
        }
        Ok(())
    }

    /// A built program's file; the cell names it among its needs.
    pub fn program(&self, program: Program) -> std::process::Command {
        std::process::Command::new(self.programs.path(program).unwrap_or_else(|why| panic!("{why}")))
    }

    /// The database server that all Go servers share.
    pub fn postgres(&self) -> Arc<Postgres> {
        self.try_postgres().unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_postgres(&self) -> Result<Arc<Postgres>, String> {
        once(&self.postgres, || Postgres::start().map(Arc::new))
    }

    /// A Go server that cells share, with the workspaces `one` and `two`. Cells that stop, starve or reconfigure a server
    /// start their own with [`Deployment::go`].
    pub fn go_server(&self) -> Arc<Deployment> {
        once(&self.go_server, || Ok(Arc::new(Deployment::go(self, &["one", "two"], &[])))).unwrap_or_else(|why| panic!("{why}"))
    }
}

/// The value that `make` gave the first time, or why it could not. A panic in it is such a reason.
fn once<T: Clone>(cell: &Mutex<Option<Result<T, String>>>, make: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let mut made = cell.lock().unwrap_or_else(PoisonError::into_inner);
    made.get_or_insert_with(|| {
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
        made.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            Err(text.unwrap_or_else(|| "a panic without words".to_owned()))
        })
    })
    .clone()
}

/// A runtime for one cell: its tasks run on while the cell's own thread waits for a Go process.
pub fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime can be started")
}

/// Splits `http://HOST:PORT`.
pub fn socket_address(url: &str) -> SocketAddr {
    let text = url.trim_start_matches("http://").trim_end_matches('/');
    text.parse().unwrap_or_else(|e| panic!("{url} is no address of this machine: {e}"))
}

/// All processes that this program has started and not waited for. A process belongs to the thread that started it.
pub fn own_children() -> Vec<Pid> {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let of = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
    let pids = threads.filter_map(|thread| Some(of(thread.ok()?))).collect::<Vec<_>>().join(" ");
    pids.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Ends the processes of this program when it is told to end itself, then does.
pub fn end_with_signals() {
    let body = || {
        let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let Ok(mut signals) = tailnet::driver::process::EndSignals::open() else { return };
            let signal = signals.next().await;
            for child in own_children() {
                // A terminated PostgreSQL or server ends its own processes too; one that has ended already is as good.
                let _ = rustix::process::kill_process(child, rustix::process::Signal::TERM);
            }
            std::process::exit(128 + i32::from(signal.number()));
        });
    };
    drop(std::thread::Builder::new().name("signals".into()).spawn(body));
}
