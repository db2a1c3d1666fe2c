//! Delivered and read marks on their way to the server: merged for each conversation, told in
//! batches, told again when the connection that carried them broke soon after. Pure.

use std::collections::{BTreeSet, HashMap, VecDeque};

use trunkline_proto::client::Receipt;

/// Told marks that are remembered, to be told again after a break.
const RECENT_MAX: usize = 1_024;
/// For so long a told mark may still have been lost with its connection.
const RECENT_MS: u64 = 10_000;

#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    delivered: u64,
    read: u64,
    told_delivered: u64,
    told_read: u64,
}

/// All marks.
#[derive(Debug)]
pub struct Marks {
    delay_ms: u64,
    marks_max: usize,
    marks: HashMap<String, Mark>,
    untold: BTreeSet<String>,
    due_ms: Option<u64>,
    recent: VecDeque<(u64, String)>,
}

impl Marks {
    /// Marks wait `delay_ms` for more; `marks_max` conversations are remembered.
    pub fn new(delay_ms: u64, marks_max: usize) -> Self {
        Self {
            delay_ms,
            marks_max: marks_max.max(1),
            marks: HashMap::new(),
            untold: BTreeSet::new(),
            due_ms: None,
            recent: VecDeque::new(),
        }
    }

    /// Everything up to `seq` was delivered.
    pub fn delivered(&mut self, conversation: &str, seq: u64, now_ms: u64) {
        self.change(conversation, now_ms, |m| m.delivered = m.delivered.max(seq));
    }

    /// Everything up to `seq` was read, and so delivered.
    pub fn read(&mut self, conversation: &str, seq: u64, now_ms: u64) {
        self.change(conversation, now_ms, |m| {
            m.read = m.read.max(seq);
            m.delivered = m.delivered.max(seq);
        });
    }

    /// The server does not know of the delivered mark: tell it again.
    pub fn delivered_was_lost(&mut self, conversation: &str, seq: u64, now_ms: u64) {
        if let Some(mark) = self.marks.get_mut(conversation) {
            mark.told_delivered = 0;
        }
        self.delivered(conversation, seq, now_ms);
    }

    /// The connection is gone, and what it carried last may be, too.
    pub fn disconnected(&mut self) {
        for (_, conversation) in std::mem::take(&mut self.recent) {
            if let Some(mark) = self.marks.get_mut(&conversation) {
                mark.told_delivered = 0;
                mark.told_read = 0;
                self.untold.insert(conversation);
            }
        }
        if !self.untold.is_empty() {
            self.due_ms = Some(0);
        }
    }

    /// Forgets a conversation.
    pub fn forget(&mut self, conversation: &str) {
        self.marks.remove(conversation);
        self.untold.remove(conversation);
    }

    /// When [`Marks::next`] has something.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.due_ms
    }

    /// The next mark to tell; read includes delivered.
    pub fn next(&mut self, now_ms: u64) -> Option<Receipt> {
        if self.due_ms.is_none_or(|due| due > now_ms) {
            return None;
        }
        while let Some(conversation) = self.untold.pop_first() {
            let Some(mark) = self.marks.get_mut(&conversation) else {
                continue;
            };
            let receipt = |seq: u64, status: &str| Receipt {
                conversation_id: conversation.clone(),
                seq,
                status: status.to_owned(),
                ..Receipt::default()
            };
            let told = if mark.read > mark.told_read {
                mark.told_read = mark.read;
                mark.told_delivered = mark.told_delivered.max(mark.read);
                receipt(mark.read, "read")
            } else if mark.delivered > mark.told_delivered {
                mark.told_delivered = mark.delivered;
                receipt(mark.delivered, "delivered")
            } else {
                continue;
            };
            if mark.delivered > mark.told_delivered {
                self.untold.insert(conversation.clone());
            }
            self.remember(conversation, now_ms);
            return Some(told);
        }
        self.due_ms = None;
        None
    }

    fn change(&mut self, conversation: &str, now_ms: u64, change: impl FnOnce(&mut Mark)) {
        if !self.marks.contains_key(conversation) && self.marks.len() >= self.marks_max {
            // What is told needs no remembering; what is not stays.
            let untold = &self.untold;
            self.marks.retain(|id, _| untold.contains(id));
            if self.marks.len() >= self.marks_max
                && let Some(dropped) = self.untold.pop_first()
            {
                self.marks.remove(&dropped);
            }
        }
        let mark = self.marks.entry(conversation.to_owned()).or_default();
        change(mark);
        if mark.read > mark.told_read || mark.delivered > mark.told_delivered {
            self.untold.insert(conversation.to_owned());
            self.due_ms.get_or_insert(now_ms + self.delay_ms);
        }
    }

    fn remember(&mut self, conversation: String, now_ms: u64) {
        let is_old = |(at, _): &(u64, String)| at + RECENT_MS < now_ms;
        while self.recent.front().is_some_and(is_old) || self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((now_ms, conversation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(marks: &mut Marks, now_ms: u64) -> Vec<(String, u64, String)> {
        std::iter::from_fn(|| marks.next(now_ms))
            .map(|r| (r.conversation_id, r.seq, r.status))
            .collect()
    }

    #[test]
    fn marks_merge_and_read_includes_delivered() {
        let mut marks = Marks::new(50, 10);
        marks.delivered("a", 3, 0);
        marks.delivered("a", 2, 10);
        marks.read("b", 2, 10);
        marks.delivered("b", 1, 20);
        assert_eq!(told(&mut marks, 49), []);
        assert_eq!(marks.deadline_ms(), Some(50));
        let expected = [
            ("a".to_owned(), 3, "delivered".to_owned()),
            ("b".to_owned(), 2, "read".to_owned()),
        ];
        assert_eq!(told(&mut marks, 50), expected);
        marks.delivered("a", 3, 60);
        assert_eq!(marks.deadline_ms(), None, "nothing new to tell");
    }

    #[test]
    fn what_a_broken_connection_carried_is_told_again() {
        let mut marks = Marks::new(0, 10);
        marks.read("a", 3, 0);
        marks.delivered("a", 5, 0);
        assert_eq!(told(&mut marks, 0).len(), 2);
        marks.disconnected();
        assert_eq!(told(&mut marks, 1).len(), 2);
        marks.delivered("b", 1, 20_000);
        assert_eq!(told(&mut marks, 20_000).len(), 1);
        marks.disconnected();
        let again = told(&mut marks, 20_001);
        assert_eq!(again.len(), 1, "marks of long ago have arrived: {again:?}");
    }

    #[test]
    fn the_marks_are_bounded() {
        let mut marks = Marks::new(0, 3);
        for n in 0..10 {
            marks.delivered(&n.to_string(), 1, 0);
        }
        assert_eq!(told(&mut marks, 0).len(), 3);
    }
}
