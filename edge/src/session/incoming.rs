//! From bytes to what a client wants: frames are decoded where they lie, answered here if the edge
//! can, and handed to the core otherwise.

use prost::Message as _;
use trunkline_proto::client::{ClientBody, ClientFrame, Error, Pong, ServerBody, ServerFrame};
use trunkline_proto::codes::{Close, Code};
use trunkline_proto::head::{Head, Kind};
use trunkline_proto::json;
use trunkline_proto::light::Light;
use trunkline_proto::limits::{FRAME_ID_BYTES_MAX, NONCE_BYTES_MAX};

use super::slots::{Codec, flag};
use super::{Class, Shard, State};
use crate::frame::encode_once::{Encoding, encode_pong};
use crate::frame::ws::{Decoder, WsEvent};
use crate::frame::{Input, encode, tcp};
use crate::link::uplink::Refusal;
use crate::observe::counters::Number;
use crate::ring::ConnId;

/// When a client may try again what found no credit.
const OVERLOADED_RETRY_MS: u32 = 1_000;

impl Shard {
    /// Bytes came.
    pub fn received(&mut self, id: ConnId, data: &mut [u8]) {
        let tick = self.tick;
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        conn.last_seen = tick;
        conn.clear(flag::PROBED);
        conn.count_in(data.len());
        self.counters.add(Number::BytesIn, data.len() as u64);
        match conn.state {
            State::Handshake => self.read_handshake(id, data),
            State::AwaitConnect | State::Registering | State::Live => self.read_frames(id, data),
            State::Closing | State::Free => {}
        }
    }

    pub(super) fn read_frames(&mut self, id: ConnId, data: &mut [u8]) {
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        // Out of the slot while it is used: what it hands out borrows from it.
        let codec = match conn.take_codec() {
            Codec::None => return,
            Codec::Ws(mut decoder) => {
                self.read_ws(id, &mut decoder, data);
                Codec::Ws(decoder)
            }
            Codec::Tcp(mut decoder) => {
                self.read_tcp(id, &mut decoder, data);
                Codec::Tcp(decoder)
            }
        };
        if let Some(conn) = self.slots.get_mut(id)
            && conn.state != State::Closing
        {
            conn.put_codec(codec);
        }
    }

    fn is_open(&self, id: ConnId) -> bool {
        let state = self.slots.get(id).map(|conn| conn.state);
        state.is_some_and(|s| s != State::Closing)
    }

    fn read_ws(&mut self, id: ConnId, decoder: &mut Decoder, data: &mut [u8]) {
        let bytes_max = self.settings.frame_bytes_max;
        let mut input = Input::new(data);
        while self.is_open(id) {
            match decoder.next_event(&mut input, bytes_max) {
                Ok(None) => return,
                Ok(Some(WsEvent::Text(text))) => self.read_text(id, text),
                Ok(Some(WsEvent::Binary(bytes))) => self.read_binary(id, bytes),
                Ok(Some(WsEvent::Ping(payload))) => {
                    self.counters.inc(Number::InControl);
                    self.send_control(id, |out| encode::pong(out, payload));
                }
                Ok(Some(WsEvent::Pong(_))) => self.counters.inc(Number::InControl),
                Ok(Some(WsEvent::Close { code, .. })) => {
                    self.counters.inc(Number::InControl);
                    self.closed_by_peer(id, code);
                }
                Err(error) => {
                    self.counters.inc(Number::InUndecodable);
                    self.finish_saying(id, "", error.close(), None, error.reason());
                }
            }
        }
    }

    fn read_tcp(&mut self, id: ConnId, decoder: &mut tcp::Decoder, data: &mut [u8]) {
        let bytes_max = self.settings.frame_bytes_max;
        let mut input = Input::new(data);
        while self.is_open(id) {
            match decoder.next_frame(&mut input, bytes_max) {
                Ok(None) => return,
                Ok(Some(bytes)) => self.read_proto(id, bytes),
                Err(error) => {
                    self.counters.inc(Number::InUndecodable);
                    self.finish_saying(id, "", error.close(), None, &error.to_string());
                }
            }
        }
    }

    fn read_text(&mut self, id: ConnId, text: &[u8]) {
        let Some(conn) = self.slots.get(id) else {
            return;
        };
        if conn.encoding != Encoding::JsonWs {
            return self.finish(id, Close::WrongOpcode, None);
        }
        if conn.state == State::Live
            && let Some(light) = Light::from_json(text)
        {
            return self.light_frame(id, light);
        }
        if conn.state == State::Live && self.read_plain_text(id, text) {
            return;
        }
        match json::decode_client(text) {
            Ok(frame) => self.client_frame(id, frame),
            Err(error) => self.undecodable(id, &error.id, error.code, error.message),
        }
    }

    /// Hands an operation on that can be written in protobuf without being decoded. False if it must
    /// be decoded.
    fn read_plain_text(&mut self, id: ConnId, text: &[u8]) -> bool {
        self.with_inbound(|shard, inbound| {
            if !json::transcode_client(text, inbound) {
                return false;
            }
            // A number of 64 bits is not plain enough in protobuf.
            let head = Head::read(inbound);
            if let Some(head) = head {
                shard.operation(id, head, inbound);
            }
            head.is_some()
        })
    }

    /// Gives `act` the empty buffer for client frames, which is out of the shard meanwhile.
    fn with_inbound<T>(&mut self, act: impl FnOnce(&mut Self, &mut Vec<u8>) -> T) -> T {
        let mut inbound = std::mem::take(&mut self.inbound);
        inbound.clear();
        let result = act(self, &mut inbound);
        self.inbound = inbound;
        result
    }

    fn read_binary(&mut self, id: ConnId, bytes: &[u8]) {
        if self.slots.get(id).map(|conn| conn.encoding) != Some(Encoding::ProtoWs) {
            return self.finish(id, Close::WrongOpcode, None);
        }
        self.read_proto(id, bytes);
    }

    fn read_proto(&mut self, id: ConnId, bytes: &[u8]) {
        if self.slots.get(id).is_some_and(|c| c.state == State::Live) {
            if let Some(light) = Light::from_proto(bytes) {
                return self.light_frame(id, light);
            }
            if let Some(head) = Head::read(bytes) {
                return self.operation(id, head, bytes);
            }
        }
        match ClientFrame::decode(bytes) {
            Err(error) => self.undecodable(id, "", Code::BadFrame, error.to_string()),
            Ok(frame) if frame.id.len() > FRAME_ID_BYTES_MAX => {
                let what = format!("id: over {FRAME_ID_BYTES_MAX} bytes");
                self.undecodable(id, "", Code::BadRequest, what);
            }
            Ok(frame) if frame.frame.is_none() => {
                let what = "the frame holds nothing that is known here".into();
                self.undecodable(id, &frame.id, Code::UnknownFrame, what);
            }
            Ok(frame) => self.client_frame(id, frame),
        }
    }

    /// A frame of a live session that is answered here, or needs no answer.
    fn light_frame(&mut self, id: ConnId, light: Light<'_>) {
        match light {
            Light::Heartbeat => self.counters.inc(Number::InHeartbeat),
            Light::Ping {
                id: frame_id,
                nonce,
            } => {
                self.counters.inc(Number::InPing);
                self.send_written(id, Class::Chat, 0, |encoding, out| {
                    encode_pong(frame_id, nonce, encoding, out);
                });
            }
        }
    }

    /// What is no frame, or none that can be acted on.
    fn undecodable(&mut self, id: ConnId, frame_id: &str, code: Code, message: String) {
        self.counters.inc(Number::InUndecodable);
        let state = self.slots.get(id).map(|conn| conn.state);
        match code {
            Code::BadFrame => {
                let error = code.closing(Close::BadFrame, message);
                self.finish_answering(id, frame_id, Close::BadFrame, Some(error));
            }
            // Before `connect`, what is not even one of its kind is no `connect`.
            Code::UnknownFrame if state == Some(State::AwaitConnect) => {
                self.unauthorized(id, frame_id, "connect comes first");
            }
            _ => self.send_error(id, frame_id, code.error(message)),
        }
    }

    /// One frame of a client, decoded: before the session is live, or because it is not plain.
    pub(super) fn client_frame(&mut self, id: ConnId, frame: ClientFrame) {
        let Some(body) = &frame.frame else {
            return;
        };
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        match (conn.state, body) {
            (State::AwaitConnect, ClientBody::Connect(_)) | (State::Live, _) => {
                self.act_on(id, frame);
            }
            (State::AwaitConnect, _) => {
                self.counters.inc(Number::frame_in(body.into()));
                self.unauthorized(id, &frame.id, "connect comes first");
            }
            (State::Registering, _) => self.queue_early(id, frame),
            (State::Free | State::Handshake | State::Closing, _) => {}
        }
    }

    /// A frame that came before the session is registered waits, within bounds.
    fn queue_early(&mut self, id: ConnId, frame: ClientFrame) {
        let (frames_max, bytes_max) = (
            self.settings.early_frames_max,
            self.settings.early_bytes_max,
        );
        let bytes = frame.encoded_len();
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        let cold = conn.cold();
        if cold.queue.len() < frames_max && cold.queue_bytes + bytes <= bytes_max {
            cold.queue_bytes += bytes;
            cold.queue.push_back(frame);
        } else {
            self.refuse_frame(id, &frame);
        }
    }

    fn refuse_frame(&mut self, id: ConnId, frame: &ClientFrame) {
        if let Some(head) = Head::of(frame) {
            self.refuse(id, &head, Code::Overloaded, "too much before connected");
        }
    }

    fn act_on(&mut self, id: ConnId, frame: ClientFrame) {
        if let Some(body) = &frame.frame {
            self.counters.inc(Number::frame_in(body.into()));
        }
        match frame.frame {
            Some(ClientBody::Connect(connect)) => {
                if self.slots.get(id).is_some_and(|c| c.state == State::Live) {
                    self.connect_again(id, frame.id, &connect);
                } else {
                    self.connect(id, frame.id, &connect);
                }
            }
            Some(ClientBody::Heartbeat(_)) => {}
            Some(ClientBody::Ping(ping)) if ping.nonce.len() > NONCE_BYTES_MAX => {
                let what = format!("nonce: over {NONCE_BYTES_MAX} bytes");
                self.send_error(id, &frame.id, Code::BadRequest.error(what));
            }
            Some(ClientBody::Ping(ping)) => {
                let pong = ServerBody::Pong(Pong { nonce: ping.nonce });
                self.send(id, &ServerFrame::answer(frame.id, pong));
            }
            _ => self.forward_decoded(id, &frame),
        }
    }

    /// Writes an operation in protobuf, and hands it on.
    fn forward_decoded(&mut self, id: ConnId, frame: &ClientFrame) {
        let Some(head) = Head::of(frame) else {
            return;
        };
        self.with_inbound(|shard, inbound| {
            // Fails only when the buffer cannot grow; a Vec can.
            let encoded = frame.encode(inbound);
            debug_assert!(encoded.is_ok());
            shard.forward_or_limit(id, head, inbound);
        });
    }

    /// An operation of a live session, for the core: `head` is what `bytes` begin to say.
    fn operation(&mut self, id: ConnId, head: Head<'_>, bytes: &[u8]) {
        self.counters.inc(Number::frame_in(head.kind));
        self.forward_or_limit(id, head, bytes);
    }

    fn forward_or_limit(&mut self, id: ConnId, head: Head<'_>, bytes: &[u8]) {
        match head.kind {
            Kind::SendMessage => self.forward_send(id, head, bytes),
            _ => self.forward(id, head, bytes),
        }
    }

    /// A message, against the session's own rate first.
    fn forward_send(&mut self, id: ConnId, head: Head<'_>, bytes: &[u8]) {
        let now_ns = self.now.mono_ns;
        let refused_max = self.settings.refused_in_row_max;
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        match conn.take_send(self.send_rate, now_ns) {
            Ok(()) => {
                conn.refused = 0;
                self.forward(id, head, bytes);
            }
            Err(retry_ms) => {
                conn.refused = conn.refused.saturating_add(1);
                let persistent = conn.refused > refused_max;
                self.counters.inc(Number::FramesRateLimited);
                let mut error = error_about(&head, Code::RateLimited, "over the send rate");
                error.retry_after_ms = retry_ms;
                if persistent {
                    self.finish_answering(id, head.id, Close::RateLimited, Some(error));
                } else {
                    self.send_error(id, head.id, error);
                }
            }
        }
    }

    /// Hands a frame to the core, or says why not.
    fn forward(&mut self, id: ConnId, head: Head<'_>, bytes: &[u8]) {
        let handle = self.handle(id);
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        match self.uplink.admit(conn.has(flag::ANNOUNCED)) {
            Ok(()) => {
                match head.kind {
                    Kind::SendMessage => {
                        conn.sends_under_way = conn.sends_under_way.saturating_add(1);
                    }
                    Kind::Sync => {
                        conn.syncs_under_way = conn.syncs_under_way.saturating_add(1);
                    }
                    Kind::Fetch => {
                        conn.fetches_under_way = conn.fetches_under_way.saturating_add(1);
                    }
                    _ => {}
                }
                self.uplink.frame(handle, bytes);
            }
            // Worthless by the time it could be sent again.
            Err(_) if head.kind == Kind::Typing => {}
            Err(Refusal::LinkDown) => {
                self.refuse(id, &head, Code::Unavailable, "no core is in reach");
            }
            Err(Refusal::NoCredit) => {
                self.refuse(id, &head, Code::Overloaded, "the core does not keep up");
            }
        }
    }

    fn refuse(&mut self, id: ConnId, head: &Head<'_>, code: Code, why: &str) {
        let mut error = error_about(head, code, why);
        if code == Code::Overloaded {
            error.retry_after_ms = OVERLOADED_RETRY_MS;
            self.counters.inc(Number::FramesOverloaded);
        } else {
            self.counters.inc(Number::FramesUnavailable);
        }
        self.send_error(id, head.id, error);
    }

    /// The outcome of what is under way is unknown.
    pub(super) fn unavailable(&mut self, id: ConnId) {
        let error = Code::Unavailable.error("the core was lost: what was not answered is unknown");
        self.send_error(id, "", error);
    }

    pub(super) fn send_error(&mut self, id: ConnId, frame_id: &str, error: Error) {
        let frame = ServerFrame::answer(frame_id, ServerBody::Error(error));
        self.send(id, &frame);
    }
}

/// An error that names what the frame was about.
fn error_about(head: &Head<'_>, code: Code, message: &str) -> Error {
    Error {
        conversation_id: head.conversation_id.to_owned(),
        client_msg_id: head.client_msg_id.to_owned(),
        ..code.error(message)
    }
}
