//! Row 3: our node and a Go node, relayed and direct: TCP, UDP, pings, and what goes wrong on the way.

mod edges;
mod hardship;
mod namespace;
mod node;
mod pair;
mod streams;
mod transfers;

use crate::{
    peers::{Context, Kind, Need, Program, runtime},
    table::{Cell, Outcome},
};
use pair::{Dialler, Pair, Way};
use std::{future::Future, time::Duration};

const ROW: &str = "tunnel";
/// What carries the relayed part.
const RELAYS: [Kind; 2] = [Kind::OurServer, Kind::Derper];

pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for dialler in Dialler::BOTH {
        let who = dialler.name();
        for kind in RELAYS {
            let needs = needs(kind);
            let by = format!("{who}, by {}", kind.name());
            cells.push(Cell::new(ROW, format!("{by} and then direct: connect, each half closed on its own"), &needs, move |c| {
                both_ways(c, kind, dialler, async |pair, way| transfers::half_close(pair, dialler, way).await)
            }));
            let name = format!("{by}: a stream goes on when the way becomes direct");
            cells.push(Cell::new(ROW, name, &needs, move |c| transfers::upgrade(c, kind, dialler)));
            cells.push(bulk(format!("{by}: bulk each way, byte-equal"), kind, dialler, Way::Relayed));
        }
        // Which relay it is matters no more: each side's is used by half of the cells.
        let kind = if dialler == Dialler::Ours { Kind::OurServer } else { Kind::Derper };
        cells.push(bulk(format!("{who}, direct: bulk each way, byte-equal"), kind, dialler, Way::Direct));
        let mut add = |what: &str, run: fn(&Context, Kind, Dialler) -> Outcome| {
            let name = format!("{who}, by {} and then direct: {what}", kind.name());
            cells.push(Cell::new(ROW, name, &needs(kind), move |c| run(c, kind, dialler)));
        };
        add("200 parallel streams", |c, k, d| both_ways(c, k, d, async |p, way| transfers::parallel(p, d, way).await));
        add("reset by either end", |c, k, d| both_ways(c, k, d, async |p, way| edges::reset(p, d, way).await));
        add("refused port", |c, k, d| both_ways(c, k, d, async |p, way| edges::refused(p, d, way).await));
        add("UDP", |c, k, d| both_ways(c, k, d, async |p, way| edges::udp(p, d, way).await));
        add("ICMPv6 echo", |c, k, d| both_ways(c, k, d, async |p, way| edges::ping(p, d, way, edges::Ping::Icmp).await));
        add("TSMP ping", |c, k, d| both_ways(c, k, d, async |p, way| edges::ping(p, d, way, edges::Ping::Tsmp).await));
        add("disco ping names the way", |c, k, d| {
            both_ways(c, k, d, async |p, way| edges::ping(p, d, way, edges::Ping::Disco).await)
        });
        add("our node restarts with the same address", |c, k, d| hardship::restart(c, k, d, hardship::Restarted::Ours));
        add("the Go node restarts with the same address", |c, k, d| hardship::restart(c, k, d, hardship::Restarted::Go));
        let name = format!("{who}: both receivers pause, the windows close and open again");
        let pause = Cell::new(ROW, name, &needs(kind), move |c| hardship::zero_window(c, kind, dialler));
        cells.push(pause.within(Duration::from_secs(240)));
        let mut needs = needs(kind);
        needs.push(Need::Namespaces);
        let name = format!("{who}, direct: 1 % loss");
        cells.push(Cell::new(ROW, name, &needs, move |c| hardship::loss(c, kind, dialler)).within(Duration::from_secs(600)));
    }
    let name = "new keys after two minutes under load, we and the Go node as initiator";
    let rekey = Cell::new(ROW, name, &needs(Kind::OurServer), hardship::rekey);
    cells.push(rekey.within(Duration::from_secs(300)));
    cells
}

fn needs(kind: Kind) -> Vec<Need> {
    let mut needs = kind.needs();
    needs.push(Need::Program(Program::Node));
    needs
}

/// 200 MB, or 1 GB in the long form.
fn bulk(name: String, kind: Kind, dialler: Dialler, way: Way) -> Cell {
    const LIMIT: Duration = Duration::from_secs(900);
    let run = move |context: &Context| {
        let size = if context.full() { 1_000_000_000 } else { 200_000_000 };
        run(async {
            let mut pair = Pair::start(context, kind, dialler).await?;
            if way == Way::Direct {
                pair.go_direct().await?;
            }
            let words = transfers::bulk(&mut pair, dialler, way, size, LIMIT).await?;
            Ok(format!("{} MB, {words}", size / 1_000_000))
        })
    };
    Cell::new(ROW, name, &needs(kind), run).within(LIMIT)
}

/// Runs a cell's work beside its tasks.
fn run(work: impl Future<Output = Outcome>) -> Outcome {
    runtime().block_on(work)
}

/// The same relayed and then, between the same nodes, direct.
fn both_ways(context: &Context, kind: Kind, dialler: Dialler, work: impl AsyncFn(&mut Pair<'_>, Way) -> Outcome) -> Outcome {
    run(async {
        let mut pair = Pair::start(context, kind, dialler).await?;
        let mut words = vec![work(&mut pair, Way::Relayed).await.map_err(|e| e.context("relayed"))?];
        pair.go_direct().await?;
        words.push(work(&mut pair, Way::Direct).await.map_err(|e| e.context("direct"))?);
        words.retain(|words| !words.is_empty());
        Ok(words.join(", "))
    })
}
