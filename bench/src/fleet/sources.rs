//! Source addresses. A connection is told from others by both addresses and both ports, so one source
//! address reaches one server as often as there are ports. Loopback has 16 million addresses: there a
//! fleet takes as many as it needs. Elsewhere the kernel chooses, and one address must do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::BenchError;

/// Part of the range of ports that one source address uses by default: the kernel looks for a free
/// port by trying, which takes long when most are taken.
const PART_USED: f64 = 0.4;
/// Source addresses: 127.0.0.1 to 127.127.255.254, and as many again for the next round.
const ADDRESSES_MAX: u32 = 1 << 23;

/// Which client connects from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    per_source: u32,
    /// Addresses of one round; `None`: the kernel chooses.
    addresses: Option<u32>,
}

impl Sources {
    /// Checks that `clients` can reach `server` at once. `ports`: the kernel's range.
    pub fn new(
        server: SocketAddr,
        clients: u32,
        per_source: Option<u32>,
        ports: (u32, u32),
    ) -> Result<Self, BenchError> {
        let range = ports.1.saturating_sub(ports.0) + 1;
        let cure = "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"";
        let loopback = matches!(server.ip(), IpAddr::V4(ip) if ip.is_loopback());
        if !loopback {
            if clients > range {
                return Err(BenchError::Usage(format!(
                    "{clients} clients of one source address, but only {range} ports \
                     ({}-{}) for {server}: widen them with {cure}, take fewer clients, or run \
                     several generators",
                    ports.0, ports.1
                )));
            }
            return Ok(Self {
                per_source: u32::MAX,
                addresses: None,
            });
        }
        let per_source = per_source.unwrap_or((f64::from(range) * PART_USED) as u32);
        if per_source == 0 || per_source > range {
            return Err(BenchError::Usage(format!(
                "--per-source {per_source}: there are {range} ports ({}-{}); take fewer, or widen \
                 them with {cure}",
                ports.0, ports.1
            )));
        }
        let addresses = clients.div_ceil(per_source);
        if addresses > ADDRESSES_MAX {
            return Err(BenchError::Usage(format!(
                "{clients} clients, {per_source} for each source address, need {addresses} \
                 loopback addresses; there are {ADDRESSES_MAX}: raise --per-source"
            )));
        }
        Ok(Self {
            per_source,
            addresses: Some(addresses),
        })
    }

    /// Where `client` connects from, for the `round`-th time. Two rounds take different addresses, so
    /// that ports which wait in TIME_WAIT after the one are not in the way of the other.
    pub fn of(&self, client: u32, round: u8) -> Option<SocketAddr> {
        let addresses = self.addresses?;
        let half = u32::from(round & 1) * (1 << 23);
        let number = (client / self.per_source).min(addresses - 1);
        let address = u32::from(Ipv4Addr::LOCALHOST) + half + number;
        Some(SocketAddr::new(Ipv4Addr::from(address).into(), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn no_source_has_more_than_its_share() {
        let sources = Sources::new(server("127.0.0.1:1"), 100_001, None, (1_024, 65_535)).unwrap();
        let mut counts = std::collections::HashMap::new();
        for client in 0..100_001 {
            *counts.entry(sources.of(client, 0)).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 4);
        assert!(counts.values().all(|&n| n <= 25_804));
        let all_loopback = |s: &Option<SocketAddr>| s.unwrap().ip().is_loopback();
        assert!(counts.keys().all(all_loopback));
        assert_ne!(sources.of(5, 0), sources.of(5, 1));
        assert_eq!(sources.of(5, 0), sources.of(5, 2));
        assert!(all_loopback(&sources.of(100_000, 1)));
    }

    #[test]
    fn what_cannot_fit_is_refused_with_the_cure() {
        let told = |result: Result<Sources, BenchError>| result.unwrap_err().to_string();
        let far = Sources::new(server("192.0.2.1:1"), 30_000, None, (32_768, 60_999));
        assert!(told(far).contains("28232 ports (32768-60999)"));
        let near = Sources::new(
            server("127.0.0.1:1"),
            30_000,
            Some(30_000),
            (32_768, 60_999),
        );
        assert!(told(near).contains("ip_local_port_range"));
        let fits = Sources::new(server("192.0.2.1:1"), 28_232, None, (32_768, 60_999)).unwrap();
        assert_eq!(fits.of(0, 0), None);
    }
}
