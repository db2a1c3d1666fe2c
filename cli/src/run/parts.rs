//! From checked settings to the configuration of each part.

use std::sync::Arc;
use std::time::Duration;

use trunkline_core::engine::EngineConfig;
use trunkline_core::rest::RestConfig;
use trunkline_core::runtime::{Core, CoreConfig};
use trunkline_core::store::embedded::EmbeddedStore;
use trunkline_core::store::open::EmbeddedOptions;
use trunkline_edge::node::EdgeConfig;
use trunkline_edge::ring::{DriverChoice, DriverConfig, raise_nofile};
use trunkline_edge::session::Bounds;
use trunkline_identity::{DevSecret, KeySource, Verifier};

use crate::exit::Failure;
use crate::settings::{IoDriver, Settings};

/// The secret that signs tokens; on `serve` without one, the data directory's own.
pub fn secret(settings: &Settings) -> Result<String, Failure> {
    match &settings.jwt_secret {
        Some(secret) => Ok(secret.clone()),
        None => DevSecret::load_or_create(&settings.data).map_err(|e| {
            Failure::Runtime(format!(
                "development secret in {}: {e}",
                settings.data.display()
            ))
        }),
    }
}

/// Checks tokens signed with `secret`.
pub fn verifier(secret: &str) -> Verifier {
    Verifier::new(&KeySource::Secret(secret.to_owned()))
}

/// Opens the store and starts the core on it. `needs_grpc`: it is not ready before it serves edges.
pub fn start_core(settings: &Settings, needs_grpc: bool) -> Result<Core, Failure> {
    let store = EmbeddedStore::open(&settings.store_dir, &EmbeddedOptions::default())
        .map_err(|e| Failure::Runtime(e.to_string()))?;
    let config = CoreConfig {
        engine: EngineConfig {
            worker_id: settings.worker_id,
            group_members_max: settings.group_members_max,
            send_rate: settings.send_rate,
            send_burst: settings.send_burst,
            conversations_cached_max: settings.conversations_cached_max,
            dedup_entries_max: settings.dedup_entries_max,
            operations_open_max: settings.operations_open_max,
            watermark_flush_ms: millis(settings.watermark_flush),
            ..EngineConfig::default()
        },
        store_stats: Some(store.stats()),
        needs_grpc,
        ..CoreConfig::default()
    };
    Core::start(config, Arc::new(store)).map_err(|e| Failure::Runtime(e.to_string()))
}

/// What the REST front tells and checks; the caller says where the transports are.
pub fn rest_config(settings: &Settings, secret: &str) -> RestConfig {
    RestConfig {
        dev_token_secret: settings.dev_tokens.then(|| secret.to_owned()),
        cors_origins: settings.cors.clone(),
        max_frame_bytes: settings.frame_bytes_max,
        send_rate: settings.send_rate,
        send_burst: settings.send_burst,
        group_members_max: settings.group_members_max,
        sessions_per_user_max: settings.sessions_per_user_max,
        heartbeat_ms: millis(settings.heartbeat) as u32,
        ..RestConfig::new(verifier(secret))
    }
}

/// The edge's tables, bounds and rates.
pub fn edge_config(settings: &Settings) -> EdgeConfig {
    EdgeConfig {
        edge_id: settings.edge_id.clone().unwrap_or_default(),
        ws: settings.ws,
        tcp: settings.tcp,
        shards: settings.shards.unwrap_or(0),
        driver: driver(settings.io_driver),
        driver_config: driver_config(settings),
        sessions_per_user_max: settings.sessions_per_user_max,
        settings: trunkline_edge::session::Settings {
            heartbeat_ms: millis(settings.heartbeat) as u32,
            frame_bytes_max: settings.frame_bytes_max,
            send_rate: settings.send_rate,
            send_burst: settings.send_burst,
            address_rate: settings.connect_rate,
            address_burst: settings.connect_burst,
            outbox: Bounds {
                soft: settings.outbox_soft_bytes,
                hard: settings.outbox_hard_bytes,
            },
            origins: settings.origins.clone(),
            ..Default::default()
        },
    }
}

pub const fn driver(choice: IoDriver) -> DriverChoice {
    match choice {
        IoDriver::Auto => DriverChoice::Auto,
        IoDriver::Uring => DriverChoice::Uring,
        IoDriver::Epoll => DriverChoice::Epoll,
    }
}

/// Each shard's share of the connections; by default what its rings' tables hold.
pub fn driver_config(settings: &Settings) -> DriverConfig {
    let limit = raise_nofile().unwrap_or(1_024).clamp(64, 1 << 20) as u32;
    let shards = settings.shards.unwrap_or_else(cores) as u32;
    let mut config = match settings.connections_max {
        // The kernel spreads arrivals by hash: a shard may get somewhat more than its share.
        Some(all) => DriverConfig::for_connections(all.div_ceil(shards).saturating_mul(9) / 8 + 64),
        None => DriverConfig {
            slots_max: limit,
            ..DriverConfig::default()
        },
    };
    if let Some(rings) = settings.rings_per_shard {
        config.rings = rings as u32;
        if settings.connections_max.is_none() {
            config.slots_max = limit.saturating_mul(rings as u32).min(1 << 24);
        }
    }
    config
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
