//! The rules of the protocol that a test build can take out one at a time, to see what each of them
//! is there for. Without the feature `defects` nothing can be taken out, and [`Rules::keeps`] is
//! `true` before the compiler is done.

/// A rule of the fenced store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Whether the partition is held is asked after the answers of the writes were taken, and not
    /// only before.
    Gate,
    /// A message is committed only with all below it.
    Prefix,
    /// No rows further above the committed head than the deployment's tail.
    TailBound,
    /// The head that a new owner finds is the end of an unbroken run.
    UnbrokenRun,
    /// A new owner rewrites the whole tail before it records its fence, not the newest row alone.
    WholeTail,
    /// A refused fence starts over.
    RefusalRestarts,
    /// After a conditional write without an answer the conversation is read again.
    UnknownIsRead,
    /// A row counts if it is of the epoch that owns its seq.
    Owner,
    /// `top_bucket` is raised before the first row of a bucket is written.
    TopBucket,
    /// The search for the head ends at what is settled.
    SettledFloor,
    /// A conversation is in the journal before its first message of a window is written.
    JournalFirst,
    /// And was entered while the partition was still held.
    JournalGate,
    /// Conversations that are written to are entered in the journal.
    Journal,
    /// A window of the journal is not finished while a commit that began in it may be repeated.
    WindowAfterCommits,
    /// A window in which something was lost to another owner is left for that owner.
    LostWindowStays,
    /// A change is written after the messages before it are committed.
    ChangeAfterMessages,
    /// What was read is answered only if the partition is still held then.
    ReadGate,
    /// No watermark above the committed head.
    WatermarkClamp,
    /// Taking up a conversation repairs the index of its members.
    IndexRepair,
}

impl Rule {
    pub const ALL: [Self; 19] = [
        Self::Gate,
        Self::Prefix,
        Self::TailBound,
        Self::UnbrokenRun,
        Self::WholeTail,
        Self::RefusalRestarts,
        Self::UnknownIsRead,
        Self::Owner,
        Self::TopBucket,
        Self::SettledFloor,
        Self::JournalFirst,
        Self::JournalGate,
        Self::Journal,
        Self::WindowAfterCommits,
        Self::LostWindowStays,
        Self::ChangeAfterMessages,
        Self::ReadGate,
        Self::WatermarkClamp,
        Self::IndexRepair,
    ];
}

/// Which rules hold: all, but in a test build at most one less.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    #[cfg(feature = "defects")]
    pub without: Option<Rule>,
}

impl Rules {
    #[cfg(feature = "defects")]
    pub fn keeps(self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    #[cfg(not(feature = "defects"))]
    pub const fn keeps(self, _rule: Rule) -> bool {
        true
    }
}
