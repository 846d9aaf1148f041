//! Terminals with real processes, over streams in memory.

use super::{ring::KEPT, *};
use crate::{
    agent::{Profile, ssh::Server},
    wire::pty::{Request, Size},
};
use tokio::{
    io::{DuplexStream, duplex},
    task::JoinHandle,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn terminals(room: usize) -> Terminals {
    Terminals::with_room(Server::new(Profile::default()), room)
}

struct Client {
    stream: DuplexStream,
    seen: Vec<u8>,
    served: JoinHandle<()>,
}

fn opening(id: u128, command: &str) -> Opening {
    let size = Size { height: 40, width: 120 };
    Opening { id: Uuid::from_u128(id), size, command: command.to_owned(), ..Opening::default() }
}

impl Client {
    async fn open(terminals: &Terminals, opening: &Opening) -> Self {
        Self::with_buffer(terminals, opening, 1 << 20).await
    }

    async fn with_buffer(terminals: &Terminals, opening: &Opening, bytes: usize) -> Self {
        let (mut stream, far) = duplex(bytes);
        let terminals = terminals.clone();
        let served = tokio::spawn(async move { terminals.serve(far, None).await });
        stream.write_all(&opening.write().unwrap()).await.unwrap();
        Self { stream, seen: Vec::new(), served }
    }

    async fn send(&mut self, data: &str, height: u16, width: u16) {
        let request = Request { data: data.to_owned(), size: Size { height, width } };
        self.stream.write_all(&request.write()).await.unwrap();
    }

    /// Reads until `end` has been seen behind what was seen before.
    async fn until(&mut self, end: &str) {
        let from = self.seen.len();
        let search = async {
            while !self.seen[from..].windows(end.len()).any(|w| w == end.as_bytes()) {
                let read = self.stream.read_buf(&mut self.seen).await.unwrap();
                assert!(read > 0, "no {end:?} in {:?}", String::from_utf8_lossy(&self.seen[from..]));
            }
        };
        timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no {end:?}"));
    }

    async fn rest(mut self) -> Vec<u8> {
        timeout(PATIENCE, self.stream.read_to_end(&mut self.seen)).await.expect("no end").unwrap();
        self.seen
    }

    /// Leaves, and waits until that is noticed.
    async fn leave(self) {
        drop(self.stream);
        timeout(PATIENCE, self.served).await.expect("the connection is still served").unwrap();
    }
}

#[tokio::test]
async fn whoever_comes_back_sees_the_last_64_kib_and_the_same_process() {
    let terminals = terminals(4);
    let command = "stty raw -echo; n=$$; head -c 200000 /dev/zero | tr '\\0' x; printf END; read x; echo \"$n $x\"; read x";
    let mut first = Client::open(&terminals, &opening(1, command)).await;
    first.until("END").await;
    assert_eq!(first.seen.len(), 200_003);
    first.leave().await;
    let mut again = Client::open(&terminals, &opening(1, "echo another")).await;
    again.until("END").await;
    assert_eq!(again.seen.len(), KEPT);
    assert!(again.seen[..KEPT - 3].iter().all(|b| *b == b'x'));
    again.send("typed\n", 0, 0).await;
    again.until(" typed").await;
    assert_eq!(terminals.shared.table().len(), 1);
}

#[tokio::test]
async fn two_who_are_attached_see_the_same_and_both_may_type() {
    let terminals = terminals(4);
    let shared = opening(2, "stty -echo; echo ready; while read x; do echo \"got $x\"; done");
    let mut one = Client::open(&terminals, &shared).await;
    one.until("ready").await;
    let mut two = Client::open(&terminals, &shared).await;
    two.until("ready").await;
    one.send("a\r", 0, 0).await;
    two.until("got a\r\n").await;
    two.send("b\r", 0, 0).await;
    for client in [&mut one, &mut two] {
        client.until("got b\r\n").await;
    }
    assert_eq!(String::from_utf8_lossy(&one.seen), "ready\r\ngot a\r\ngot b\r\n");
    assert_eq!(one.seen, two.seen);
    // The end of the process is everybody's.
    two.send("\u{4}", 0, 0).await;
    assert_eq!(one.rest().await, two.rest().await);
}

#[tokio::test]
async fn the_last_size_counts_and_half_a_size_is_none() {
    let terminals = terminals(4);
    let command = "stty -echo; stty size; read x; stty size; read x; stty size";
    let mut client = Client::open(&terminals, &opening(3, command)).await;
    client.until("40 120").await;
    client.send("\r", 50, 0).await;
    client.until("40 120").await;
    client.send("", 50, 100).await;
    client.send("\r", 0, 0).await;
    assert!(client.rest().await.ends_with(b"50 100\r\n"));
}

#[tokio::test]
async fn a_command_sees_a_terminal_with_colours_in_the_agents_folder_and_no_command_is_a_login_shell() {
    let terminals = terminals(4);
    let seen = Client::open(&terminals, &opening(4, "echo $TERM $CODER; tty")).await.rest().await;
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.starts_with("xterm-256color true\r\n/dev/pts/"), "{seen:?}");
    let mut shell = Client::open(&terminals, &opening(5, " ")).await;
    shell.send("echo $0 shell$((40 + 2)); exit\r", 0, 0).await;
    shell.until("shell42").await;
    shell.rest().await;
}

#[tokio::test]
async fn an_id_is_free_again_when_its_process_has_ended() {
    let terminals = terminals(1);
    for n in 0..3 {
        let seen = Client::open(&terminals, &opening(6, &format!("echo {n}"))).await.rest().await;
        assert_eq!(seen, format!("{n}\r\n").as_bytes());
    }
}

#[tokio::test]
async fn one_terminal_too_many_is_told_so_and_harms_none_of_the_others() {
    let terminals = terminals(1);
    let mut first = Client::open(&terminals, &opening(7, "stty -echo; echo ready; cat")).await;
    first.until("ready").await;
    let refused = Client::open(&terminals, &opening(8, "true")).await.rest().await;
    assert!(String::from_utf8(refused).unwrap().contains("1 terminals already"));
    let mut again = Client::open(&terminals, &opening(7, "")).await;
    again.until("ready").await;
    first.send("still here\r", 0, 0).await;
    again.until("still here").await;
}

#[tokio::test]
async fn what_cannot_be_served_is_told_and_leaves_nothing_behind() {
    let terminals = terminals(1);
    for (unwelcome, why) in [
        (Opening { container: "c1".into(), ..opening(9, "") }, "containers"),
        (Opening { backend: "tmux".into(), ..opening(9, "") }, "\"tmux\""),
        (opening(9, "a\0b"), "cannot start"),
    ] {
        let told = Client::open(&terminals, &unwelcome).await.rest().await;
        assert!(String::from_utf8_lossy(&told).contains(why), "{told:?}");
        assert_eq!(terminals.shared.table().len(), 0);
    }
    let (mut near, far) = duplex(64);
    near.write_all(b"\x02\x00[]").await.unwrap();
    terminals.serve(far, None).await;
    let mut told = String::new();
    near.read_to_string(&mut told).await.unwrap();
    assert!(told.contains("JSON object"), "{told}");
}

#[test]
fn a_machine_without_free_terminals_is_told_as_such() {
    let text = |errno: rustix::io::Errno| OpenError::Start(errno.into()).to_string();
    assert!(text(rustix::io::Errno::NOSPC).contains("no terminal left"));
    assert!(text(rustix::io::Errno::MFILE).contains("open files"));
    assert!(!text(rustix::io::Errno::NOENT).contains(';'));
}

#[tokio::test]
async fn a_terminal_that_nobody_watches_is_kept_for_five_minutes() {
    let terminals = terminals(1);
    let mut client = Client::open(&terminals, &opening(10, "stty -echo; echo ready; cat")).await;
    client.until("ready").await;
    tokio::time::pause();
    let left = tokio::time::Instant::now();
    client.leave().await;
    terminals.shared.tasks.close();
    terminals.shared.tasks.wait().await;
    let kept = left.elapsed();
    assert!((300..310).contains(&kept.as_secs()), "{kept:?}");
    assert_eq!(terminals.shared.table().len(), 0);
}

/// Time jumps here whenever everybody waits, and so whenever the process does: for the one who does not read.
#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_and_the_others_get_every_byte() {
    let terminals = terminals(1);
    let command = "stty raw -echo; printf ready; read x; head -c 3000000 /dev/zero | tr '\\0' y; printf END";
    let mut quick = Client::open(&terminals, &opening(11, command)).await;
    quick.until("ready").await;
    let slow = Client::with_buffer(&terminals, &opening(11, ""), 100).await;
    let both = async {
        while terminals.watchers(11) < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, both).await.unwrap();
    tokio::time::pause();
    let begin = tokio::time::Instant::now();
    quick.send("\n", 0, 0).await;
    let mut seen = Vec::new();
    quick.stream.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen.len(), 3_000_003);
    slow.served.await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_stop_hangs_everything_up_and_says_so() {
    let terminals = terminals(2);
    let mut client = Client::open(&terminals, &opening(12, "trap '' HUP; echo ready; while :; do sleep 1; done")).await;
    client.until("ready").await;
    let begin = tokio::time::Instant::now();
    terminals.shutdown().await;
    assert!(begin.elapsed() < FAREWELL, "it did not end");
    let seen = String::from_utf8(client.rest().await).unwrap();
    assert!(seen.ends_with("\r\nthe agent is shutting down\r\n"), "{seen:?}");
    let told = Client::open(&terminals, &opening(13, "")).await.rest().await;
    assert!(String::from_utf8(told).unwrap().contains("shutting down"));
}

impl Terminals {
    fn watchers(&self, id: u128) -> usize {
        self.shared.table().get(&Uuid::from_u128(id)).and_then(|slot| slot.get()).map_or(0, Terminal::watchers)
    }
}
