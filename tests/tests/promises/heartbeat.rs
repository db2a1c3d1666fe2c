//! Promise: a connection from which nothing comes is probed and then closed with 4411, any byte
//! counts as life; and a session ends with its token, unless a fresh one extends it.

use std::time::{Duration, Instant};

use trunkline_proto::client::{ClientBody, Connect, Heartbeat, ServerBody};
use trunkline_tests::process::{SECRET, Server};
use trunkline_tests::rest::token;
use trunkline_tests::session::{Session, To};
use trunkline_tests::wire::{Heard, Kind};

/// The silence after which a connection is closed: twice the heartbeat and 5 s.
const SILENCE_MAX: Duration = Duration::from_millis(2 * 300 + 5_000);

/// Says nothing, and sees the probe, then the close; returns how long that took.
async fn stay_silent(mut session: Session, kind: Kind) -> Duration {
    let began = Instant::now();
    let mut probed = false;
    loop {
        match session.heard().await.expect("an orderly end") {
            Heard::Ping => probed = true,
            Heard::Frame(frame) => match frame.frame {
                Some(ServerBody::Pong(_)) => probed = true,
                Some(ServerBody::Error(error)) => assert_eq!(error.close_code, 4411),
                other => panic!("{kind:?}: {other:?}"),
            },
            Heard::Closed(code) => {
                assert_eq!(code, 4411, "{kind:?}");
                assert!(probed, "{kind:?} was probed first");
                return began.elapsed();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_silent_are_probed_and_closed_and_the_living_stay() {
    let server = Server::serve(&["--heartbeat", "300ms"]);
    let mut alive = Vec::new();
    for kind in Kind::ALL {
        alive.push((
            kind,
            Session::open(&server, kind, "alive", &format!("{kind:?}")).await,
        ));
    }
    assert_eq!(alive[0].1.connected.heartbeat_ms, 300);
    let silent = Kind::ALL.map(|kind| {
        let server = &server;
        async move {
            let session = Session::open(server, kind, "silent", &format!("{kind:?}")).await;
            stay_silent(session, kind).await
        }
    });
    let silent = futures_util::future::join_all(silent);
    let beating = async {
        loop {
            for (kind, session) in &mut alive {
                // A WebSocket client that has nothing to say may send pongs instead.
                if *kind == Kind::Proto {
                    session.pong().await;
                } else {
                    session.send(ClientBody::Heartbeat(Heartbeat {})).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let silent = tokio::select! {
        silent = silent => silent,
        () = beating => unreachable!("it beats for ever"),
    };
    println!("closed after {silent:.1?}");
    // Not earlier than promised.
    assert!(
        silent
            .iter()
            .all(|took| *took >= SILENCE_MAX - Duration::from_millis(100))
    );
    for (kind, session) in &mut alive {
        let rest = session.frames_until_now().await;
        assert_eq!(rest, [], "{kind:?}: heartbeats have no answer");
    }
}

/// Sends a fresh token on the live session.
async fn renew(session: &mut Session, token: String, device: &str) {
    let connect = Connect {
        token,
        device_id: device.to_owned(),
        client: String::new(),
    };
    session.send(ClientBody::Connect(connect)).await;
    session
        .expect("connected again", |body| {
            matches!(body, ServerBody::Connected(_)).then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_its_token_unless_a_fresh_one_extends_it() {
    let server = Server::serve(&[]);
    let short = |user: &str| trunkline_identity::mint(SECRET, user, Duration::from_secs(3));
    let mut ending = Vec::new();
    let mut extended = Vec::new();
    for kind in Kind::ALL {
        let address = server.address(kind.listener());
        for (user, sessions) in [("ends", &mut ending), ("extends", &mut extended)] {
            let device = format!("{kind:?}");
            let session = Session::with_token(kind, address, &short(user), user, &device).await;
            sessions.push((device, session.expect("the token is good for now")));
        }
    }
    for (device, session) in &mut extended {
        renew(session, token("extends"), device).await;
    }
    for (device, session) in &mut ending {
        assert_eq!(session.close_code().await, 4401, "{device}");
    }
    for (device, session) in &mut extended {
        let ack = session.said(To::User("ends"), device, "still here").await;
        assert!(ack.is_ok(), "{device}: {ack:?}");
    }
}
