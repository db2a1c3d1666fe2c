//! A TCP proxy that cuts: it forwards bytes both ways until it is told to cut, or until a given
//! number of bytes has passed, and then resets both sides in the middle of whatever it carried.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Listens on a port of its own; lives as long as the runtime.
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<String>,
    /// Counts up at each cut; connections of an older number end.
    generation: watch::Sender<u64>,
    refuses: AtomicBool,
    /// Bytes that may pass until the next cut; `u64::MAX`: no end.
    allowance: AtomicU64,
    cuts: AtomicU64,
}

impl Proxy {
    /// In front of `target`, `host:port`.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared {
            target: Mutex::new(target.to_owned()),
            generation: watch::Sender::new(0),
            refuses: AtomicBool::new(false),
            allowance: AtomicU64::new(u64::MAX),
            cuts: AtomicU64::new(0),
        });
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                if accepting.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let shared = Arc::clone(&accepting);
                tokio::spawn(async move { shared.carry(socket).await });
            }
        });
        Self { address, shared }
    }

    /// `host:port` to connect to.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Cuts all connections now; new ones pass.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts after that many more bytes, wherever that is.
    pub fn cut_after(&self, bytes: u64) {
        self.shared.allowance.store(bytes, Ordering::SeqCst);
    }

    /// New connections go to `target` from now on; those there are stay where they are.
    pub fn retarget(&self, target: &str) {
        *self.shared.target.lock().expect("nobody panicked here") = target.to_owned();
    }

    /// Refuses new connections, or takes them again.
    pub fn refuse(&self, refuse: bool) {
        self.shared.refuses.store(refuse, Ordering::SeqCst);
        if refuse {
            self.cut();
        }
    }

    /// How often it has cut.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn cut(&self) {
        self.allowance.store(u64::MAX, Ordering::SeqCst);
        self.cuts.fetch_add(1, Ordering::SeqCst);
        self.generation.send_modify(|g| *g += 1);
    }

    async fn carry(&self, client: TcpStream) {
        let mut cut = self.generation.subscribe();
        cut.mark_unchanged();
        let target = self.target.lock().expect("nobody panicked here").clone();
        let Ok(server) = TcpStream::connect(&target).await else {
            return;
        };
        for socket in [&client, &server] {
            // A reset, not a FIN: what was under way is gone.
            let _ = socket.set_zero_linger();
            let _ = socket.set_nodelay(true);
        }
        let (mut client_read, mut client_write) = client.into_split();
        let (mut server_read, mut server_write) = server.into_split();
        tokio::select! {
            _ = cut.changed() => {}
            () = self.copy(&mut client_read, &mut server_write) => {}
            () = self.copy(&mut server_read, &mut client_write) => {}
        }
    }

    /// Forwards until an end, or until the allowance is used up: then the bytes that were allowed
    /// still pass, and all is cut.
    async fn copy(
        &self,
        from: &mut (impl AsyncReadExt + Unpin),
        to: &mut (impl AsyncWriteExt + Unpin),
    ) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let allowed = self.spend(n as u64);
            if to.write_all(&buffer[..allowed as usize]).await.is_err() {
                return;
            }
            if allowed < n as u64 {
                // Let the part arrive before the reset overtakes it.
                tokio::time::sleep(Duration::from_millis(5)).await;
                self.cut();
                return;
            }
        }
    }

    fn spend(&self, wanted: u64) -> u64 {
        let before = self
            .allowance
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(if left == u64::MAX {
                    left
                } else {
                    left.saturating_sub(wanted)
                })
            })
            .unwrap_or(u64::MAX);
        before.min(wanted)
    }
}
