//! The calls of the external contract, one function each: read the request, ask the engine, write
//! the answer.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use trunkline_proto::client::SendMessage;
use trunkline_proto::codes::Code;
use trunkline_proto::limits;

use super::extract::{Caller, InConversation, JsonOf, OfUser, QueryOf, limit, user_id};
use super::problem::Problem;
use super::view::{ConversationJson, ListedJson, Listing, MemberJson, MessagesJson, ReceiptsJson};
use super::{Advertised, RestState};
use crate::engine::{self, Kind, Request, Role};

/// How long a development token lasts.
const DEV_TOKEN_TTL: Duration = Duration::from_secs(24 * 3_600);

type Answer = Result<Response, Problem>;

impl RestState {
    async fn ask(&self, caller: Caller, request: Request) -> Answer {
        let response = self.handle().request(caller.0, request).await?;
        Ok(answer(response))
    }
}

/// The status and body that an engine's answer has.
fn answer(response: engine::Response) -> Response {
    use engine::Response as R;
    match response {
        R::Ack(ack) if ack.duplicate => Json(ack).into_response(),
        R::Ack(ack) => (StatusCode::CREATED, Json(ack)).into_response(),
        R::Conversation {
            conversation,
            created,
        } => {
            let status = if created {
                StatusCode::CREATED
            } else {
                StatusCode::OK
            };
            (status, Json(ConversationJson::from(conversation))).into_response()
        }
        R::Conversations { items, next_cursor } => {
            Json(Listing::<ListedJson>::of(items, next_cursor)).into_response()
        }
        R::Members { items, next_cursor } => {
            Json(Listing::<MemberJson>::of(items, next_cursor)).into_response()
        }
        R::Messages {
            messages,
            head_seq,
            more,
        } => Json(MessagesJson {
            messages,
            head_seq,
            more,
        })
        .into_response(),
        R::Receipts(view) => Json(ReceiptsJson::from(view)).into_response(),
        // Between cores only: no call asks for these.
        R::Page(_) | R::Listed(_) | R::Done => StatusCode::NO_CONTENT.into_response(),
    }
}

// ---- without authentication ----

#[derive(Serialize)]
struct ConfigJson {
    transports: TransportsJson,
    limits: LimitsJson,
    heartbeat_ms: u32,
    dev_tokens: bool,
}

#[derive(Serialize)]
struct TransportsJson {
    websocket: String,
    tcp: String,
}

#[derive(Serialize)]
struct LimitsJson {
    max_content_chars: usize,
    max_frame_bytes: usize,
    send_rate: u32,
    send_burst: u32,
    group_members_max: usize,
    sessions_per_user_max: u32,
}

pub(super) async fn config(State(state): State<RestState>, headers: HeaderMap) -> Response {
    let config = state.config();
    let host = host_of(&headers);
    let websocket = match &config.websocket {
        Advertised::Url(url) => url.clone(),
        Advertised::Port(port) => format!("ws://{host}:{port}{}", limits::WS_PATH),
    };
    let tcp = match &config.tcp {
        Advertised::Url(url) => url.clone(),
        Advertised::Port(port) => format!("{host}:{port}"),
    };
    Json(ConfigJson {
        transports: TransportsJson { websocket, tcp },
        limits: LimitsJson {
            max_content_chars: limits::CONTENT_CHARS_MAX,
            max_frame_bytes: config.max_frame_bytes,
            send_rate: config.send_rate,
            send_burst: config.send_burst,
            group_members_max: config.group_members_max,
            sessions_per_user_max: config.sessions_per_user_max,
        },
        heartbeat_ms: config.heartbeat_ms,
        dev_tokens: config.dev_token_secret.is_some(),
    })
    .into_response()
}

/// The host by which the caller reached us, without the port: the edge is taken to be reachable by
/// the same name.
fn host_of(headers: &HeaderMap) -> &str {
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let name = match host.rfind(':') {
        // The colon of an IPv6 address in brackets is no port's.
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    if name.is_empty() || !name.bytes().all(plain) {
        "127.0.0.1"
    } else {
        name
    }
}

#[derive(Deserialize)]
pub(super) struct DevTokenQuery {
    user: Option<String>,
}

#[derive(Serialize)]
struct TokenJson {
    token: String,
}

pub(super) async fn dev_token(
    State(state): State<RestState>,
    QueryOf(query): QueryOf<DevTokenQuery>,
) -> Answer {
    let Some(secret) = &state.config().dev_token_secret else {
        return Err(Problem::not_found(
            "development tokens are off; --dev-tokens turns them on",
        ));
    };
    let user = user_id(query.user.unwrap_or_default())?;
    let token = trunkline_identity::mint(secret, &user, DEV_TOKEN_TTL);
    Ok(Json(TokenJson { token }).into_response())
}

// ---- conversations ----

#[derive(Deserialize)]
pub(super) struct CreateBody {
    kind: String,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    members: Vec<String>,
}

pub(super) async fn create_conversation(
    State(state): State<RestState>,
    caller: Caller,
    JsonOf(body): JsonOf<CreateBody>,
) -> Answer {
    let kind = Kind::parse(&body.kind)
        .ok_or_else(|| Problem::bad_request("kind: direct, group or channel"))?;
    let members = body
        .members
        .into_iter()
        .map(user_id)
        .collect::<Result<_, _>>()?;
    let request = Request::CreateConversation {
        kind,
        title: body.title.unwrap_or_default(),
        members,
    };
    state.ask(caller, request).await
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    cursor: Option<String>,
    limit: Option<String>,
}

impl ListQuery {
    fn read(self) -> Result<(Option<String>, u32), Problem> {
        let limit = limit(self.limit.as_deref())?;
        Ok((self.cursor.filter(|c| !c.is_empty()), limit))
    }
}

pub(super) async fn list_conversations(
    State(state): State<RestState>,
    caller: Caller,
    QueryOf(query): QueryOf<ListQuery>,
) -> Answer {
    let (cursor, limit) = query.read()?;
    let request = Request::ListConversations { cursor, limit };
    state.ask(caller, request).await
}

pub(super) async fn get_conversation(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
) -> Answer {
    state.ask(caller, Request::GetConversation { id }).await
}

#[derive(Deserialize)]
pub(super) struct TitleBody {
    title: String,
}

pub(super) async fn set_title(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
    JsonOf(body): JsonOf<TitleBody>,
) -> Answer {
    let title = body.title;
    state.ask(caller, Request::SetTitle { id, title }).await
}

pub(super) async fn delete_conversation(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
) -> Answer {
    state.ask(caller, Request::DeleteConversation { id }).await
}

// ---- members ----

pub(super) async fn list_members(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
    QueryOf(query): QueryOf<ListQuery>,
) -> Answer {
    let (cursor, limit) = query.read()?;
    let request = Request::ListMembers { id, cursor, limit };
    state.ask(caller, request).await
}

#[derive(Deserialize)]
pub(super) struct RoleBody {
    #[serde(default)]
    role: Option<String>,
}

pub(super) async fn put_member(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
    OfUser(user): OfUser,
    JsonOf(body): JsonOf<RoleBody>,
) -> Answer {
    let role = match body.role {
        None => None,
        Some(text) => Some(
            Role::parse(&text)
                .ok_or_else(|| Problem::bad_request("role: owner, admin or member"))?,
        ),
    };
    let request = Request::PutMember { id, user, role };
    state.ask(caller, request).await
}

pub(super) async fn remove_member(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
    OfUser(user): OfUser,
) -> Answer {
    state.ask(caller, Request::RemoveMember { id, user }).await
}

// ---- messages ----

pub(super) async fn send_message(
    State(state): State<RestState>,
    caller: Caller,
    JsonOf(body): JsonOf<SendMessage>,
) -> Answer {
    state.ask(caller, Request::Send(body)).await
}

#[derive(Deserialize)]
pub(super) struct MessagesQuery {
    before: Option<u64>,
    after: Option<u64>,
    limit: Option<String>,
}

pub(super) async fn messages(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
    QueryOf(query): QueryOf<MessagesQuery>,
) -> Answer {
    let request = Request::Messages {
        id,
        before: query.before,
        after: query.after,
        limit: limit(query.limit.as_deref())?,
    };
    state.ask(caller, request).await
}

#[derive(Deserialize)]
pub(super) struct ReadBody {
    last_read_seq: u64,
}

pub(super) async fn mark_read(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
    JsonOf(body): JsonOf<ReadBody>,
) -> Answer {
    let last_read_seq = body.last_read_seq;
    let request = Request::MarkRead { id, last_read_seq };
    state.ask(caller, request).await
}

#[derive(Deserialize)]
pub(super) struct ReceiptsQuery {
    seq: Option<u64>,
}

pub(super) async fn receipts(
    State(state): State<RestState>,
    caller: Caller,
    InConversation(id): InConversation,
    QueryOf(query): QueryOf<ReceiptsQuery>,
) -> Answer {
    let seq = query.seq;
    state.ask(caller, Request::Receipts { id, seq }).await
}

/// A call of the contract that this build does not answer.
pub(super) async fn not_implemented(_caller: Caller) -> Problem {
    Problem::new(Code::NotImplemented, "this call is not built yet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_loses_its_port_and_nothing_odd_comes_back() {
        for (host, name) in [
            ("chat.example:7410", "chat.example"),
            ("localhost", "localhost"),
            ("[::1]:7410", "[::1]"),
            ("[::1]", "[::1]"),
            ("", "127.0.0.1"),
            ("a\"b", "127.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(host_of(&headers), name, "{host}");
        }
        assert_eq!(host_of(&HeaderMap::new()), "127.0.0.1");
    }
}
