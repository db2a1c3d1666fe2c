//! Promise: an acked message is never lost and never doubled, whatever process is killed at whatever
//! moment, and whatever link breaks in the midst of whatever it carries.
//!
//! Seen failing with the store's sync taken out only where a machine loses power, which no test here
//! does; `fsync.rs` and the store's own tests hold that end. With the dedup of the engine or the
//! position of the client's inbox taken out, these fail.

use std::time::{Duration, Instant};

use rand::RngExt as _;
use trunkline_tests::cast::{Cast, seeded};
use trunkline_tests::process::Server;
use trunkline_tests::proxy::Proxy;

const SERVE_KILLS: u32 = 20;
const EDGE_KILLS: u32 = 6;
const CORE_KILLS: u32 = 6;
const LINK_CUTS: u64 = 40;

const NO_LIMITS: [&str; 4] = ["--send-rate", "0", "--connect-rate", "0"];

/// Kills and starts again, and waits until messages are acked again.
async fn kill_and_go_on(cast: &Cast, server: &mut Server, what: &str, began: Instant) {
    let killed = Instant::now();
    server.kill();
    server.start();
    let down = killed.elapsed();
    let silent = cast
        .acked_after(killed + down, &format!("acks after {what}"))
        .await;
    println!(
        "{what} at {:.1} s: {down:.1?} until ready, {:.1?} without acks",
        (killed - began).as_secs_f64(),
        down + silent
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn serve_killed_at_random_moments_loses_nothing() {
    let mut rng = seeded("serve_killed_at_random_moments_loses_nothing");
    let mut server = Server::serve(&NO_LIMITS);
    let cast = Cast::start(&server, &[&server], &mut rng).await;
    let began = Instant::now();
    for round in 1..=SERVE_KILLS {
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..500))).await;
        kill_and_go_on(&cast, &mut server, &format!("kill {round}"), began).await;
    }
    cast.verdict(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_edge_or_a_core_killed_alone_loses_nothing() {
    let mut rng = seeded("an_edge_or_a_core_killed_alone_loses_nothing");
    let mut core = Server::core(&NO_LIMITS[..2]);
    let mut edges = [(); 2].map(|()| Server::edge(core.address("grpc"), &NO_LIMITS));
    let cast = Cast::start(&core, &[&edges[0], &edges[1]], &mut rng).await;
    let began = Instant::now();
    for round in 1..=EDGE_KILLS {
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..500))).await;
        let edge = &mut edges[rng.random_range(0..2)];
        kill_and_go_on(&cast, edge, &format!("kill {round} of an edge"), began).await;
    }
    for round in 1..=CORE_KILLS {
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..500))).await;
        let what = format!("kill {round} of the core");
        kill_and_go_on(&cast, &mut core, &what, began).await;
    }
    cast.verdict(&core).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_link_cut_in_the_midst_of_batches_loses_nothing() {
    let mut rng = seeded("a_link_cut_in_the_midst_of_batches_loses_nothing");
    let core = Server::core(&NO_LIMITS[..2]);
    let proxy = Proxy::start(core.address("grpc")).await;
    let cut_off = Server::edge(proxy.address(), &NO_LIMITS);
    let calm = Server::edge(core.address("grpc"), &NO_LIMITS);
    let cast = Cast::start(&core, &[&cut_off, &calm], &mut rng).await;
    for cut in 1..=LINK_CUTS {
        proxy.cut_after(rng.random_range(1..30_000));
        trunkline_tests::eventually("the cut", async || (proxy.cuts() >= cut).then_some(())).await;
        cast.acked_after(Instant::now(), "acks after the cut").await;
    }
    println!("{} cuts", proxy.cuts());
    assert!(cut_off.metric("trunkline_edge_link_breaks_total") >= LINK_CUTS as f64 / 2.0);
    cast.everybody_acked_after(Instant::now(), "acks after all cuts").await;
    cast.verdict(&core).await;
}
