//! Row 7: speed beside speed. All ours (command line, server, agent) and all Go's are measured by turns in one run; nothing
//! here fails for being slow, only for not being measurable.
//!
//! `TAILNET_INTEROP=1 cargo test --release --test interop -- speed` takes two minutes, `TAILNET_INTEROP=full` has more and
//! longer turns. Both ends, the relay and what measures share the machine's cores. Not measured: OpenSSH beside its own server
//! over TCP, for which there is no `sshd` to count on.

mod load;
mod measures;

use crate::{
    figures::{Figure, Target, Unit},
    harness::{Process, usage::Usage},
    peers::{Context, Deployment, GO_SERVER, Kind, Need, Program, Relay, Side},
    table::{Cell, Outcome, step},
};
use anyhow::Context as _;
use load::{Load, Plan};
use measures::{Transfer, Way, first_byte, idle_session, memory_of, speedtest, transfer};
use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

const ROW: &str = "speed";
const WORKSPACE: &str = "box";
const CELL_LIMIT: Duration = Duration::from_secs(900);

/// One side's server and the agent of its one workspace.
struct Party {
    deployment: Deployment,
    agent: Process,
    server: u32,
}

/// Both sides, started by the first cell and ended with the last.
struct Parties {
    ours: Party,
    go: Party,
}

type Shared = Arc<Mutex<Option<Arc<Parties>>>>;

/// How much is measured.
struct Amount {
    /// Turns of each side.
    turns: usize,
    speedtest: Duration,
    openssh: u64,
    first_bytes: usize,
    /// How long something settles before it is called idle, and how long it is watched then.
    settle: Duration,
    idle: Duration,
    load: Duration,
}

impl Amount {
    const SHORT: Self = Self {
        turns: 2,
        speedtest: Duration::from_secs(1),
        openssh: 64_000_000,
        first_bytes: 5,
        settle: Duration::from_secs(3),
        idle: Duration::from_secs(5),
        load: Duration::from_millis(1_500),
    };
    const FULL: Self = Self {
        turns: 3,
        speedtest: Duration::from_secs(5),
        openssh: 256_000_000,
        first_bytes: 20,
        settle: Duration::from_secs(5),
        idle: Duration::from_secs(30),
        load: Duration::from_secs(5),
    };

    fn of(context: &Context) -> Self {
        if context.full() { Self::FULL } else { Self::SHORT }
    }
}

type Measure = fn(&Context, &Parties, &Amount) -> anyhow::Result<Vec<Figure>>;

pub fn cells() -> Vec<Cell> {
    // Memory comes first: what is measured there has carried nothing yet.
    let measures: [(&str, Measure); 6] = [
        ("memory of agent and server, idle and after load", memory),
        ("coder speedtest, direct and relayed", speedtests),
        ("OpenSSH through ProxyCommand, each way", openssh),
        ("first byte of ssh --stdio", first_bytes),
        ("idle ssh --stdio", idle),
        ("relay with four pairs of clients", relays),
    ];
    let shared = Shared::default();
    let cell = |(name, measure): (&str, Measure)| {
        let mut needs = vec![Need::Tool("ssh"), Need::Program(Program::Coder), Need::Program(Program::Derper)];
        needs.extend(GO_SERVER);
        let shared = Arc::clone(&shared);
        let run = move |context: &Context| -> Outcome {
            let parties = step("server and agent", || Ok(started(context, &shared)))?;
            Ok(context.figures.keep(measure(context, &parties, &Amount::of(context))?))
        };
        Cell::new(ROW, name, &needs, run).within(CELL_LIMIT)
    };
    measures.into_iter().map(cell).collect()
}

fn started(context: &Context, shared: &Shared) -> Arc<Parties> {
    let start = || {
        let party = |side| {
            let mut deployment = Deployment::start(context, side, &[WORKSPACE]);
            let agent = deployment.agent(side, WORKSPACE);
            let server = deployment.process().child.id();
            Party { deployment, agent, server }
        };
        Arc::new(Parties { ours: party(Side::Ours), go: party(Side::Go) })
    };
    Arc::clone(shared.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(start))
}

impl Parties {
    fn of(&self, side: Side) -> &Party {
        match side {
            Side::Ours => &self.ours,
            Side::Go => &self.go,
        }
    }

    /// Measures each side so many times, by turns; what each gave is in order of size.
    fn by_turns(&self, turns: usize, measure: impl Fn(&Party) -> anyhow::Result<f64>) -> anyhow::Result<[Vec<f64>; 2]> {
        let mut found = [Vec::new(), Vec::new()];
        for _ in 0..turns {
            for (side, found) in Side::BOTH.into_iter().zip(&mut found) {
                let turn = found.len() + 1;
                found.push(measure(self.of(side)).with_context(|| format!("{}, turn {turn}", side.name()))?);
            }
        }
        found.iter_mut().for_each(|found| found.sort_by(f64::total_cmp));
        Ok(found)
    }

    /// The middle of several turns, as a figure.
    fn middles(
        &self,
        (what, unit, target): (String, Unit, Target),
        turns: usize,
        measure: impl Fn(&Party) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Figure> {
        let [ours, go] = self.by_turns(turns, measure).with_context(|| what.clone())?.map(|found| middle(&found));
        Ok(Figure { what, unit, ours, go, target })
    }
}

/// The middle of what is in order of size.
fn middle(found: &[f64]) -> f64 {
    (found[(found.len() - 1) / 2] + found[found.len() / 2]) / 2.0
}

fn speedtests(_: &Context, parties: &Parties, amount: &Amount) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (way, name, times) in [(Way::Direct, "direct", 12.0), (Way::Relayed, "relayed", 10.0)] {
        for direction in ["down", "up"] {
            let what = (format!("speedtest {name}, {direction}"), Unit::MegabitsPerSecond, Target::TimesGo(times));
            let measure = |party: &Party| speedtest(&party.deployment, WORKSPACE, way, direction, amount.speedtest);
            figures.push(parties.middles(what, amount.turns, measure)?);
        }
    }
    Ok(figures)
}

fn openssh(_: &Context, parties: &Parties, amount: &Amount) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for direction in [Transfer::Down, Transfer::Up] {
        let what = format!("OpenSSH by ProxyCommand, {}, {} MB", direction.name(), amount.openssh / 1_000_000);
        let what = (what, Unit::MegabitsPerSecond, Target::TimesGo(10.0));
        let measure = |party: &Party| transfer(&party.deployment, WORKSPACE, direction, amount.openssh);
        figures.push(parties.middles(what, amount.turns, measure)?);
    }
    Ok(figures)
}

fn first_bytes(_: &Context, parties: &Parties, amount: &Amount) -> anyhow::Result<Vec<Figure>> {
    let [ours, go] = parties.by_turns(amount.first_bytes, |party| first_byte(&party.deployment, WORKSPACE))?;
    let worst = |found: &[f64]| found.last().copied().unwrap_or_default();
    let figure = |what: String, of: &dyn Fn(&[f64]) -> f64, most| Figure {
        what,
        unit: Unit::Milliseconds,
        ours: of(&ours),
        go: of(&go),
        target: Target::AtMost(most),
    };
    Ok(vec![
        figure(format!("first byte of ssh --stdio, median of {}", amount.first_bytes), &middle, 60.0),
        // "No slow tail" has no number in the design: twice the median's.
        figure(format!("first byte of ssh --stdio, worst of {} (bound of our own)", amount.first_bytes), &worst, 120.0),
    ])
}

/// Both sides at once: idle ones do not disturb each other.
fn idle(_: &Context, parties: &Parties, amount: &Amount) -> anyhow::Result<Vec<Figure>> {
    let open = |side| idle_session(&parties.of(side).deployment, WORKSPACE).context("no session");
    let sessions = [open(Side::Ours)?, open(Side::Go)?];
    // The upgrade to the direct path belongs to the start, not to idling.
    wait(amount.settle);
    let usage = |at: usize| Usage::of(sessions[at].child.id()).context("the idle session has ended");
    let (begin, before) = (Instant::now(), [usage(0)?, usage(1)?]);
    wait(amount.idle);
    let (seconds, after) = (begin.elapsed().as_secs_f64(), [usage(0)?, usage(1)?]);
    let used = [0, 1].map(|at| after[at].since(before[at]));
    let memory = [memory_of(sessions[0].child.id())?, memory_of(sessions[1].child.id())?];
    let switches = used.map(|used| f64::from(u32::try_from(used.switches).unwrap_or(u32::MAX)) / seconds);
    let busy = used.map(|used| used.busy.as_secs_f64() * 1e3 / seconds);
    let figure = |what: &str, unit, [ours, go]: [f64; 2], target| Figure {
        what: format!("idle ssh --stdio, {what}"),
        unit,
        ours,
        go,
        target,
    };
    Ok(vec![
        figure("resident (RSS)", Unit::Megabytes, memory.map(|(resident, _)| resident), Target::AtMost(12.0)),
        figure("its share (PSS)", Unit::Megabytes, memory.map(|(_, share)| share), Target::None),
        figure("context switches", Unit::PerSecond, switches, Target::AtMost(4.0)),
        figure("processor time", Unit::MillisecondsPerSecond, busy, Target::AtMost(0.2)),
    ])
}

/// Lets time pass, whoever unparks this thread.
fn wait(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn memory(_: &Context, parties: &Parties, amount: &Amount) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let mut look = |when: &str| -> anyhow::Result<()> {
        for (who, most) in [("agent", 20.0), ("server", 40.0)] {
            let pid = |party: &Party| if who == "agent" { party.agent.child.id() } else { party.server };
            let [ours, go] = Side::BOTH.map(|side| memory_of(pid(parties.of(side))));
            let (ours, go) = (ours?, go?);
            let figure = |what: &str, ours, go, target| Figure {
                what: format!("{who} {when}, {what}"),
                unit: Unit::Megabytes,
                ours,
                go,
                target,
            };
            figures.push(figure("resident (RSS)", ours.0, go.0, Target::AtMost(most)));
            figures.push(figure("its share (PSS)", ours.1, go.1, Target::None));
        }
        Ok(())
    };
    wait(amount.settle);
    look("idle")?;
    for party in [&parties.ours, &parties.go] {
        for way in [Way::Direct, Way::Relayed] {
            for direction in ["down", "up"] {
                speedtest(&party.deployment, WORKSPACE, way, direction, amount.speedtest)?;
            }
        }
        for direction in [Transfer::Down, Transfer::Up] {
            transfer(&party.deployment, WORKSPACE, direction, amount.openssh)?;
        }
    }
    wait(amount.settle);
    look("after load")?;
    Ok(figures)
}

/// Our relay beside that of Go's server and upstream's own, by turns.
fn relays(context: &Context, parties: &Parties, amount: &Amount) -> anyhow::Result<Vec<Figure>> {
    let derper = Relay::start(context, Kind::Derper);
    let derper_pid = derper.pid().context("derper has no process of its own")?;
    let server = |party: &Party| (crate::peers::socket_address(&party.deployment.url), party.server);
    let relays = [server(&parties.ours), server(&parties.go), (derper.address, derper_pid)];
    let mut figures = Vec::new();
    for (window, how) in [(None, "as many as go"), (Some(32), "32 of a pair under way")] {
        let plan = Plan { window, warm_up: Duration::from_millis(300), time: amount.load };
        let mut loads: [Vec<Load>; 3] = Default::default();
        for _ in 0..amount.turns {
            for ((address, pid), loads) in relays.iter().zip(&mut loads) {
                loads.push(load::run(*address, *pid, plan).with_context(|| format!("{how}, the relay on {address}"))?);
            }
        }
        let middles = |of: fn(&Load) -> f64| {
            loads.each_ref().map(|loads| {
                let mut found: Vec<f64> = loads.iter().map(of).collect();
                found.sort_by(f64::total_cmp);
                middle(&found)
            })
        };
        let (packets, lost, cost) = (middles(|l| l.packets), middles(|l| l.lost), middles(|l| l.cost));
        for (at, name) in [(1, "Coder's"), (2, "derper")] {
            let figure = |what: String, unit, of: [f64; 3], target| Figure { what, unit, ours: of[0], go: of[at], target };
            let head = format!("relay beside {name}, {how}");
            figures.push(figure(head.clone(), Unit::PacketsPerSecond, packets, Target::TimesGo(10.0)));
            figures.push(figure(format!("{head}, lost"), Unit::Percent, lost.map(|lost| lost * 100.0), Target::None));
            figures.push(figure(format!("{head}, its processor time a packet"), Unit::Microseconds, cost, Target::None));
        }
    }
    Ok(figures)
}
