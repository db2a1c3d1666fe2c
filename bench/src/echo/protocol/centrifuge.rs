//! Centrifuge's client protocol, the Protobuf form: commands up, replies down, each with its length
//! in front. Only the fields that an echo needs are declared; their numbers are those of the
//! protocol's schema (`client.proto` of the module `github.com/centrifugal/protocol`).

use prost::Message;

use super::{Dialect, ProtocolError, Said, Subjects};

const ID_CONNECT: u32 = 1;
const ID_SUBSCRIBE: u32 = 2;
/// Of all publications: a command without an id is refused. Its reply comes beside the push.
const ID_PUBLISH: u32 = 3;

/// Publishes to a channel and is subscribed to it.
pub struct Centrifuge {
    pub subjects: Subjects,
}

#[derive(Clone, PartialEq, Message)]
struct Command {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(message, optional, tag = "4")]
    connect: Option<Connect>,
    #[prost(message, optional, tag = "5")]
    subscribe: Option<Subscribe>,
    #[prost(message, optional, tag = "7")]
    publish: Option<Publish>,
}

#[derive(Clone, PartialEq, Message)]
struct Connect {
    #[prost(string, tag = "4")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Subscribe {
    #[prost(string, tag = "1")]
    channel: String,
}

#[derive(Clone, PartialEq, Message)]
struct Publish {
    #[prost(string, tag = "1")]
    channel: String,
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Fault {
    #[prost(uint32, tag = "1")]
    code: u32,
    #[prost(string, tag = "2")]
    message: String,
}

/// The fields of messages that are looked at; wire types as in the schema.
const REPLY_ID: u64 = 1;
const REPLY_ERROR: u64 = 2;
const REPLY_PUSH: u64 = 4;
const PUSH_PUBLICATION: u64 = 4;
const PUBLICATION_DATA: u64 = 4;

impl Dialect for Centrifuge {
    fn hello(&self, client: u32) -> Vec<u8> {
        let connect = Command {
            id: ID_CONNECT,
            connect: Some(Connect {
                name: "bench".into(),
            }),
            ..Command::default()
        };
        let subscribe = Command {
            id: ID_SUBSCRIBE,
            subscribe: Some(Subscribe {
                channel: self.subjects.name(client),
            }),
            ..Command::default()
        };
        let mut out = connect.encode_length_delimited_to_vec();
        out.extend(subscribe.encode_length_delimited_to_vec());
        out
    }

    fn message(&self, client: u32, payload: &[u8]) -> Vec<u8> {
        let command = Command {
            id: ID_PUBLISH,
            publish: Some(Publish {
                channel: self.subjects.name(client),
                data: payload.to_vec(),
            }),
            ..Command::default()
        };
        command.encode_length_delimited_to_vec()
    }

    fn take<'a>(&self, data: &'a [u8]) -> Result<Option<(usize, Said<'a>)>, ProtocolError> {
        let mut rest = data;
        let Some(length) = varint(&mut rest) else {
            return match data.len() {
                ..10 => Ok(None),
                _ => Err(ProtocolError("centrifuge: no length".into())),
            };
        };
        let begin = data.len() - rest.len();
        let length = usize::try_from(length)
            .ok()
            .filter(|&n| n <= super::PARTIAL_BYTES_MAX)
            .ok_or_else(|| ProtocolError(format!("centrifuge: a reply of {length} bytes")))?;
        let Some(reply) = data.get(begin..begin + length) else {
            return Ok(None);
        };
        Ok(Some((begin + length, meaning(reply)?)))
    }
}

/// What a reply says.
fn meaning(reply: &[u8]) -> Result<Said<'_>, ProtocolError> {
    if reply.is_empty() {
        // A ping; its answer is an empty command.
        return Ok(Said::Reply(vec![0]));
    }
    if let Some(fault) = bytes_of(reply, REPLY_ERROR)? {
        let fault = Fault::decode(fault).map_err(|e| ProtocolError(format!("centrifuge: {e}")))?;
        let Fault { code, message } = fault;
        return Err(ProtocolError(format!("centrifuge: {code} {message}")));
    }
    if let Some(push) = bytes_of(reply, REPLY_PUSH)? {
        let Some(publication) = bytes_of(push, PUSH_PUBLICATION)? else {
            return Ok(Said::Other);
        };
        let data = bytes_of(publication, PUBLICATION_DATA)?;
        return Ok(Said::Message(data.unwrap_or_default()));
    }
    match number_of(reply, REPLY_ID)? {
        Some(id) if id == u64::from(ID_SUBSCRIBE) => Ok(Said::Ready),
        _ => Ok(Said::Other),
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The field of that number which holds bytes, not copied.
fn bytes_of(message: &[u8], number: u64) -> Result<Option<&[u8]>, ProtocolError> {
    Ok(match find(message, number)? {
        Some(Value::Bytes(bytes)) => Some(bytes),
        _ => None,
    })
}

fn number_of(message: &[u8], number: u64) -> Result<Option<u64>, ProtocolError> {
    Ok(match find(message, number)? {
        Some(Value::Number(value)) => Some(value),
        _ => None,
    })
}

/// The first field of that number. prost would copy each payload, which the generator has no time
/// for.
fn find(mut message: &[u8], number: u64) -> Result<Option<Value<'_>>, ProtocolError> {
    let broken = || ProtocolError("centrifuge: not Protobuf".into());
    while !message.is_empty() {
        let key = varint(&mut message).ok_or_else(broken)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut message).ok_or_else(broken)?),
            kind @ (1 | 2 | 5) => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    _ => varint(&mut message).ok_or_else(broken)?,
                };
                let length = usize::try_from(length).map_err(|_| broken())?;
                let (bytes, rest) = message.split_at_checked(length).ok_or_else(broken)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return Err(broken()),
        };
        if key >> 3 == number {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, byte) in data.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            *data = &data[at + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const CENTRIFUGE: Centrifuge = Centrifuge {
        subjects: Subjects::Own,
    };

    #[derive(Clone, PartialEq, Message)]
    struct Reply {
        #[prost(uint32, tag = "1")]
        id: u32,
        #[prost(message, optional, tag = "2")]
        error: Option<Fault>,
        #[prost(message, optional, tag = "4")]
        push: Option<Push>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Push {
        #[prost(string, tag = "2")]
        channel: String,
        #[prost(message, optional, tag = "4")]
        publication: Option<Publication>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Publication {
        #[prost(bytes = "vec", tag = "4")]
        data: Vec<u8>,
        #[prost(uint64, tag = "6")]
        offset: u64,
    }

    fn taken(reply: &Reply) -> Result<String, ProtocolError> {
        let bytes = reply.encode_length_delimited_to_vec();
        for cut in 0..bytes.len() {
            assert_eq!(CENTRIFUGE.take(&bytes[..cut])?, None);
        }
        let (length, said) = CENTRIFUGE.take(&bytes)?.unwrap();
        assert_eq!(length, bytes.len());
        Ok(format!("{said:?}"))
    }

    #[test]
    fn replies_mean_what_the_schema_says() {
        let subscribed = Reply {
            id: ID_SUBSCRIBE,
            ..Reply::default()
        };
        assert_eq!(taken(&subscribed).unwrap(), "Ready");
        let push = Reply {
            push: Some(Push {
                channel: "bench-1".into(),
                publication: Some(Publication {
                    data: vec![b'x'; 300],
                    offset: 7,
                }),
            }),
            ..Reply::default()
        };
        let expected = format!("{:?}", Said::Message(&[b'x'; 300]));
        assert_eq!(taken(&push).unwrap(), expected);
        let refused = Reply {
            id: ID_CONNECT,
            error: Some(Fault {
                code: 103,
                message: "permission denied".into(),
            }),
            ..Reply::default()
        };
        assert!(taken(&refused).unwrap_err().0.contains("permission denied"));
        assert_eq!(
            CENTRIFUGE.take(&[0]).unwrap(),
            Some((1, Said::Reply(vec![0])))
        );
    }

    #[test]
    fn a_broken_reply_is_an_error() {
        assert!(CENTRIFUGE.take(&[2, 0x22, 0x7f]).is_err());
        assert!(CENTRIFUGE.take(&[0xff; 12]).is_err());
        assert!(CENTRIFUGE.take(&[1, 0x07]).is_err());
    }
}
