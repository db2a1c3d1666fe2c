//! Promises: where io_uring is forbidden the edge starts on epoll, says so, and is as good; and with
//! io_uring, receiving by poll is as good as receiving at once.

use std::process::Command;

use trunkline_tests::process::Server;
use trunkline_tests::session::{Session, To};
use trunkline_tests::wire::Kind;

const LAUNCHER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/promises/seccomp.c");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_io_uring_it_starts_on_epoll_and_says_so() {
    let mut server = Server::serve_unstarted(&["--io-driver", "auto"]);
    let launcher = server.dir().join("seccomp");
    let status = Command::new("cc")
        .args(["-O1", "-o"])
        .arg(&launcher)
        .arg(LAUNCHER)
        .status()
        .expect("cc: the C compiler is needed (Debian: gcc)");
    assert!(status.success());
    server.set_launcher(&launcher);
    server.start();
    let log = server.log();
    let said: Vec<_> = log
        .lines()
        .filter(|line| line.contains("epoll") && line.contains("io_uring"))
        .collect();
    assert_eq!(said.len(), 1, "one line says why epoll:\n{log}");
    let mut alice = Session::open(&server, Kind::Json, "alice", "d").await;
    let mut bob = Session::open(&server, Kind::Tcp, "bob", "d").await;
    alice
        .said(To::User("bob"), "m", "over epoll")
        .await
        .expect("an ack");
    assert_eq!(bob.message().await.content, "over epoll");
    drop((alice, bob));
    server.drain();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiving_by_poll_loses_nothing() {
    let mut server = Server::serve(&["--io-driver", "uring", "--recv", "poll", "--send-rate", "0"]);
    let mut alice = Session::open(&server, Kind::Json, "alice", "d").await;
    let mut bob = Session::open(&server, Kind::Tcp, "bob", "d").await;
    // Of a buffer's size and around, and of several.
    for (n, length) in [1, 700, 1_000, 1_000, 999, 1].into_iter().enumerate() {
        let content = "\u{1f600}".repeat(length);
        alice
            .said(To::User("bob"), &format!("a{n}"), &content)
            .await
            .expect("an ack");
        assert_eq!(bob.message().await.content, content);
        bob.said(To::User("alice"), &format!("b{n}"), &content)
            .await
            .expect("an ack");
        assert_eq!(alice.message().await.content, content);
    }
    drop((alice, bob));
    server.drain();
}
