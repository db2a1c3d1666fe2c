//! What the core sends, split by shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use trunkline_proto::link::{CoreBatch, CoreOp, Deliver, DeliverToRoster, core_op::Op};
use trunkline_proto::ports::{EdgePort, Handle};

use super::rosters::{RosterError, Rosters};
use super::shared::SharedFrame;
use super::uplink::Credit;
use super::{Inbox, LinkState, ToShard};
use crate::hub::ShardOp;

/// One attachment's receiving side.
pub struct EdgeRouter {
    attachment: u64,
    shards: Arc<[Inbox]>,
    state: Arc<LinkState>,
    credit: Arc<Credit>,
    /// Used by whoever delivers, one at a time.
    rosters: Mutex<Rosters>,
    /// As the core greeted.
    core_incarnation: AtomicU64,
    cut: AtomicBool,
    cut_told: Notify,
}

impl EdgeRouter {
    pub(super) fn new(
        attachment: u64,
        shards: Arc<[Inbox]>,
        state: Arc<LinkState>,
        credit: Arc<Credit>,
    ) -> Self {
        Self {
            attachment,
            rosters: Mutex::new(Rosters::new(shards.len())),
            core_incarnation: AtomicU64::new(0),
            shards,
            state,
            credit,
            cut: AtomicBool::new(false),
            cut_told: Notify::new(),
        }
    }

    /// Returns when the core has given this attachment up.
    pub async fn until_cut(&self) {
        // Enlisted before the flag is read, so that a cut in between is not missed.
        let told = self.cut_told.notified();
        if !self.cut.load(Ordering::SeqCst) {
            told.await;
        }
    }

    pub(super) const fn credit(&self) -> &Arc<Credit> {
        &self.credit
    }

    pub(super) const fn attachment(&self) -> u64 {
        self.attachment
    }
}

impl EdgePort for EdgeRouter {
    fn deliver(&self, batch: CoreBatch) {
        // What comes behind an operation that was not understood must not count as received.
        if self.cut.load(Ordering::SeqCst) {
            return;
        }
        if let Some(welcome) = &batch.welcome {
            let of = welcome.incarnation;
            self.core_incarnation.store(of, Ordering::Relaxed);
        }
        let mut rosters = self.rosters.lock();
        let parts = match split(batch.ops, &mut rosters) {
            Ok(parts) => parts,
            Err(error) => return self.cut(&error.to_string()),
        };
        self.state.set_rosters(rosters.len(), rosters.handles());
        drop(rosters);
        for (shard, part) in self.shards.iter().zip(parts) {
            if !part.ops.is_empty() || part.settles > 0 {
                shard.push(ToShard::Core {
                    attachment: self.attachment,
                    ops: part.ops,
                    settles: part.settles,
                });
            }
        }
        let of = self.core_incarnation.load(Ordering::Relaxed);
        self.state.resume.lock().told_until(batch.core_time_ms, of);
        if self.credit.grant(batch.credit) {
            for shard in &*self.shards {
                shard.waker.wake();
            }
        }
    }

    fn cut(&self, reason: &str) {
        tracing::warn!("the link is cut: {reason}");
        self.cut.store(true, Ordering::SeqCst);
        self.cut_told.notify_waiters();
    }
}

/// One shard's part of a batch.
#[derive(Debug, Default)]
pub struct Part {
    pub ops: Vec<ShardOp>,
    /// Operations whose credit this shard returns: each of the batch is in one part.
    pub settles: u32,
}

/// Splits a batch; the order of what concerns one session is kept. Handles of shards that do not
/// exist are left out.
///
/// # Errors
/// Something that the rosters forbid. Nothing of the batch may be taken for received then.
pub fn split(ops: Vec<CoreOp>, rosters: &mut Rosters) -> Result<Vec<Part>, RosterError> {
    let mut parts: Vec<Part> = (0..rosters.shards()).map(|_| Part::default()).collect();
    for op in ops {
        let settler = match op.op {
            Some(Op::Deliver(deliver)) => split_deliver(deliver, &mut parts),
            Some(Op::Registered(registered)) => {
                let handle = registered.handle;
                push(&mut parts, handle, ShardOp::Registered { handle })
            }
            Some(Op::Close(close)) => {
                let handle = close.handle;
                let error = close.error.unwrap_or_default();
                push(&mut parts, handle, ShardOp::Close { handle, error })
            }
            Some(Op::DeliverToRoster(deliver)) => to_roster(deliver, rosters, &mut parts)?,
            Some(Op::Roster(change)) => {
                rosters.change(change)?;
                None
            }
            Some(Op::DropRoster(dropped)) => {
                rosters.drop_roster(dropped.roster_id);
                None
            }
            None => None,
        };
        // An operation for nobody is dealt with by whoever is there.
        if let Some(part) = parts.get_mut(settler.unwrap_or(0)) {
            part.settles += 1;
        }
    }
    Ok(parts)
}

fn to_roster(
    deliver: DeliverToRoster,
    rosters: &Rosters,
    parts: &mut [Part],
) -> Result<Option<usize>, RosterError> {
    let recipients = rosters.recipients(deliver.roster_id, deliver.version)?;
    let Some(frame) = deliver.frame else {
        return Ok(None);
    };
    let crosses_shards = recipients.iter().filter(|list| !list.is_empty()).count() > 1;
    let frame = Arc::new(SharedFrame::new(frame));
    let mut first = None;
    for (shard, handles) in recipients.iter().enumerate() {
        if handles.is_empty() {
            continue;
        }
        first = first.or(Some(shard));
        parts[shard].ops.push(ShardOp::Roster {
            handles: handles.clone(),
            except: deliver.except,
            frame: frame.clone(),
            crosses_shards,
        });
    }
    Ok(first)
}

fn push(parts: &mut [Part], handle: u64, op: ShardOp) -> Option<usize> {
    let shard = usize::from(Handle::from_u64(handle).shard);
    parts.get_mut(shard)?.ops.push(op);
    Some(shard)
}

fn split_deliver(deliver: Deliver, parts: &mut [Part]) -> Option<usize> {
    let frame = deliver.frame?;
    let handles = deliver.handles;
    if let [handle] = handles[..] {
        return push(parts, handle, ShardOp::One { handle, frame });
    }
    let mut by_shard: Vec<Vec<u64>> = vec![Vec::new(); parts.len()];
    if by_shard.len() == 1 {
        by_shard[0] = handles;
        by_shard[0].retain(|&handle| Handle::from_u64(handle).shard == 0);
    } else {
        for handle in handles {
            let shard = usize::from(Handle::from_u64(handle).shard);
            if let Some(list) = by_shard.get_mut(shard) {
                list.push(handle);
            }
        }
    }
    let crosses_shards = by_shard.iter().filter(|list| !list.is_empty()).count() > 1;
    let frame = Arc::new(SharedFrame::new(frame));
    let mut first = None;
    for (shard, handles) in by_shard.into_iter().enumerate() {
        if handles.is_empty() {
            continue;
        }
        first = first.or(Some(shard));
        parts[shard].ops.push(ShardOp::Many {
            handles,
            frame: frame.clone(),
            crosses_shards,
        });
    }
    first
}

#[cfg(test)]
mod tests {
    use trunkline_proto::client::{Pong, ServerBody, ServerFrame};
    use trunkline_proto::link::{CloseSession, DropRoster, Registered, Roster};

    use super::*;

    fn handle(shard: u8, slot: u32) -> u64 {
        Handle {
            shard,
            slot,
            generation: 1,
        }
        .to_u64()
    }

    fn op(op: Op) -> CoreOp {
        CoreOp { op: Some(op) }
    }

    fn deliver(handles: &[u64]) -> CoreOp {
        op(Op::Deliver(Deliver {
            handles: handles.to_vec(),
            frame: Some(ServerFrame::push(ServerBody::Pong(Pong::default()))),
        }))
    }

    #[test]
    fn each_shard_gets_its_recipients_in_order_and_each_credit_returns_once() {
        let (a, b, c) = (handle(0, 1), handle(1, 1), handle(1, 2));
        let parts = split(
            vec![
                op(Op::Registered(Registered { handle: b })),
                deliver(&[a]),
                deliver(&[b, a, c]),
                op(Op::Close(CloseSession {
                    handle: c,
                    error: None,
                })),
                deliver(&[handle(9, 1), handle(9, 2)]),
                deliver(&[]),
                CoreOp::default(),
            ],
            &mut Rosters::new(2),
        )
        .unwrap();
        assert_eq!(parts.iter().map(|p| p.settles).sum::<u32>(), 7);
        let [first, second] = &parts[..] else {
            panic!("two parts");
        };
        assert!(matches!(first.ops[0], ShardOp::One { handle, .. } if handle == a));
        assert!(matches!(&first.ops[1], ShardOp::Many { handles, .. } if *handles == [a]));
        assert_eq!(first.ops.len(), 2);
        assert!(matches!(second.ops[0], ShardOp::Registered { handle } if handle == b));
        assert!(matches!(
            &second.ops[1],
            ShardOp::Many { handles, crosses_shards: true, .. } if *handles == [b, c]
        ));
        assert!(matches!(second.ops[2], ShardOp::Close { handle, .. } if handle == c));
    }

    #[test]
    fn a_single_shard_drops_handles_of_others() {
        let parts = split(
            vec![deliver(&[handle(0, 1), handle(3, 1), handle(0, 2)])],
            &mut Rosters::new(1),
        )
        .unwrap();
        assert!(matches!(
            &parts[0].ops[0],
            ShardOp::Many { handles, crosses_shards: false, .. }
                if *handles == [handle(0, 1), handle(0, 2)]
        ));
    }

    fn roster(version: u64, joined: &[u64], left: &[u64]) -> CoreOp {
        op(Op::Roster(Roster {
            roster_id: 1,
            version,
            joined: joined.to_vec(),
            left: left.to_vec(),
        }))
    }

    fn to_roster(version: u64, except: Option<u64>) -> CoreOp {
        op(Op::DeliverToRoster(DeliverToRoster {
            roster_id: 1,
            version,
            except,
            frame: Some(ServerFrame::push(ServerBody::Pong(Pong::default()))),
        }))
    }

    #[test]
    fn a_delivery_to_a_roster_reaches_each_shard_as_of_its_place_in_the_stream() {
        let (a, b, c) = (handle(0, 1), handle(1, 1), handle(1, 2));
        let mut rosters = Rosters::new(2);
        let ops = vec![
            roster(1, &[b, a], &[]),
            to_roster(1, Some(b)),
            roster(2, &[c], &[a]),
            to_roster(2, None),
            op(Op::DropRoster(DropRoster { roster_id: 1 })),
        ];
        let parts = split(ops, &mut rosters).unwrap();
        assert_eq!(parts.iter().map(|p| p.settles).sum::<u32>(), 5);
        let seen = |part: &Part| -> Vec<(Vec<u64>, Option<u64>, bool)> {
            let ops = part.ops.iter().map(|op| match op {
                ShardOp::Roster {
                    handles,
                    except,
                    crosses_shards,
                    ..
                } => (handles.to_vec(), *except, *crosses_shards),
                other => panic!("instead of a roster's frame {other:?}"),
            });
            ops.collect()
        };
        assert_eq!(seen(&parts[0]), [(vec![a], Some(b), true)]);
        let second = [(vec![b], Some(b), true), (vec![b, c], None, false)];
        assert_eq!(seen(&parts[1]), second);
        assert!(split(vec![to_roster(2, None)], &mut rosters).is_err());
    }

    #[test]
    fn a_delivery_to_an_unknown_roster_cuts_the_link_and_counts_as_not_received() {
        let state = Arc::new(LinkState::default());
        let none: Arc<[Inbox]> = Vec::new().into();
        let credit = Arc::new(Credit::new(0));
        let router = EdgeRouter::new(1, none, state.clone(), credit);
        let batch = |ops, core_time_ms| CoreBatch {
            ops,
            core_time_ms,
            ..CoreBatch::default()
        };
        router.deliver(batch(vec![roster(1, &[1], &[])], 5));
        assert!(!router.cut.load(Ordering::SeqCst));
        router.deliver(batch(vec![to_roster(2, None)], 6));
        assert!(router.cut.load(Ordering::SeqCst));
        router.deliver(batch(Vec::new(), 7));
        assert_eq!(state.resume().from_ms, 5);
    }
}
