//! NATS, as its servers speak it inside a WebSocket: the text protocol of the NATS documentation,
//! "Client Protocol". A client says CONNECT, SUB and PING at once; the PONG says that the
//! subscription stands.

use super::{Dialect, ProtocolError, Said, Subjects};

/// The longest control line, as NATS servers have it.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Publishes to a subject and is subscribed to it.
pub struct Nats {
    pub subjects: Subjects,
}

impl Dialect for Nats {
    fn hello(&self, client: u32) -> Vec<u8> {
        let subject = self.subjects.name(client);
        format!(
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"protocol\":1}}\r\n\
             SUB {subject} 1\r\nPING\r\n"
        )
        .into_bytes()
    }

    fn message(&self, client: u32, payload: &[u8]) -> Vec<u8> {
        let subject = self.subjects.name(client);
        let mut out = format!("PUB {subject} {}\r\n", payload.len()).into_bytes();
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
        out
    }

    fn take<'a>(&self, data: &'a [u8]) -> Result<Option<(usize, Said<'a>)>, ProtocolError> {
        let Some(end) = data.windows(2).position(|w| w == b"\r\n") else {
            return match data.len() {
                ..LINE_BYTES_MAX => Ok(None),
                _ => Err(ProtocolError("NATS: a line without an end".into())),
            };
        };
        let line = &data[..end];
        let said = match line {
            b"PING" => Said::Reply(b"PONG\r\n".to_vec()),
            b"PONG" => Said::Ready,
            _ if line.starts_with(b"MSG ") => return delivered(data, end),
            _ if line.starts_with(b"INFO ") || line == b"+OK" => Said::Other,
            _ => {
                let line = String::from_utf8_lossy(line);
                return Err(ProtocolError(format!("NATS: {line}")));
            }
        };
        Ok(Some((end + 2, said)))
    }
}

/// `MSG subject sid [reply-to] #bytes`, and the payload with its own end of line.
fn delivered(data: &[u8], end: usize) -> Result<Option<(usize, Said<'_>)>, ProtocolError> {
    let count = data[..end]
        .rsplit(|&b| b == b' ')
        .next()
        .unwrap_or_default();
    let count = str::from_utf8(count).ok().and_then(|n| n.parse().ok());
    let Some(count) = count.filter(|&n: &usize| n <= super::PARTIAL_BYTES_MAX) else {
        return Err(ProtocolError("NATS: MSG without a length".into()));
    };
    let begin = end + 2;
    match data.get(begin..begin + count + 2) {
        None => Ok(None),
        Some(body) if body.ends_with(b"\r\n") => {
            Ok(Some((begin + count + 2, Said::Message(&body[..count]))))
        }
        Some(_) => Err(ProtocolError("NATS: a payload of another length".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATS: Nats = Nats {
        subjects: Subjects::Own,
    };

    #[test]
    fn a_message_is_published_and_read() {
        assert_eq!(NATS.message(3, b"hey"), b"PUB bench-3 3\r\nhey\r\n");
        let delivery = b"MSG bench-3 1 3\r\nhey\r\nPING\r\n";
        let taken = NATS.take(delivery).unwrap();
        assert_eq!(taken, Some((22, Said::Message(b"hey"))));
        let taken = NATS.take(&delivery[22..]).unwrap();
        assert_eq!(taken, Some((6, Said::Reply(b"PONG\r\n".to_vec()))));
        for cut in 0..22 {
            assert_eq!(NATS.take(&delivery[..cut]).unwrap(), None, "{cut}");
        }
    }

    #[test]
    fn errors_are_errors() {
        assert!(NATS.take(b"-ERR 'Authorization Violation'\r\n").is_err());
        assert!(NATS.take(b"MSG bench-3 1 x\r\nhey\r\n").is_err());
        assert!(NATS.take(b"MSG bench-3 1 3\r\nheyheyhey").is_err());
    }

    #[test]
    fn everybody_may_listen_to_one_subject() {
        let all = Nats {
            subjects: Subjects::Common,
        };
        assert_eq!(all.message(1, b""), all.message(2, b""));
        assert_ne!(NATS.message(1, b""), NATS.message(2, b""));
    }
}
