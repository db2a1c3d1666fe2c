//! Promise: an acked message is never lost and never doubled, whatever process is killed at whatever
//! moment, and whatever link breaks in the midst of whatever it carries.
//!
//! Seen failing with acks that leave before the commit, with the engine's dedup, the client's
//! positions, its gaps or its sending again taken out. What a machine owes that loses power is the
//! matter of `fsync.rs` and of the store's own tests.

use std::time::{Duration, Instant};

use rand::{RngExt as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;
use trunkline_tests::cast::{Cast, seeded};
use trunkline_tests::eventually;
use trunkline_tests::process::Server;
use trunkline_tests::proxy::Proxy;

const SERVE_KILLS: u32 = 20;
const EDGE_KILLS: u32 = 6;
const CORE_KILLS: u32 = 6;
/// Of each link; the edge waits longer before each further attempt.
const LINK_CUTS: u64 = 7;

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
async fn links_cut_in_the_midst_of_batches_lose_nothing() {
    let mut rng = seeded("links_cut_in_the_midst_of_batches_lose_nothing");
    let core = Server::core(&NO_LIMITS[..2]);
    let mut proxies = Vec::new();
    let mut edges = Vec::new();
    for _ in 0..3 {
        let proxy = Proxy::start(core.address("grpc")).await;
        edges.push(Server::edge(proxy.address(), &NO_LIMITS));
        proxies.push(proxy);
    }
    let cast = Cast::start(&core, &edges.iter().collect::<Vec<_>>(), &mut rng).await;
    let cutting = proxies.iter().map(|proxy| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(rng.random());
        async move {
            for cut in 1..=LINK_CUTS {
                proxy.cut_after(rng.random_range(1..30_000));
                eventually("the cut", async || (proxy.cuts() >= cut).then_some(())).await;
            }
        }
    });
    futures_util::future::join_all(cutting).await;
    for edge in &edges {
        // A cut of what is not attached yet breaks no link.
        let breaks = edge.metric("trunkline_edge_link_breaks_total");
        println!("{breaks} links broken");
        assert!(breaks >= 1.0);
    }
    cast.everybody_acked_after(Instant::now(), "acks after all cuts")
        .await;
    cast.verdict(&core).await;
}
