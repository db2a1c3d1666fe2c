//! From one item of the core to many local sockets. Recipients are named by the handles that this
//! edge issued, so finding one is an index and a comparison; a frame is encoded once for each
//! encoding, and a connection that gets nothing else in the turn is sent the shared bytes
//! themselves.

use bytes::Bytes;
use trunkline_proto::client::{Error, ServerBody, ServerFrame};
use trunkline_proto::codes::Close;

use crate::frame::encode_once::Encoding;
use crate::link::rosters::ShardHandles;
use crate::link::shared::SharedFrame;
use crate::observe::counters::Number;
use crate::ring::ConnId;
use crate::session::{Shard, State, classify, flag};

/// An operation of the core for sessions of one shard.
#[derive(Debug)]
pub enum ShardOp {
    /// A frame for one session: an answer, mostly.
    One { handle: u64, frame: ServerFrame },
    /// A frame for several.
    Many {
        handles: Vec<u64>,
        frame: std::sync::Arc<SharedFrame>,
        /// Other shards hold recipients too.
        crosses_shards: bool,
    },
    /// A frame for the sessions of a roster.
    Roster {
        handles: ShardHandles,
        /// One of them that gets nothing.
        except: Option<u64>,
        frame: std::sync::Arc<SharedFrame>,
        /// Other shards hold recipients too.
        crosses_shards: bool,
    },
    /// The session is in the registry.
    Registered { handle: u64 },
    /// The core ends the session.
    Close { handle: u64, error: Error },
}

/// Recipients from which on a frame that several shards share gets a reference count of its own:
/// counting on one that another core counts on too costs more than a copy.
const COPY_FROM_RECIPIENTS: usize = 8;

impl Shard {
    /// Carries out what the core sent, in order. `settled`: operations to grant credit for.
    pub fn core_ops(&mut self, ops: impl IntoIterator<Item = ShardOp>, settled: u32) {
        for op in ops {
            match op {
                ShardOp::One { handle, frame } => self.deliver_one(handle, &frame),
                ShardOp::Many {
                    handles,
                    frame,
                    crosses_shards,
                } => self.deliver_many(&handles, None, &frame, crosses_shards),
                ShardOp::Roster {
                    handles,
                    except,
                    frame,
                    crosses_shards,
                } => self.deliver_many(&handles, except, &frame, crosses_shards),
                ShardOp::Registered { handle } => self.registered(Self::conn_id(handle)),
                ShardOp::Close { handle, error } => self.close_session(handle, error),
            }
        }
        self.uplink.settle(settled);
    }

    fn deliver_one(&mut self, handle: u64, frame: &ServerFrame) {
        self.counters.inc(Number::Deliveries);
        let id = Self::conn_id(handle);
        let Some(conn) = self.slots.get_mut(id).filter(|c| c.state == State::Live) else {
            self.counters.inc(Number::DeliveredStale);
            return;
        };
        match &frame.frame {
            Some(ServerBody::Ack(_)) => {
                conn.sends_under_way = conn.sends_under_way.saturating_sub(1);
            }
            Some(ServerBody::Error(error)) if !error.client_msg_id.is_empty() => {
                conn.sends_under_way = conn.sends_under_way.saturating_sub(1);
            }
            Some(ServerBody::Synced(_)) => {
                conn.syncs_under_way = conn.syncs_under_way.saturating_sub(1);
            }
            // While a sync is under way the page may be its own: counted too high, the fetch
            // costs at worst a needless notice when the link breaks.
            Some(ServerBody::Page(_)) if conn.syncs_under_way == 0 => {
                conn.fetches_under_way = conn.fetches_under_way.saturating_sub(1);
            }
            _ => {}
        }
        self.counters.inc(Number::Delivered);
        let (class, key) = classify(frame);
        self.send_classified(id, frame, class, key);
    }

    fn deliver_many(
        &mut self,
        handles: &[u64],
        except: Option<u64>,
        frame: &SharedFrame,
        crosses_shards: bool,
    ) {
        self.counters.inc(Number::Deliveries);
        let copy = crosses_shards && handles.len() >= COPY_FROM_RECIPIENTS;
        let mut encoded: [Option<Bytes>; 3] = [const { None }; 3];
        let (class, key) = frame.class();
        let (mut sent, mut stale) = (0, 0);
        for &handle in handles {
            if except == Some(handle) {
                continue;
            }
            let id = Self::conn_id(handle);
            let Some(conn) = self.slots.get_mut(id).filter(|c| c.state == State::Live) else {
                stale += 1;
                continue;
            };
            sent += 1;
            let bytes = encoded[conn.encoding as usize]
                .get_or_insert_with(|| bytes_for(frame, conn.encoding, copy));
            if conn.has(flag::BLOCKED) {
                let bytes = bytes.clone();
                self.enqueue(id, bytes, class, key);
            } else {
                self.turns.share(id, conn, bytes);
            }
        }
        self.counters.add(Number::Delivered, sent);
        self.counters.add(Number::DeliveredStale, stale);
        self.counters.add(Number::frame_out(class), sent);
    }

    fn close_session(&mut self, handle: u64, error: Error) {
        let id: ConnId = Self::conn_id(handle);
        let close = u16::try_from(error.close_code)
            .ok()
            .and_then(Close::from_code)
            .unwrap_or(Close::Normal);
        self.finish(id, close, Some(error));
    }
}

fn bytes_for(frame: &SharedFrame, encoding: Encoding, copy: bool) -> Bytes {
    let shared = frame.bytes(encoding);
    if copy {
        Bytes::copy_from_slice(shared)
    } else {
        shared.clone()
    }
}
