//! Descriptors through a Unix socket (SCM_RIGHTS), and who sits at its other end.
//!
//! Called by the hand-over of a process's sockets to its successor.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// Descriptors of one message (`SCM_MAX_FD` of the kernel).
pub const PASSED_MAX: usize = 253;

/// Room for one control message of the largest size, aligned as the kernel wants it.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

const CONTROL_BYTES: usize = {
    // SAFETY: CMSG_SPACE computes a length.
    unsafe { libc::CMSG_SPACE((PASSED_MAX * size_of::<RawFd>()) as u32) as usize }
};

/// Sends all of `bytes`, and copies of `descriptors` along with the first of them.
pub fn send_with(socket: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    if descriptors.len() > PASSED_MAX || bytes.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut sent = 0;
    while sent < bytes.len() {
        let passed = if sent == 0 { descriptors } else { &[] };
        match send_once(socket, &bytes[sent..], passed) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn send_once(socket: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let length = size_of_val(descriptors) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: the control buffer has room for PASSED_MAX descriptors, and there are no more, so
        // the first header and all its data lie within.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(length) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(length) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (index, descriptor) in descriptors.iter().enumerate() {
                data.add(index).write_unaligned(descriptor.as_raw_fd());
            }
        }
    }
    // SAFETY: the message and all that it points to live through the call.
    let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Receives into `bytes`, and appends what came along to `descriptors`; how many bytes, 0 at the end.
/// Descriptors for which this process has no room are an error, for they are lost.
pub fn receive_with(
    socket: &UnixStream,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES as _;
    let count = loop {
        // SAFETY: the message and all that it points to live through the call, and nothing else uses
        // them meanwhile.
        let count =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(count) {
            Ok(count) => break count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    // SAFETY: the kernel has filled the control buffer with well-formed messages up to the length
    // that it has set; each SCM_RIGHTS among them holds descriptors that it has just made for us.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header);
                let length = (*header).cmsg_len as usize - (data as usize - header as usize);
                for index in 0..length / size_of::<RawFd>() {
                    let fd = data.cast::<RawFd>().add(index).read_unaligned();
                    descriptors.push(OwnedFd::from_raw_fd(fd));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other(
            "descriptors were lost on the way: raise RLIMIT_NOFILE (`ulimit -n`)",
        ));
    }
    Ok(count)
}

/// The user id of the process at the other end, as it was when the two were connected.
pub fn peer_user(socket: &UnixStream) -> io::Result<u32> {
    let mut credentials = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes of the struct, which has that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(credentials.uid)
}

/// This process's effective user id.
pub fn user() -> u32 {
    // SAFETY: the call takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    #[test]
    fn a_full_message_of_descriptors_arrives_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let files: Vec<OwnedFd> = (0..PASSED_MAX)
            .map(|n| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&[n as u8]).unwrap();
                file.into()
            })
            .collect();
        send_with(&ours, b"files", &files).unwrap();
        drop(files);
        let mut bytes = [0; 16];
        let mut came = Vec::new();
        assert_eq!(receive_with(&theirs, &mut bytes, &mut came).unwrap(), 5);
        assert_eq!(&bytes[..5], b"files");
        assert_eq!(came.len(), PASSED_MAX);
        for (n, fd) in came.into_iter().enumerate() {
            let mut file = File::from(fd);
            file.rewind().unwrap();
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            assert_eq!(content, [n as u8]);
        }
        drop(ours);
        assert_eq!(
            receive_with(&theirs, &mut bytes, &mut Vec::new()).unwrap(),
            0
        );
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let files: Vec<OwnedFd> = (0..=PASSED_MAX)
            .map(|_| ours.try_clone().unwrap().into())
            .collect();
        assert!(send_with(&ours, b"x", &files).is_err());
    }

    #[test]
    fn the_other_end_is_known_by_its_user() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert_eq!(peer_user(&ours).unwrap(), user());
    }
}
