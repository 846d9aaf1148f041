//! Sessions beside a file system that does not answer.

use super::{Seen, connect, server, to_the_end, within};
use crate::agent::{
    Profile,
    tests::held::{HOLDS, HeldFile},
};
use futures::FutureExt as _;
use tokio::time::Instant;

#[tokio::test]
async fn a_program_whose_file_system_hangs_holds_up_its_session_alone() {
    let ([first, second], server) = ([(); 2].map(|()| HeldFile::copy_of("/bin/sh")), server());
    // Whatever takes long comes before the first look at a file.
    let ((client, _), (another, _)) = (connect(&server).await, connect(&server).await);
    let (with_pipes, with_terminal) =
        (client.channel_open_session().await.unwrap(), client.channel_open_session().await.unwrap());
    with_terminal.request_pty(true, "dumb", 80, 24, 0, 0, &[]).await.unwrap();
    let mut beside = [client.channel_open_session().await.unwrap(), another.channel_open_session().await.unwrap()];
    let begun = Instant::now();
    let mut waiting = Vec::new();
    for (mut channel, held, terminal) in [(with_pipes, &first, false), (with_terminal, &second, true)] {
        let command = if terminal { "until stty size | grep '50 132'; do :; done" } else { "echo done" };
        channel.exec(true, format!("#!{}\n{command}", held.path().display())).await.unwrap();
        let mut seen = Seen::default();
        while seen.replies.len() < 1 + usize::from(terminal) {
            seen.take(within(channel.wait()).await.unwrap());
        }
        assert!(!seen.replies.contains(&false));
        // What is asked of it meanwhile is kept for it.
        channel.window_change(132, 50, 0, 0).await.unwrap();
        // A process holds what was open when it began, such as the pipes of others that are just being started.
        within(held.is_waited_for()).await;
        waiting.push(channel);
    }
    for channel in &mut beside {
        channel.exec(true, "echo fine").await.unwrap();
    }
    for channel in &mut beside {
        assert_eq!(to_the_end(channel).await.text(), "fine\n");
    }
    for channel in &mut waiting {
        assert!(channel.wait().now_or_never().is_none(), "it runs");
    }
    assert!(begun.elapsed() < HOLDS);
    first.let_go();
    second.let_go();
    for (mut channel, expected) in waiting.into_iter().zip(["done\n", "50 132\r\n"]) {
        let seen = to_the_end(&mut channel).await;
        assert!(seen.text().ends_with(expected) && seen.exit == Some(0), "{seen:?}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_program_that_cannot_be_started() {
    let (held, server) = (HeldFile::copy_of("/bin/sh"), server());
    let (client, _) = connect(&server).await;
    let mut channel = client.channel_open_session().await.unwrap();
    let begun = Instant::now();
    channel.exec(true, format!("#!{}\ntrue", held.path().display())).await.unwrap();
    let mut seen = Seen::default();
    while seen.replies.is_empty() {
        seen.take(within(channel.wait()).await.unwrap());
    }
    let (_, rest) = tokio::join!(within(server.shutdown(super::LIMIT)), to_the_end(&mut channel));
    assert!(begun.elapsed() < HOLDS);
    assert_eq!((rest.exit, String::from_utf8_lossy(&rest.stderr).trim()), (None, "the agent is shutting down"));
}

#[tokio::test]
async fn a_message_of_the_day_whose_file_system_hangs_is_left_out() {
    let (held, server) = (HeldFile::copy_of("/etc/passwd"), server());
    server.set_profile(Profile { motd: held.path().into(), ..Profile::default() });
    server.set_banners(vec!["banner".into()]);
    let (client, _) = connect(&server).await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_pty(true, "dumb", 80, 24, 0, 0, &[]).await.unwrap();
    let mut beside = client.channel_open_session().await.unwrap();
    let begun = Instant::now();
    channel.request_shell(true).await.unwrap();
    channel.data(&b"exit 3\n"[..]).await.unwrap();
    beside.exec(true, "echo fine").await.unwrap();
    assert_eq!(to_the_end(&mut beside).await.text(), "fine\n");
    let seen = to_the_end(&mut channel).await;
    assert!(begun.elapsed() < HOLDS);
    assert!(seen.text().starts_with("banner\r\n") && !seen.text().contains("root:"), "{seen:?}");
    assert_eq!(seen.exit, Some(3));
}
