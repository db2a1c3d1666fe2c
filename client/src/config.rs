//! What a client needs to know.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use trunkline_proto::ids::is_valid_id;
use trunkline_proto::limits::{CLIENT_NAME_BYTES_MAX, WS_PATH};

use crate::machine::MachineConfig;

/// How to reach the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `ws://host:port`; without a path `/v1/connect` is meant.
    WebSocket { url: String, encoding: Encoding },
    /// `host:port`, delimited protobuf.
    Tcp { address: String },
}

/// How frames are written on a WebSocket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    Json,
    #[default]
    Protobuf,
}

/// What a token provider returns.
pub type TokenFuture = Pin<Box<dyn Future<Output = Result<String, String>> + Send>>;

/// Where tokens come from: asked before each connection, so that an expired one is replaced.
#[derive(Clone)]
pub struct TokenProvider(Arc<dyn Fn() -> TokenFuture + Send + Sync>);

impl TokenProvider {
    /// Always the same token. When the server no longer takes it the client gives up.
    pub fn fixed(token: impl Into<String>) -> Self {
        let token = token.into();
        Self::from_fn(move || {
            let token = token.clone();
            async move { Ok(token) }
        })
    }

    /// Calls `provide` for each token.
    pub fn from_fn<F, R>(provide: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, String>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(provide())))
    }

    pub(crate) fn provide(&self) -> TokenFuture {
        (self.0)()
    }
}

impl fmt::Debug for TokenProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenProvider(…)")
    }
}

/// A client's configuration.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    pub transport: Transport,
    pub token: TokenProvider,
    /// Names this installation: one live session for each user and device.
    pub device_id: String,
    /// Free text naming the software.
    pub client_name: String,
    /// First wait before a reconnect, and the longest.
    pub backoff_base: Duration,
    pub backoff_max: Duration,
    /// For the connection, the handshake and `connected` together.
    pub connect_timeout: Duration,
    /// A write that takes longer means that the connection is dead.
    pub write_timeout: Duration,
    /// Bytes of one server frame.
    pub frame_bytes_max: usize,
    /// Events that wait for the application. When they are this many nothing more is read from the
    /// server until the application takes some.
    pub events_max: usize,
    /// Positions to go on from (see [`crate::Client::positions`]).
    pub positions: Vec<(String, u64)>,
    pub machine: MachineConfig,
}

impl ClientConfig {
    /// A client over a WebSocket, protobuf inside.
    pub fn websocket(
        url: impl Into<String>,
        device_id: impl Into<String>,
        token: TokenProvider,
    ) -> Self {
        let transport = Transport::WebSocket {
            url: url.into(),
            encoding: Encoding::default(),
        };
        Self::new(transport, device_id, token)
    }

    /// A client over raw TCP.
    pub fn tcp(
        address: impl Into<String>,
        device_id: impl Into<String>,
        token: TokenProvider,
    ) -> Self {
        let transport = Transport::Tcp {
            address: address.into(),
        };
        Self::new(transport, device_id, token)
    }

    /// A client with defaults for all that is not named here.
    pub fn new(transport: Transport, device_id: impl Into<String>, token: TokenProvider) -> Self {
        Self {
            transport,
            token,
            device_id: device_id.into(),
            client_name: concat!("trunkline-client/", env!("CARGO_PKG_VERSION")).into(),
            backoff_base: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            frame_bytes_max: 16 * 1024 * 1024,
            events_max: 1_024,
            positions: Vec::new(),
            machine: MachineConfig::default(),
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if !is_valid_id(&self.device_id) {
            return Err(ConfigError::DeviceId);
        }
        if self.client_name.len() > CLIENT_NAME_BYTES_MAX {
            return Err(ConfigError::ClientName);
        }
        if self.events_max == 0 {
            return Err(ConfigError::EventsMax);
        }
        match &self.transport {
            Transport::WebSocket { url, .. } if !url.starts_with("ws://") => {
                Err(ConfigError::Url(url.clone()))
            }
            _ => Ok(()),
        }
    }
}

/// The URL with the path that it may leave out.
pub(crate) fn complete_url(url: &str) -> String {
    let rest = url.strip_prefix("ws://").unwrap_or(url);
    match rest.find(['/', '?']) {
        None => format!("{url}{WS_PATH}"),
        Some(at) if &rest[at..] == "/" => format!("ws://{}{WS_PATH}", &rest[..at]),
        Some(_) => url.to_owned(),
    }
}

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("device_id: 1-64 bytes of A-Za-z0-9._:@-")]
    DeviceId,
    #[error("client_name: at most {CLIENT_NAME_BYTES_MAX} bytes")]
    ClientName,
    #[error("events_max: at least 1")]
    EventsMax,
    #[error("{0:?} is no ws:// URL (TLS ends at a proxy before the server)")]
    Url(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_a_path_means_the_protocols_own() {
        assert_eq!(complete_url("ws://h:1"), "ws://h:1/v1/connect");
        assert_eq!(complete_url("ws://h:1/"), "ws://h:1/v1/connect");
        assert_eq!(complete_url("ws://h:1/chat?x=1"), "ws://h:1/chat?x=1");
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let config = |url: &str, device: &str| {
            ClientConfig::websocket(url, device, TokenProvider::fixed("t")).validate()
        };
        assert_eq!(config("ws://h", "d"), Ok(()));
        assert_eq!(config("ws://h", "no spaces"), Err(ConfigError::DeviceId));
        assert!(matches!(config("wss://h", "d"), Err(ConfigError::Url(_))));
    }
}
