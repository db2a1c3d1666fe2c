//! How often one address may connect: a limiter for each, in a bounded table.
//!
//! Invariants: at most [`ADDRESSES_MAX`] addresses have a limiter of their own; when there are more
//! that are not idle, the rest share one, so that a flood from many addresses slows the newcomers
//! among them and costs no memory. IPv6 counts by its /64, which is what one host has.

use std::net::{IpAddr, Ipv6Addr};

use hashbrown::HashMap;
use ipnet::IpNet;
use trunkline_proto::gcra::{Gcra, Rate};

/// Addresses with a limiter of their own, of one shard.
pub const ADDRESSES_MAX: usize = 65_536;
/// A full table is looked through for idle limiters at most this often.
const SWEEP_INTERVAL_NS: u64 = 1_000_000_000;

/// The limiters of one shard.
#[derive(Debug)]
pub struct Addresses {
    rate: Rate,
    /// Load balancers and the like: many users behind one address.
    exempt: Vec<IpNet>,
    limiters: HashMap<u128, Gcra>,
    /// Of everyone who found no place in the table.
    others: Gcra,
    next_sweep_ns: u64,
}

impl Addresses {
    /// `rate` unlimited: nothing is kept. Nor is it of the `exempt`.
    pub fn new(rate: Rate, exempt: Vec<IpNet>) -> Self {
        Self {
            rate,
            exempt,
            limiters: HashMap::new(),
            others: Gcra::default(),
            next_sweep_ns: 0,
        }
    }

    /// Takes one connect of `peer`, or says after how many ms it may be tried again.
    pub fn take(&mut self, peer: IpAddr, now_ns: u64) -> Result<(), u32> {
        if self.rate.is_unlimited() {
            return Ok(());
        }
        let address = peer.to_canonical();
        if self.exempt.iter().any(|network| network.contains(&address)) {
            return Ok(());
        }
        let key = key(peer);
        if self.limiters.len() >= ADDRESSES_MAX && !self.limiters.contains_key(&key) {
            self.sweep(now_ns);
            if self.limiters.len() >= ADDRESSES_MAX {
                return self.others.take(self.rate, now_ns);
            }
        }
        self.limiters
            .entry(key)
            .or_default()
            .take(self.rate, now_ns)
    }

    /// Heap bytes held.
    pub fn bytes(&self) -> usize {
        self.limiters.capacity() * (size_of::<(u128, Gcra)>() + 1)
    }

    fn sweep(&mut self, now_ns: u64) {
        if now_ns < self.next_sweep_ns {
            return;
        }
        self.next_sweep_ns = now_ns + SWEEP_INTERVAL_NS;
        self.limiters.retain(|_, limiter| !limiter.is_idle(now_ns));
    }
}

fn key(peer: IpAddr) -> u128 {
    match peer.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => Ipv6Addr::to_bits(v6) >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn addresses_do_not_slow_one_another() {
        let mut addresses = Addresses::new(Rate::new(1, 2), Vec::new());
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|a| a.parse().unwrap());
        assert!(addresses.take(a, SECOND).is_ok());
        assert!(addresses.take(a, SECOND).is_ok());
        assert_eq!(addresses.take(a, SECOND), Err(1_000));
        assert!(addresses.take(b, SECOND).is_ok());
        assert!(addresses.take(a, 2 * SECOND).is_ok());
    }

    #[test]
    fn exempt_networks_have_no_limit_and_no_place_in_the_table() {
        let exempt = ["10.0.0.0/8", "2001:db8::/32"].map(|n| n.parse().unwrap());
        let mut addresses = Addresses::new(Rate::new(1, 1), exempt.to_vec());
        for address in ["10.9.8.7", "2001:db8:1::1", "::ffff:10.1.1.1"] {
            for _ in 0..10 {
                assert!(addresses.take(address.parse().unwrap(), SECOND).is_ok());
            }
        }
        assert!(addresses.limiters.is_empty());
        let other = "11.0.0.1".parse().unwrap();
        assert!(addresses.take(other, SECOND).is_ok());
        assert!(addresses.take(other, SECOND).is_err());
    }

    #[test]
    fn a_host_is_not_many_by_its_many_ipv6_addresses() {
        let mut addresses = Addresses::new(Rate::new(1, 1), Vec::new());
        let [a, b, c] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|a| a.parse().unwrap());
        assert!(addresses.take(a, SECOND).is_ok());
        assert!(addresses.take(b, SECOND).is_err());
        assert!(addresses.take(c, SECOND).is_ok());
    }

    #[test]
    fn the_table_is_bounded_and_idle_addresses_make_room() {
        let mut addresses = Addresses::new(Rate::new(1, 1), Vec::new());
        let address = |n: u32| IpAddr::V4(n.into());
        for n in 0..ADDRESSES_MAX as u32 {
            assert!(addresses.take(address(n), SECOND).is_ok());
        }
        // No place left: the newcomers share a limiter.
        assert!(addresses.take(address(1 << 30), SECOND).is_ok());
        assert!(addresses.take(address(1 << 31), SECOND).is_err());
        assert_eq!(addresses.limiters.len(), ADDRESSES_MAX);
        // All are idle a good while later.
        assert!(addresses.take(address(1 << 31), 9 * SECOND).is_ok());
        assert_eq!(addresses.limiters.len(), 1);
    }
}
