//! An edge of a few lines, over gRPC.

use std::collections::VecDeque;
use std::net::SocketAddr;

use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use trunkline_proto::client::{ClientBody, ClientFrame, SendMessage, ServerBody, ServerFrame};
use trunkline_proto::link::core_op::Op;
use trunkline_proto::link::link_client::LinkClient;
use trunkline_proto::link::{
    CoreBatch, CoreOp, CoreWelcome, EdgeBatch, EdgeHello, EdgeOp, SessionClosed, SessionOpened,
    VERSION, edge_op,
};

use super::PATIENCE;

pub fn hello(edge_id: &str) -> EdgeHello {
    EdgeHello {
        edge_id: edge_id.into(),
        incarnation: 1,
        resume_from_ms: 0,
        resume_from_incarnation: 0,
        send_rate: 0,
        send_burst: 0,
        sessions_per_user_max: 8,
        version: VERSION,
    }
}

pub fn opened(handle: u64, user: &str, device: &str, announced_again: bool) -> EdgeOp {
    EdgeOp {
        handle,
        op: Some(edge_op::Op::Opened(SessionOpened {
            user_id: user.into(),
            device_id: device.into(),
            announced_again,
            age_ms: 0,
        })),
    }
}

pub fn closed(handle: u64) -> EdgeOp {
    EdgeOp {
        handle,
        op: Some(edge_op::Op::Closed(SessionClosed {})),
    }
}

pub fn frame(handle: u64, id: &str, body: ClientBody) -> EdgeOp {
    let frame = ClientFrame {
        id: id.into(),
        frame: Some(body),
    };
    EdgeOp {
        handle,
        op: Some(edge_op::Op::Frame(frame.encode_to_vec().into())),
    }
}

pub fn message_to(user: &str, client_msg_id: &str, content: &str) -> ClientBody {
    ClientBody::SendMessage(SendMessage {
        to: user.into(),
        client_msg_id: client_msg_id.into(),
        content: content.into(),
        ..SendMessage::default()
    })
}

pub struct Edge {
    to_core: mpsc::Sender<EdgeBatch>,
    from_core: Streaming<CoreBatch>,
    ops: VecDeque<CoreOp>,
    pub welcome: CoreWelcome,
    /// Credit granted by the core so far.
    pub credit: u64,
    /// `core_time_ms` of the last batch.
    pub core_time_ms: u64,
}

impl Edge {
    /// Attaches with ample credit for the core.
    pub async fn attach(core: SocketAddr, hello: EdgeHello) -> Self {
        let first = EdgeBatch {
            hello: Some(hello),
            credit: 1_000,
            ..EdgeBatch::default()
        };
        Self::attach_with(core, first).await.unwrap()
    }

    pub async fn attach_with(core: SocketAddr, first: EdgeBatch) -> Result<Self, Status> {
        let mut client = LinkClient::connect(format!("http://{core}")).await.unwrap();
        let (to_core, batches) = mpsc::channel(16);
        to_core.send(first).await.unwrap();
        let mut from_core = client
            .attach(ReceiverStream::new(batches))
            .await?
            .into_inner();
        let greeting = tokio::time::timeout(PATIENCE, from_core.message())
            .await
            .expect("no greeting")?
            .expect("the stream ended before its greeting");
        Ok(Self {
            to_core,
            from_core,
            ops: greeting.ops.into(),
            welcome: greeting.welcome.expect("the first batch holds welcome"),
            credit: greeting.credit.into(),
            core_time_ms: greeting.core_time_ms,
        })
    }

    pub async fn send(&self, ops: Vec<EdgeOp>) {
        self.batch(EdgeBatch {
            ops,
            ..EdgeBatch::default()
        })
        .await;
    }

    pub async fn grant(&self, credit: u32) {
        self.batch(EdgeBatch {
            credit,
            ..EdgeBatch::default()
        })
        .await;
    }

    pub async fn batch(&self, batch: EdgeBatch) {
        // A core that cut the stream no longer reads; what it said is in the stream's status.
        let _ = self.to_core.send(batch).await;
    }

    /// The next batch, or why there is none.
    pub async fn next_batch(&mut self) -> Result<Option<CoreBatch>, Status> {
        let batch = tokio::time::timeout(PATIENCE, self.from_core.message())
            .await
            .unwrap_or_else(|_| panic!("the core says nothing; credit {}", self.credit))?;
        if let Some(batch) = &batch {
            assert!(batch.welcome.is_none(), "welcome comes once");
            self.credit += u64::from(batch.credit);
            self.core_time_ms = batch.core_time_ms;
        }
        Ok(batch)
    }

    pub async fn next_op(&mut self) -> Op {
        loop {
            if let Some(op) = self.ops.pop_front() {
                return op.op.expect("an operation of this version");
            }
            let batch = self.next_batch().await.unwrap().expect("the stream ended");
            self.ops.extend(batch.ops);
        }
    }

    pub async fn registered(&mut self, handle: u64) {
        match self.next_op().await {
            Op::Registered(r) => assert_eq!(r.handle, handle),
            other => panic!("instead of registered {handle}: {other:?}"),
        }
    }

    /// The next frame, which must be for `handle` alone.
    pub async fn frame_for(&mut self, handle: u64) -> ServerFrame {
        match self.next_op().await {
            Op::Deliver(deliver) => {
                assert_eq!(deliver.handles, [handle]);
                deliver.frame.expect("a frame")
            }
            other => panic!("instead of a frame for {handle}: {other:?}"),
        }
    }

    pub async fn body_for(&mut self, handle: u64) -> ServerBody {
        let frame = self.frame_for(handle).await;
        frame.frame.expect("a frame of this version")
    }

    /// Opens a session and waits until it is registered.
    pub async fn open(&mut self, handle: u64, user: &str, device: &str) {
        self.send(vec![opened(handle, user, device, false)]).await;
        self.registered(handle).await;
    }

    /// Reads until the stream ends; returns the status.
    pub async fn ended(&mut self) -> Status {
        loop {
            match self.next_batch().await {
                Ok(Some(batch)) => self.ops.extend(batch.ops),
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}
