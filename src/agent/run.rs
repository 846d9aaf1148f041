//! The agent from start to stop (agent.md §4).
//!
//! Each connection of the control socket is a round: ask for the manifest, tell where commands start, apply what changed,
//! then report until the connection ends. What lives in the tunnel (node, keys, listeners, SSH sessions) is made in the
//! first round and survives all later ones.

use super::{
    account::Account,
    assignment::{Assignment, AssignmentError, Surroundings},
    calls::{AskError, Calls, ask},
    health, metadata,
    reports::Reports,
    scripts::{Folders, Outcome, Scripts, Stage},
    secrets,
    services::Services,
    ssh, statistics,
};
use crate::{
    base::{DiscoSecret, NodeSecret},
    driver::{
        blocking, clock,
        control::{Control, ControlRole, ControlStatus},
        http::{Http, HttpError, HttpOptions, Token},
    },
    net,
    proto::coord::{Backoff, CallError},
    wire::coord::agent::{
        GET_ANNOUNCEMENT_BANNERS, GET_MANIFEST, GetAnnouncementBannersResponse, LifecycleState, Startup, Subsystem,
        UPDATE_STARTUP, UpdateStartupRequest,
    },
};
use std::{
    convert::Infallible,
    env,
    ffi::OsString,
    future::pending,
    io,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    pin::pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What scripts that still run get to end.
const SCRIPTS_LIMIT: Duration = Duration::from_secs(5);
/// What the scripts of the stop get together.
const STOP_SCRIPTS_LIMIT: Duration = Duration::from_secs(120);
/// What the last reports get.
const REPORT_LIMIT: Duration = Duration::from_secs(5);
/// The agent's own log in the folder of logs, for whoever keeps one.
pub const LOG_FILE: &str = "coder-agent.log";
/// What the folders of scripts, and the files of secrets, may hold a round up.
const FILES_LIMIT: Duration = Duration::from_secs(5);
/// How often the deployment's messages are read again.
const BANNERS: Duration = Duration::from_secs(120);

/// What an agent runs with.
#[derive(Debug)]
pub struct Config {
    /// The deployment as seen from this machine.
    pub url: String,
    /// The agent's token.
    pub token: Token,
    /// Headers, roots and proxy of every connection to the deployment.
    pub options: HttpOptions,
    /// UDP port of the tunnel, 0 for any.
    pub port: u16,
    /// What SSH clients may do.
    pub rules: ssh::Rules,
    /// Folder of the scripts' logs, by default one below the home folder, and of [`LOG_FILE`], which the process writes.
    pub log_dir: Option<PathBuf>,
    /// Folder of the scripts' data; by default one below the home folder.
    pub script_data_dir: Option<PathBuf>,
    /// What the agent runs inside of.
    pub subsystems: Vec<Subsystem>,
}

impl Config {
    /// An agent of a deployment with nothing out of the ordinary.
    #[must_use]
    pub fn new(url: impl Into<String>, token: Token, options: HttpOptions) -> Self {
        Self {
            url: url.into(),
            token,
            options,
            port: 0,
            rules: ssh::Rules::default(),
            log_dir: None,
            script_data_dir: None,
            subsystems: Vec::new(),
        }
    }
}

/// Why an agent cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The deployment's address or an option is of no use.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The UDP port of the tunnel cannot be used.
    #[error("UDP port {port} of --tailnet-listen-port cannot be used: {error}; choose another one, or 0 for any")]
    Port {
        /// The port.
        port: u16,
        /// What the system says.
        error: io::Error,
    },
    /// The machine lacks something.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a round ended.
#[derive(Debug, thiserror::Error)]
enum RoundError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    #[error("cannot start the tunnel: {0}")]
    Net(#[from] io::Error),
    #[error(transparent)]
    Bind(#[from] net::BindError),
}

impl Calls for Control {
    async fn call(&self, path: &'static str, body: Vec<u8>) -> Result<Vec<u8>, CallError> {
        Self::call(self, path, body).await
    }
}

/// Runs an agent until `stop`, then says good-bye to sessions, server and peers: in about 18 seconds at most, of which five are
/// for sessions and terminals, five for scripts that still run and five for the last reports, and two minutes more where
/// scripts are to run at the stop.
///
/// A server that is not there, or that refuses the token, is asked again and again.
///
/// # Errors
/// When the configuration or the machine makes it impossible from the start.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    let http = Http::new(&config.url, Some(config.token.clone()), config.options.clone())?;
    check_port(config.port)?;
    let mut agent = Agent::new(http, config)?;
    let (reports, stopping) = (agent.reports.clone(), agent.stopping.clone());
    let control = watch::Sender::new(None);
    let running = watch::Sender::new(None);
    let mut rounds = pin!(agent.rounds(&control, &running));
    tokio::select! {
        never = &mut rounds => match never {},
        () = stop => {}
    }
    tracing::info!("stopping");
    reports.lifecycles.enter(LifecycleState::ShuttingDown, clock::wall());
    stopping.cancel();
    let current: Option<Running> = running.borrow().clone();
    let open: Option<Control> = control.borrow().clone();
    let good_bye = async {
        let last = match &current {
            Some(running) => running.end().await,
            None => LifecycleState::Off,
        };
        reports.lifecycles.enter(last, clock::wall());
        if let (Some(control), Some(_)) = (&open, &current) {
            let reported = async {
                tokio::select! {
                    () = reports.sent() => {}
                    // A server that ends beside us hears nothing any more.
                    () = disconnected(control) => {}
                }
            };
            let _ = timeout(REPORT_LIMIT, reported).await;
        }
    };
    tokio::select! {
        never = &mut rounds => match never {},
        () = good_bye => {}
    }
    if let Some(control) = open {
        control.close().await;
    }
    if let Some(running) = current {
        running.services.close().await;
    }
    Ok(())
}

/// What the first round makes and all later ones use.
#[derive(Debug, Clone)]
struct Running {
    services: Services,
    scripts: Arc<Scripts>,
    /// The task of the start scripts.
    start: TaskTracker,
}

impl Running {
    /// Runs the scripts of the start beside everything else; users may log in meanwhile.
    fn run_start_scripts(&self, reports: Reports, stopping: CancellationToken) {
        let (scripts, profile) = (Arc::clone(&self.scripts), self.services.ssh.profile());
        self.start.spawn(async move {
            let outcome = scripts.run(Stage::Start, &profile, &stopping).await;
            if stopping.is_cancelled() {
                // The states of the stop have begun.
                return;
            }
            let state = match outcome {
                Outcome::Done => LifecycleState::Ready,
                Outcome::Failed => LifecycleState::StartError,
                Outcome::TimedOut => LifecycleState::StartTimeout,
            };
            reports.lifecycles.enter(state, clock::wall());
        });
        self.start.close();
    }

    /// Ends the sessions and runs the scripts of the stop: the state that the agent ends in.
    async fn end(&self) -> LifecycleState {
        self.services.end_sessions().await;
        let _ = timeout(SCRIPTS_LIMIT, self.start.wait()).await;
        let profile = self.services.ssh.profile();
        let late = CancellationToken::new();
        let mut scripts = pin!(self.scripts.run(Stage::Stop, &profile, &late));
        match timeout(STOP_SCRIPTS_LIMIT, &mut scripts).await {
            Ok(Outcome::Done) => LifecycleState::Off,
            Ok(Outcome::Failed) => LifecycleState::ShutdownError,
            Ok(Outcome::TimedOut) => LifecycleState::ShutdownTimeout,
            Err(_) => {
                late.cancel();
                let _ = timeout(SCRIPTS_LIMIT, scripts).await;
                LifecycleState::ShutdownTimeout
            }
        }
    }
}

/// A taken port will not become free by waiting.
fn check_port(port: u16) -> Result<(), RunError> {
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Ok(()),
        Err(error) => Err(RunError::Port { port, error }),
    }
}

/// Waits until the control socket does not stand.
async fn disconnected(control: &Control) {
    let stands = |status: &ControlStatus| matches!(status, ControlStatus::Connected(_));
    // An error means that the socket's task has ended, and the socket with it.
    let _ = control.status().wait_for(|status| !stands(status)).await;
}

/// What survives rounds beside the services.
struct Agent {
    http: Http,
    token: Token,
    port: u16,
    account: Account,
    process: Vec<(OsString, OsString)>,
    secret: NodeSecret,
    disco: DiscoSecret,
    rng: crate::base::Rng,
    reported: statistics::Sample,
    rules: ssh::Rules,
    folders: Folders,
    log: Option<PathBuf>,
    subsystems: Vec<Subsystem>,
    reports: Reports,
    /// Cancelled when the agent stops.
    stopping: CancellationToken,
}

impl Agent {
    fn new(http: Http, config: Config) -> Result<Self, RunError> {
        let mut rng = clock::random()?;
        let account = Account::current();
        Ok(Self {
            http,
            token: config.token,
            port: config.port,
            process: env::vars_os().collect(),
            secret: NodeSecret::generate(&mut rng),
            disco: DiscoSecret::generate(&mut rng),
            rng,
            reported: statistics::Sample::default(),
            rules: config.rules,
            folders: Folders::new(config.script_data_dir.as_deref(), config.log_dir.as_deref(), &account.home),
            log: config.log_dir.map(|folder| folder.join(LOG_FILE)),
            account,
            subsystems: config.subsystems,
            reports: Reports::new(),
            stopping: CancellationToken::new(),
        })
    }

    async fn rounds(&mut self, control: &watch::Sender<Option<Control>>, running: &watch::Sender<Option<Running>>) -> Infallible {
        let open = self.connect().await;
        control.send_replace(Some(open.clone()));
        let mut status = open.status();
        let mut backoff = Backoff::agent();
        let mut told_twin = false;
        loop {
            let connection = match &*status.borrow_and_update() {
                ControlStatus::Connected(connection) => Some(*connection),
                ControlStatus::Lost { replaced: true, .. } => {
                    // It may have told the server of its own end.
                    self.reports.lifecycles.again();
                    let text = "another agent runs with this agent's token, and the server keeps the newer connection: end one of \
                                the two; existing connections go on";
                    if std::mem::replace(&mut told_twin, true) {
                        tracing::debug!(text);
                    } else {
                        tracing::warn!("{text}");
                    }
                    None
                }
                ControlStatus::Lost { why, .. } => {
                    tracing::warn!(why, "lost the server; existing connections go on");
                    None
                }
                _ => None,
            };
            let Some(connection) = connection else {
                if status.changed().await.is_err() {
                    // Only at the stop does the socket's task end.
                    pending::<()>().await;
                }
                continue;
            };
            let over = |s: &ControlStatus| !matches!(s, ControlStatus::Connected(now) if *now == connection);
            let lost = async {
                let _ = status.wait_for(over).await;
            };
            let ended = tokio::select! {
                ended = self.round(&open, running) => Some(ended),
                () = lost => None,
            };
            match ended {
                Some(Err(error)) if !over(&status.borrow()) => {
                    tracing::warn!(%error, "starting over with the server");
                    // The connection itself may have been what failed.
                    let _ = timeout(backoff.next(&mut self.rng), status.wait_for(over)).await;
                }
                _ => backoff.reset(),
            }
        }
    }

    /// The first connection. A server that refuses may change its mind: the workspace may still be in the making.
    async fn connect(&mut self) -> Control {
        let mut backoff = Backoff::agent();
        loop {
            let control = Control::open(self.http.clone(), ControlRole::Agent);
            let mut status = control.status();
            loop {
                match &*status.borrow_and_update() {
                    ControlStatus::Connecting(None) => {}
                    ControlStatus::Connecting(Some(why)) => tracing::warn!(why, "cannot reach the server yet"),
                    ControlStatus::Refused(error) => {
                        tracing::error!(%error, "the server refuses this agent");
                        break;
                    }
                    ControlStatus::Closed => break,
                    ControlStatus::Connected(_) | ControlStatus::Lost { .. } => return control,
                }
                if status.changed().await.is_err() {
                    break;
                }
            }
            sleep(backoff.next(&mut self.rng)).await;
        }
    }

    /// One connection's work. Ends only by an error.
    async fn round(&mut self, control: &Control, running: &watch::Sender<Option<Running>>) -> Result<Infallible, RoundError> {
        let reports = self.reports.clone();
        tokio::select! {
            ended = self.serve(control, running) => ended,
            // From the first moment on: what waits may be the last words of a stop.
            ended = reports.send(control) => Ok(ended?),
        }
    }

    async fn serve(&mut self, control: &Control, running: &watch::Sender<Option<Running>>) -> Result<Infallible, RoundError> {
        let manifest = control.call(GET_MANIFEST, Vec::new()).await;
        let manifest = manifest.map_err(|why| AskError::Call { path: GET_MANIFEST, why })?;
        let around = Surroundings { account: &self.account, process: &self.process, token: &self.token };
        let mut assignment = Assignment::parse(&manifest, around)?;
        if !assignment.scripts.is_empty() {
            let folders = self.folders.clone();
            match timeout(FILES_LIMIT, blocking::run(move || folders.trusted_programs())).await {
                Ok(Ok(programs)) => assignment.profile.script_bin = programs.unwrap_or_default(),
                Ok(Err(error)) => tracing::error!(%error, "programs of scripts are not on the search path"),
                Err(_) => tracing::error!("programs of scripts are not on the search path: their file system does not answer"),
            }
        }
        let (host, port, plain) = self.http.endpoint();
        assignment.relay_map.rewrite_embedded(&host, port, plain);
        let files = std::mem::take(&mut assignment.secrets);
        if timeout(FILES_LIMIT, blocking::run(move || secrets::write(&files))).await.is_err() {
            tracing::warn!("the files of secrets are not written yet: their file system does not answer");
        }
        let startup = Startup {
            version: crate::VERSION.to_owned(),
            expanded_directory: assignment.profile.directory.to_string_lossy().into_owned(),
            subsystems: self.subsystems.iter().map(|s| i32::from(*s)).collect(),
        };
        ask::<Startup>(control, UPDATE_STARTUP, &UpdateStartupRequest { startup: Some(startup) }).await?;

        let (facts, apps) = (std::mem::take(&mut assignment.facts), std::mem::take(&mut assignment.apps));
        let current: Option<Running> = running.borrow().clone();
        let Running { services, scripts, .. } = match current {
            Some(running) => {
                running.services.update(assignment);
                running
            }
            None => {
                let made = self.start(control, assignment).await?;
                self.reports.lifecycles.enter(LifecycleState::Starting, clock::wall());
                running.send_replace(Some(made.clone()));
                made.run_start_scripts(self.reports.clone(), self.stopping.clone());
                made
            }
        };
        control.open_coordination();
        tracing::info!("connected to the coordinator");
        let profile = services.ssh.profile();
        let statistics = statistics::report(control, &mut self.reported, || services.sample(), || services.median_latency());
        tokio::select! {
            ended = statistics => Ok(ended?),
            never = banners(control, &services.ssh) => Ok(never),
            ended = health::report(control, &apps) => Ok(ended?),
            ended = metadata::report(control, &facts, &scripts, &profile) => Ok(ended?),
        }
    }

    async fn start(&self, control: &Control, assignment: Assignment) -> Result<Running, RoundError> {
        let Assignment { agent, profile, relay_map, direct, force_websockets, manifest, scripts, .. } = assignment;
        tracing::info!(workspace = profile.workspace, agent = profile.agent, "serving");
        let config = net::Config {
            secret: self.secret.clone(),
            disco: self.disco.clone(),
            relay_map: Some(relay_map),
            control: Some(control.clone()),
            direct,
            force_websockets,
            port: self.port,
            ..net::Config::agent(self.http.clone(), agent)?
        };
        let tailnet = net::Tailnet::start_on_thread(config).await?;
        let ssh = ssh::Server::with_rules(profile, self.rules.clone());
        ssh.report_to(self.reports.connections.clone());
        let scripts = Scripts {
            list: scripts,
            account: self.account.clone(),
            process: self.process.clone(),
            executable: env::current_exe().unwrap_or_else(|_| PathBuf::from("coder")),
            folders: self.folders.clone(),
            logs: self.reports.logs.clone(),
            completed: Arc::clone(&self.reports.scripts),
        };
        let services = Services::start(agent, tailnet, ssh, manifest, self.log.clone()).await?;
        Ok(Running { services, scripts: Arc::new(scripts), start: TaskTracker::new() })
    }
}

/// Reads the deployment's messages now and then. They are an extra: a server without them is a good server.
async fn banners(server: &impl Calls, ssh: &ssh::Server) -> Infallible {
    loop {
        match ask::<GetAnnouncementBannersResponse>(server, GET_ANNOUNCEMENT_BANNERS, &()).await {
            Ok(answer) => {
                let shown = answer.announcement_banners.into_iter().filter(|b| b.enabled).map(|b| b.message);
                ssh.set_banners(shown.collect());
            }
            Err(error) => tracing::debug!(%error, "no messages of the deployment"),
        }
        sleep(BANNERS).await;
    }
}
