//! What can be taken out, one at a time: rules of the store itself, and things around it that the
//! protocol relies on. Each has to be noticed.

use trunkline_core::store::fenced::rules::Rule;

/// A planted defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A rule of the fenced store.
    Without(Rule),
    /// Readers go to the tables themselves, whoever owns the conversation.
    RawReader,
    /// Heads are read without contents, and what was read is written back.
    ProjectedReads,
    /// A process that starts again goes on under its old incarnation and epochs.
    SameIncarnation,
    /// A machine that may be frozen with its clock relies on its clock.
    FrozenClock,
    /// A lease that lapsed is not the end.
    LapseForgiven,
    /// A partition is let go after another has been told that it may have it.
    LetGoLate,
    /// A repeated send is answered from memory while the first one is being written.
    PendingAnswered,
    /// Reads and writes need a quorum of all data centres, of which each counts its own.
    TwoCentres,
    /// Conditional writes ask for the epoch, not for the revision.
    EpochOnly,
    /// Members and settings are written unconditionally.
    Unconditional,
    /// Leaving a conversation deletes the watermark.
    WatermarkDropped,
    /// A replica that is killed forgets what it wrote last.
    ForgetfulReplica,
    /// Retention deletes before anything says that it may.
    DeletedUnsettled,
    /// A new owner publishes what is sent to it before it has caught up with its predecessor.
    CatchUpLate,
}

impl Defect {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let around = [
            Self::RawReader,
            Self::ProjectedReads,
            Self::SameIncarnation,
            Self::FrozenClock,
            Self::LapseForgiven,
            Self::LetGoLate,
            Self::PendingAnswered,
            Self::TwoCentres,
            Self::EpochOnly,
            Self::Unconditional,
            Self::WatermarkDropped,
            Self::ForgetfulReplica,
            Self::DeletedUnsettled,
            Self::CatchUpLate,
        ];
        let rules = Rule::ALL.into_iter().map(Self::Without);
        rules.chain(around).collect()
    }

    /// On the command line.
    pub fn name(self) -> String {
        let text = match self {
            Self::Without(rule) => format!("Without{rule:?}"),
            other => format!("{other:?}"),
        };
        let mut name = String::new();
        for (at, letter) in text.char_indices() {
            if letter.is_ascii_uppercase() && at > 0 {
                name.push('-');
            }
            name.push(letter.to_ascii_lowercase());
        }
        name
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|defect| defect.name() == name)
    }
}
