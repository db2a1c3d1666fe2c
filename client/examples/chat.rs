//! A chat in the terminal: lines typed go to one user, what comes is printed.
//!
//! `cargo run -p trunkline-client --example chat -- ws://127.0.0.1:7400 bob "$(trunkline token --user alice)"`
//! (or `127.0.0.1:7401` for raw TCP). Ends with the input.

use std::error::Error;
use std::io::BufRead as _;

use tokio::sync::mpsc;
use trunkline_client::{Client, ClientConfig, Encoding, Event, Outgoing, TokenProvider, Transport};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(server), Some(peer), Some(token)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: chat ws://HOST:PORT|HOST:PORT PEER TOKEN".into());
    };
    let transport = if server.starts_with("ws://") {
        let encoding = Encoding::Protobuf;
        Transport::WebSocket {
            url: server,
            encoding,
        }
    } else {
        Transport::Tcp { address: server }
    };
    let device = format!("terminal-{}", std::process::id());
    let config = ClientConfig::new(transport, device, TokenProvider::fixed(token));
    let (client, mut events) = Client::connect(config)?;

    let (lines, mut typed) = mpsc::channel(16);
    // Reading a terminal blocks, so it has a thread of its own.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    loop {
        tokio::select! {
            line = typed.recv() => {
                let Some(line) = line else { break };
                match client.send(Outgoing::to_user(&peer, line)).await {
                    Ok(ack) => println!("  stored as {}", ack.seq),
                    Err(e) => println!("  not sent: {e}"),
                }
            }
            event = events.recv() => match event {
                Some(Event::Message(m)) => {
                    println!("{}: {}", m.sender_id, m.content);
                    client.mark_read(m.conversation_id, m.seq).await?;
                }
                Some(Event::Connected(c)) => println!("  connected as {}", c.user_id),
                Some(Event::Receipt(r)) => println!("  {} has {} up to {}", r.user_id, r.status, r.seq),
                Some(Event::Disconnected { reason, retry_in_ms: Some(ms) }) => {
                    println!("  {reason}; trying again in {ms} ms");
                }
                Some(Event::Disconnected { reason, retry_in_ms: None }) => return Err(reason.into()),
                Some(_) => {}
                None => break,
            }
        }
    }
    client.close().await;
    Ok(())
}
