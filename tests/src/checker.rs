//! The verdict on a run: every ack, every delivery and every stored row, compared.
//!
//! A hash runs over (seq, message id) of what each reader was shown, in the order in which it was
//! shown; readers of one conversation agree on the order if their hashes do.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::rest::Row;

/// What a sender was promised.
#[derive(Clone, Debug)]
pub struct Acked {
    pub conversation: String,
    pub sender: String,
    pub client_msg_id: String,
    pub content: String,
    pub message_id: u64,
    pub seq: u64,
}

/// What a reader was shown.
#[derive(Clone, Debug)]
pub struct Shown {
    pub seq: u64,
    pub message_id: u64,
    pub content: String,
}

/// All that was seen in a run.
#[derive(Debug, Default)]
pub struct Checker {
    pub acks: Vec<Acked>,
    /// By conversation and reader, in the order shown.
    pub shown: BTreeMap<(String, String), Vec<Shown>>,
}

impl Checker {
    /// Compares with the stored rows of each conversation. `readers` were members all along, so
    /// each was owed every row. Returns what is wrong, one line each.
    pub fn verdict(&self, stored: &HashMap<String, Vec<Row>>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (conversation, rows) in stored {
            check_rows(conversation, rows, &mut wrong);
        }
        self.check_acks(stored, &mut wrong);
        self.check_shown(stored, &mut wrong);
        wrong
    }

    fn check_acks(&self, stored: &HashMap<String, Vec<Row>>, wrong: &mut Vec<String>) {
        for ack in &self.acks {
            let row = stored
                .get(&ack.conversation)
                .and_then(|rows| rows.get(usize::try_from(ack.seq).ok()?.checked_sub(1)?));
            let fits = row.is_some_and(|row| {
                row.message_id == ack.message_id
                    && row.client_msg_id == ack.client_msg_id
                    && row.sender == ack.sender
                    && row.content == ack.content
            });
            if !fits {
                wrong.push(format!("acked and not stored so: {ack:?}, stored {row:?}"));
            }
        }
    }

    fn check_shown(&self, stored: &HashMap<String, Vec<Row>>, wrong: &mut Vec<String>) {
        for ((conversation, reader), shown) in &self.shown {
            let Some(rows) = stored.get(conversation) else {
                wrong.push(format!(
                    "{reader} was shown {conversation}, which is not stored"
                ));
                continue;
            };
            let seen = order_hash(shown.iter().map(|s| (s.seq, s.message_id)));
            let kept = order_hash(rows.iter().map(|r| (r.seq, r.message_id)));
            if seen != kept {
                let at = shown
                    .iter()
                    .zip(rows)
                    .position(|(s, r)| (s.seq, s.message_id) != (r.seq, r.message_id));
                wrong.push(format!(
                    "{reader} was shown {} messages of {conversation}, {} are stored; first \
                     difference at {at:?}: {:?}",
                    shown.len(),
                    rows.len(),
                    at.map(|i| &shown[i])
                ));
            }
            let altered = shown.iter().zip(rows).find(|(s, r)| s.content != r.content);
            if let Some((s, _)) = altered {
                wrong.push(format!("{reader} was shown other content at seq {}", s.seq));
            }
        }
    }
}

fn check_rows(conversation: &str, rows: &[Row], wrong: &mut Vec<String>) {
    let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
    for (expected, row) in (1..).zip(rows) {
        if row.seq != expected {
            wrong.push(format!(
                "{conversation}: seq {} where {expected} was due",
                row.seq
            ));
            return;
        }
        if !ids.insert(row.message_id) {
            wrong.push(format!(
                "{conversation}: message id {} twice",
                row.message_id
            ));
        }
        if !keys.insert((&row.sender, &row.client_msg_id)) {
            wrong.push(format!(
                "{conversation}: {} of {} twice",
                row.client_msg_id, row.sender
            ));
        }
    }
}

/// Equal for equal orders of (seq, message id).
pub fn order_hash(items: impl Iterator<Item = (u64, u64)>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for item in items {
        item.hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seq: u64) -> Row {
        Row {
            seq,
            message_id: 100 + seq,
            sender: "a".into(),
            client_msg_id: format!("m{seq}"),
            content: format!("c{seq}"),
        }
    }

    fn good() -> (Checker, HashMap<String, Vec<Row>>) {
        let rows: Vec<_> = (1..=3).map(row).collect();
        let shown = rows
            .iter()
            .map(|r| Shown {
                seq: r.seq,
                message_id: r.message_id,
                content: r.content.clone(),
            })
            .collect();
        let acks = rows
            .iter()
            .map(|r| Acked {
                conversation: "c".into(),
                sender: r.sender.clone(),
                client_msg_id: r.client_msg_id.clone(),
                content: r.content.clone(),
                message_id: r.message_id,
                seq: r.seq,
            })
            .collect();
        let shown = BTreeMap::from([(("c".to_owned(), "b".to_owned()), shown)]);
        (
            Checker { acks, shown },
            HashMap::from([("c".to_owned(), rows)]),
        )
    }

    #[test]
    fn a_good_run_passes() {
        let (checker, stored) = good();
        assert_eq!(checker.verdict(&stored), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_harm_is_seen() {
        type Harm = fn(&mut Checker, &mut HashMap<String, Vec<Row>>);
        let harms: [(&str, Harm); 7] = [
            ("a lost row", |_, s| drop(s.get_mut("c").unwrap().pop())),
            ("a hole", |_, s| drop(s.get_mut("c").unwrap().remove(1))),
            ("a double", |_, s| {
                s.get_mut("c").unwrap()[2].client_msg_id = "m1".into()
            }),
            ("an id twice", |_, s| {
                s.get_mut("c").unwrap()[2].message_id = 101
            }),
            ("another content", |c, _| c.acks[0].content = "x".into()),
            ("shown twice", |c, _| {
                let shown = c.shown.values_mut().next().unwrap();
                shown.push(shown[0].clone());
            }),
            ("out of order", |c, _| {
                c.shown.values_mut().next().unwrap().swap(0, 1)
            }),
        ];
        for (name, harm) in harms {
            let (mut checker, mut stored) = good();
            harm(&mut checker, &mut stored);
            assert!(!checker.verdict(&stored).is_empty(), "{name}");
        }
    }
}
