//! Keeps a core attached: attaches, tells the shards, waits for the end, tells them again, and
//! starts over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use trunkline_proto::link::{EdgeBatch, EdgeHello};
use trunkline_proto::ports::{CREDIT_INITIAL, CorePort, EdgePort};

use super::router::EdgeRouter;
use super::uplink::Credit;
use super::{Inbox, LinkState, ToShard};

/// The first wait before attaching anew, and the longest.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Attaches to a core of the same process.
pub type AttachLocal = Box<dyn Fn(EdgeHello, Arc<dyn EdgePort>) -> Arc<dyn CorePort> + Send + Sync>;

/// What every way of attaching shares.
pub struct Attacher {
    shards: Arc<[Inbox]>,
    hello: EdgeHello,
    state: Arc<LinkState>,
    attachments: AtomicU64,
}

impl Attacher {
    /// `hello`: all but from when on to resume.
    pub fn new(shards: Arc<[Inbox]>, hello: EdgeHello, state: Arc<LinkState>) -> Self {
        Self {
            shards,
            hello,
            state,
            attachments: AtomicU64::new(0),
        }
    }

    /// The greeting and the receiving side of the next attachment.
    pub fn begin(&self) -> (EdgeHello, Arc<EdgeRouter>) {
        let attachment = self.attachments.fetch_add(1, Ordering::Relaxed) + 1;
        let router = EdgeRouter::new(
            attachment,
            self.shards.clone(),
            self.state.clone(),
            // The core grants the first credit when it greets.
            Arc::new(Credit::new(0)),
        );
        let resume = self.state.resume();
        let hello = EdgeHello {
            resume_from_ms: resume.from_ms,
            resume_from_incarnation: resume.core_incarnation,
            ..self.hello.clone()
        };
        (hello, Arc::new(router))
    }

    /// The core has taken the attachment: the shards announce their sessions.
    pub fn up(&self, router: &EdgeRouter, port: &Arc<dyn CorePort>) {
        *self.state.credit.lock() = Some(router.credit().clone());
        for shard in &*self.shards {
            shard.push(ToShard::LinkUp {
                attachment: router.attachment(),
                credit: router.credit().clone(),
                port: port.clone(),
            });
        }
        self.state.up.store(true, Ordering::Release);
    }

    /// The attachment is over.
    pub fn down(&self, router: &EdgeRouter) {
        self.state.up.store(false, Ordering::Release);
        *self.state.credit.lock() = None;
        self.state.set_rosters(0, 0);
        for shard in &*self.shards {
            shard.push(ToShard::LinkDown {
                attachment: router.attachment(),
            });
        }
    }
}

/// The edge's first grant: the core sends nothing without it.
pub fn first_grant() -> EdgeBatch {
    EdgeBatch {
        hello: None,
        ops: Vec::new(),
        credit: CREDIT_INITIAL,
    }
}

/// Keeps a core of the same process attached, until `stop` says so.
pub async fn run_local(attacher: Attacher, attach: AttachLocal, mut stop: watch::Receiver<bool>) {
    let mut backoff = Backoff::default();
    loop {
        let (hello, router) = attacher.begin();
        let port = attach(hello, router.clone());
        port.submit(first_grant());
        attacher.up(&router, &port);
        let since = tokio::time::Instant::now();
        tokio::select! {
            () = router.until_cut() => {}
            _ = stop.wait_for(|&stop| stop) => {}
        }
        drop(port);
        attacher.down(&router);
        if backoff.wait(since.elapsed(), &mut stop).await {
            return;
        }
    }
}

/// Waits between attempts: doubled each time, with full jitter, afresh after an attachment that
/// held for a while.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: BACKOFF_MIN }
    }
}

impl Backoff {
    /// Waits. `held`: how long the attachment held. True if it is time to stop.
    pub async fn wait(&mut self, held: Duration, stop: &mut watch::Receiver<bool>) -> bool {
        if held >= BACKOFF_MAX {
            self.next = BACKOFF_MIN;
        }
        let jitter = self.next.mul_f64(rand::random_range(0.5..1.0));
        self.next = (self.next * 2).min(BACKOFF_MAX);
        // Over before the wait is: it is time to stop, or nobody is left who could say so.
        let stopped = tokio::time::timeout(jitter, stop.wait_for(|&stop| stop)).await;
        stopped.is_ok()
    }
}
