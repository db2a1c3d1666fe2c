//! Whether the edge gets its io_uring driver. None of it fails a target: without it, epoll serves.

use super::{finding, ok, unknown};
use crate::facts::Facts;
use crate::report::{Check, Status};

/// First Linux with all that the io_uring driver cannot do without.
const KERNEL_MIN: (u32, u32) = (6, 7);

const WITHOUT: &str =
    "the edge uses epoll: more CPU per message, and the file limit counts for the whole process";

pub(super) fn kernel(facts: &Facts) -> Check {
    let shown = facts.kernel.clone().unwrap_or_default();
    match facts.kernel_version() {
        Some(version) if version >= KERNEL_MIN => ok("kernel", format!("Linux {shown}")),
        Some(_) => finding(
            "kernel",
            Status::Warn,
            format!("Linux {shown}"),
            WITHOUT,
            "boot a kernel of the 6.7 series or newer",
        )
        .wanting("6.7"),
        None => unknown("kernel"),
    }
}

/// What the sysctls and the filter say; whether a ring can really be had, says [`io_uring`].
pub(super) fn permission(facts: &Facts) -> Check {
    let name = "kernel.io_uring_disabled";
    let permission = &facts.permission;
    let who = match (permission.disabled, permission.group) {
        (None, _) => return ok(name, "no such switch: io_uring is not restricted by it"),
        (Some(0), _) => return ok(name, "0: everybody may"),
        (Some(1), Some(group)) if group >= 0 => format!("1: root and group {group} may"),
        (Some(1), _) => "1: root may".to_owned(),
        (Some(n), _) => format!("{n}: nobody may"),
    };
    if permission.sysctl_allows() {
        // What holds for us need not hold for the user that the server runs as.
        let who = format!("{who}; this process is among them, is the server?");
        return ok(name, who);
    }
    finding(
        name,
        Status::Warn,
        who,
        WITHOUT,
        "sysctl -w kernel.io_uring_disabled=0\n\
         or for the server's group alone: sysctl -w kernel.io_uring_disabled=1 \
         kernel.io_uring_group=$(id -g trunkline)",
    )
    .wanting("0")
}

pub(super) fn io_uring(facts: &Facts) -> Check {
    let name = "io_uring";
    let uring = &facts.uring;
    if uring.serves() {
        return complete(facts);
    }
    let (found, cure) = if let Some(error) = &uring.error {
        (format!("refused: {error}"), refusal(facts))
    } else if !uring.missing.is_empty() {
        let missing = format!("lacks {}", uring.missing.join(", "));
        (missing, "a kernel of 6.7 or newer")
    } else {
        (
            "no direct descriptors".to_owned(),
            "raise RLIMIT_NOFILE to 1024 at least",
        )
    };
    finding(name, Status::Warn, found, WITHOUT, cure)
}

/// It serves; something may be missing all the same.
fn complete(facts: &Facts) -> Check {
    let lacking = &facts.uring.lacking;
    if lacking.is_empty() {
        return ok(
            "io_uring",
            "usable, with all operations and direct descriptors",
        );
    }
    let what: Vec<&str> = lacking.iter().map(|(what, _)| *what).collect();
    let without: Vec<String> = lacking
        .iter()
        .map(|(what, without)| format!("without {what}: {without}"))
        .collect();
    finding(
        "io_uring",
        Status::Warn,
        format!("usable, but lacks {}", what.join(", ")),
        without.join("\n"),
        "a newer kernel, if that matters",
    )
}

/// What to do about a ring that could not be made, by what is known to be in the way.
fn refusal(facts: &Facts) -> &'static str {
    if !facts.uring.forbidden {
        return "a kernel of 6.7 or newer with CONFIG_IO_URING; ENOMEM: raise LimitMEMLOCK";
    }
    if !facts.permission.sysctl_allows() {
        return "see kernel.io_uring_disabled above";
    }
    if facts.permission.seccomp {
        return "a seccomp filter holds for this process; one that allows io_uring:\n\
                trunkline doctor print seccomp > edge.json\n\
                Docker: --security-opt seccomp=edge.json; Kubernetes: securityContext.seccompProfile\n\
                systemd: SystemCallFilter=io_uring_setup io_uring_enter io_uring_register";
    }
    "a security module (SELinux, AppArmor) forbids it: look for denials in the audit log"
}
