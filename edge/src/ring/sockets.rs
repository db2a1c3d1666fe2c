//! Sockets and limits that both drivers and their callers need: listeners that share a port,
//! descriptor limits, errno to [`io::ErrorKind`].

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// The listen backlog asked for; the kernel caps it at `net.core.somaxconn`.
pub const BACKLOG: u32 = 65_535;

/// A non-blocking listener that others may share its port with (SO_REUSEPORT): the kernel spreads
/// new connections over them. TCP_NODELAY is set, and inherited by what it accepts.
pub fn bind_reuseport(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(backlog.min(i32::MAX as u32) as i32)?;
    Ok(socket.into())
}

/// Keeps this process on small pages. A page of 2 MiB that a burst of handshakes has touched here and
/// there stays whole: at 18,000 idle sessions that was 1,300 bytes for each against 470 without, and
/// throughput was the same.
pub fn disable_huge_pages() -> io::Result<()> {
    // SAFETY: this operation of prctl takes integers only.
    let result = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Raises the soft limit of open descriptors to the hard one; returns the limit that now holds.
pub fn raise_nofile() -> io::Result<u64> {
    let mut limit = nofile()?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is to a valid rlimit for the length of the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

/// The present soft limit of open descriptors.
pub(super) fn nofile_limit() -> u64 {
    // The call fails only for bad arguments; the value is what POSIX guarantees at least.
    nofile().map_or(20, |limit| limit.rlim_cur)
}

fn nofile() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a valid rlimit for the length of the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

/// The kind of a negated errno, as io_uring reports results.
pub(super) fn kind_of(result: i32) -> io::ErrorKind {
    io::Error::from_raw_os_error(-result).kind()
}

/// What to do after a failed accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptFault {
    /// It concerned one connection that is gone; go on at once.
    Connection,
    /// No room for another descriptor: the connection was or would be dropped.
    Full,
    /// Memory is short, or something unforeseen: go on after a pause.
    Pause,
}

/// Sorts the errors of accept(2), which also reports those of the connection it took.
pub(super) fn accept_fault(errno: i32) -> AcceptFault {
    match errno {
        libc::ENFILE | libc::EMFILE => AcceptFault::Full,
        libc::ECONNABORTED
        | libc::ECONNRESET
        | libc::EINTR
        | libc::EAGAIN
        | libc::EPROTO
        | libc::EPERM
        | libc::ENETDOWN
        | libc::ENOPROTOOPT
        | libc::EHOSTDOWN
        | libc::ENONET
        | libc::EHOSTUNREACH
        | libc::ENETUNREACH
        | libc::ETIMEDOUT => AcceptFault::Connection,
        _ => AcceptFault::Pause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_listeners_share_a_port_without_delay() {
        let first = bind_reuseport(([127, 0, 0, 1], 0).into(), 16).unwrap();
        let address = first.local_addr().unwrap();
        let second = bind_reuseport(address, 16).unwrap();
        assert_eq!(second.local_addr().unwrap(), address);
        assert!(socket2::SockRef::from(&first).tcp_nodelay().unwrap());
    }

    #[test]
    fn the_soft_limit_reaches_the_hard_one() {
        let limit = raise_nofile().unwrap();
        assert_eq!(limit, nofile_limit());
        assert_eq!(limit, nofile().unwrap().rlim_max);
    }

    #[test]
    fn accept_errors_are_sorted() {
        assert_eq!(accept_fault(libc::ENFILE), AcceptFault::Full);
        assert_eq!(accept_fault(libc::ECONNABORTED), AcceptFault::Connection);
        assert_eq!(accept_fault(libc::ENOMEM), AcceptFault::Pause);
    }
}
