//! Which driver, how large, and the way to get one: [`open`].

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Once;

use super::epoll::EpollDriver;
use super::sockets::nofile_limit;
use super::uring::{RingInitError, UringDriver};
use super::{Driver, token};

/// What the operator asks for (`--io-driver`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring if it can be had, else epoll with a warning.
    #[default]
    Auto,
    /// io_uring or fail.
    Uring,
    Epoll,
}

impl FromStr for DriverChoice {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, UnknownDriver> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            _ => Err(UnknownDriver(text.to_owned())),
        }
    }
}

impl fmt::Display for DriverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Epoll => "epoll",
        })
    }
}

/// Not a driver's name.
#[derive(Debug, thiserror::Error)]
#[error("unknown I/O driver {0:?}: use auto, uring or epoll")]
pub struct UnknownDriver(String);

/// What an io_uring connection that waits for bytes has armed in the kernel (`--recv`). The epoll
/// driver has neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReceiveMode {
    /// A multishot receive: 864 bytes of kernel memory, and one completion for what has come.
    #[default]
    Multishot,
    /// A multishot poll: 256 bytes, and a receive for each time that something has come.
    Poll,
}

impl FromStr for ReceiveMode {
    type Err = UnknownReceiveMode;

    fn from_str(text: &str) -> Result<Self, UnknownReceiveMode> {
        match text {
            "multishot" => Ok(Self::Multishot),
            "poll" => Ok(Self::Poll),
            _ => Err(UnknownReceiveMode(text.to_owned())),
        }
    }
}

impl fmt::Display for ReceiveMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Multishot => "multishot",
            Self::Poll => "poll",
        })
    }
}

/// Not a way to receive.
#[derive(Debug, thiserror::Error)]
#[error("unknown way to receive {0:?}: use multishot or poll")]
pub struct UnknownReceiveMode(String);

/// The size of a driver. Plain data, made anywhere; the driver itself is made on its thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// Connections held at once, incoming and outgoing. Accepting stops at 95 % of it (for several
    /// rings: of each ring's share), so ask for more than is needed.
    pub slots_max: u32,
    /// Rings of the driver (io_uring). More than one only where RLIMIT_NOFILE, which bounds each
    /// ring's table, demands it: see [`default_rings`].
    pub rings: u32,
    /// How connections wait for bytes (io_uring).
    pub receive: ReceiveMode,
    /// Receive buffers of each ring (io_uring): a power of two, at most 32,768.
    pub buffers: u16,
    /// Bytes of each.
    pub buffer_size: u32,
    /// Submission queue of each ring (io_uring), at most 32,768.
    pub sq_entries: u32,
    /// Completion queue of each ring (io_uring), not below `sq_entries`.
    pub cq_entries: u32,
    /// Connections announced in one turn, over all rings: a storm of arrivals must not starve those
    /// that are there.
    pub accept_budget: u32,
    /// Reads of one connection in one turn (epoll) before the others have theirs.
    pub receive_budget: u32,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self {
            slots_max: 16_384,
            rings: 1,
            receive: ReceiveMode::Multishot,
            buffers: 128,
            buffer_size: 2_048,
            sq_entries: 2_048,
            cq_entries: 8_192,
            accept_budget: 64,
            receive_budget: 4,
        }
    }
}

impl DriverConfig {
    /// Sized so that `connections` can really be held: with headroom for the 95 % at which
    /// accepting stops, and for the uneven spread of arrivals over several rings.
    pub fn for_connections(connections: u32) -> Self {
        let rings = default_rings(connections);
        let limit = nofile_limit().min(u64::from(u32::MAX));
        let wanted = u64::from(connections.max(16));
        let slots = if rings == 1 {
            wanted * 100 / 94 + 1
        } else {
            wanted * 100 / FILL_PERCENT
        };
        let slots = slots.min(u64::from(rings) * limit);
        let one = Self::default();
        // Many rings share the work of one: each needs less room for it.
        let (sq_entries, cq_entries) = match rings {
            1..=4 => (one.sq_entries, one.cq_entries),
            _ => (one.sq_entries / 4, one.cq_entries / 2),
        };
        Self {
            slots_max: slots.min(u64::from(token::SLOTS_LIMIT)) as u32,
            rings,
            sq_entries,
            cq_entries,
            ..one
        }
    }

    /// Slots of each ring.
    pub(super) fn slots_per_ring(&self) -> u32 {
        self.slots_max.div_ceil(self.rings.max(1))
    }
}

/// How full several tables are planned to be: arrivals go to the emptiest ring beyond 75 % and are
/// stopped at 95 %, and the kernel spreads them over the shards by hash, never quite evenly.
const FILL_PERCENT: u64 = 85;

/// The number of rings that RLIMIT_NOFILE, as it is now, demands for that many connections: a
/// ring's table has at most that many entries. One on hosts with a high limit.
pub fn default_rings(slots_wanted: u32) -> u32 {
    rings_for(slots_wanted, nofile_limit())
}

fn rings_for(slots_wanted: u32, nofile: u64) -> u32 {
    let nofile = nofile.max(1);
    if u64::from(slots_wanted) * 100 / 94 < nofile {
        return 1;
    }
    let usable = (nofile * FILL_PERCENT / 100).max(1);
    (u64::from(slots_wanted).div_ceil(usable)).min(u64::from(u32::MAX)) as u32
}

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Uring(#[from] RingInitError),
    #[error("cannot set up epoll: {0}")]
    Epoll(#[source] io::Error),
}

static FALLBACK_TOLD: Once = Once::new();

/// Makes the driver on the calling thread, which must be the one that uses it.
pub fn open(choice: DriverChoice, config: &DriverConfig) -> Result<Box<dyn Driver>, OpenError> {
    match choice {
        DriverChoice::Uring => Ok(Box::new(UringDriver::new(config)?)),
        DriverChoice::Epoll => open_epoll(config),
        DriverChoice::Auto => match UringDriver::new(config) {
            Ok(driver) => Ok(Box::new(driver)),
            Err(error) => {
                // Once, not for each shard.
                FALLBACK_TOLD.call_once(|| {
                    tracing::warn!("io_uring is not available, using epoll instead: {error}");
                });
                open_epoll(config)
            }
        },
    }
}

fn open_epoll(config: &DriverConfig) -> Result<Box<dyn Driver>, OpenError> {
    EpollDriver::new(config)
        .map(|driver| Box::new(driver) as Box<dyn Driver>)
        .map_err(OpenError::Epoll)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ring_where_the_limit_allows_it() {
        assert_eq!(rings_for(10_000, 20_000), 1);
        assert_eq!(rings_for(1_000_000, 1_048_576 * 2), 1);
    }

    #[test]
    fn a_low_limit_takes_several_with_headroom() {
        let rings = rings_for(1_000_000, 20_000);
        assert_eq!(rings, 59);
        assert!(rings * 20_000 > 1_150_000);
        assert_eq!(rings_for(5, 0), 5);
    }

    #[test]
    fn names_parse_and_print() {
        for choice in [DriverChoice::Auto, DriverChoice::Uring, DriverChoice::Epoll] {
            assert_eq!(choice.to_string().parse::<DriverChoice>().unwrap(), choice);
        }
        assert!("kqueue".parse::<DriverChoice>().is_err());
        for mode in [ReceiveMode::Multishot, ReceiveMode::Poll] {
            assert_eq!(mode.to_string().parse::<ReceiveMode>().unwrap(), mode);
        }
        assert!("single".parse::<ReceiveMode>().is_err());
    }

    #[test]
    fn auto_takes_epoll_where_a_ring_cannot_be_had() {
        let config = DriverConfig {
            slots_max: (nofile_limit() + 1).min(1 << 22) as u32,
            ..DriverConfig::default()
        };
        assert!(matches!(
            open(DriverChoice::Uring, &config),
            Err(OpenError::Uring(RingInitError::TableTooLarge { .. }))
        ));
        let driver = open(DriverChoice::Auto, &config).unwrap();
        assert_eq!(driver.name(), "epoll");
        assert!(u64::from(driver.slots_max()) < nofile_limit());
    }

    #[test]
    fn auto_takes_epoll_under_a_seccomp_profile() {
        // The filter holds for its thread alone, and for good: hence a thread of its own.
        std::thread::spawn(|| {
            forbid(libc::SYS_io_uring_setup as u32);
            let config = DriverConfig::default();
            assert!(matches!(
                open(DriverChoice::Uring, &config),
                Err(OpenError::Uring(RingInitError::Forbidden(_)))
            ));
            assert_eq!(open(DriverChoice::Auto, &config).unwrap().name(), "epoll");
        })
        .join()
        .unwrap();
    }

    /// Has a system call fail with EPERM on this thread, as container runtimes do.
    fn forbid(number: u32) {
        const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut filter = [
            // The first word of the filter's data is the number of the call.
            step(LOAD, 0, 0, 0),
            step(EQUAL, 0, 1, number),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_mut_ptr(),
        };
        // SAFETY: the program lives through the call, which copies it.
        let result = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}
