//! Every bound of the protocol, by name. Configuration may lower or raise what is marked *default*.

/// Bytes of a user id or a device id.
pub const ID_BYTES_MAX: usize = 64;
/// Bytes of a `client_msg_id`.
pub const CLIENT_MSG_ID_BYTES_MAX: usize = 64;
/// Bytes of a client frame's `id`.
pub const FRAME_ID_BYTES_MAX: usize = 64;
/// Bytes of `connect`'s `client`.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;
/// Unicode scalars of a message's content.
pub const CONTENT_CHARS_MAX: usize = 1000;
/// Bytes of a content type.
pub const CONTENT_TYPE_BYTES_MAX: usize = 64;
/// Bytes of a ping's nonce.
pub const NONCE_BYTES_MAX: usize = 64;
/// Unicode scalars of a conversation's title.
pub const TITLE_CHARS_MAX: usize = 200;
/// Bytes of each text field of `media`.
pub const MEDIA_FIELD_BYTES_MAX: usize = 2048;
/// Bytes of one client frame: default.
pub const FRAME_BYTES_MAX: usize = 65_536;
/// Bytes of one message in `--echo` mode.
pub const ECHO_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Conversations named in one `sync`.
pub const SYNC_CONVERSATIONS_MAX: usize = 500;
/// Messages of a page when the client does not say.
pub const PAGE_LIMIT_DEFAULT: u32 = 50;
/// Messages of a page.
pub const PAGE_LIMIT_MAX: u32 = 200;
/// Users of one `watch`.
pub const WATCH_USERS_MAX: usize = 100;
/// Members of a group: default.
pub const GROUP_MEMBERS_MAX: usize = 500;
/// Live sessions of one user: default.
pub const SESSIONS_PER_USER_MAX: u32 = 8;
/// Messages per second and user: default.
pub const SEND_RATE: u32 = 20;
/// Messages in one burst and user: default.
pub const SEND_BURST: u32 = 40;
/// Milliseconds between a client's signs of life: default.
pub const HEARTBEAT_MS: u32 = 30_000;
/// Milliseconds within which `connect` must come.
pub const CONNECT_DEADLINE_MS: u64 = 10_000;
/// Messages of a conversation in which a repeated `client_msg_id` is recognised, at least.
pub const DEDUP_WINDOW: u64 = 4_096;
/// Close a connection from which nothing came for this long.
pub const fn silence_max_ms(heartbeat_ms: u32) -> u64 {
    2 * heartbeat_ms as u64 + 5_000
}

/// WebSocket path.
pub const WS_PATH: &str = "/v1/connect";
/// WebSocket subprotocol of JSON frames.
pub const SUBPROTOCOL_JSON: &str = "trunkline.json.v1";
/// WebSocket subprotocol of protobuf frames.
pub const SUBPROTOCOL_PROTO: &str = "trunkline.proto.v1";
/// Content type of a message that names none.
pub const CONTENT_TYPE_DEFAULT: &str = "text/plain";
