//! What a shard is told at its start, each bound by name.

use ipnet::IpNet;
use trunkline_proto::limits;

use super::outbox::Bounds;

/// See the fields; the defaults are those of the protocol.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This shard's number, the first byte of its handles.
    pub shard: u8,
    /// Of the process; part of session ids.
    pub incarnation: u64,
    /// Seeds the jitter of `reconnect`.
    pub seed: u64,
    pub heartbeat_ms: u32,
    pub frame_bytes_max: usize,
    /// Messages per second and session, and at once; rate 0: no limit. The core counts a user's
    /// sessions together.
    pub send_rate: u32,
    pub send_burst: u32,
    /// Sends refused in a row after which the session is closed with 4429.
    pub refused_in_row_max: u8,
    /// Connects per second and address on this shard, and at once; rate 0: no limit.
    pub address_rate: u32,
    pub address_burst: u32,
    /// Networks whose addresses have no such limit.
    pub address_exempt: Vec<IpNet>,
    /// Connections per second that this shard lets in, the rest waits in the kernel; 0: no limit.
    pub arrival_rate: u32,
    /// An HTTP request must have come in whole.
    pub handshake_ms: u64,
    /// `connect` must have come.
    pub connect_ms: u64,
    /// The core must have registered the session.
    pub register_ms: u64,
    /// The peer's end is awaited this long after ours.
    pub linger_ms: u64,
    /// The same for a slow consumer, who has a full socket to read before our end.
    pub slow_linger_ms: u64,
    pub outbox: Bounds,
    /// Frames, and bytes of them, that a session may send before it is registered.
    pub early_frames_max: usize,
    pub early_bytes_max: usize,
    /// Origins that browsers may come from; empty: any.
    pub origins: Vec<String>,
}

const _: () = assert!(
    OUTBOX_HARD_DEFAULT > OUTBOX_SOFT_DEFAULT && OUTBOX_SOFT_DEFAULT > limits::FRAME_BYTES_MAX
);
/// See [`super::outbox`].
pub const OUTBOX_SOFT_DEFAULT: usize = 256 * 1024;
/// See [`super::outbox`].
pub const OUTBOX_HARD_DEFAULT: usize = 1024 * 1024;

impl Default for Settings {
    fn default() -> Self {
        Self {
            shard: 0,
            incarnation: 1,
            seed: 1,
            heartbeat_ms: limits::HEARTBEAT_MS,
            frame_bytes_max: limits::FRAME_BYTES_MAX,
            send_rate: limits::SEND_RATE,
            send_burst: limits::SEND_BURST,
            refused_in_row_max: 200,
            address_rate: 100,
            address_burst: 1_000,
            address_exempt: Vec::new(),
            arrival_rate: 0,
            handshake_ms: limits::CONNECT_DEADLINE_MS,
            connect_ms: limits::CONNECT_DEADLINE_MS,
            register_ms: 10_000,
            linger_ms: 2_000,
            slow_linger_ms: 10_000,
            outbox: Bounds {
                soft: OUTBOX_SOFT_DEFAULT,
                hard: OUTBOX_HARD_DEFAULT,
            },
            early_frames_max: 64,
            early_bytes_max: 64 * 1024,
            origins: Vec::new(),
        }
    }
}

impl Settings {
    /// The timer wheel's step: fine enough for the heartbeat, coarse enough to cost nothing.
    pub fn tick_ms(&self) -> u64 {
        u64::from(self.heartbeat_ms / 64).clamp(10, 250)
    }
}
