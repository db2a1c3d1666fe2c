//! A man in the middle of raw TCP: passes frames on whole, keeps what the client sends, and drops
//! the frames of the server that it is told to.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use trunkline_proto::client::{ClientBody, ClientFrame, ServerBody, ServerFrame};

type Drops = Box<dyn FnMut(&ServerBody) -> bool + Send>;

/// Listens on a port of its own; lives as long as the runtime.
pub struct Tap {
    address: String,
    heard: Arc<Mutex<Vec<ClientBody>>>,
}

impl Tap {
    /// In front of `target`; frames of the server for which `drops` is true do not pass.
    pub async fn start(
        target: &str,
        drops: impl FnMut(&ServerBody) -> bool + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let drops: Arc<Mutex<Drops>> = Arc::new(Mutex::new(Box::new(drops)));
        let (kept, target) = (Arc::clone(&heard), target.to_owned());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&target).await.expect("the server");
                let (client_read, client_write) = client.into_split();
                let (server_read, server_write) = server.into_split();
                let kept = Arc::clone(&kept);
                tokio::spawn(pass(
                    client_read,
                    server_write,
                    move |frame: &ClientFrame| {
                        kept.lock()
                            .expect("nobody panicked here")
                            .extend(frame.frame.clone());
                        true
                    },
                ));
                let drops = Arc::clone(&drops);
                tokio::spawn(pass(
                    server_read,
                    client_write,
                    move |frame: &ServerFrame| {
                        let drops = &mut *drops.lock().expect("nobody panicked here");
                        !frame.frame.as_ref().is_some_and(drops)
                    },
                ));
            }
        });
        Self { address, heard }
    }

    /// `host:port` to connect to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What clients sent until now, in order.
    pub fn heard(&self) -> Vec<ClientBody> {
        self.heard.lock().expect("nobody panicked here").clone()
    }
}

/// Passes delimited frames on until one side ends.
async fn pass<F: prost::Message + Default>(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut passes: impl FnMut(&F) -> bool,
) {
    let mut incoming = Vec::new();
    let mut chunk = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        incoming.extend_from_slice(&chunk[..n]);
        let mut rest = &incoming[..];
        let mut outgoing = Vec::new();
        while let Some((frame, after)) = split_frame(rest) {
            let decoded = F::decode(frame).expect("a frame of the schema");
            if passes(&decoded) {
                decoded
                    .encode_length_delimited(&mut outgoing)
                    .expect("a Vec takes everything");
            }
            rest = after;
        }
        let left = rest.len();
        incoming.drain(..incoming.len() - left);
        if to.write_all(&outgoing).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// The first whole frame, and what follows it.
fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = bytes;
    let length = prost::decode_length_delimiter(&mut rest).ok()?;
    rest.split_at_checked(length)
}
