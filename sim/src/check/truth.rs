//! What is durable, kept apart from the store and held to the promises about it: one message for
//! each seq for ever, no holes, no id and no `client_msg_id` twice, marks that only rise.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_core::store::{ConversationWrites, WriteBatch};
use trunkline_proto::client::Message;
use trunkline_proto::ids::ConversationId;
use trunkline_proto::store::MemberRow;

/// Nothing, or the promise that is broken.
pub type Verdict = Result<(), String>;

/// One conversation.
#[derive(Debug, Default)]
pub struct Conversation {
    /// By seq less one.
    pub log: Vec<Message>,
    pub members: BTreeMap<String, MemberRow>,
    /// Delivered and read.
    marks: BTreeMap<String, (u64, u64)>,
    keys: BTreeSet<(String, String)>,
}

impl Conversation {
    pub fn head(&self) -> u64 {
        self.log.len() as u64
    }

    /// Whether `user` may see `seq`.
    pub fn is_visible(&self, user: &str, seq: u64) -> bool {
        let within = |row: &MemberRow| {
            let mut intervals = row.intervals.iter();
            intervals.any(|i| seq > i.after_seq && i.until_seq.is_none_or(|until| seq <= until))
        };
        self.members.get(user).is_some_and(within)
    }

    pub fn is_present(&self, user: &str) -> bool {
        let present = |row: &MemberRow| row.intervals.last().is_some_and(|i| i.until_seq.is_none());
        self.members.get(user).is_some_and(present)
    }

    pub fn message(&self, seq: u64) -> Option<&Message> {
        self.log.get(usize::try_from(seq.checked_sub(1)?).ok()?)
    }
}

/// All that is durable.
#[derive(Debug, Default)]
pub struct Truth {
    pub conversations: BTreeMap<ConversationId, Conversation>,
    message_ids: BTreeSet<u64>,
}

impl Truth {
    /// A batch got to stable storage.
    pub fn committed(&mut self, batch: &WriteBatch) -> Verdict {
        let highest_before = self.message_ids.last().copied().unwrap_or(0);
        for writes in &batch.conversations {
            self.written(writes, highest_before)?;
        }
        Ok(())
    }

    fn written(&mut self, writes: &ConversationWrites, highest_before: u64) -> Verdict {
        let id = writes.id;
        let known = self.conversations.entry(id).or_default();
        for message in &writes.messages {
            if let Some(there) = known.message(message.seq) {
                if there == &**message {
                    continue;
                }
                return Err(format!(
                    "seq {} of {id} was message {} and is written again as message {}",
                    message.seq, there.message_id, message.message_id
                ));
            }
            if message.seq != known.head() + 1 {
                return Err(format!("{id}: seq {} after {}", message.seq, known.head()));
            }
            let key = (message.sender_id.clone(), message.client_msg_id.clone());
            if !known.keys.insert(key) {
                return Err(format!(
                    "{id}: {} of {} is stored twice",
                    message.client_msg_id, message.sender_id
                ));
            }
            if message.message_id <= highest_before || !self.message_ids.insert(message.message_id)
            {
                return Err(format!(
                    "{id}: message id {} is not above {highest_before}, or used before",
                    message.message_id
                ));
            }
            known.log.push(Message::clone(message));
        }
        for (user, row) in &writes.members {
            known.members.insert(user.clone(), row.clone());
        }
        for (user, row) in &writes.watermarks {
            let marks = (row.delivered_seq, row.read_seq);
            let before = known.marks.insert(user.clone(), marks).unwrap_or_default();
            if marks.0 < before.0 || marks.1 < before.1 {
                return Err(format!(
                    "{id}: marks of {user} fall from {before:?} to {marks:?}"
                ));
            }
            if marks.0.max(marks.1) > known.head() {
                return Err(format!(
                    "{id}: marks of {user} {marks:?} above {}",
                    known.head()
                ));
            }
        }
        Ok(())
    }

    pub fn conversation(&self, id: &str) -> Result<&Conversation, String> {
        let parsed = ConversationId::parse(id);
        let known = parsed.and_then(|id| self.conversations.get(&id));
        known.ok_or_else(|| format!("{id} is not durable"))
    }

    /// The message is durable with this content, and `user` may see it.
    pub fn shows(&self, message: &Message, user: &str) -> Verdict {
        let id = &message.conversation_id;
        let known = self.conversation(id)?;
        match known.message(message.seq) {
            None => Err(format!(
                "seq {} of {id} is shown but not durable",
                message.seq
            )),
            Some(there) if there != message => Err(format!(
                "seq {} of {id} is shown with other content",
                message.seq
            )),
            Some(_) if !known.is_visible(user, message.seq) => Err(format!(
                "{user} is shown seq {} of {id}, not a member then",
                message.seq
            )),
            Some(_) => Ok(()),
        }
    }
}
