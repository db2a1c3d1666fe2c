//! Configuration: collected from its layers, checked as a whole, typed. Everything after this
//! module may believe what it reads.
//!
//! # Layout
//! - [`table`]: every setting, once
//! - [`value`]: how each kind of value is written
//! - [`layers`]: flags over environment over file over defaults
//! - this file: the typed [`Settings`] and the rules that span several of them

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use trunkline_edge::ring::{DriverChoice, ReceiveMode};
use trunkline_proto::ids::is_valid_id;

pub mod layers;
pub mod table;
pub mod value;

use layers::{Layers, Problem};
use table::{Role, TABLE};
use value::Value;

/// What a process is to do, all of it checked. A field that does not apply to the role holds its
/// default.
#[derive(Clone, Debug)]
pub struct Settings {
    pub role: Role,
    pub ws: SocketAddr,
    pub tcp: SocketAddr,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    /// Empty: any.
    pub origins: Vec<String>,
    /// Empty: none.
    pub cors: Vec<String>,
    pub ws_url: Option<String>,
    pub tcp_url: Option<String>,
    pub data: PathBuf,
    pub store_dir: PathBuf,
    pub cores: Vec<String>,
    pub edge_id: Option<String>,
    pub worker_id: u16,
    pub jwt_secret: Option<String>,
    pub dev_tokens: bool,
    pub shards: Option<usize>,
    pub rings_per_shard: Option<usize>,
    pub io_driver: DriverChoice,
    pub recv: ReceiveMode,
    pub connections_max: Option<u32>,
    /// A power of two.
    pub recv_buffers: u16,
    pub recv_buffer_bytes: u32,
    pub echo: bool,
    pub send_rate: u32,
    pub send_burst: u32,
    /// `None`: as the addresses demand.
    pub connect_rate: Option<u32>,
    pub connect_burst: u32,
    pub connect_rate_exempt: Vec<IpNet>,
    /// 0: no limit.
    pub arrival_rate: u32,
    pub sessions_per_user_max: u32,
    pub frame_bytes_max: usize,
    pub outbox_soft_bytes: usize,
    pub outbox_hard_bytes: usize,
    pub heartbeat: Duration,
    pub group_members_max: usize,
    pub conversations_cached_max: usize,
    pub dedup_entries_max: usize,
    pub operations_open_max: usize,
    pub watermark_flush: Duration,
    pub drain_budget: Duration,
    /// `None`: named after the address of `ws`.
    pub upgrade_socket: Option<String>,
    pub ports_file: Option<PathBuf>,
    pub log: String,
    pub log_json: bool,
}

impl Settings {
    /// Collects all layers and checks them. The error holds every problem that there is.
    pub fn load(
        role: Role,
        flags: &[(&'static str, String)],
        config: Option<&Path>,
        environment: &[(String, String)],
    ) -> Result<Self, Vec<Problem>> {
        let (layers, mut problems) = Layers::collect(flags, config, environment);
        let settings = Self::from_layers(role, &layers, &mut problems);
        if problems.is_empty() {
            Ok(settings)
        } else {
            Err(problems)
        }
    }

    /// Types what the layers hold. Values of settings that `role` does not read are checked too:
    /// one file serves all the processes of a deployment.
    pub fn from_layers(role: Role, layers: &Layers, problems: &mut Vec<Problem>) -> Self {
        let reader = Reader::new(role, layers, problems);
        let data = PathBuf::from(reader.text("data").unwrap_or_default());
        let settings = Self {
            role,
            ws: reader.address("ws"),
            tcp: reader.address("tcp"),
            http: reader.address("http"),
            grpc: reader.address("grpc"),
            admin: reader.address("admin"),
            origins: any_is_empty(reader.list("origins")),
            cors: reader.list("cors"),
            ws_url: reader.text("ws_url"),
            tcp_url: reader.text("tcp_url"),
            store_dir: data.clone(),
            data,
            cores: reader.list("core"),
            edge_id: reader.text("edge_id"),
            worker_id: reader.number("worker_id").unwrap_or_default() as u16,
            jwt_secret: reader.text("jwt_secret"),
            dev_tokens: reader.switch("dev_tokens").unwrap_or(false),
            shards: reader.number("shards").map(|n| n as usize),
            rings_per_shard: reader.number("rings_per_shard").map(|n| n as usize),
            // The table's choices are the driver's own names.
            io_driver: reader
                .text("io_driver")
                .and_then(|name| name.parse().ok())
                .unwrap_or_default(),
            recv: reader
                .text("recv")
                .and_then(|name| name.parse().ok())
                .unwrap_or_default(),
            connections_max: reader.number("connections_max").map(|n| n as u32),
            recv_buffers: reader.number("recv_buffers").unwrap_or_default() as u16,
            recv_buffer_bytes: reader.number("recv_buffer_bytes").unwrap_or_default() as u32,
            echo: role == Role::Edge && reader.switch("echo").unwrap_or(false),
            send_rate: reader.number("send_rate").unwrap_or_default() as u32,
            send_burst: reader.number("send_burst").unwrap_or_default() as u32,
            connect_rate: reader.number("connect_rate").map(|n| n as u32),
            connect_burst: reader.number("connect_burst").unwrap_or_default() as u32,
            connect_rate_exempt: Vec::new(),
            arrival_rate: reader.number("arrival_rate").unwrap_or_default() as u32,
            sessions_per_user_max: reader.number("sessions_per_user_max").unwrap_or_default()
                as u32,
            frame_bytes_max: reader.size("frame_bytes_max"),
            outbox_soft_bytes: reader.size("outbox_soft_bytes"),
            outbox_hard_bytes: reader.size("outbox_hard_bytes"),
            heartbeat: reader.duration("heartbeat"),
            group_members_max: reader.size("group_members_max"),
            conversations_cached_max: reader.size("conversations_cached_max"),
            dedup_entries_max: reader.size("dedup_entries_max"),
            operations_open_max: reader.size("operations_open_max"),
            watermark_flush: reader.duration("watermark_flush"),
            drain_budget: reader.duration("drain_budget"),
            upgrade_socket: reader.text("upgrade_socket"),
            ports_file: reader.text("ports_file").map(PathBuf::from),
            log: reader.text("log").unwrap_or_default(),
            log_json: reader.text("log_format").as_deref() == Some("json"),
        };
        let networks = reader.list("connect_rate_exempt");
        let dev_tokens_told = reader.switch("dev_tokens");
        settings.checked(layers, dev_tokens_told, &networks, problems)
    }

    /// The rules that span several settings.
    fn checked(
        mut self,
        layers: &Layers,
        dev_tokens_told: Option<bool>,
        networks: &[String],
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut rules = Rules {
            role: self.role,
            layers,
            problems,
        };
        rules.only_what_this_build_has();
        rules.store_dir(&mut self.store_dir);
        rules.identity(&mut self, dev_tokens_told);
        if rules.applies("core") && !self.echo {
            for url in &self.cores {
                if url.strip_prefix("http://").is_none_or(str::is_empty) {
                    rules.wrong("core", format!("{url:?} is not http://host:port"));
                }
            }
        }
        if let Some(id) = self.edge_id.as_deref().filter(|id| !is_valid_id(id)) {
            rules.wrong("edge_id", format!("{id:?}: 1-64 bytes of A-Za-z0-9._:@-"));
        }
        for text in networks {
            match network_of(text) {
                Some(network) => self.connect_rate_exempt.push(network),
                None => {
                    let message =
                        format!("{text:?} is no network: 10.0.0.0/8, 2001:db8::/32, 192.0.2.7");
                    rules.wrong("connect_rate_exempt", message);
                }
            }
        }
        if !self.recv_buffers.is_power_of_two() {
            let message = format!("{} is not a power of two", self.recv_buffers);
            rules.wrong("recv_buffers", message);
        }
        if rules.applies("outbox_hard_bytes") {
            if self.outbox_soft_bytes > self.outbox_hard_bytes {
                rules.wrong("outbox_soft_bytes", "is above outbox_hard_bytes".into());
            }
            if self.outbox_hard_bytes < self.frame_bytes_max {
                let message = "is below frame_bytes_max: no message could be delivered";
                rules.wrong("outbox_hard_bytes", message.into());
            }
        }
        self
    }

    /// Every address that clients reach; a development token is worth all of them.
    pub fn public_addresses(&self) -> Vec<SocketAddr> {
        let addresses = match self.role {
            Role::Serve => vec![self.ws, self.tcp, self.http],
            Role::Edge => vec![self.ws, self.tcp],
            Role::Core => vec![self.http],
        };
        addresses
            .into_iter()
            .filter(|a| !a.ip().is_loopback())
            .collect()
    }
}

/// A network, or a single address as one.
fn network_of(text: &str) -> Option<IpNet> {
    let single = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse().ok().or_else(single)
}

/// `*` among the origins allows all, as an empty list does.
fn any_is_empty(list: Vec<String>) -> Vec<String> {
    if list.iter().any(|o| o == "*") {
        return Vec::new();
    }
    list
}

/// The checked value of each setting, in the table's order.
struct Reader {
    values: Vec<Option<Value>>,
}

impl Reader {
    fn new(role: Role, layers: &Layers, problems: &mut Vec<Problem>) -> Self {
        let values = TABLE.iter().map(|setting| {
            let (text, source) = layers.get(setting, role)?;
            match setting.kind.parse(text) {
                Ok(value) => Some(value),
                Err(message) => {
                    problems.push(Problem::new(source.name_of(setting), message));
                    // Stand in with the default, so that the spanning rules see no second fault.
                    setting
                        .default_for(role)
                        .and_then(|d| setting.kind.parse(d).ok())
                }
            }
        });
        Self {
            values: values.collect(),
        }
    }

    fn value(&self, key: &str) -> Option<&Value> {
        let index = TABLE.iter().position(|s| s.key == key);
        debug_assert!(index.is_some(), "{key} is not in the table");
        self.values.get(index?)?.as_ref()
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.value(key)? {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::Number(n) => Some(*n),
            _ => None,
        }
    }

    fn size(&self, key: &str) -> usize {
        usize::try_from(self.number(key).unwrap_or_default()).unwrap_or(usize::MAX)
    }

    fn switch(&self, key: &str) -> Option<bool> {
        match self.value(key)? {
            Value::Switch(on) => Some(*on),
            _ => None,
        }
    }

    fn duration(&self, key: &str) -> Duration {
        match self.value(key) {
            Some(Value::Duration(d)) => *d,
            _ => Duration::ZERO,
        }
    }

    fn list(&self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    /// An address that the table gives no default would be a fault of the table; port 0 of the
    /// loopback harms nobody.
    fn address(&self, key: &str) -> SocketAddr {
        match self.value(key) {
            Some(Value::Address(a)) => *a,
            _ => SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

struct Rules<'a> {
    role: Role,
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
}

impl Rules<'_> {
    fn setting(key: &str) -> Option<&'static table::Setting> {
        table::find(key)
    }

    fn applies(&self, key: &str) -> bool {
        Self::setting(key).is_some_and(|s| s.applies_to(self.role))
    }

    fn text(&self, key: &str) -> Option<String> {
        let setting = Self::setting(key)?;
        self.layers
            .get(setting, self.role)
            .map(|(text, _)| text.trim().to_owned())
    }

    /// Reports a problem where the value was written.
    fn wrong(&mut self, key: &str, message: String) {
        let place = Self::setting(key).map_or_else(
            || key.to_owned(),
            |s| match self.layers.get(s, self.role) {
                Some((_, source)) => source.name_of(s),
                None => format!("--{}", s.flag()),
            },
        );
        self.problems.push(Problem::new(place, message));
    }

    /// What the contract names and this build leaves out is refused by name.
    fn only_what_this_build_has(&mut self) {
        for (key, what, has) in [
            ("store", "store", "embedded"),
            ("registry", "session registry", "memory"),
            ("bus", "event bus", "embedded"),
        ] {
            let Some(text) = self.text(key) else { continue };
            let is_ours = text == has || (key == "store" && text.starts_with("embedded:"));
            if !is_ours {
                self.wrong(
                    key,
                    format!("{text:?}: this build has only the {what} `{has}`"),
                );
            }
        }
        if self.text("jwks").is_some() {
            let message = "this build has only shared secrets (HS256): use jwt_secret";
            self.wrong("jwks", message.into());
        }
    }

    fn store_dir(&mut self, dir: &mut PathBuf) {
        let Some(text) = self.text("store").filter(|_| self.applies("store")) else {
            return;
        };
        match text.strip_prefix("embedded:") {
            Some("") => self.wrong("store", "names no directory".into()),
            Some(path) => *dir = PathBuf::from(path),
            None => {}
        }
    }

    /// Who may mint tokens, and where: see `dev_tokens` in the table.
    fn identity(&mut self, settings: &mut Settings, told: Option<bool>) {
        if settings.echo {
            return;
        }
        let public = settings.public_addresses();
        match (self.role, &settings.jwt_secret) {
            (Role::Serve, None) => {
                settings.dev_tokens = told.unwrap_or(public.is_empty());
                if let (Some(address), None) = (public.first(), told) {
                    self.wrong(
                        "dev_tokens",
                        format!(
                            "serve without jwt_secret lets anybody be any user, and {address} is \
                             a public address: set jwt_secret, or listen on 127.0.0.1"
                        ),
                    );
                }
            }
            (Role::Edge | Role::Core, None) => {
                let message = "must be set: the edges and the core share it";
                self.wrong("jwt_secret", message.into());
            }
            _ => {}
        }
        if told == Some(true)
            && self.applies("dev_tokens")
            && let Some(address) = public.first()
        {
            self.wrong(
                "dev_tokens",
                format!("lets anybody be any user, and {address} is a public address"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(role: Role, flags: &[(&'static str, &str)]) -> Result<Settings, Vec<String>> {
        let flags: Vec<_> = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        Settings::load(role, &flags, None, &[])
            .map_err(|p| p.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn networks_are_read_and_what_is_none_is_named() {
        let told = [("connect_rate_exempt", "10.0.0.0/8,192.0.2.7,2001:db8::/32")];
        let networks = load(Role::Serve, &told).unwrap().connect_rate_exempt;
        let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
        let told = [("connect_rate_exempt", "10.0.0.0/8,balancer")];
        let problems = load(Role::Serve, &told).unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].contains("\"balancer\" is no network"),
            "{problems:?}"
        );
    }

    #[test]
    fn serve_needs_nothing_and_implies_dev_tokens_on_loopback_only() {
        let settings = load(Role::Serve, &[]).unwrap();
        assert!(settings.dev_tokens);
        assert_eq!(settings.send_rate, 20);
        assert_eq!(settings.heartbeat, Duration::from_secs(30));

        let problems = load(Role::Serve, &[("ws", "0.0.0.0:7400")]).unwrap_err();
        assert!(problems[0].contains("jwt_secret"), "{problems:?}");
        let told = [
            ("http", "0.0.0.0:1"),
            ("dev_tokens", "true"),
            ("jwt_secret", "s"),
        ];
        let problems = load(Role::Serve, &told).unwrap_err();
        assert!(problems[0].starts_with("--dev-tokens"), "{problems:?}");

        let secret = [("ws", "0.0.0.0:7400"), ("jwt_secret", "s")];
        assert!(!load(Role::Serve, &secret).unwrap().dev_tokens);
        assert!(
            !load(Role::Serve, &[("jwt_secret", "s")])
                .unwrap()
                .dev_tokens
        );
        let off = [("ws", "0.0.0.0:7400"), ("dev_tokens", "false")];
        assert!(!load(Role::Serve, &off).unwrap().dev_tokens);
    }

    #[test]
    fn edge_and_core_need_a_secret_and_echo_needs_none() {
        assert!(load(Role::Edge, &[]).is_err());
        assert!(load(Role::Core, &[]).is_err());
        assert!(load(Role::Edge, &[("echo", "true")]).unwrap().echo);
        let core = load(Role::Core, &[("jwt_secret", "s"), ("store", "embedded:/x")]).unwrap();
        assert_eq!(core.store_dir, Path::new("/x"));
        assert_eq!(core.admin.port(), 7431);
    }

    #[test]
    fn what_this_build_lacks_is_refused_by_name() {
        for (key, text) in [
            ("store", "cassandra://db/trunkline"),
            ("registry", "redis://r"),
            ("bus", "kafka://k:9092"),
            ("jwks", "https://idp/keys"),
        ] {
            let problems = load(Role::Core, &[("jwt_secret", "s"), (key, text)]).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains("this build has only"), "{problems:?}");
        }
    }

    #[test]
    fn bounds_are_checked_against_each_other() {
        let problems = load(Role::Serve, &[("recv_buffers", "100")]).unwrap_err();
        assert!(problems[0].contains("power of two"), "{problems:?}");
        let flags = [
            ("outbox_soft_bytes", "2MiB"),
            ("outbox_hard_bytes", "2 KiB"),
        ];
        let problems = load(Role::Serve, &flags).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
