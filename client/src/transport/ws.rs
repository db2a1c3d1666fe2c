//! Frames over a WebSocket, as JSON text or protobuf binary.

use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message as WsMessage};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};
use trunkline_proto::client::{ClientFrame, ServerFrame};
use trunkline_proto::codes::Close;
use trunkline_proto::json;
use trunkline_proto::limits::{SUBPROTOCOL_JSON, SUBPROTOCOL_PROTO};

use crate::config::{Encoding, complete_url};
use crate::event::DisconnectReason;

/// Bytes read at once: small, because many clients may live in one process.
const READ_BUFFER_BYTES: usize = 8 * 1024;

pub(crate) struct WebSocket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    encoding: Encoding,
}

impl WebSocket {
    pub(crate) async fn open(
        url: &str,
        encoding: Encoding,
        frame_bytes_max: usize,
    ) -> Result<Self, DisconnectReason> {
        let mut request = complete_url(url).into_client_request().map_err(failed)?;
        let subprotocol = match encoding {
            Encoding::Json => SUBPROTOCOL_JSON,
            Encoding::Protobuf => SUBPROTOCOL_PROTO,
        };
        request.headers_mut().insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static(subprotocol),
        );
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .max_message_size(Some(frame_bytes_max))
            .max_frame_size(Some(frame_bytes_max));
        let (stream, _) = connect_async_with_config(request, Some(config), true)
            .await
            .map_err(|e| match e {
                WsError::Http(response) => DisconnectReason::Refused(response.status().as_u16()),
                e => failed(e),
            })?;
        Ok(Self { stream, encoding })
    }

    pub(crate) async fn feed(&mut self, frame: &ClientFrame) -> Result<(), DisconnectReason> {
        let message = match self.encoding {
            Encoding::Protobuf => WsMessage::binary(frame.encode_to_vec()),
            Encoding::Json => {
                let mut text = Vec::new();
                json::encode_client(frame, &mut text);
                let text = String::from_utf8(text).map_err(failed)?;
                WsMessage::text(text)
            }
        };
        self.stream.feed(message).await.map_err(failed)
    }

    pub(crate) async fn flush(&mut self) -> Result<(), DisconnectReason> {
        self.stream.flush().await.map_err(failed)
    }

    pub(crate) async fn recv(&mut self) -> Result<Option<ServerFrame>, DisconnectReason> {
        match self.stream.next().await {
            Some(Ok(WsMessage::Text(text))) => match json::decode_server(text.as_bytes()) {
                Ok(frame) => Ok(Some(frame)),
                Err(e) => {
                    // A newer server may have frames that this build does not know.
                    tracing::debug!(error = %e, "frame ignored");
                    Ok(None)
                }
            },
            Some(Ok(WsMessage::Binary(bytes))) => {
                ServerFrame::decode(bytes).map(Some).map_err(failed)
            }
            Some(Ok(WsMessage::Close(frame))) => Err(match frame {
                Some(frame) => DisconnectReason::Closed {
                    code: frame.code.into(),
                    text: frame.reason.to_string(),
                },
                None => DisconnectReason::Closed {
                    code: Close::Normal.code(),
                    text: String::new(),
                },
            }),
            Some(Ok(_)) => Ok(None),
            Some(Err(e)) => Err(failed(e)),
            None => Err(failed("end of stream without a close")),
        }
    }

    pub(crate) async fn close(&mut self) {
        let _ = self.stream.close(None).await;
    }
}

fn failed(error: impl ToString) -> DisconnectReason {
    DisconnectReason::Failed(error.to_string())
}
