//! The JSON of answers. Field names are the external contract's.

use serde::Serialize;
use trunkline_proto::client::Message;

use crate::engine::{ConversationView, ListedConversation, MemberView, ReceiptsView};

#[derive(Serialize)]
pub(super) struct ConversationJson {
    conversation_id: String,
    kind: &'static str,
    title: String,
    role: &'static str,
    version: u64,
    head_seq: u64,
    member_count: u32,
    created_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
}

impl From<ConversationView> for ConversationJson {
    fn from(view: ConversationView) -> Self {
        Self {
            conversation_id: view.conversation_id.to_string(),
            kind: view.kind.as_str(),
            title: view.title,
            role: view.role.as_str(),
            version: view.version,
            head_seq: view.head_seq,
            member_count: view.member_count,
            created_at: view.created_at,
            peer: view.peer,
        }
    }
}

#[derive(Serialize)]
pub(super) struct ListedJson {
    #[serde(flatten)]
    conversation: ConversationJson,
    delivered_seq: u64,
    read_seq: u64,
    unread: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_message: Option<Message>,
}

impl From<ListedConversation> for ListedJson {
    fn from(listed: ListedConversation) -> Self {
        Self {
            conversation: listed.conversation.into(),
            delivered_seq: listed.delivered_seq,
            read_seq: listed.read_seq,
            unread: listed.unread,
            last_message: listed.last_message,
        }
    }
}

#[derive(Serialize)]
pub(super) struct MemberJson {
    user_id: String,
    role: &'static str,
    joined_at: u64,
}

impl From<MemberView> for MemberJson {
    fn from(member: MemberView) -> Self {
        Self {
            user_id: member.user_id,
            role: member.role.as_str(),
            joined_at: member.joined_at,
        }
    }
}

/// A part of a list, and where the next begins.
#[derive(Serialize)]
pub(super) struct Listing<T> {
    items: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

impl<T> Listing<T> {
    pub(super) fn of<V: Into<T>>(items: Vec<V>, next_cursor: Option<String>) -> Self {
        Self {
            items: items.into_iter().map(Into::into).collect(),
            next_cursor,
        }
    }
}

#[derive(Serialize)]
pub(super) struct MessagesJson {
    pub(super) messages: Vec<Message>,
    pub(super) head_seq: u64,
    pub(super) more: bool,
}

#[derive(Serialize)]
struct WatermarkJson {
    user_id: String,
    delivered_seq: u64,
    read_seq: u64,
}

#[derive(Serialize)]
pub(super) struct ReceiptsJson {
    conversation_id: String,
    seq: u64,
    delivered: Vec<String>,
    read: Vec<String>,
    watermarks: Vec<WatermarkJson>,
}

impl From<ReceiptsView> for ReceiptsJson {
    fn from(view: ReceiptsView) -> Self {
        let seq = view.seq;
        let reached = |mark: fn(&(String, u64, u64)) -> u64| {
            view.watermarks
                .iter()
                .filter(|w| mark(w) >= seq)
                .map(|w| w.0.clone())
                .collect()
        };
        Self {
            conversation_id: view.conversation_id.to_string(),
            seq,
            delivered: reached(|w| w.1),
            read: reached(|w| w.2),
            watermarks: view
                .watermarks
                .into_iter()
                .map(|(user_id, delivered_seq, read_seq)| WatermarkJson {
                    user_id,
                    delivered_seq,
                    read_seq,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Kind, Role};
    use trunkline_proto::ids::ConversationId;

    #[test]
    fn a_listed_conversation_is_flat_and_its_message_id_a_string() {
        let id = ConversationId::direct("alice", "bob");
        let listed = ListedConversation {
            conversation: ConversationView {
                conversation_id: id,
                kind: Kind::Direct,
                title: String::new(),
                role: Role::Member,
                version: 1,
                head_seq: 2,
                member_count: 2,
                created_at: 9,
                peer: Some("bob".into()),
            },
            delivered_seq: 1,
            read_seq: 0,
            unread: 2,
            last_message: Some(Message {
                message_id: 1 << 60,
                seq: 2,
                ..Message::default()
            }),
        };
        let json = serde_json::to_value(ListedJson::from(listed)).unwrap();
        assert_eq!(json["conversation_id"], id.to_string());
        assert_eq!(json["kind"], "direct");
        assert_eq!(json["peer"], "bob");
        assert_eq!(json["unread"], 2);
        assert_eq!(json["last_message"]["message_id"], "1152921504606846976");
    }

    #[test]
    fn receipts_say_who_is_at_or_beyond_the_seq() {
        let view = ReceiptsView {
            conversation_id: ConversationId::direct("a", "b"),
            seq: 5,
            watermarks: vec![("b".into(), 7, 5), ("c".into(), 5, 4), ("d".into(), 4, 0)],
        };
        let json = serde_json::to_value(ReceiptsJson::from(view)).unwrap();
        assert_eq!(json["delivered"], serde_json::json!(["b", "c"]));
        assert_eq!(json["read"], serde_json::json!(["b"]));
        assert_eq!(json["watermarks"][2]["delivered_seq"], 4);
    }
}
