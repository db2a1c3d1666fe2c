//! From checked settings to the configuration of each part.

use std::sync::Arc;
use std::time::Duration;

use trunkline_core::engine::EngineConfig;
use trunkline_core::rest::{Advertised, RestConfig};
use trunkline_core::runtime::{Core, CoreConfig};
use trunkline_core::store::embedded::EmbeddedStore;
use trunkline_core::store::open::EmbeddedOptions;
use trunkline_edge::node::EdgeConfig;
use trunkline_edge::ring::{DriverConfig, raise_nofile};
use trunkline_edge::session::Bounds;
use trunkline_identity::{DevSecret, KeySource, Verifier};

use crate::exit::Failure;
use crate::settings::Settings;

/// Connects per second and address where others than this machine can connect.
const CONNECT_RATE_PUBLIC: u32 = 100;

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

/// What the REST front tells and checks. `ws_port`, `tcp_port`: where clients are sent unless the
/// settings name a URL.
pub fn rest_config(settings: &Settings, secret: &str, ws_port: u16, tcp_port: u16) -> RestConfig {
    let advertised = |url: &Option<String>, port| match url {
        Some(url) => Advertised::Url(url.clone()),
        None => Advertised::Port(port),
    };
    RestConfig {
        websocket: advertised(&settings.ws_url, ws_port),
        tcp: advertised(&settings.tcp_url, tcp_port),
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
        driver: settings.io_driver,
        driver_config: driver_config(settings),
        sessions_per_user_max: settings.sessions_per_user_max,
        settings: trunkline_edge::session::Settings {
            heartbeat_ms: millis(settings.heartbeat) as u32,
            frame_bytes_max: settings.frame_bytes_max,
            send_rate: settings.send_rate,
            send_burst: settings.send_burst,
            address_rate: settings
                .connect_rate
                .unwrap_or_else(|| automatic_connect_rate(settings)),
            address_burst: settings.connect_burst,
            address_exempt: settings.connect_rate_exempt.clone(),
            arrival_rate: settings.arrival_rate,
            outbox: Bounds {
                soft: settings.outbox_soft_bytes,
                hard: settings.outbox_hard_bytes,
            },
            origins: settings.origins.clone(),
            ..Default::default()
        },
    }
}

/// Where only this machine can connect, nobody is slowed.
fn automatic_connect_rate(settings: &Settings) -> u32 {
    if settings.public_addresses().is_empty() {
        0
    } else {
        CONNECT_RATE_PUBLIC
    }
}

/// Each shard's share of the connections; by default what its rings' tables hold.
pub fn driver_config(settings: &Settings) -> DriverConfig {
    let limit = raise_nofile().unwrap_or(1_024).clamp(64, 1 << 20) as u32;
    let shards = settings.shards.unwrap_or_else(cores) as u32;
    let sized = DriverConfig {
        receive: settings.recv,
        buffers: settings.recv_buffers,
        buffer_size: settings.recv_buffer_bytes,
        ..DriverConfig::default()
    };
    let mut config = match settings.connections_max {
        // The kernel spreads arrivals by hash: a shard may get somewhat more than its share.
        Some(all) => {
            let share = all.div_ceil(shards).saturating_mul(9) / 8 + 64;
            DriverConfig {
                receive: sized.receive,
                buffers: sized.buffers,
                buffer_size: sized.buffer_size,
                ..DriverConfig::for_connections(share)
            }
        }
        None => DriverConfig {
            slots_max: limit,
            ..sized
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::table::Role;

    fn settings(flags: &[(&'static str, &str)]) -> Settings {
        let flags: Vec<_> = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        Settings::load(Role::Serve, &flags, None, &[]).unwrap()
    }

    #[test]
    fn the_settings_defaults_are_those_of_the_edge() {
        let ours = edge_config(&settings(&[])).settings;
        let theirs = trunkline_edge::session::Settings::default();
        assert_eq!(ours.heartbeat_ms, theirs.heartbeat_ms);
        assert_eq!(ours.frame_bytes_max, theirs.frame_bytes_max);
        assert_eq!(ours.send_rate, theirs.send_rate);
        assert_eq!(ours.send_burst, theirs.send_burst);
        assert_eq!(ours.outbox.soft, theirs.outbox.soft);
        assert_eq!(ours.outbox.hard, theirs.outbox.hard);
        assert_eq!(ours.address_burst, theirs.address_burst);
    }

    #[test]
    fn only_public_addresses_limit_connects_by_themselves() {
        let rate =
            |flags: &[(&'static str, &str)]| edge_config(&settings(flags)).settings.address_rate;
        assert_eq!(rate(&[]), 0);
        let public = [("ws", "0.0.0.0:1"), ("jwt_secret", "s")];
        assert_eq!(rate(&public), CONNECT_RATE_PUBLIC);
        let told = [public[0], public[1], ("connect_rate", "7")];
        assert_eq!(rate(&told), 7);
    }

    #[test]
    fn rings_multiply_what_a_shard_holds() {
        let slots = |rings| {
            let told = [("shards", "1"), ("rings_per_shard", rings)];
            driver_config(&settings(&told)).slots_max
        };
        assert_eq!(slots("3"), slots("1") * 3);
        let told = [("shards", "2"), ("connections_max", "2000")];
        let config = driver_config(&settings(&told));
        assert!((1_000..1_400).contains(&config.slots_max), "{config:?}");
        let theirs = DriverConfig::default();
        assert_eq!(config.buffers, theirs.buffers);
        assert_eq!(config.buffer_size, theirs.buffer_size);
    }
}
