//! The few REST calls that the tests make, blocking and plain.

use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use trunkline_identity::mint;

use crate::process::{SECRET, Server};

/// A client that reports an error status as an answer, not as an error.
pub fn agent() -> &'static ureq::Agent {
    static AGENT: LazyLock<ureq::Agent> = LazyLock::new(|| {
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(15)))
            .max_idle_connections(0)
            .build()
            .into()
    });
    &AGENT
}

/// A token for a day.
pub fn token(user: &str) -> String {
    mint(SECRET, user, Duration::from_secs(86_400))
}

/// GET as `user`; status and JSON.
pub fn get(server: &Server, user: &str, path: &str) -> (u16, Value) {
    let url = format!("http://{}{path}", server.address("http"));
    let answer = agent()
        .get(url)
        .header("Authorization", format!("Bearer {}", token(user)))
        .call();
    read(answer)
}

/// POST as `user`; status and JSON.
pub fn post(server: &Server, user: &str, path: &str, body: &Value) -> (u16, Value) {
    let url = format!("http://{}{path}", server.address("http"));
    let answer = agent()
        .post(url)
        .header("Authorization", format!("Bearer {}", token(user)))
        .send_json(body);
    read(answer)
}

/// PUT or DELETE as `user`, without a body; status and JSON.
pub fn change(server: &Server, method: &str, user: &str, path: &str) -> (u16, Value) {
    let request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("http://{}{path}", server.address("http")))
        .header("Authorization", format!("Bearer {}", token(user)))
        .header("Content-Type", "application/json")
        .body("{}")
        .expect("a request");
    read(agent().run(request))
}

fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, Value) {
    let mut answer = answer.expect("an answer");
    let status = answer.status().as_u16();
    let text = answer
        .body_mut()
        .read_to_string()
        .expect("a readable answer");
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// Creates a group owned by the first member; its conversation id.
pub fn create_group(server: &Server, members: &[&str]) -> String {
    let body = serde_json::json!({"kind": "group", "title": "a group", "members": members});
    let (status, answer) = post(server, members[0], "/v1/conversations", &body);
    assert_eq!(status, 201, "{answer}");
    answer["conversation_id"]
        .as_str()
        .expect("an id")
        .to_owned()
}

/// One stored message as history shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub seq: u64,
    pub message_id: u64,
    pub sender: String,
    pub client_msg_id: String,
    pub content: String,
}

/// The whole history of a conversation as `user` sees it, read upwards in pages.
pub fn history(server: &Server, user: &str, conversation: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let after = rows.last().map_or(0, |r| r.seq);
        let path = format!("/v1/conversations/{conversation}/messages?after={after}&limit=200");
        let (status, page) = get(server, user, &path);
        assert_eq!(status, 200, "{page}");
        let messages = page["messages"].as_array().expect("messages");
        rows.extend(messages.iter().map(|m| {
            Row {
                seq: m["seq"].as_u64().expect("a seq"),
                message_id: m["message_id"]
                    .as_str()
                    .and_then(|t| t.parse().ok())
                    .expect("an id"),
                sender: m["sender_id"].as_str().expect("a sender").to_owned(),
                client_msg_id: m["client_msg_id"].as_str().expect("an id").to_owned(),
                content: m["content"].as_str().expect("content").to_owned(),
            }
        }));
        if page["more"] != Value::Bool(true) {
            return rows;
        }
    }
}
