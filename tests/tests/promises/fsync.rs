//! Promise: an ack leaves only when the message is on stable storage. The C library's `fsync` and
//! `fdatasync` of a real server are held up, by the same little library that the store's own tests
//! put before it.

use std::path::Path;
use std::process::Command;

use trunkline_tests::eventually;
use trunkline_tests::process::Server;
use trunkline_tests::rest::get;
use trunkline_tests::session::{Session, To};
use trunkline_tests::wire::Kind;

const GATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../core/tests/fsync_gate.c");

fn compile(source: &Path, out: &Path) {
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([out, source])
        .arg("-ldl")
        .status()
        .expect("cc: the C compiler is needed (Debian: gcc)");
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ack_leaves_before_the_sync_has_returned() {
    let mut server = Server::serve_unstarted(&[]);
    let gate = server.dir().join("gate");
    std::fs::create_dir(&gate).expect("a directory");
    let library = server.dir().join("gate.so");
    compile(Path::new(GATE), &library);
    server.set_env("LD_PRELOAD", &library.to_string_lossy());
    server.set_env("FSYNC_GATE", &gate.to_string_lossy());
    server.start();
    let mut alice = Session::open(&server, Kind::Json, "alice", "d").await;
    let mut bob = Session::open(&server, Kind::Tcp, "bob", "d").await;
    alice
        .said(To::User("bob"), "open", "x")
        .await
        .expect("an ack");
    assert_eq!(bob.message().await.seq, 1);

    std::fs::write(gate.join("closed"), "").expect("the gate closes");
    alice.say(To::User("bob"), "held", "x").await;
    eventually("the store syncs", async || {
        gate.join("entered").exists().then_some(())
    })
    .await;
    let synced = std::fs::read_to_string(gate.join("entered")).expect("the file's name");
    assert!(synced.contains("data/"), "a file of the store: {synced}");
    // The commit is held up, so neither the ack nor the message can be under way: the fence's
    // answer would come after them.
    alice.fence().await;
    bob.fence().await;
    let acked = alice.take(|body| match body {
        trunkline_proto::client::ServerBody::Ack(ack) => Some(ack.seq),
        _ => None,
    });
    assert_eq!(acked, [] as [u64; 0], "no ack while the sync runs");
    assert_eq!(bob.messages_until_now().await, [], "and no delivery");
    let path = format!(
        "/v1/conversations/{}/messages",
        trunkline_proto::ids::ConversationId::direct("alice", "bob")
    );
    let (_, page) = get(&server, "bob", &path);
    assert_eq!(
        page["head_seq"], 1,
        "nobody is shown what may yet be lost: {page}"
    );

    std::fs::remove_file(gate.join("closed")).expect("the gate opens");
    let ack = alice.settled("held").await.expect("an ack");
    assert_eq!((ack.seq, bob.message().await.seq), (2, 2));
}
