//! UDP ports of the tunnel: forwarded to the machine's own loopback (coordination.md §14).
//!
//! Each sender and port is a flow with a socket of its own, so that the answers find their way back. First 127.0.0.1 is
//! tried; where the machine says that nobody listens there, what had no answer yet goes to ::1.

use crate::net::{
    Datagram, DatagramRest, DatagramSender,
    datagram_flows::{Flows, Inbox, quiet_limit},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
};
use tokio::net::UdpSocket;

/// Room for one answer of a local service. What is larger does not fit into the tunnel anyway.
const BUFFER: usize = Datagram::MAX + 1;
/// Datagrams kept for ::1 until there is an answer.
const UNANSWERED: usize = 8;

/// Where answers go.
trait Answers: Send + Sync + 'static {
    /// Sends an answer; whether the tunnel still takes any.
    fn answer(&self, data: &[u8], to: SocketAddrV6) -> impl Future<Output = bool> + Send;
}

impl Answers for DatagramSender {
    async fn answer(&self, data: &[u8], to: SocketAddrV6) -> bool {
        self.send_to(data, to).await.is_ok()
    }
}

/// Forwards until the node is closed. `serves` tells which ports are forwarded.
pub(crate) async fn forward(mut arriving: DatagramRest, serves: impl Fn(u16) -> bool) {
    let mut flows = Flows::new();
    while let Ok((datagram, from, port)) = arriving.recv_from().await {
        if serves(port) {
            let flow = Flow::new(port, arriving.sender(port), from);
            flows.pass(&(from, port), quiet_limit(port), datagram, |inbox| flow.run(inbox));
        }
    }
    tracing::debug!(dropped = flows.dropped(), "datagrams are forwarded no longer");
}

/// Why a flow leaves an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody listens there.
    Refused,
    /// It was quiet for too long, or the tunnel takes no answers any more.
    Over,
}

/// One flow, until it has been quiet for too long.
struct Flow<A> {
    port: u16,
    back: A,
    to: SocketAddrV6,
    /// What was sent before the first answer.
    unanswered: Vec<Vec<u8>>,
    answered: bool,
}

impl<A: Answers> Flow<A> {
    const fn new(port: u16, back: A, to: SocketAddrV6) -> Self {
        Self { port, back, to, unanswered: Vec::new(), answered: false }
    }

    async fn run(mut self, mut inbox: Inbox) {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            match self.pass(&mut inbox, ip).await {
                Ok(End::Over) => return,
                Ok(End::Refused) => {}
                Err(error) => tracing::debug!(port = self.port, %ip, %error, "no datagrams to this address"),
            }
        }
        // The next datagram begins another flow and may be luckier.
        tracing::debug!(port = self.port, "nobody listens");
    }

    async fn pass(&mut self, inbox: &mut Inbox, ip: IpAddr) -> io::Result<End> {
        let local = UdpSocket::bind(SocketAddr::new(ip, 0)).await?;
        local.connect(SocketAddr::new(ip, self.port)).await?;
        for datagram in &self.unanswered {
            // That the first met nobody may be told here already; it is read below.
            let _ = local.send(datagram).await;
        }
        let mut buffer = [0; BUFFER];
        loop {
            let step = tokio::select! {
                datagram = inbox.next() => Ok(datagram),
                received = local.recv(&mut buffer) => Err(received),
            };
            match step {
                Ok(None) => return Ok(End::Over),
                Ok(Some(datagram)) => {
                    let sent = local.send(&datagram).await;
                    if !self.answered && self.unanswered.len() < UNANSWERED {
                        self.unanswered.push(datagram);
                    }
                    match sent {
                        // It tells what an earlier one met; this one did not leave.
                        Err(error) if is_refusal(&error) && !self.answered => return Ok(End::Refused),
                        Err(error) => tracing::trace!(port = self.port, %error, "a datagram was not delivered"),
                        Ok(_) => {}
                    }
                }
                Err(Ok(n)) => {
                    (self.answered, self.unanswered) = (true, Vec::new());
                    inbox.touch();
                    match buffer.get(..n).filter(|answer| answer.len() <= Datagram::MAX) {
                        None => tracing::debug!(port = self.port, "an answer is too large for the tunnel: dropped"),
                        Some(answer) if self.back.answer(answer, self.to).await => {}
                        Some(_) => return Ok(End::Over),
                    }
                }
                // A service that answered before may come back.
                Err(Err(error)) if self.answered => tracing::trace!(port = self.port, %error, "no answer"),
                Err(Err(error)) if is_refusal(&error) => return Ok(End::Refused),
                Err(Err(error)) => return Err(error),
            }
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, time::Duration};
    use tokio::{sync::mpsc, time::timeout};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The bytes, and to whom.
    type Sent = (Vec<u8>, SocketAddrV6);

    impl Answers for mpsc::UnboundedSender<Sent> {
        async fn answer(&self, data: &[u8], to: SocketAddrV6) -> bool {
            self.send((data.to_vec(), to)).is_ok()
        }
    }

    fn peer(n: u16) -> SocketAddrV6 {
        SocketAddrV6::new("fd7a:115c:a1e0::1".parse().unwrap(), n, 0, 0)
    }

    /// A service that sends everything back.
    async fn echo(ip: IpAddr) -> Option<u16> {
        let socket = UdpSocket::bind((ip, 0)).await.ok()?;
        let port = socket.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
                socket.send_to(&buffer[..n], from).await.unwrap();
            }
        });
        Some(port)
    }

    struct World {
        flows: Flows<u16>,
        port: u16,
        sender: mpsc::UnboundedSender<Sent>,
        answers: mpsc::UnboundedReceiver<Sent>,
    }

    impl World {
        fn new(port: u16) -> Self {
            let (sender, answers) = mpsc::unbounded_channel();
            Self { flows: Flows::new(), port, sender, answers }
        }

        fn send(&mut self, from: u16, datagram: &[u8]) {
            let flow = Flow::new(self.port, self.sender.clone(), peer(from));
            self.flows.pass(&from, quiet_limit(self.port), datagram.to_vec(), |inbox| flow.run(inbox));
        }

        async fn heard(&mut self, n: usize) -> BTreeSet<Sent> {
            let mut heard = BTreeSet::new();
            for _ in 0..n {
                heard.insert(timeout(PATIENCE, self.answers.recv()).await.expect("no answer").unwrap());
            }
            heard
        }
    }

    #[tokio::test]
    async fn each_peers_datagrams_are_answered_to_it_and_too_large_an_answer_to_nobody() {
        let mut world = World::new(echo(Ipv4Addr::LOCALHOST.into()).await.unwrap());
        world.send(9, &[9; Datagram::MAX + 1]);
        for n in 1..4 {
            world.send(n, &[n as u8; 3]);
        }
        world.send(1, &[4]);
        let of = |n: u16, data: &[u8]| (data.to_vec(), peer(n));
        assert_eq!(world.heard(4).await, [of(1, &[1; 3]), of(1, &[4]), of(2, &[2; 3]), of(3, &[3; 3])].into());
    }

    #[tokio::test]
    async fn a_service_on_the_ipv6_loopback_alone_is_found_and_misses_nothing() {
        let Some(port) = echo(Ipv6Addr::LOCALHOST.into()).await else { return println!("skipped: no IPv6 on this machine") };
        let mut world = World::new(port);
        for n in 0..3 {
            world.send(1, &[n]);
        }
        assert_eq!(world.heard(3).await, [0, 1, 2].map(|n| (vec![n], peer(1))).into());
    }

    #[tokio::test]
    async fn a_flow_that_nobody_listens_to_ends() {
        // Held, so that nobody else gets it, by somebody who hears another only.
        let held = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        held.connect(held.local_addr().unwrap()).await.unwrap();
        let mut world = World::new(held.local_addr().unwrap().port());
        let (ended, end) = tokio::sync::oneshot::channel();
        let flow = Flow::new(world.port, world.sender.clone(), peer(1));
        world.flows.pass(&1, quiet_limit(world.port), vec![1], |inbox| async {
            flow.run(inbox).await;
            ended.send(()).unwrap();
        });
        timeout(PATIENCE, end).await.expect("it goes on").unwrap();
        assert!(world.answers.try_recv().is_err());
    }
}
