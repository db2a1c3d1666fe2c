//! What leaves the core: nothing that is not durable, nothing to whom it does not belong, nothing
//! beyond the other side's credit.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_core::engine::{EdgeKey, Response};
use trunkline_proto::client::{Ack, Error, Page, Receipt, ServerBody, ServerFrame};
use trunkline_proto::link::{CoreOp, EdgeOp, Roster, core_op, edge_op};

use super::truth::{Truth, Verdict};

/// Credit of one stream, as granted and spent.
#[derive(Debug, Default)]
struct Credit {
    /// Granted less spent.
    to_edge: i64,
    to_core: i64,
}

/// What one core process said and heard.
#[derive(Debug, Default)]
pub struct CoreCheck {
    users: BTreeMap<(EdgeKey, u64), String>,
    /// Edge, conversation, user and status to the last seq told.
    receipts: BTreeMap<(EdgeKey, String, String, String), u64>,
    credit: BTreeMap<EdgeKey, Credit>,
    /// Version and handles of what edges have of rosters.
    rosters: BTreeMap<(EdgeKey, u64), (u64, BTreeSet<u64>)>,
}

impl CoreCheck {
    /// A stream began with this first credit on both sides.
    pub fn attached(&mut self, edge: EdgeKey) {
        self.credit.insert(edge, Credit::default());
    }

    /// The edge grants so much.
    pub fn edge_grants(&mut self, edge: EdgeKey, operations: u32) {
        if let Some(credit) = self.credit.get_mut(&edge) {
            credit.to_edge += i64::from(operations);
        }
    }

    /// The core grants so much.
    pub fn core_grants(&mut self, edge: EdgeKey, operations: u32) {
        if let Some(credit) = self.credit.get_mut(&edge) {
            credit.to_core += i64::from(operations);
        }
    }

    /// Whose session it is.
    pub fn user(&self, edge: EdgeKey, handle: u64) -> Option<&str> {
        self.users.get(&(edge, handle)).map(String::as_str)
    }

    /// Operations of an edge came.
    pub fn heard(&mut self, edge: EdgeKey, ops: &[EdgeOp]) -> Verdict {
        for op in ops {
            if let Some(edge_op::Op::Opened(opened)) = &op.op {
                self.users.insert((edge, op.handle), opened.user_id.clone());
            }
        }
        spend(
            self.credit.get_mut(&edge).map(|c| &mut c.to_core),
            ops.len(),
            "an edge",
        )
    }

    /// Operations leave for an edge.
    pub fn said(&mut self, truth: &Truth, edge: EdgeKey, ops: &[CoreOp]) -> Verdict {
        spend(
            self.credit.get_mut(&edge).map(|c| &mut c.to_edge),
            ops.len(),
            "the core",
        )
        .and_then(|()| ops.iter().try_for_each(|op| self.said_one(truth, edge, op)))
    }

    fn said_one(&mut self, truth: &Truth, edge: EdgeKey, op: &CoreOp) -> Verdict {
        match &op.op {
            Some(core_op::Op::Deliver(deliver)) => {
                self.delivered(truth, edge, deliver.frame.as_ref(), &deliver.handles)
            }
            Some(core_op::Op::DeliverToRoster(deliver)) => {
                let key = (edge, deliver.roster_id);
                let handles: Vec<u64> = match self.rosters.get(&key) {
                    Some((version, handles)) if *version == deliver.version => {
                        let to = handles.iter().filter(|h| deliver.except != Some(**h));
                        to.copied().collect()
                    }
                    other => return Err(format!("{key:?} is {other:?}, not {}", deliver.version)),
                };
                self.delivered(truth, edge, deliver.frame.as_ref(), &handles)
            }
            Some(core_op::Op::Roster(roster)) => self.roster(edge, roster),
            Some(core_op::Op::DropRoster(dropped)) => {
                let key = (edge, dropped.roster_id);
                let was_there = self.rosters.remove(&key).is_some();
                was_there
                    .then_some(())
                    .ok_or(format!("{key:?} is dropped and was not there"))
            }
            _ => Ok(()),
        }
    }

    fn roster(&mut self, edge: EdgeKey, roster: &Roster) -> Verdict {
        let key = (edge, roster.roster_id);
        let (version, handles) = self.rosters.entry(key).or_default();
        *version += 1;
        if *version != roster.version {
            return Err(format!(
                "{key:?} goes on to {}, not {version}",
                roster.version
            ));
        }
        // What is wrong with these shows in whom messages reach.
        handles.retain(|handle| !roster.left.contains(handle));
        handles.extend(&roster.joined);
        Ok(())
    }

    fn delivered(
        &mut self,
        truth: &Truth,
        edge: EdgeKey,
        frame: Option<&ServerFrame>,
        handles: &[u64],
    ) -> Verdict {
        let Some(body) = frame.and_then(|f| f.frame.as_ref()) else {
            return Err("a delivery without a frame".into());
        };
        for handle in handles {
            // A frame for a session that was never announced is an error, and shows nothing.
            if let Some(user) = self.users.get(&(edge, *handle)) {
                shown(truth, user, body)?;
            } else if !matches!(body, ServerBody::Error(_)) {
                return Err(format!(
                    "a frame for handle {handle:x}, which was not announced"
                ));
            }
        }
        match body {
            ServerBody::Receipt(receipt) => self.receipt(truth, edge, receipt),
            _ => Ok(()),
        }
    }

    fn receipt(&mut self, truth: &Truth, edge: EdgeKey, receipt: &Receipt) -> Verdict {
        let Receipt {
            conversation_id,
            user_id,
            status,
            seq,
            ..
        } = receipt.clone();
        let head = truth.conversation(&conversation_id)?.head();
        if seq > head {
            return Err(format!(
                "{user_id} has {status} {seq} of {conversation_id}, head {head}"
            ));
        }
        let key = (edge, conversation_id, user_id, status);
        // Of two edges one may hear of it later than the other.
        let last = self.receipts.get(&key).copied().unwrap_or(0);
        if seq < last {
            return Err(format!("the mark {key:?} falls from {last} to {seq}"));
        }
        self.receipts.insert(key, seq);
        Ok(())
    }
}

fn spend(credit: Option<&mut i64>, operations: usize, who: &str) -> Verdict {
    let Some(credit) = credit else { return Ok(()) };
    *credit -= operations as i64;
    if *credit < 0 {
        return Err(format!(
            "{who} sends {} operations beyond its credit",
            -*credit
        ));
    }
    Ok(())
}

fn shown(truth: &Truth, user: &str, body: &ServerBody) -> Verdict {
    match body {
        ServerBody::Ack(ack) => acked(truth, user, ack),
        ServerBody::Message(message) => truth.shows(message, user),
        ServerBody::Page(page) => paged(truth, user, page),
        ServerBody::Conversation(conversation) => {
            let head = truth.conversation(&conversation.conversation_id)?.head();
            if conversation.head_seq > head {
                return Err(format!("a hint at {} above {head}", conversation.head_seq));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The ack is about a durable message of this user.
pub fn acked(truth: &Truth, user: &str, ack: &Ack) -> Verdict {
    let id = &ack.conversation_id;
    let message = truth.conversation(id).ok().and_then(|c| c.message(ack.seq));
    let Some(message) = message else {
        return Err(format!("seq {} of {id} is acked but not durable", ack.seq));
    };
    if message.message_id != ack.message_id
        || message.client_msg_id != ack.client_msg_id
        || message.sender_id != user
        || message.ts != ack.ts
    {
        return Err(format!(
            "the ack of {} to {user} is for {message:?}",
            ack.client_msg_id
        ));
    }
    Ok(())
}

/// A page is ascending, without a hole that the user might have seen, and of what is durable.
fn paged(truth: &Truth, user: &str, page: &Page) -> Verdict {
    let id = &page.conversation_id;
    let known = truth.conversation(id)?;
    if page.head_seq > known.head() {
        return Err(format!("a page of {id} with head {}", page.head_seq));
    }
    for message in &page.messages {
        if &message.conversation_id != id {
            return Err(format!(
                "a page of {id} with a message of {}",
                message.conversation_id
            ));
        }
        truth.shows(message, user)?;
    }
    for pair in page.messages.windows(2) {
        let (low, high) = (pair[0].seq, pair[1].seq);
        if low >= high || (low + 1..high).any(|seq| known.is_visible(user, seq)) {
            return Err(format!("a page of {id} goes from {low} to {high}"));
        }
    }
    Ok(())
}

/// An answer over REST.
pub fn responded(truth: &Truth, user: &str, response: &Result<Response, Error>) -> Verdict {
    match response {
        Ok(Response::Ack(ack)) => acked(truth, user, ack),
        Ok(Response::Page(page)) => page
            .iter()
            .flat_map(|p| &p.messages)
            .try_for_each(|m| truth.shows(m, user)),
        Ok(Response::Listed(listed)) => listed
            .iter()
            .filter_map(|l| l.item.last_message.as_ref())
            .try_for_each(|m| truth.shows(m, user)),
        Ok(Response::Messages { messages, .. }) => {
            messages.iter().try_for_each(|m| truth.shows(m, user))
        }
        Ok(Response::Conversations { items, .. }) => {
            let mut last = items.iter().filter_map(|i| i.last_message.as_ref());
            last.try_for_each(|m| truth.shows(m, user))
        }
        Ok(Response::Conversation { conversation, .. }) => {
            let id = conversation.conversation_id.to_string();
            truth.conversation(&id).map(|_| ())
        }
        Ok(Response::Receipts(view)) => {
            let head = truth
                .conversation(&view.conversation_id.to_string())?
                .head();
            let mut marks = view.watermarks.iter();
            match marks.find(|(_, delivered, read)| *delivered.max(read) > head) {
                Some((user, ..)) => Err(format!("marks of {user} above the head {head}")),
                None => Ok(()),
            }
        }
        Ok(Response::Members { .. } | Response::Done) | Err(_) => Ok(()),
    }
}
