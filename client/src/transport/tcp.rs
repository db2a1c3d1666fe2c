//! Frames over raw TCP: protobuf, each behind its length as a varint.

use bytes::{Buf as _, BytesMut};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use trunkline_proto::client::{ClientFrame, ServerBody, ServerFrame};

use crate::event::DisconnectReason;

/// Bytes of queued frames above which feeding writes at once.
const WRITE_AT_BYTES: usize = 64 * 1024;
/// Bytes of the longest varint of 64 bits.
const VARINT_BYTES_MAX: usize = 10;

pub(crate) struct Tcp {
    stream: TcpStream,
    incoming: BytesMut,
    outgoing: Vec<u8>,
    frame_bytes_max: usize,
    /// The last `error` said with which code the connection will close.
    closing: Option<DisconnectReason>,
}

impl Tcp {
    pub(crate) async fn open(
        address: &str,
        frame_bytes_max: usize,
    ) -> Result<Self, DisconnectReason> {
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(Self {
            stream,
            incoming: BytesMut::new(),
            outgoing: Vec::new(),
            frame_bytes_max,
            closing: None,
        })
    }

    pub(crate) async fn feed(&mut self, frame: &ClientFrame) -> Result<(), DisconnectReason> {
        frame
            .encode_length_delimited(&mut self.outgoing)
            .map_err(failed)?;
        if self.outgoing.len() >= WRITE_AT_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    pub(crate) async fn flush(&mut self) -> Result<(), DisconnectReason> {
        let written = self.stream.write_all(&self.outgoing).await;
        self.outgoing.clear();
        written.map_err(|e| self.ended(e))
    }

    pub(crate) async fn recv(&mut self) -> Result<Option<ServerFrame>, DisconnectReason> {
        loop {
            if let Some(frame) = self.parse()? {
                if let Some(ServerBody::Error(error)) = &frame.frame
                    && let Ok(code @ 1..) = u16::try_from(error.close_code)
                {
                    self.closing = Some(DisconnectReason::Closed {
                        code,
                        text: error.message.clone(),
                    });
                }
                return Ok(Some(frame));
            }
            match self.stream.read_buf(&mut self.incoming).await {
                Ok(0) => return Err(self.ended("end of stream")),
                Ok(_) => {}
                Err(e) => return Err(self.ended(e)),
            }
        }
    }

    pub(crate) async fn close(&mut self) {
        let _ = self.flush().await;
        let _ = self.stream.shutdown().await;
    }

    fn ended(&mut self, error: impl ToString) -> DisconnectReason {
        self.closing.take().unwrap_or_else(|| failed(error))
    }

    /// Takes one whole frame off the buffer.
    fn parse(&mut self) -> Result<Option<ServerFrame>, DisconnectReason> {
        let Some((length, prefix)) = parse_length(&self.incoming)? else {
            return Ok(None);
        };
        if length > self.frame_bytes_max {
            return Err(failed(format!("a frame of {length} bytes is too big")));
        }
        if self.incoming.len() < prefix + length {
            self.incoming.reserve(prefix + length - self.incoming.len());
            return Ok(None);
        }
        self.incoming.advance(prefix);
        let frame = self.incoming.split_to(length).freeze();
        ServerFrame::decode(frame).map(Some).map_err(failed)
    }
}

/// The length of the frame and of its prefix; `None`: more bytes are needed.
fn parse_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, DisconnectReason> {
    let mut length = 0_u64;
    for (i, byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        length |= u64::from(byte & 0x7f) << (7 * i).min(63);
        if byte & 0x80 == 0 {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            return Ok(Some((length, i + 1)));
        }
    }
    if bytes.len() >= VARINT_BYTES_MAX {
        return Err(failed("a frame length is no varint"));
    }
    Ok(None)
}

fn failed(error: impl ToString) -> DisconnectReason {
    DisconnectReason::Failed(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_varints_and_may_come_in_pieces() {
        assert_eq!(parse_length(&[]), Ok(None));
        assert_eq!(parse_length(&[0x05]), Ok(Some((5, 1))));
        assert_eq!(parse_length(&[0x80]), Ok(None));
        assert_eq!(parse_length(&[0xac, 0x02, 9]), Ok(Some((300, 2))));
        assert!(parse_length(&[0xff; 10]).is_err());
    }
}
