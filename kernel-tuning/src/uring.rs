//! A probe of io_uring: makes a small ring as the edge does, and asks what it can do.
//!
//! The kernel lists operations, not their forms. A form that came later than its operation is known by
//! an operation that came in the same release or after it: its witness.

use io_uring::{IoUring, Probe, opcode};
use serde::Serialize;

/// Whether io_uring can be used, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Uring {
    /// A ring was created, with the flags that the edge wants.
    pub usable: bool,
    /// The kernel's refusal.
    pub error: Option<String>,
    /// EPERM: a seccomp filter, a security module or the sysctl.
    pub forbidden: bool,
    /// What the driver cannot do without, and this kernel does not have.
    pub missing: Vec<&'static str>,
    /// What it can do without, and what is lost.
    pub lacking: Vec<(&'static str, &'static str)>,
    /// Direct descriptors can be registered.
    pub direct_descriptors: bool,
}

/// Something that the driver uses.
struct Need {
    /// With the Linux that brought it.
    what: &'static str,
    /// The operation itself, or its witness.
    witness: u8,
    /// What happens without it; `None`: the driver cannot run.
    without: Option<&'static str>,
}

const fn needed(what: &'static str, witness: u8) -> Need {
    Need {
        what,
        witness,
        without: None,
    }
}

const NEEDS: &[Need] = &[
    needed("POLL_ADD (5.1)", opcode::PollAdd::CODE),
    needed("READ (5.6)", opcode::Read::CODE),
    needed("SEND (5.6)", opcode::Send::CODE),
    needed("CONNECT (5.5)", opcode::Connect::CODE),
    needed("ASYNC_CANCEL (5.5)", opcode::AsyncCancel::CODE),
    needed("CLOSE (5.6)", opcode::Close::CODE),
    needed("SHUTDOWN (5.11)", opcode::Shutdown::CODE),
    needed("SOCKET (5.19)", opcode::Socket::CODE),
    needed("ACCEPT, multishot (5.19)", opcode::Socket::CODE),
    needed("provided buffer rings (5.19)", opcode::Socket::CODE),
    needed("RECV, multishot (6.0)", opcode::SendZc::CODE),
    needed("URING_CMD with SETSOCKOPT (6.7)", opcode::ReadMulti::CODE),
    Need {
        what: "FIXED_FD_INSTALL (6.8)",
        witness: opcode::FixedFdInstall::CODE,
        without: Some("a connection cannot leave its ring as an ordinary descriptor"),
    },
    Need {
        what: "BIND (6.11)",
        witness: opcode::Bind::CODE,
        without: Some("outgoing connections (bench) cannot choose their source address"),
    },
];

impl Uring {
    /// Creates a small ring as the edge does, and asks it.
    pub fn probe() -> Self {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_no_sqarray()
            .setup_submit_all()
            .build(8);
        let ring: IoUring = match ring {
            Ok(ring) => ring,
            Err(e) => {
                return Self {
                    error: Some(e.to_string()),
                    forbidden: e.kind() == std::io::ErrorKind::PermissionDenied,
                    ..Self::default()
                };
            }
        };
        let mut probe = Probe::new();
        // A kernel that cannot be asked has nothing of what came after the asking (5.6).
        let answered = ring.submitter().register_probe(&mut probe).is_ok();
        let mut uring = Self::of(|code| answered && probe.is_supported(code));
        uring.direct_descriptors = ring.submitter().register_files_sparse(64).is_ok();
        uring
    }

    /// A ring with the operations that `supported` names.
    fn of(supported: impl Fn(u8) -> bool) -> Self {
        let absent = || NEEDS.iter().filter(|need| !supported(need.witness));
        Self {
            usable: true,
            missing: absent()
                .filter(|need| need.without.is_none())
                .map(|need| need.what)
                .collect(),
            lacking: absent()
                .filter_map(|need| Some((need.what, need.without?)))
                .collect(),
            ..Self::default()
        }
    }

    /// Whether the edge's io_uring driver can run.
    pub fn serves(&self) -> bool {
        self.usable && self.missing.is_empty() && self.direct_descriptors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_what_it_lacks() {
        let all = Uring::of(|_| true);
        assert!(all.missing.is_empty() && all.lacking.is_empty());
        // Linux 6.1: operations up to SENDMSG_ZC.
        let old = Uring::of(|code| code <= opcode::SendMsgZc::CODE);
        assert_eq!(old.missing, ["URING_CMD with SETSOCKOPT (6.7)"]);
        assert_eq!(old.lacking.len(), 2);
        // Linux 5.15: up to LINKAT.
        let older = Uring::of(|code| code <= opcode::LinkAt::CODE);
        assert!(older.missing.contains(&"RECV, multishot (6.0)"));
        assert!(older.missing.contains(&"provided buffer rings (5.19)"));
        assert!(!older.missing.contains(&"SHUTDOWN (5.11)"));
        let newer = Uring::of(|code| code <= opcode::FixedFdInstall::CODE);
        assert_eq!(newer.missing, [""; 0]);
        assert_eq!(newer.lacking.len(), 1, "BIND");
    }
}
