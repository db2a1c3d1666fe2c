//! From accept to a live session: the HTTP upgrade, tokens, `connect`, the registration with the
//! core.

use std::net::SocketAddr;

use trunkline_identity::Identity;
use trunkline_proto::client::{Connect, Connected, Limits, ServerBody, ServerFrame};
use trunkline_proto::codes::{Close, Code};
use trunkline_proto::ids::is_valid_id;
use trunkline_proto::limits::{CLIENT_NAME_BYTES_MAX, CONTENT_CHARS_MAX};

use super::slots::flag;
use super::{Shard, State, Transport};
use crate::frame::upgrade::{
    self, HEAD_BYTES_MAX, Paths, Rejection, Request, Status, Subprotocol, Upgrade,
};
use crate::observe::counters::Number;
use crate::ring::ConnId;

/// `Retry-After` where the cause says nothing about time.
const RETRY_AFTER_S: u32 = 1;

/// Whom a handshake's token names, and the device if it was named too.
type Named = (Identity, Option<String>);
/// What the peer is told, and what is counted.
type Refused = (Rejection, Number);

/// What a well-formed request to upgrade is granted.
struct Admitted {
    key: String,
    subprotocol: Subprotocol,
    identity: Option<Named>,
}

/// What the bytes of a handshake came to.
enum Handshake {
    Partial,
    Admitted {
        consumed: usize,
        admitted: Box<Admitted>,
    },
    Rejected(Rejection, Number),
}

impl Shard {
    /// A new connection.
    pub fn accepted(&mut self, id: ConnId, transport: Transport, peer: SocketAddr) {
        self.openings += 1;
        let deadline = self.ticks_ahead(match transport {
            Transport::WebSocket => self.settings.handshake_ms,
            Transport::Tcp => self.settings.connect_ms,
        });
        let conn = self.slots.insert(id, transport, peer, self.tick);
        conn.set_deadline(deadline);
        self.counters.inc(match transport {
            Transport::WebSocket => Number::AcceptedWs,
            Transport::Tcp => Number::AcceptedTcp,
        });
        if let Some(gauge) = Number::sockets(conn.state, transport) {
            self.counters.inc(gauge);
        }
        self.arm(id);
        if transport == Transport::Tcp {
            self.admit_tcp(id, peer);
        }
    }

    /// Raw TCP has no handshake to refuse: it gets its last `error` at once.
    fn admit_tcp(&mut self, id: ConnId, peer: SocketAddr) {
        if self.drain.is_some() {
            self.counters.inc(Number::RefusedDraining);
            let error = Code::Unavailable.closing(Close::Draining, "this server is going away");
            self.finish(id, Close::Draining, Some(error));
        } else if let Err(retry_ms) = self.take_connect(peer) {
            self.counters.inc(Number::RefusedRateLimited);
            let mut error =
                Code::RateLimited.closing(Close::RateLimited, "too many connects from here");
            error.retry_after_ms = retry_ms;
            self.finish(id, Close::RateLimited, Some(error));
        }
    }

    /// Takes one connect from the limit of the address.
    fn take_connect(&mut self, peer: SocketAddr) -> Result<(), u32> {
        self.addresses.take(peer.ip(), self.now.mono_ns)
    }

    /// Bytes of an HTTP request.
    pub(super) fn read_handshake(&mut self, id: ConnId, data: &mut [u8]) {
        self.openings += 1;
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        let mut head = conn.cold.as_mut().map(|c| std::mem::take(&mut c.head));
        conn.tidy();
        let kept = head.as_ref().map_or(0, Vec::len);
        if let Some(head) = head.as_mut().filter(|h| !h.is_empty()) {
            head.extend_from_slice(data);
            // Looked at again only when its end may have come: a head that comes byte by byte
            // costs no more than one that comes at once.
            let from = kept.saturating_sub(3);
            if head.len() < HEAD_BYTES_MAX && !ends_a_head(&head[from..]) {
                conn.cold().head = std::mem::take(head);
                return;
            }
        }
        let head = head.filter(|h| !h.is_empty());
        let Some(peer) = self.slots.peer(id) else {
            return;
        };
        let outcome = self.judge(peer, head.as_deref().unwrap_or(data));
        match outcome {
            Handshake::Partial => {
                let head = head.unwrap_or_else(|| data.to_vec());
                if let Some(conn) = self.slots.get_mut(id) {
                    conn.cold().head = head;
                }
            }
            Handshake::Rejected(rejection, number) => {
                self.counters.inc(number);
                self.reject(id, &rejection);
            }
            Handshake::Admitted { consumed, admitted } => {
                // What was kept held no whole head, so the rest lies in what came just now.
                let rest = consumed.saturating_sub(kept).min(data.len());
                self.upgrade(id, *admitted);
                if rest < data.len() {
                    self.read_frames(id, &mut data[rest..]);
                }
            }
        }
    }

    fn judge(&mut self, peer: SocketAddr, head: &[u8]) -> Handshake {
        match upgrade::parse(head, Paths::Connect) {
            Upgrade::Partial => Handshake::Partial,
            Upgrade::Reject(rejection) => Handshake::Rejected(rejection, Number::RefusedBadRequest),
            Upgrade::Request { consumed, request } => match self.admit(peer, &request) {
                Ok(admitted) => Handshake::Admitted {
                    consumed,
                    admitted: Box::new(admitted),
                },
                Err((rejection, number)) => Handshake::Rejected(rejection, number),
            },
        }
    }

    /// Who may, and as what.
    fn admit(&mut self, peer: SocketAddr, request: &Request<'_>) -> Result<Admitted, Refused> {
        let going = Rejection::new(Status::ServiceUnavailable, "This server is going away.");
        if self.drain.is_some() {
            return Err((going.retry_after(RETRY_AFTER_S), Number::RefusedDraining));
        }
        self.take_connect(peer).map_err(|retry_ms| {
            let often = Rejection::new(Status::TooManyRequests, "Too many connects from here.");
            let rejection = often.retry_after(retry_ms.div_ceil(1_000));
            (rejection, Number::RefusedRateLimited)
        })?;
        if !self.uplink.is_up() {
            let down = Rejection::new(Status::ServiceUnavailable, "No core is in reach.");
            return Err((down.retry_after(RETRY_AFTER_S), Number::RefusedLinkDown));
        }
        let allowed = &self.settings.origins;
        if let Some(origin) = request.origin
            && !allowed.is_empty()
            && !allowed.iter().any(|o| o == origin)
        {
            let foreign = Rejection::new(Status::Forbidden, "This origin may not connect.");
            return Err((foreign, Number::RefusedOrigin));
        }
        let subprotocol = upgrade::choose_subprotocol(&request.protocols)
            .map_err(|rejection| (rejection, Number::RefusedBadRequest))?;
        Ok(Admitted {
            key: request.key.to_owned(),
            subprotocol,
            identity: self.identify(request)?,
        })
    }

    fn identify(&self, request: &Request<'_>) -> Result<Option<Named>, Refused> {
        let Some(token) = request.bearer.or(request.access_token.as_deref()) else {
            return Ok(None);
        };
        let identity = self.verify(token).map_err(|reason| {
            let rejection =
                Rejection::new(Status::Unauthorized, format!("Unauthorized: {reason}."));
            (rejection, Number::RefusedUnauthorized)
        })?;
        let device = request.device_id.as_deref();
        if device.is_some_and(|d| !is_valid_id(d)) {
            let bad = Rejection::new(Status::BadRequest, "device_id: not a device id.");
            return Err((bad, Number::RefusedBadRequest));
        }
        Ok(Some((identity, device.map(str::to_owned))))
    }

    fn verify(&self, token: &str) -> Result<Identity, String> {
        self.verifier
            .verify(token, self.now.unix_ms / 1_000)
            .map_err(|e| e.to_string())
    }

    /// Opens the WebSocket.
    fn upgrade(&mut self, id: ConnId, admitted: Admitted) {
        let deadline = self.ticks_ahead(self.settings.connect_ms);
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        conn.encoding = admitted.subprotocol.encoding;
        conn.set_deadline(deadline);
        self.send_always(id, |out| {
            upgrade::write_accept(out, &admitted.key, admitted.subprotocol.name, None);
        });
        self.set_state(id, State::AwaitConnect);
        match admitted.identity {
            Some((identity, Some(device))) => self.register(id, identity, &device, String::new()),
            Some((identity, None)) => self.know(id, &identity, ""),
            None => {}
        }
        self.arm(id);
    }

    /// Notes who the peer is.
    fn know(&mut self, id: ConnId, identity: &Identity, device: &str) {
        self.slots.set_identity(id, &identity.user, device);
        if let Some(conn) = self.slots.get_mut(id) {
            conn.expires_at = expiry(identity);
        }
    }

    /// `connect` on a connection that is no session yet.
    pub(super) fn connect(&mut self, id: ConnId, frame_id: String, connect: &Connect) {
        self.openings += 1;
        if let Err(what) = check(connect) {
            self.send_error(id, &frame_id, Code::BadRequest.error(what));
            return;
        }
        let now_s = self.now.unix_ms / 1_000;
        let Some(conn) = self.slots.get(id) else {
            return;
        };
        let (user, _) = self.slots.identity(id);
        let known = (!user.is_empty()).then(|| Identity {
            user: user.to_owned(),
            expires_at: Some(conn.expires_at).filter(|&at| at != 0).map(u64::from),
        });
        let identity = match (known, &*connect.token) {
            (None, "") => Err("a token is needed, here or in the handshake".to_owned()),
            (Some(known), "") if known.expires_at.is_some_and(|at| at <= now_s) => {
                Err("the handshake's token has expired".to_owned())
            }
            (Some(known), "") => Ok(known),
            (known, token) => match self.verify(token) {
                Ok(identity) if known.is_some_and(|k| k.user != identity.user) => {
                    Err("the token is another user's than the handshake's".to_owned())
                }
                other => other,
            },
        };
        match identity {
            Ok(identity) => self.register(id, identity, &connect.device_id, frame_id),
            Err(reason) => self.unauthorized(id, &frame_id, &reason),
        }
    }

    /// `connect` on a live session: a fresh token extends it.
    pub(super) fn connect_again(&mut self, id: ConnId, frame_id: String, connect: &Connect) {
        if let Err(what) = check(connect) {
            self.send_error(id, &frame_id, Code::BadRequest.error(what));
            return;
        }
        let identity = match &*connect.token {
            "" => None,
            token => match self.verify(token) {
                Ok(identity) => Some(identity),
                Err(reason) => return self.unauthorized(id, &frame_id, &reason),
            },
        };
        let (user, device) = self.slots.identity(id);
        if identity.as_ref().is_some_and(|i| i.user != user) {
            return self.unauthorized(id, &frame_id, "the token is another user's");
        }
        if connect.device_id != device {
            let error = Code::BadRequest.error("device_id: another than this session's");
            return self.send_error(id, &frame_id, error);
        }
        if let Some(identity) = identity
            && let Some(conn) = self.slots.get_mut(id)
        {
            conn.expires_at = expiry(&identity);
            self.arm(id);
        }
        self.send_connected(id, frame_id);
    }

    /// Asks the core to take the session into its registry.
    fn register(&mut self, id: ConnId, identity: Identity, device: &str, connect_id: String) {
        self.know(id, &identity, device);
        let deadline = self.ticks_ahead(self.settings.register_ms);
        let Some(conn) = self.slots.get_mut(id) else {
            return;
        };
        conn.set_deadline(deadline);
        if !connect_id.is_empty() {
            conn.cold().connect_id = connect_id;
        }
        self.set_state(id, State::Registering);
        self.arm(id);
        self.announce_one(id);
    }

    /// The core has the session in its registry.
    pub fn registered(&mut self, id: ConnId) {
        let Some(conn) = self.slots.get_mut(id) else {
            self.counters.inc(Number::DeliveredStale);
            return;
        };
        if conn.state != State::Registering {
            return;
        }
        self.openings += 1;
        let (connect_id, queue) = match conn.cold.as_mut() {
            Some(cold) => {
                cold.queue_bytes = 0;
                (
                    std::mem::take(&mut cold.connect_id),
                    std::mem::take(&mut cold.queue),
                )
            }
            None => Default::default(),
        };
        conn.tidy();
        self.set_state(id, State::Live);
        self.counters.inc(Number::SessionsOpened);
        self.arm(id);
        self.send_connected(id, connect_id);
        for frame in queue {
            self.client_frame(id, frame);
        }
        self.tell_to_leave(id);
    }

    fn send_connected(&mut self, id: ConnId, frame_id: String) {
        let session = self.handle(id);
        let (user, device) = self.slots.identity(id);
        let connected = Connected {
            session_id: format!("{:x}-{session:016x}", self.settings.incarnation),
            user_id: user.to_owned(),
            device_id: device.to_owned(),
            server_time: self.now.unix_ms,
            heartbeat_ms: self.settings.heartbeat_ms,
            limits: Some(Limits {
                max_content_chars: CONTENT_CHARS_MAX as u32,
                max_frame_bytes: self.settings.frame_bytes_max as u32,
                send_rate: self.settings.send_rate,
                send_burst: self.settings.send_burst,
            }),
        };
        let frame = ServerFrame::answer(frame_id, ServerBody::Connected(connected));
        self.send(id, &frame);
    }

    /// Whether the handshake or `connect` is still owed.
    pub(super) fn open_overdue(&mut self, id: ConnId, state: State) {
        match state {
            State::Handshake => {
                self.counters.inc(Number::RefusedTimeout);
                self.drop_now(id, super::End::Handshake);
            }
            State::AwaitConnect => {
                self.counters.inc(Number::RefusedTimeout);
                let error =
                    Code::Unauthorized.closing(Close::ConnectTimeout, "no connect came in time");
                self.finish(id, Close::ConnectTimeout, Some(error));
            }
            _ => {
                self.counters.inc(Number::RefusedNotRegistered);
                let error = Code::Unavailable.closing(
                    Close::Draining,
                    "the session could not be registered in time",
                );
                let connect_id = self.slots.get_mut(id).and_then(|c| c.cold.as_mut());
                let connect_id = connect_id.map(|c| std::mem::take(&mut c.connect_id));
                self.finish_answering(
                    id,
                    &connect_id.unwrap_or_default(),
                    Close::Draining,
                    Some(error),
                );
            }
        }
    }

    /// Marks a session as known to the core, or not.
    pub(super) fn forget_announcement(&mut self, id: ConnId) {
        let handle = self.handle(id);
        if let Some(conn) = self.slots.get_mut(id)
            && conn.has(flag::ANNOUNCED)
        {
            conn.clear(flag::ANNOUNCED);
            self.uplink.closed(handle);
        }
    }
}

fn check(connect: &Connect) -> Result<(), &'static str> {
    if !is_valid_id(&connect.device_id) {
        Err("device_id: 1 to 64 bytes of A-Z a-z 0-9 . _ : @ -")
    } else if connect.client.len() > CLIENT_NAME_BYTES_MAX {
        Err("client: over 128 bytes")
    } else {
        Ok(())
    }
}

/// As the slot keeps it. A token that ends after 2106 never does.
fn expiry(identity: &Identity) -> u32 {
    let at = identity.expires_at.unwrap_or(0);
    u32::try_from(at).unwrap_or(0)
}

/// Whether an HTTP head may end in `tail`.
fn ends_a_head(tail: &[u8]) -> bool {
    memchr::memmem::find(tail, b"\n\r\n").is_some() || memchr::memmem::find(tail, b"\n\n").is_some()
}
