//! What the runtime promises when the store misbehaves: calls get an answer in time, what is under
//! way is bounded, and a store that failed for good stops the process.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::{Condvar, Mutex};
use serde_json::json;
use support::http::User;
use support::{TestCore, core_config, eventually, rest_config};
use trunkline_core::runtime::{Core, CoreConfig};
use trunkline_core::store::{MessageStore, ReadRange, Snapshot, StoreError, WriteBatch};
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;

/// An empty store whose reads wait for a gate, and whose commits end as they are told.
#[derive(Default)]
struct Gated {
    open: Mutex<bool>,
    opened: Condvar,
    reads: AtomicUsize,
    commit_error: Mutex<Option<StoreError>>,
}

impl Gated {
    fn pass(&self) {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock();
        while !*open {
            self.opened.wait(&mut open);
        }
    }

    fn open(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }
}

#[async_trait]
impl MessageStore for Gated {
    async fn commit(&self, _batch: &WriteBatch) -> Result<(), StoreError> {
        self.commit_error.lock().clone().map_or(Ok(()), Err)
    }

    async fn load(&self, _: ConversationId, _: u64) -> Result<Option<Snapshot>, StoreError> {
        self.pass();
        Ok(None)
    }

    async fn read(&self, _: ConversationId, _: ReadRange) -> Result<Vec<Message>, StoreError> {
        self.pass();
        Ok(Vec::new())
    }

    async fn conversations_of(&self, _: &str) -> Result<Vec<ConversationId>, StoreError> {
        self.pass();
        Ok(Vec::new())
    }

    async fn message_id_floor(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}

async fn core_on(store: Arc<Gated>, config: CoreConfig) -> TestCore {
    let dir = tempfile::tempdir().unwrap();
    TestCore::on_store(config, rest_config(), store, dir).await
}

#[tokio::test]
async fn a_call_that_the_store_holds_up_is_told_so_and_keeps_its_place() {
    let store = Arc::new(Gated::default());
    let config = CoreConfig {
        requests_max: 2,
        request_timeout: Duration::from_millis(50),
        ..core_config()
    };
    let core = core_on(store.clone(), config).await;
    let alice = User::new(core.http, "alice");
    let path = format!(
        "/v1/conversations/{}",
        ConversationId::direct("alice", "bob")
    );
    for _ in 0..2 {
        alice.get(&path).await.assert_problem(503, "unavailable");
    }
    // Both are given up by their callers, but not by the engine: there is no room for a third.
    let reply = alice.get(&path).await;
    let problem = reply.assert_problem(503, "overloaded");
    assert_eq!(problem["retry_after_ms"], 1_000);
    assert_eq!(reply.header("retry-after"), Some("1"));
    store.open();
    let handle = core.handle.clone();
    eventually("the places are free again", || {
        let mut text = String::new();
        handle.encode_metrics(&mut text);
        text.contains("trunkline_core_requests_outstanding 0")
    })
    .await;
    let status = alice.get(&path).await.status;
    assert!(matches!(status, 403 | 404), "{status}");
    core.shutdown().await;
}

#[tokio::test]
async fn a_store_that_failed_for_good_stops_the_process() {
    let store = Arc::new(Gated::default());
    store.open();
    let failure = StoreError::Failed("the disk is gone".into());
    *store.commit_error.lock() = Some(failure);
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let seen = reasons.clone();
    let config = CoreConfig {
        on_fatal: Arc::new(move |reason| seen.lock().push(reason.to_owned())),
        ..core_config()
    };
    let core = core_on(store, config).await;
    let alice = User::new(core.http, "alice");
    let body = json!({"to": "bob", "client_msg_id": "m", "content": "x"});
    let reply = alice.json("POST", "/v1/messages", body).await;
    reply.assert_problem(503, "unavailable");
    eventually("the hook is called", || !reasons.lock().is_empty()).await;
    assert_eq!(reasons.lock().len(), 1);
    assert!(reasons.lock()[0].contains("the disk is gone"));
    assert!(!core.handle.is_ready());
    core.shutdown().await;
}

#[tokio::test]
async fn a_store_that_cannot_say_its_floor_keeps_the_core_from_starting() {
    struct Broken;
    #[async_trait]
    impl MessageStore for Broken {
        async fn commit(&self, _: &WriteBatch) -> Result<(), StoreError> {
            Ok(())
        }
        async fn load(&self, _: ConversationId, _: u64) -> Result<Option<Snapshot>, StoreError> {
            Ok(None)
        }
        async fn read(&self, _: ConversationId, _: ReadRange) -> Result<Vec<Message>, StoreError> {
            Ok(Vec::new())
        }
        async fn conversations_of(&self, _: &str) -> Result<Vec<ConversationId>, StoreError> {
            Ok(Vec::new())
        }
        async fn message_id_floor(&self) -> Result<u64, StoreError> {
            Err(StoreError::Unavailable("no route".into()))
        }
    }
    let error = Core::start(core_config(), Arc::new(Broken)).err().unwrap();
    assert!(error.to_string().contains("no route"), "{error}");
}
