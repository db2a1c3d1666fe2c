//! Defects on purpose: each takes one mechanism out of the platform, and the checker has to notice
//! which promise that breaks. They sit in the simulator's own glue around the machines, where
//! altering an input or an effect equals removing the mechanism.

/// A planted defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Takes out: waiting for the store before acking. Breaks: an ack means stable storage (5.1).
    AckBeforeSync,
    /// Takes out: taking the head from the log at a restart. Breaks: a seq stands for one message
    /// for ever (5.2).
    SeqReuse,
    /// Takes out: repeating a failed commit. Breaks: acked messages are in the store (5.1).
    FailedCommitDone,
    /// Takes out: rebuilding the dedup window from the log. Breaks: a retried `client_msg_id` makes
    /// no second message after a restart (5.3).
    DedupForgotten,
    /// Takes out: the message id floor, under a clock that is set back. Breaks: message ids are
    /// unique, and rise (1).
    FloorForgotten,
    /// Takes out: announcing live sessions on a new link. Breaks: connected members get messages,
    /// sends are answered (5.4).
    AnnounceDropped,
    /// Takes out: hints after an announcement. Breaks: whoever may have lost a delivery is told to
    /// look (5.4).
    HintOmitted,
    /// Takes out: the order of deliveries within a batch. Breaks: live delivery is in seq order
    /// (5.5).
    DeliveriesReordered,
    /// Takes out: telling an old stream's operations from the present one's. Breaks: each operation
    /// is settled once, credit is conserved.
    OldStreamAccepted,
    /// Takes out: ending a broken stream's sessions. Breaks: no session without a socket.
    DetachForgotten,
    /// Takes out: telling the core of closed sessions. Breaks: no session without a socket.
    CloseDropped,
    /// Takes out: merging watermarks by maximum. Breaks: watermarks never fall.
    WatermarkFalls,
    /// Takes out: returning credit. Breaks: credit is conserved.
    CreditLeaked,
    /// Takes out: the end of a membership, when it is read back. Breaks: a removed member sees
    /// nothing sent after the removal (3).
    RemovalForgotten,
    /// Takes out: the client's inbox. Breaks: each message is shown once, in order.
    ClientDedupOff,
    /// Takes out: the client's fetching of gaps. Breaks: no connected member misses a message (5.4).
    GapFetchOff,
    /// Takes out: keeping the client's outbox over a restart. Breaks: every send ends in an ack or a
    /// definite refusal.
    OutboxForgotten,
    /// Takes out: telling edges who left a roster. Breaks: a removed member sees nothing sent after
    /// the removal (3).
    RosterKeepsRemoved,
    /// Takes out: telling edges who came into a roster. Breaks: no connected member misses a message
    /// (5.4).
    RosterMissesJoined,
    /// Takes out: closing a slow consumer; its frames are dropped instead. Breaks: whoever may have
    /// lost a delivery is told to look (5.4).
    SlowConsumerDrops,
}

impl Bug {
    pub const ALL: [Self; 20] = [
        Self::AckBeforeSync,
        Self::SeqReuse,
        Self::FailedCommitDone,
        Self::DedupForgotten,
        Self::FloorForgotten,
        Self::AnnounceDropped,
        Self::HintOmitted,
        Self::DeliveriesReordered,
        Self::OldStreamAccepted,
        Self::DetachForgotten,
        Self::CloseDropped,
        Self::WatermarkFalls,
        Self::CreditLeaked,
        Self::RemovalForgotten,
        Self::ClientDedupOff,
        Self::GapFetchOff,
        Self::OutboxForgotten,
        Self::RosterKeepsRemoved,
        Self::RosterMissesJoined,
        Self::SlowConsumerDrops,
    ];

    /// On the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AckBeforeSync => "ack-before-sync",
            Self::SeqReuse => "seq-reuse",
            Self::FailedCommitDone => "failed-commit-done",
            Self::DedupForgotten => "dedup-forgotten",
            Self::FloorForgotten => "floor-forgotten",
            Self::AnnounceDropped => "announce-dropped",
            Self::HintOmitted => "hint-omitted",
            Self::DeliveriesReordered => "deliveries-reordered",
            Self::OldStreamAccepted => "old-stream-accepted",
            Self::DetachForgotten => "detach-forgotten",
            Self::CloseDropped => "close-dropped",
            Self::WatermarkFalls => "watermark-falls",
            Self::CreditLeaked => "credit-leaked",
            Self::RemovalForgotten => "removal-forgotten",
            Self::ClientDedupOff => "client-dedup-off",
            Self::GapFetchOff => "gap-fetch-off",
            Self::OutboxForgotten => "outbox-forgotten",
            Self::RosterKeepsRemoved => "roster-keeps-removed",
            Self::RosterMissesJoined => "roster-misses-joined",
            Self::SlowConsumerDrops => "slow-consumer-drops",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|bug| bug.name() == name)
    }
}
