//! What clients see: live order on each session, each message once and in order over all of a
//! device's sessions, and an end to every send.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_proto::client::{Ack, Message, SendMessage, ServerBody, ServerFrame};
use trunkline_proto::codes::Code;

use super::core::acked;
use super::truth::{Conversation, Truth, Verdict};

/// A message as its sender meant it.
#[derive(Debug)]
struct Sent {
    content: String,
    /// `None`: not settled. Over REST there may be no answer.
    outcome: Option<Outcome>,
}

#[derive(Debug)]
enum Outcome {
    Acked { conversation: String, seq: u64 },
    Refused { code: String },
}

/// What one device was shown of one conversation.
#[derive(Debug, Default)]
struct Shown {
    /// Of what was handed to the application as messages, the first and the last seq.
    first: Option<u64>,
    last: Option<u64>,
    /// All that it knows: shown, or its own and acked. Seq to message id.
    known: BTreeMap<u64, u64>,
}

/// One device.
#[derive(Debug)]
struct Device {
    user: String,
    /// The user has no other: nothing may be missing from the beginning on.
    is_only_one: bool,
    conversations: BTreeMap<String, Shown>,
}

/// All clients.
#[derive(Debug, Default)]
pub struct ClientCheck {
    devices: Vec<Device>,
    /// By sender and `client_msg_id`.
    sends: BTreeMap<(String, String), Sent>,
    /// The highest live seq, by session and conversation.
    live: BTreeMap<(u64, String), u64>,
}

impl ClientCheck {
    /// A device, by the order of adding.
    pub fn add_device(&mut self, user: &str, is_only_one: bool) {
        self.devices.push(Device {
            user: user.to_owned(),
            is_only_one,
            conversations: BTreeMap::new(),
        });
    }

    /// A user wants this sent.
    pub fn sends(&mut self, user: &str, message: &SendMessage) {
        let key = (user.to_owned(), message.client_msg_id.clone());
        let content = message.content.clone();
        self.sends.insert(
            key,
            Sent {
                content,
                outcome: None,
            },
        );
    }

    /// What became durable was sent by somebody, with this content.
    pub fn was_sent(&self, message: &Message) -> Verdict {
        let key = (message.sender_id.clone(), message.client_msg_id.clone());
        match self.sends.get(&key) {
            Some(sent) if sent.content == message.content => Ok(()),
            Some(_) => Err(format!("{key:?} is stored with other content")),
            None => Err(format!("{key:?} is stored and was never sent")),
        }
    }

    /// A frame came on a session: messages and first acks ascend together, in each conversation.
    pub fn came(&mut self, device: usize, session: u64, frame: &ServerFrame) -> Verdict {
        if let Some(ServerBody::Ack(ack)) = &frame.frame {
            // Its own: from now on the device has it.
            self.devices[device].has(&ack.conversation_id, ack.seq, ack.message_id);
        }
        let (id, seq) = match &frame.frame {
            Some(ServerBody::Message(message)) => (&message.conversation_id, message.seq),
            Some(ServerBody::Ack(ack)) if !ack.duplicate => (&ack.conversation_id, ack.seq),
            _ => return Ok(()),
        };
        let last = self.live.entry((session, id.clone())).or_default();
        if seq <= *last {
            return Err(format!("session {session}: seq {seq} of {id} after {last}"));
        }
        *last = seq;
        Ok(())
    }

    /// A device hands a message to its user.
    pub fn shown(&mut self, truth: &Truth, device: usize, message: &Message) -> Verdict {
        let at = &mut self.devices[device];
        truth.shows(message, &at.user)?;
        let id = &message.conversation_id;
        let shown = at.conversations.entry(id.clone()).or_default();
        if shown.last.is_some_and(|last| message.seq <= last) {
            return Err(format!(
                "device {device} shows seq {} of {id} after {:?}",
                message.seq, shown.last
            ));
        }
        let from = match shown.last {
            Some(last) => last + 1,
            None if at.is_only_one => 1,
            None => message.seq,
        };
        let known = truth.conversation(id)?;
        for seq in from..message.seq {
            if known.is_visible(&at.user, seq) && !shown.known.contains_key(&seq) {
                return Err(format!(
                    "device {device} shows seq {} of {id} without {seq} before",
                    message.seq
                ));
            }
        }
        shown.first.get_or_insert(message.seq);
        shown.last = Some(message.seq);
        shown.known.insert(message.seq, message.message_id);
        Ok(())
    }

    /// A send of a device was acked.
    pub fn acked(&mut self, truth: &Truth, device: usize, ack: &Ack) -> Verdict {
        let user = self.devices[device].user.clone();
        self.acked_user(truth, &user, ack)
    }

    /// A send of a user was acked, over whatever.
    pub fn acked_user(&mut self, truth: &Truth, user: &str, ack: &Ack) -> Verdict {
        acked(truth, user, ack)?;
        self.settle(user, &ack.client_msg_id, |before| match before {
            Some(Outcome::Acked { conversation, seq })
                if (conversation, *seq) != (&ack.conversation_id, ack.seq) =>
            {
                Err(format!(
                    "{} is acked as {seq} and as {}",
                    ack.client_msg_id, ack.seq
                ))
            }
            _ => Ok(Outcome::Acked {
                conversation: ack.conversation_id.clone(),
                seq: ack.seq,
            }),
        })
    }

    /// A send of a user was refused.
    pub fn refused(&mut self, user: &str, client_msg_id: &str, code: &str) -> Verdict {
        let definite = [
            Code::NotAMember,
            Code::NotFound,
            Code::BadRequest,
            Code::TooLarge,
            Code::IdempotencyConflict,
        ];
        if !definite.iter().any(|c| c.as_str() == code) {
            return Err(format!("{client_msg_id} of {user} ended with {code}"));
        }
        let code = code.to_owned();
        self.settle(user, client_msg_id, |_| Ok(Outcome::Refused { code }))
    }

    fn settle(
        &mut self,
        user: &str,
        client_msg_id: &str,
        outcome: impl FnOnce(Option<&Outcome>) -> Result<Outcome, String>,
    ) -> Verdict {
        let key = (user.to_owned(), client_msg_id.to_owned());
        let Some(sent) = self.sends.get_mut(&key) else {
            return Err(format!("{key:?} is settled and was never sent"));
        };
        sent.outcome = Some(outcome(sent.outcome.as_ref())?);
        Ok(())
    }

    /// All is quiet: nothing is owed to anybody. `one_by_one`: clients send one message at a time to
    /// a conversation, so theirs are stored in the order in which they were sent.
    pub fn at_the_end(&self, truth: &Truth, one_by_one: bool) -> Verdict {
        if one_by_one {
            truth
                .conversations
                .values()
                .try_for_each(in_order_of_sending)?;
        }
        let mut stored = BTreeSet::new();
        for message in truth.conversations.values().flat_map(|c| &c.log) {
            stored.insert((message.sender_id.clone(), message.client_msg_id.clone()));
        }
        for (key, sent) in &self.sends {
            match &sent.outcome {
                None => return Err(format!("{key:?} is neither acked nor refused")),
                Some(Outcome::Refused { code }) if stored.contains(key) => {
                    return Err(format!("{key:?} is refused with {code}, and stored"));
                }
                Some(Outcome::Acked { .. }) if !stored.contains(key) => {
                    return Err(format!("{key:?} is acked and not stored"));
                }
                Some(_) => {}
            }
        }
        for (id, known) in &truth.conversations {
            let id = id.to_string();
            for (index, device) in self.devices.iter().enumerate() {
                device.has_all(index, &id, known)?;
            }
        }
        Ok(())
    }
}

/// Of each device the numbers in its `client_msg_id`s ascend.
fn in_order_of_sending(known: &Conversation) -> Verdict {
    let mut last: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for message in &known.log {
        let Some((device, number)) = message.client_msg_id.rsplit_once('-') else {
            continue;
        };
        // What goes over REST waits for nothing.
        let Some(number) = number.parse().ok().filter(|_| !device.starts_with("rest")) else {
            continue;
        };
        let before = last
            .insert((&message.sender_id, device), number)
            .unwrap_or(0);
        if number <= before {
            return Err(format!(
                "{} of {} is stored as {}, after number {before}",
                message.client_msg_id, message.sender_id, message.seq
            ));
        }
    }
    Ok(())
}

impl Device {
    fn has(&mut self, conversation: &str, seq: u64, message_id: u64) {
        let shown = self
            .conversations
            .entry(conversation.to_owned())
            .or_default();
        shown.known.insert(seq, message_id);
    }

    /// It holds exactly what its user may see, from where it came in. Of two devices of one user
    /// the later to hear of a conversation is not told what the other has had already.
    fn has_all(&self, index: usize, id: &str, known: &Conversation) -> Verdict {
        let shown = self.conversations.get(id);
        let first = match shown.and_then(|s| s.first) {
            _ if self.is_only_one => 1,
            Some(first) => first,
            None => return Ok(()),
        };
        for seq in first..=known.head() {
            let has = shown.and_then(|s| s.known.get(&seq)).copied();
            let truth = known.message(seq).map(|m| m.message_id);
            let wanted = truth.filter(|_| known.is_visible(&self.user, seq));
            if has != wanted {
                return Err(format!(
                    "device {index} of {} has {has:?} at seq {seq} of {id}, not {wanted:?}",
                    self.user
                ));
            }
        }
        Ok(())
    }
}
