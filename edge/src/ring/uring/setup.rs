//! Making a ring, and saying what to do when the host does not let us.

use std::io;

use io_uring::{IoUring, Probe, opcode};

use crate::ring::DriverConfig;
use crate::ring::sockets::nofile_limit;
use crate::ring::token::SLOTS_LIMIT;

/// Entries of a submission queue that the kernel accepts.
const SQ_ENTRIES_LIMIT: u32 = 32_768;

/// Why no ring could be made, one variant for each thing an operator can do about it.
#[derive(Debug, thiserror::Error)]
pub enum RingInitError {
    #[error(
        "this kernel has no io_uring (ENOSYS): use a kernel built with CONFIG_IO_URING, or run with --io-driver epoll"
    )]
    Missing,
    #[error(
        "io_uring is switched off by kernel.io_uring_disabled={value}: set it to 0 with `sysctl -w kernel.io_uring_disabled=0` (with 1, adding the process to the group of kernel.io_uring_group is enough), or run with --io-driver epoll"
    )]
    DisabledBySysctl { value: String },
    #[error(
        "io_uring is forbidden to this process ({0}), most likely by a seccomp profile or a security module: allow io_uring_setup, io_uring_enter and io_uring_register, or run with --io-driver epoll"
    )]
    Forbidden(io::Error),
    #[error(
        "this kernel's io_uring lacks {0}: use Linux 6.7 or later, or run with --io-driver epoll"
    )]
    TooOld(&'static str),
    #[error(
        "no memory for {what} (ENOMEM): raise RLIMIT_MEMLOCK (`ulimit -l`) or the memory limit of the control group, or lower the driver's queue and buffer sizes"
    )]
    Memory { what: &'static str },
    #[error(
        "a table of {wanted} sockets does not fit RLIMIT_NOFILE={limit}: raise it (`ulimit -n`), or use at least {rings} rings per shard"
    )]
    TableTooLarge { wanted: u32, limit: u64, rings: u32 },
    #[error(
        "out of file descriptors for the ring itself (EMFILE/ENFILE): raise RLIMIT_NOFILE (`ulimit -n`) or fs.file-max"
    )]
    Descriptors,
    #[error("the driver's configuration cannot work: {0}")]
    Config(&'static str),
    #[error("{what} failed: {error}")]
    Os {
        what: &'static str,
        #[source]
        error: io::Error,
    },
}

impl RingInitError {
    pub(super) fn os(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| match error.raw_os_error() {
            Some(libc::ENOMEM) => Self::Memory { what },
            Some(libc::EMFILE | libc::ENFILE) => Self::Descriptors,
            _ => Self::Os { what, error },
        }
    }
}

/// What this kernel's io_uring can do beyond what the driver cannot work without.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abilities {
    /// IORING_OP_BIND (6.11): outgoing connections with a source address.
    pub(super) bind: bool,
    /// IORING_OP_FIXED_FD_INSTALL (6.8): an ordinary descriptor of a connection.
    pub(super) install: bool,
}

/// Checks what can be checked without the kernel.
pub(super) fn validate(config: &DriverConfig) -> Result<(), RingInitError> {
    let fault = if config.rings == 0 {
        "rings must be at least 1"
    } else if config.slots_max < config.rings {
        "slots_max must be at least one for each ring"
    } else if config.slots_per_ring().saturating_mul(config.rings) >= SLOTS_LIMIT {
        "slots_max is beyond what one driver can number (2^27)"
    } else if !config.buffers.is_power_of_two() || config.buffers > 32_768 {
        "buffers must be a power of two, at most 32768"
    } else if config.buffer_size == 0 {
        "buffer_size must not be 0"
    } else if config.sq_entries == 0 || config.sq_entries > SQ_ENTRIES_LIMIT {
        "sq_entries must lie between 1 and 32768"
    } else if config.cq_entries < config.sq_entries {
        "cq_entries must not be below sq_entries"
    } else if config.accept_budget == 0 {
        "accept_budget must be at least 1"
    } else {
        return Ok(());
    };
    Err(RingInitError::Config(fault))
}

/// A ring with its table of direct descriptors, ready for use by the calling thread.
pub(super) fn build(config: &DriverConfig) -> Result<(IoUring, Abilities), RingInitError> {
    let ring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_no_sqarray()
        .setup_submit_all()
        .setup_r_disabled()
        .setup_cqsize(config.cq_entries)
        .build(config.sq_entries)
        .map_err(setup_error)?;
    let params = ring.params();
    if !(params.is_feature_nodrop()
        && params.is_feature_ext_arg()
        && params.is_feature_skip_cqe_on_success())
    {
        return Err(RingInitError::TooOld("a required feature flag"));
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(RingInitError::os("probing io_uring"))?;
    if !probe.is_supported(opcode::Socket::CODE) {
        return Err(RingInitError::TooOld("IORING_OP_SOCKET"));
    }
    let slots = config.slots_per_ring();
    ring.submitter()
        .register_files_sparse(slots)
        .map_err(|error| table_error(error, config))?;
    Ok((
        ring,
        Abilities {
            bind: probe.is_supported(opcode::Bind::CODE),
            install: probe.is_supported(opcode::FixedFdInstall::CODE),
        },
    ))
}

fn setup_error(error: io::Error) -> RingInitError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => RingInitError::Missing,
        Some(libc::EPERM | libc::EACCES) => match disabled_sysctl() {
            Some(value) => RingInitError::DisabledBySysctl { value },
            None => RingInitError::Forbidden(error),
        },
        Some(libc::EINVAL) => RingInitError::TooOld("DEFER_TASKRUN or NO_SQARRAY"),
        _ => RingInitError::os("io_uring_setup")(error),
    }
}

/// The sysctl's value where it forbids something.
fn disabled_sysctl() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    let value = text.trim();
    (value != "0").then(|| value.to_owned())
}

fn table_error(error: io::Error, config: &DriverConfig) -> RingInitError {
    if error.raw_os_error() == Some(libc::EMFILE) {
        RingInitError::TableTooLarge {
            wanted: config.slots_per_ring(),
            limit: nofile_limit(),
            rings: crate::ring::default_rings(config.slots_max).max(config.rings + 1),
        }
    } else {
        RingInitError::os("registering the table of direct descriptors")(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_its_cure() {
        let forbidden = setup_error(io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(forbidden.contains("--io-driver epoll"), "{forbidden}");
        assert!(matches!(
            setup_error(io::Error::from_raw_os_error(libc::ENOSYS)),
            RingInitError::Missing
        ));
        assert!(matches!(
            setup_error(io::Error::from_raw_os_error(libc::ENOMEM)),
            RingInitError::Memory { .. }
        ));
        assert!(matches!(
            setup_error(io::Error::from_raw_os_error(libc::EMFILE)),
            RingInitError::Descriptors
        ));
        assert!(matches!(
            setup_error(io::Error::from_raw_os_error(libc::EINVAL)),
            RingInitError::TooOld(_)
        ));
    }

    #[test]
    fn a_table_beyond_the_limit_is_refused_with_the_number_of_rings() {
        let config = DriverConfig {
            slots_max: (nofile_limit() + 1).min(1 << 22) as u32,
            ..DriverConfig::default()
        };
        let error = build(&config).map(drop).unwrap_err();
        assert!(
            matches!(error, RingInitError::TableTooLarge { rings: 2.., .. }),
            "{error}"
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let good = DriverConfig::default();
        assert!(validate(&good).is_ok());
        for bad in [
            DriverConfig {
                rings: 0,
                ..good.clone()
            },
            DriverConfig {
                buffers: 3,
                ..good.clone()
            },
            DriverConfig {
                sq_entries: 65_536,
                ..good.clone()
            },
            DriverConfig {
                cq_entries: 16,
                ..good.clone()
            },
            DriverConfig {
                slots_max: 0,
                ..good
            },
        ] {
            assert!(matches!(validate(&bad), Err(RingInitError::Config(_))));
        }
    }
}
