//! The one table of settings. Flags, environment variables, TOML keys, `--help`, `config default`
//! and the checks all follow from it, so they cannot disagree.

use crate::settings::value::Kind;

/// The subcommands that read settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Serve,
    Edge,
    Core,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Serve, Self::Edge, Self::Core];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Edge => "edge",
            Self::Core => "core",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }
}

/// One setting under its three names: TOML key `a_b`, flag `--a-b`, variable `TRUNKLINE_A_B`.
#[derive(Debug)]
pub struct Setting {
    pub key: &'static str,
    pub kind: Kind,
    /// What it is when nobody says anything; `None`: not set.
    pub default: Option<&'static str>,
    /// The core's own default, where it differs.
    pub default_core: Option<&'static str>,
    pub on: &'static [Role],
    pub doc: &'static str,
    /// Heading in `--help` and `config default`.
    pub group: &'static str,
}

impl Setting {
    pub fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key.to_ascii_uppercase())
    }

    pub fn default_for(&self, role: Role) -> Option<&'static str> {
        match role {
            Role::Core => self.default_core.or(self.default),
            Role::Serve | Role::Edge => self.default,
        }
    }

    pub fn applies_to(&self, role: Role) -> bool {
        self.on.contains(&role)
    }
}

/// What every environment variable of ours begins with.
pub const VARIABLE_PREFIX: &str = "TRUNKLINE_";
/// The variable that stands for `--config`.
pub const CONFIG_VARIABLE: &str = "TRUNKLINE_CONFIG";
/// Variables that are meant for others than the binary: tests find it by this one.
pub const FOREIGN_VARIABLES: &[&str] = &["TRUNKLINE_BIN"];

/// The setting with this TOML key.
pub fn find(key: &str) -> Option<&'static Setting> {
    TABLE.iter().find(|s| s.key == key)
}

const ALL: &[Role] = &[Role::Serve, Role::Edge, Role::Core];
const SERVE_EDGE: &[Role] = &[Role::Serve, Role::Edge];
const SERVE_CORE: &[Role] = &[Role::Serve, Role::Core];
const EDGE: &[Role] = &[Role::Edge];
const CORE: &[Role] = &[Role::Core];

const LISTEN: &str = "Listeners";
const TIERS: &str = "Tiers";
const IDENTITY: &str = "Identity";
const RINGS: &str = "Sockets";
const LIMITS: &str = "Limits";
const ENGINE: &str = "Conversations";
const PROCESS: &str = "Process";

const fn setting(
    group: &'static str,
    on: &'static [Role],
    key: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    doc: &'static str,
) -> Setting {
    Setting {
        key,
        kind,
        default,
        default_core: None,
        on,
        doc,
        group,
    }
}

const fn count(min: u64, max: u64) -> Kind {
    Kind::Count { min, max }
}

const fn duration(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min_ms, max_ms }
}

const fn bytes(min: u64, max: u64) -> Kind {
    Kind::Bytes { min, max }
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const HOUR_MS: u64 = 3_600_000;

/// All settings, in the order in which they are shown.
pub const TABLE: &[Setting] = &[
    // ---- listeners ----
    setting(
        LISTEN,
        SERVE_EDGE,
        "ws",
        Kind::Address,
        Some("127.0.0.1:7400"),
        "Where WebSocket clients connect (path /v1/connect). Port 0: any free port.",
    ),
    setting(
        LISTEN,
        SERVE_EDGE,
        "tcp",
        Kind::Address,
        Some("127.0.0.1:7401"),
        "Where raw TCP clients connect (length-delimited protobuf).",
    ),
    setting(
        LISTEN,
        SERVE_CORE,
        "http",
        Kind::Address,
        Some("127.0.0.1:7410"),
        "REST and the demo page.",
    ),
    setting(
        LISTEN,
        CORE,
        "grpc",
        Kind::Address,
        Some("127.0.0.1:7420"),
        "Where edges attach. Keep it off public networks: an edge is believed.",
    ),
    Setting {
        default_core: Some("127.0.0.1:7431"),
        ..setting(
            LISTEN,
            ALL,
            "admin",
            Kind::Address,
            Some("127.0.0.1:7430"),
            "/metrics, /healthz, /readyz, /debug. Keep it off public networks.",
        )
    },
    setting(
        LISTEN,
        SERVE_EDGE,
        "origins",
        Kind::List("ORIGIN"),
        None,
        "Origins from which a browser may open a WebSocket, comma-separated; `*` or unset: any. \
         Clients that send no Origin header always may.",
    ),
    setting(
        LISTEN,
        SERVE_CORE,
        "cors",
        Kind::List("ORIGIN"),
        None,
        "Origins that may call REST from a browser, comma-separated; `*`: any; unset: none.",
    ),
    setting(
        LISTEN,
        SERVE_CORE,
        "ws_url",
        Kind::Text("URL"),
        None,
        "Where GET /v1/config sends WebSocket clients. Unset: to the caller's host, at the port of \
         serve, or at 7400.",
    ),
    setting(
        LISTEN,
        SERVE_CORE,
        "tcp_url",
        Kind::Text("URL"),
        None,
        "Where GET /v1/config sends raw TCP clients. Unset: as for ws_url, at 7401.",
    ),
    // ---- tiers ----
    setting(
        TIERS,
        SERVE_CORE,
        "data",
        Kind::Path,
        Some("./data"),
        "The data directory: the embedded store and the development secret.",
    ),
    setting(
        TIERS,
        EDGE,
        "core",
        Kind::List("URL"),
        Some("http://127.0.0.1:7420"),
        "The cores to attach to, comma-separated.",
    ),
    setting(
        TIERS,
        CORE,
        "store",
        Kind::Text("STORE"),
        Some("embedded"),
        "Where messages become durable: `embedded` (in the data directory) or `embedded:DIR`. \
         `cassandra://host[:port],…/keyspace` needs a build with that store.",
    ),
    setting(
        TIERS,
        CORE,
        "registry",
        Kind::Text("REGISTRY"),
        Some("memory"),
        "Who is connected where: `memory`. `redis://…` needs a build with that registry.",
    ),
    setting(
        TIERS,
        CORE,
        "bus",
        Kind::Text("BUS"),
        Some("embedded"),
        "Where events go: `embedded`. `kafka://host:port,…` needs a build with that bus.",
    ),
    setting(
        TIERS,
        SERVE_EDGE,
        "edge_id",
        Kind::Text("ID"),
        None,
        "This edge's name, unique in a deployment. Unset: a random one at each start.",
    ),
    setting(
        TIERS,
        SERVE_CORE,
        "worker_id",
        count(0, 1023),
        Some("0"),
        "The worker number in message ids, unique among cores.",
    ),
    // ---- identity ----
    setting(
        IDENTITY,
        ALL,
        "jwt_secret",
        Kind::Secret,
        None,
        "The HS256 secret of the tokens. On serve, unset: a random development secret, kept in \
         the data directory. Prefer the variable or the file: flags show in process lists.",
    ),
    setting(
        IDENTITY,
        ALL,
        "jwks",
        Kind::Text("FILE|URL"),
        None,
        "Public keys for RS256, ES256 and EdDSA tokens; needs a build with JWKS.",
    ),
    setting(
        IDENTITY,
        SERVE_CORE,
        "dev_tokens",
        Kind::Switch,
        None,
        "Let anybody fetch a token for any user from GET /v1/dev/token. Implied by serve on \
         loopback addresses without jwt_secret; refused on public addresses.",
    ),
    // ---- sockets ----
    setting(
        RINGS,
        SERVE_EDGE,
        "shards",
        count(1, 255),
        None,
        "Threads that hold sockets. Unset: one for each core.",
    ),
    setting(
        RINGS,
        SERVE_EDGE,
        "rings_per_shard",
        count(1, 1024),
        None,
        "io_uring instances of each shard. Unset: one, or as many as the file limit demands for \
         connections_max.",
    ),
    setting(
        RINGS,
        SERVE_EDGE,
        "io_driver",
        Kind::Choice(&["auto", "uring", "epoll"]),
        Some("auto"),
        "What drives the sockets. auto: io_uring, or epoll where io_uring is forbidden.",
    ),
    setting(
        RINGS,
        SERVE_EDGE,
        "recv",
        Kind::Choice(&["multishot", "poll"]),
        Some("multishot"),
        "How an idle connection waits for bytes (io_uring; epoll ignores it). multishot: fastest. \
         poll: 600 bytes less kernel memory for each, and one request more for each message; for \
         fleets that are silent most of the time.",
    ),
    setting(
        RINGS,
        SERVE_EDGE,
        "connections_max",
        count(1, 16_777_216),
        None,
        "Connections that this process takes; further ones are refused. Unset: as many as the \
         file limit allows each shard's rings.",
    ),
    setting(
        RINGS,
        SERVE_EDGE,
        "recv_buffers",
        count(4, 32_768),
        Some("128"),
        "Receive buffers of each ring (io_uring), a power of two. Idle connections use none.",
    ),
    setting(
        RINGS,
        SERVE_EDGE,
        "recv_buffer_bytes",
        bytes(512, MIB),
        Some("2 KiB"),
        "Size of each receive buffer.",
    ),
    setting(
        RINGS,
        EDGE,
        "echo",
        Kind::Switch,
        Some("false"),
        "Be a plain WebSocket and TCP echo server on the same sockets, frames and outboxes; \
         needs no core.",
    ),
    // ---- limits ----
    setting(
        LIMITS,
        ALL,
        "send_rate",
        count(0, 1_000_000),
        Some("20"),
        "Messages per second and user; 0: no limit (for measurements).",
    ),
    setting(
        LIMITS,
        ALL,
        "send_burst",
        count(1, 1_000_000),
        Some("40"),
        "Messages that a user may send at once.",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "connect_rate",
        count(0, 1_000_000),
        None,
        "Connections per second and address; 0: no limit. Unset: 100, and no limit where only \
         loopback addresses are listened on.",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "connect_burst",
        count(1, 1_000_000),
        Some("1000"),
        "Connections at once from one address, where connect_rate limits.",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "connect_rate_exempt",
        Kind::List("NETWORK"),
        None,
        "Networks such as 10.0.0.0/8, comma-separated, that connect_rate does not limit: \
         load balancers, gateways of many users.",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "arrival_rate",
        count(0, 10_000_000),
        Some("0"),
        "Connections per second that the whole process lets in; 0: as many as a quarter of the \
         shards' time is enough for. Further ones wait in the kernel until their turn.",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "sessions_per_user_max",
        count(1, 1_000),
        Some("8"),
        "Live sessions of one user.",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "frame_bytes_max",
        bytes(KIB, 16 * MIB),
        Some("64 KiB"),
        "Bytes of one client frame (with echo: 16 MiB).",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "outbox_soft_bytes",
        bytes(KIB, GIB),
        Some("256 KiB"),
        "Unsent bytes of one connection above which typing, then presence are dropped.",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "outbox_hard_bytes",
        bytes(KIB, GIB),
        Some("1 MiB"),
        "Unsent bytes of one connection at which it is closed as a slow consumer (4410).",
    ),
    setting(
        LIMITS,
        SERVE_EDGE,
        "heartbeat",
        duration(100, HOUR_MS),
        Some("30s"),
        "How often clients are to show that they live. A connection silent for twice this and \
         5 s is closed.",
    ),
    // ---- conversations ----
    setting(
        ENGINE,
        SERVE_CORE,
        "group_members_max",
        count(2, 100_000),
        Some("500"),
        "Members of one group.",
    ),
    setting(
        ENGINE,
        SERVE_CORE,
        "conversations_cached_max",
        count(1, 100_000_000),
        Some("100000"),
        "Idle conversations kept in memory.",
    ),
    setting(
        ENGINE,
        SERVE_CORE,
        "dedup_entries_max",
        count(4_096, 1_000_000_000),
        Some("4000000"),
        "Entries of all idle conversations' dedup windows together.",
    ),
    setting(
        ENGINE,
        SERVE_CORE,
        "operations_open_max",
        count(1, 10_000_000),
        Some("65536"),
        "Operations in one open batch above which sends are refused as overloaded.",
    ),
    setting(
        ENGINE,
        SERVE_CORE,
        "watermark_flush",
        duration(1, 60_000),
        Some("200ms"),
        "Delivered and read marks reach the store at the latest after this.",
    ),
    // ---- process ----
    setting(
        PROCESS,
        ALL,
        "drain_budget",
        duration(0, HOUR_MS),
        Some("30s"),
        "How long SIGTERM waits for clients to leave before it closes what is left.",
    ),
    setting(
        PROCESS,
        EDGE,
        "upgrade_socket",
        Kind::Text("PATH|@NAME"),
        None,
        "Where `trunkline edge --upgrade` finds the edge that runs: a file, or with @ a name of the \
         network namespace. Unset: @trunkline-edge- and the address of ws.",
    ),
    setting(
        PROCESS,
        ALL,
        "ports_file",
        Kind::Path,
        None,
        "Write the addresses in use there as JSON once they listen, serve and core once ready (for \
         port 0, tests and tools).",
    ),
    setting(
        PROCESS,
        ALL,
        "log",
        Kind::Filter,
        Some("info,fjall=warn,lsm_tree=warn"),
        "What to log on stderr: a level, or a filter such as `info,trunkline_edge=debug`.",
    ),
    setting(
        PROCESS,
        ALL,
        "log_format",
        Kind::Choice(&["text", "json"]),
        Some("text"),
        "How a log line looks.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_defaults_pass_their_own_check() {
        for (i, s) in TABLE.iter().enumerate() {
            assert!(TABLE[..i].iter().all(|o| o.key != s.key), "{}", s.key);
            for text in [s.default, s.default_core].into_iter().flatten() {
                s.kind
                    .parse(text)
                    .unwrap_or_else(|e| panic!("{}: {e}", s.key));
            }
        }
    }
}
