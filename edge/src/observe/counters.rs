//! What a shard counts: one flat table of numbers that the shard's thread alone writes, and a copy
//! of it in atomics that other threads read, brought up to date at most every
//! [`PUBLISH_INTERVAL_MS`].

use std::sync::atomic::{AtomicU64, Ordering};

use trunkline_proto::codes::Close;
use trunkline_proto::head;

use crate::ring::DriverStats;
use crate::session::{Class, End, State, Transport};

/// How old the published numbers of a busy shard can be.
pub const PUBLISH_INTERVAL_MS: u64 = 250;

/// Whether a number only rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// A family of numbers in the exposition.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub kind: Kind,
    /// Without prefix, and for counters without `_total`.
    pub name: &'static str,
    pub help: &'static str,
}

/// Declares the numbers family by family: a constant's name and its labels for each.
macro_rules! numbers {
    ($($kind:ident $family:literal $help:literal { $($name:ident $labels:literal)* })*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        #[allow(clippy::upper_case_acronyms)]
        pub enum Number { $($($name,)*)* }

        /// How many numbers there are.
        pub const NUMBERS: usize = [$($(Number::$name,)*)*].len();

        /// Family and labels of each number, in order; families are contiguous.
        pub const TABLE: [(Family, &str); NUMBERS] = [
            $($((Family { kind: Kind::$kind, name: $family, help: $help }, $labels),)*)*
        ];
    };
}

numbers! {
    Gauge "sockets" "Sockets by state and transport." {
        WsHandshake "state=\"handshake\",transport=\"ws\""
        WsAwaitConnect "state=\"await_connect\",transport=\"ws\""
        WsRegistering "state=\"registering\",transport=\"ws\""
        WsLive "state=\"live\",transport=\"ws\""
        WsClosing "state=\"closing\",transport=\"ws\""
        TcpHandshake "state=\"handshake\",transport=\"tcp\""
        TcpAwaitConnect "state=\"await_connect\",transport=\"tcp\""
        TcpRegistering "state=\"registering\",transport=\"tcp\""
        TcpLive "state=\"live\",transport=\"tcp\""
        TcpClosing "state=\"closing\",transport=\"tcp\""
    }
    Counter "accepted" "Connections accepted." {
        AcceptedWs "transport=\"ws\""
        AcceptedTcp "transport=\"tcp\""
    }
    Counter "taken_over" "Connections taken over from a predecessor process." { TakenOver "" }
    Counter "handshake_failures" "Connections refused before they were a session." {
        RefusedBadRequest "reason=\"bad_request\""
        RefusedUnauthorized "reason=\"unauthorized\""
        RefusedOrigin "reason=\"origin\""
        RefusedRateLimited "reason=\"rate_limited\""
        RefusedDraining "reason=\"draining\""
        RefusedLinkDown "reason=\"link_down\""
        RefusedTimeout "reason=\"timeout\""
        RefusedNotRegistered "reason=\"not_registered\""
    }
    Counter "sessions_opened" "Sessions that became live." { SessionsOpened "" }
    Counter "frames_received" "Frames from clients." {
        InConnect "type=\"connect\""
        InSendMessage "type=\"send_message\""
        InReceipt "type=\"receipt\""
        InTyping "type=\"typing\""
        InSync "type=\"sync\""
        InFetch "type=\"fetch\""
        InWatch "type=\"watch\""
        InUnwatch "type=\"unwatch\""
        InPing "type=\"ping\""
        InHeartbeat "type=\"heartbeat\""
        InControl "type=\"ws_control\""
        InUndecodable "type=\"undecodable\""
    }
    Counter "frames_sent" "Frames to clients, queued or sent." {
        OutChat "class=\"chat\""
        OutReceipt "class=\"receipt\""
        OutPresence "class=\"presence\""
        OutTyping "class=\"typing\""
        OutControl "class=\"ws_control\""
    }
    Counter "received_bytes" "Bytes from clients." { BytesIn "" }
    Counter "sent_bytes" "Bytes given to the sockets." { BytesOut "" }
    Counter "sends_refused" "Client frames that were answered with an error here." {
        FramesRateLimited "reason=\"rate_limited\""
        FramesOverloaded "reason=\"overloaded\""
        FramesUnavailable "reason=\"unavailable\""
    }
    Counter "deliveries" "Items of the core with a frame for sessions here." { Deliveries "" }
    Counter "delivered_frames" "Frames of the core by what became of them." {
        Delivered "outcome=\"sent\""
        DeliveredStale "outcome=\"session_gone\""
    }
    Counter "outbox_dropped" "Frames let go for sockets that do not keep up." {
        DroppedTyping "class=\"typing\""
        DroppedPresence "class=\"presence\""
        DroppedReceipts "class=\"receipt\""
    }
    Gauge "outbox_bytes" "Bytes owed to sockets that do not keep up." { OutboxBytes "" }
    Gauge "outbox_sockets" "Sockets that do not keep up." { OutboxSockets "" }
    Counter "closes" "Connections ended." {
        ClosedNormal "reason=\"normal\""
        ClosedDraining "reason=\"draining\""
        ClosedProtocol "reason=\"protocol_error\""
        ClosedWrongOpcode "reason=\"wrong_opcode\""
        ClosedBadUtf8 "reason=\"bad_utf8\""
        ClosedTooBig "reason=\"too_big\""
        ClosedBadFrame "reason=\"bad_frame\""
        ClosedUnauthorized "reason=\"unauthorized\""
        ClosedConnectTimeout "reason=\"connect_timeout\""
        ClosedReplaced "reason=\"replaced\""
        ClosedSlowConsumer "reason=\"slow_consumer\""
        ClosedHeartbeatMissed "reason=\"heartbeat_missed\""
        ClosedRateLimited "reason=\"rate_limited\""
        ClosedPeer "reason=\"peer\""
        ClosedEof "reason=\"eof\""
        ClosedError "reason=\"socket_error\""
        ClosedHandshake "reason=\"handshake\""
    }
    Counter "probes" "Silent connections asked for a sign of life." { Probes "" }
    Counter "link_breaks" "Times that the link to the core was lost." { LinkBreaks "" }
    Gauge "link_backlog" "Session announcements that wait for credit." { LinkBacklog "" }
    Counter "drained_sessions" "Sessions that ended while draining." {
        DrainedClean "outcome=\"clean\""
        DrainedForced "outcome=\"forced\""
    }
    Gauge "memory_bytes" "User memory of the shard's tables." {
        MemorySlots "what=\"slots\""
        MemoryIdentities "what=\"identities\""
        MemoryTimers "what=\"timers\""
        MemoryAddresses "what=\"addresses\""
        MemoryClosed "what=\"closed\""
        MemoryDriverSlots "what=\"driver_slots\""
        MemoryBuffers "what=\"receive_buffers\""
        MemoryQueues "what=\"queues\""
    }
}

impl Number {
    /// The gauge of sockets in `state`; none for a free slot.
    pub const fn sockets(state: State, transport: Transport) -> Option<Self> {
        Some(match (transport, state) {
            (Transport::WebSocket, State::Handshake) => Self::WsHandshake,
            (Transport::WebSocket, State::AwaitConnect) => Self::WsAwaitConnect,
            (Transport::WebSocket, State::Registering) => Self::WsRegistering,
            (Transport::WebSocket, State::Live) => Self::WsLive,
            (Transport::WebSocket, State::Closing) => Self::WsClosing,
            (Transport::Tcp, State::Handshake) => Self::TcpHandshake,
            (Transport::Tcp, State::AwaitConnect) => Self::TcpAwaitConnect,
            (Transport::Tcp, State::Registering) => Self::TcpRegistering,
            (Transport::Tcp, State::Live) => Self::TcpLive,
            (Transport::Tcp, State::Closing) => Self::TcpClosing,
            (_, State::Free) => return None,
        })
    }

    /// The counter of a client frame.
    pub const fn frame_in(kind: head::Kind) -> Self {
        match kind {
            head::Kind::Connect => Self::InConnect,
            head::Kind::SendMessage => Self::InSendMessage,
            head::Kind::Receipt => Self::InReceipt,
            head::Kind::Typing => Self::InTyping,
            head::Kind::Sync => Self::InSync,
            head::Kind::Fetch => Self::InFetch,
            head::Kind::Watch => Self::InWatch,
            head::Kind::Unwatch => Self::InUnwatch,
            head::Kind::Ping => Self::InPing,
            head::Kind::Heartbeat => Self::InHeartbeat,
        }
    }

    /// The counter of a frame to a client.
    pub const fn frame_out(class: Class) -> Self {
        match class {
            Class::Chat => Self::OutChat,
            Class::Receipt => Self::OutReceipt,
            Class::Presence => Self::OutPresence,
            Class::Typing => Self::OutTyping,
        }
    }

    /// The counter of connections that ended so.
    pub const fn closed(end: End) -> Self {
        match end {
            End::None | End::Error => Self::ClosedError,
            End::Peer => Self::ClosedPeer,
            End::Eof => Self::ClosedEof,
            End::Handshake => Self::ClosedHandshake,
            End::Ours(close) => match close {
                Close::Normal => Self::ClosedNormal,
                Close::Draining => Self::ClosedDraining,
                Close::Protocol => Self::ClosedProtocol,
                Close::WrongOpcode => Self::ClosedWrongOpcode,
                Close::BadUtf8 => Self::ClosedBadUtf8,
                Close::TooBig => Self::ClosedTooBig,
                Close::BadFrame => Self::ClosedBadFrame,
                Close::Unauthorized => Self::ClosedUnauthorized,
                Close::ConnectTimeout => Self::ClosedConnectTimeout,
                Close::Replaced => Self::ClosedReplaced,
                Close::SlowConsumer => Self::ClosedSlowConsumer,
                Close::HeartbeatMissed => Self::ClosedHeartbeatMissed,
                Close::RateLimited => Self::ClosedRateLimited,
            },
        }
    }
}

/// The shard's own copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    values: [u64; NUMBERS],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            values: [0; NUMBERS],
        }
    }
}

impl Counters {
    /// The value of a number.
    pub const fn get(&self, number: Number) -> u64 {
        self.values[number as usize]
    }

    /// One more.
    pub const fn inc(&mut self, number: Number) {
        self.add(number, 1);
    }

    /// `n` more.
    pub const fn add(&mut self, number: Number, n: u64) {
        self.values[number as usize] += n;
    }

    /// `n` less, of a gauge.
    pub fn sub(&mut self, number: Number, n: u64) {
        let value = &mut self.values[number as usize];
        debug_assert!(*value >= n, "{number:?} below zero");
        *value = value.saturating_sub(n);
    }

    /// Sets a gauge.
    pub const fn set(&mut self, number: Number, n: u64) {
        self.values[number as usize] = n;
    }
}

/// What a shard's loop did with its time, and its driver's numbers: see [`DriverStats`].
pub const DRIVER_NUMBERS: [(Kind, &str, &str); 17] = [
    (Kind::Counter, "loop_seconds", "state=\"kernel\""),
    (Kind::Counter, "loop_seconds", "state=\"idle\""),
    (Kind::Counter, "loop_seconds", "state=\"frames\""),
    (Kind::Counter, "loop_seconds", "state=\"link\""),
    (Kind::Counter, "arrivals_held_seconds", ""),
    (Kind::Counter, "ring_accepted", ""),
    (Kind::Counter, "ring_accept_refused", ""),
    (Kind::Gauge, "ring_accepts_waiting", ""),
    (Kind::Counter, "ring_closed", ""),
    (Kind::Counter, "ring_received_bytes", ""),
    (Kind::Counter, "ring_sent_bytes", ""),
    (Kind::Counter, "ring_sends", ""),
    (Kind::Counter, "ring_sends_blocked", ""),
    (Kind::Counter, "ring_buffers_exhausted", ""),
    (Kind::Counter, "ring_cq_overflow", ""),
    (Kind::Counter, "ring_enters", ""),
    (Kind::Counter, "loop_turns", ""),
];

/// The first of [`DRIVER_NUMBERS`] are times in ns; the rest are counts.
pub const DRIVER_TIMES: usize = 5;

/// What a loop knows of itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopStats {
    pub driver: DriverStats,
    pub elapsed_ns: u64,
    /// Of it, in what the core sent and in handing everything on: the turn after the driver's.
    pub link_ns: u64,
    /// In which arrivals were held back, whatever else was done meanwhile.
    pub held_ns: u64,
    pub turns: u64,
}

fn loop_values(of: &LoopStats) -> [u64; DRIVER_NUMBERS.len()] {
    let stats = &of.driver;
    let elsewhere_ns = stats.kernel_ns + stats.idle_ns + of.link_ns;
    [
        stats.kernel_ns,
        stats.idle_ns,
        of.elapsed_ns.saturating_sub(elsewhere_ns),
        of.link_ns,
        of.held_ns,
        stats.accepted,
        stats.accept_refused,
        stats.accepts_waiting,
        stats.closed,
        stats.bytes_received,
        stats.bytes_sent,
        stats.sends,
        stats.sends_blocked,
        stats.buffers_exhausted,
        stats.cq_overflow,
        stats.enters,
        of.turns,
    ]
}

/// The copy that other threads read. Each number is whole; two of them may be of different turns.
#[derive(Debug)]
pub struct Published {
    values: [AtomicU64; NUMBERS],
    driver: [AtomicU64; DRIVER_NUMBERS.len()],
}

impl Default for Published {
    fn default() -> Self {
        Self {
            values: [const { AtomicU64::new(0) }; NUMBERS],
            driver: [const { AtomicU64::new(0) }; DRIVER_NUMBERS.len()],
        }
    }
}

impl Published {
    /// Called by the shard's thread alone.
    pub fn publish(&self, counters: &Counters, of_loop: &LoopStats) {
        let driver = loop_values(of_loop);
        let values = self.values.iter().zip(counters.values);
        for (to, from) in values.chain(self.driver.iter().zip(driver)) {
            to.store(from, Ordering::Relaxed);
        }
    }

    /// The published value of a number.
    pub fn get(&self, number: Number) -> u64 {
        self.at(number as usize)
    }

    /// By index into [`TABLE`].
    pub fn at(&self, index: usize) -> u64 {
        self.values[index].load(Ordering::Relaxed)
    }

    /// By index into [`DRIVER_NUMBERS`].
    pub fn driver_at(&self, index: usize) -> u64 {
        self.driver[index].load(Ordering::Relaxed)
    }
}
