//! REST over real sockets, on the embedded store: the calls of the external contract, and that every
//! error is a problem of RFC 9457 with the right code.

mod support;

use serde_json::{Value, json};
use support::http::{Reply, User, call};
use support::{TestCore, core_config, rest_config, token};
use trunkline_core::rest::{Advertised, BODY_BYTES_MAX, RestConfig};
use trunkline_proto::ids::ConversationId;

async fn create_group(owner: &User, title: &str, members: &[&str]) -> Value {
    let body = json!({"kind": "group", "title": title, "members": members});
    let reply = owner.json("POST", "/v1/conversations", body).await;
    assert_eq!(reply.status, 201, "{reply:?}");
    reply.json()
}

async fn say(user: &User, conversation: &str, key: &str, content: &str) -> Reply {
    let body = json!({
        "conversation_id": conversation, "client_msg_id": key, "content": content
    });
    user.json("POST", "/v1/messages", body).await
}

fn id_of(conversation: &Value) -> String {
    conversation["conversation_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_direct_conversation_is_made_once() {
    let core = TestCore::start().await;
    let (alice, bob) = (User::new(core.http, "alice"), User::new(core.http, "bob"));
    let body = json!({"kind": "direct", "members": ["bob"], "unknown": [1]});
    let reply = alice.json("POST", "/v1/conversations", body.clone()).await;
    assert_eq!(reply.status, 201, "{reply:?}");
    let made = reply.json();
    assert_eq!(
        id_of(&made),
        ConversationId::direct("alice", "bob").to_string()
    );
    assert_eq!(made["kind"], "direct");
    assert_eq!(made["peer"], "bob");
    assert_eq!(made["member_count"], 2);
    let again = alice.json("POST", "/v1/conversations", body).await;
    assert_eq!(again.status, 200);
    let body = json!({"kind": "direct", "members": ["alice"]});
    let from_bob = bob.json("POST", "/v1/conversations", body).await;
    assert_eq!(from_bob.status, 200);
    assert_eq!(from_bob.json()["peer"], "alice");
    core.shutdown().await;
}

#[tokio::test]
async fn a_group_lives_from_its_making_to_its_deletion() {
    let core = TestCore::start().await;
    let (alice, bob) = (User::new(core.http, "alice"), User::new(core.http, "bob"));
    let made = create_group(&alice, "Tea", &["bob", "carol"]).await;
    assert_eq!(made["role"], "owner");
    assert_eq!(made["member_count"], 3);
    assert_eq!(made["head_seq"], 0);
    let path = format!("/v1/conversations/{}", id_of(&made));

    let seen = bob.get(&path).await.json();
    assert_eq!(
        (&seen["role"], &seen["title"]),
        (&json!("member"), &json!("Tea"))
    );
    bob.json("PATCH", &path, json!({"title": "Coffee"}))
        .await
        .assert_problem(403, "forbidden");
    let patched = alice.json("PATCH", &path, json!({"title": "Coffee"})).await;
    assert_eq!(patched.status, 200, "{patched:?}");
    assert_eq!(patched.json()["title"], "Coffee");

    let members = format!("{path}/members");
    let dave = format!("{members}/dave");
    assert_eq!(alice.send("PUT", &dave, b"").await.status, 204);
    let body = json!({"role": "admin"});
    assert_eq!(alice.json("PUT", &dave, body).await.status, 204);
    bob.send("PUT", &format!("{members}/eve"), b"")
        .await
        .assert_problem(403, "forbidden");
    let listed = alice.get(&members).await.json();
    let roles: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["user_id"].as_str().unwrap(), m["role"].as_str().unwrap()))
        .collect();
    assert_eq!(
        roles
            .iter()
            .copied()
            .collect::<std::collections::BTreeMap<_, _>>(),
        [
            ("alice", "owner"),
            ("bob", "member"),
            ("carol", "member"),
            ("dave", "admin")
        ]
        .into()
    );

    let leave = format!("{members}/bob");
    assert_eq!(bob.send("DELETE", &leave, b"").await.status, 204);
    say(&bob, &id_of(&made), "m1", "still here?")
        .await
        .assert_problem(403, "not_a_member");
    assert_eq!(alice.send("DELETE", &path, b"").await.status, 204);
    alice.get(&path).await.assert_problem(404, "not_found");
    core.shutdown().await;
}

#[tokio::test]
async fn members_are_listed_in_pages() {
    let core = TestCore::start().await;
    let alice = User::new(core.http, "alice");
    let made = create_group(&alice, "Many", &["b", "c", "d", "e"]).await;
    let path = format!("/v1/conversations/{}/members", id_of(&made));
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = alice
            .get(&format!("{path}?limit=2&cursor={cursor}"))
            .await
            .json();
        let items = page["items"].as_array().unwrap();
        assert!((1..=2).contains(&items.len()), "{page}");
        seen.extend(
            items
                .iter()
                .map(|m| m["user_id"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    seen.sort();
    assert_eq!(seen, ["alice", "b", "c", "d", "e"]);
    core.shutdown().await;
}

#[tokio::test]
async fn messages_are_sent_once_paged_and_read() {
    let core = TestCore::start().await;
    let (alice, bob) = (User::new(core.http, "alice"), User::new(core.http, "bob"));
    let conversation = ConversationId::direct("alice", "bob").to_string();
    let first = json!({"to": "bob", "client_msg_id": "m1", "content": "one"});
    let sent = alice.json("POST", "/v1/messages", first.clone()).await;
    assert_eq!(sent.status, 201, "{sent:?}");
    let ack = sent.json();
    assert_eq!((&ack["seq"], &ack["status"]), (&json!(1), &json!("sent")));
    assert!(ack["message_id"].is_string(), "{ack}");
    let again = alice.json("POST", "/v1/messages", first).await;
    assert_eq!(again.status, 200, "a duplicate");
    assert_eq!(again.json()["message_id"], ack["message_id"]);
    assert_eq!(again.json()["duplicate"], true);
    let problem = say(&alice, &conversation, "m1", "other")
        .await
        .assert_problem(409, "idempotency_conflict");
    assert_eq!(problem["client_msg_id"], "m1");
    for n in 2..=5 {
        let sent = say(&alice, &conversation, &format!("m{n}"), "more").await;
        assert_eq!(sent.json()["seq"], n);
    }

    let path = format!("/v1/conversations/{conversation}");
    let seqs = |page: &Value| -> Vec<u64> {
        let messages = page["messages"].as_array().unwrap();
        messages
            .iter()
            .map(|m| m["seq"].as_u64().unwrap())
            .collect()
    };
    let newest = bob.get(&format!("{path}/messages?limit=2")).await.json();
    assert_eq!(seqs(&newest), [4, 5]);
    assert_eq!(
        (&newest["head_seq"], &newest["more"]),
        (&json!(5), &json!(true))
    );
    let older = bob
        .get(&format!("{path}/messages?before=4&limit=2"))
        .await
        .json();
    assert_eq!(seqs(&older), [2, 3]);
    let after = bob.get(&format!("{path}/messages?after=3")).await.json();
    assert_eq!((seqs(&after), &after["more"]), (vec![4, 5], &json!(false)));
    assert_eq!(newest["messages"][0]["content"], "more");

    let listed = bob.get("/v1/conversations").await.json();
    let item = &listed["items"][0];
    assert_eq!((&item["unread"], &item["read_seq"]), (&json!(5), &json!(0)));
    assert_eq!(item["last_message"]["seq"], 5);
    let read = json!({"last_read_seq": 3});
    let reply = bob.json("POST", &format!("{path}/read"), read).await;
    assert_eq!(reply.status, 204, "{reply:?}");
    let receipts = alice.get(&format!("{path}/receipts?seq=3")).await.json();
    assert_eq!(receipts["read"], json!(["bob"]));
    assert_eq!(receipts["delivered"], json!(["bob"]));
    assert_eq!(receipts["watermarks"][0]["read_seq"], 3);
    let receipts = alice.get(&format!("{path}/receipts")).await.json();
    assert_eq!(
        (&receipts["seq"], &receipts["read"]),
        (&json!(5), &json!([]))
    );
    let item = bob.get("/v1/conversations").await.json()["items"][0].clone();
    assert_eq!(item["unread"], 2);
    core.shutdown().await;
}

#[tokio::test]
async fn a_list_of_conversations_comes_newest_first_in_pages() {
    let core = TestCore::start().await;
    let alice = User::new(core.http, "alice");
    let mut made = Vec::new();
    for n in 0..5 {
        made.push(id_of(
            &create_group(&alice, &format!("g{n}"), &["bob"]).await,
        ));
    }
    // Activity is told apart by the millisecond.
    let newest = alice.get("/v1/conversations?limit=1").await.json()["items"][0].clone();
    let made_at = newest["created_at"].as_u64().unwrap();
    support::eventually("a millisecond has passed", || support::unix_ms() > made_at).await;
    let sent = say(&alice, &made[1], "m1", "up to the top").await;
    assert_eq!(sent.status, 201, "{sent:?}");
    let page = alice.get("/v1/conversations?limit=2").await.json();
    assert_eq!(page["items"].as_array().unwrap().len(), 2);
    assert_eq!(id_of(&page["items"][0]), made[1]);
    let cursor = page["next_cursor"].as_str().unwrap().to_owned();
    let rest = alice
        .get(&format!("/v1/conversations?limit=200&cursor={cursor}"))
        .await
        .json();
    assert_eq!(rest["items"].as_array().unwrap().len(), 3);
    assert!(rest.get("next_cursor").is_none());
    core.shutdown().await;
}

#[tokio::test]
async fn without_a_good_token_nothing_is_answered() {
    let core = TestCore::start().await;
    let get = |path: &'static str, value: Option<String>| async move {
        let value = value.unwrap_or_default();
        let headers = [("Authorization", value.as_str())];
        let headers = if value.is_empty() {
            &headers[..0]
        } else {
            &headers
        };
        call(core.http, "GET", path, headers, b"").await
    };
    let reply = get("/v1/conversations", None).await;
    reply.assert_problem(401, "unauthorized");
    assert_eq!(
        reply.header("www-authenticate"),
        Some("Bearer realm=\"trunkline\"")
    );
    let expired =
        trunkline_identity::mint_at(support::SECRET, "alice", 1_000, std::time::Duration::ZERO);
    let foreign = trunkline_identity::mint("another secret", "alice", support::PATIENCE);
    for bad in [
        "Bearer x.y.z",
        "Basic YTpi",
        "Bearer",
        &format!("Bearer {expired}"),
        &format!("Bearer {foreign}"),
    ] {
        let reply = get("/v1/conversations", Some(bad.to_owned())).await;
        reply.assert_problem(401, "unauthorized");
        assert!(
            reply
                .header("www-authenticate")
                .unwrap()
                .contains("invalid_token"),
            "{bad}"
        );
    }
    let path = format!("/v1/conversations?access_token={}", token("alice"));
    let reply = call(core.http, "GET", &path, &[], b"").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    core.shutdown().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_as_a_problem() {
    let core = TestCore::start().await;
    let alice = User::new(core.http, "alice");
    alice
        .get("/v1/nothing")
        .await
        .assert_problem(404, "not_found");
    alice
        .get("/nothing.js")
        .await
        .assert_problem(404, "not_found");
    let reply = alice.send("DELETE", "/v1/config", b"").await;
    reply.assert_problem(405, "bad_request");
    assert_eq!(reply.header("allow"), Some("GET,HEAD"));

    for body in [
        &b"{"[..],
        b"[]",
        b"null",
        b"\xff",
        b"",
        b"{\"kind\":7}",
        b"{\"kind\":\"x\"}",
    ] {
        let reply = alice.send("POST", "/v1/conversations", body).await;
        reply.assert_problem(400, "bad_request");
    }
    let bad_member = json!({"kind": "group", "members": ["white space"]});
    alice
        .json("POST", "/v1/conversations", bad_member)
        .await
        .assert_problem(400, "bad_request");
    for limit in ["0", "-1", "x", ""] {
        let path = format!("/v1/conversations?limit={limit}");
        alice.get(&path).await.assert_problem(400, "bad_request");
    }
    let reply = alice
        .get("/v1/conversations?limit=99999999999999999999")
        .await;
    assert_eq!(reply.status, 200, "clamped");

    let nobody = ConversationId::direct("x", "y");
    for path in [
        "/v1/conversations/CA3ECE1F-0478-587E-AB74-78AF8C811A22".to_owned(),
        "/v1/conversations/nonsense/messages".to_owned(),
        format!("/v1/conversations/{nobody}/messages?before=x"),
        format!("/v1/conversations/{nobody}/receipts?seq=-1"),
    ] {
        alice.get(&path).await.assert_problem(400, "bad_request");
    }
    let path = format!("/v1/conversations/{nobody}/members/a%2Fb");
    alice
        .send("PUT", &path, b"")
        .await
        .assert_problem(400, "bad_request");
    let path = format!("/v1/conversations/{nobody}/members/bob");
    let body = json!({"role": "king"});
    alice
        .json("PUT", &path, body)
        .await
        .assert_problem(400, "bad_request");
    let reply = alice.get(&format!("/v1/conversations/{nobody}")).await;
    assert!(matches!(reply.status, 403 | 404), "{reply:?}");

    let long = vec![b' '; BODY_BYTES_MAX + 1];
    alice
        .send("POST", "/v1/messages", &long)
        .await
        .assert_problem(413, "too_large");
    let content = json!({"to": "bob", "client_msg_id": "m", "content": "x".repeat(1_001)});
    alice
        .json("POST", "/v1/messages", content)
        .await
        .assert_problem(413, "too_large");
    core.shutdown().await;
}

#[tokio::test]
async fn calls_that_are_not_built_say_so_to_those_who_may_ask() {
    let core = TestCore::start().await;
    let alice = User::new(core.http, "alice");
    for (method, path) in [
        ("GET", "/v1/history/bob"),
        ("GET", "/v1/chat/bob"),
        ("GET", "/v1/users/bob/status"),
        ("GET", "/v1/user/settings"),
        ("PUT", "/v1/user/settings"),
        ("POST", "/v1/media"),
        ("PUT", "/v1/devices/phone"),
        ("DELETE", "/v1/devices/phone"),
    ] {
        let reply = alice.send(method, path, b"").await;
        reply.assert_problem(501, "not_implemented");
        let reply = call(core.http, method, path, &[], b"").await;
        reply.assert_problem(401, "unauthorized");
    }
    core.shutdown().await;
}

#[tokio::test]
async fn the_rate_limit_says_when_to_try_again() {
    let mut config = core_config();
    config.engine.send_rate = 1;
    config.engine.send_burst = 2;
    let core = TestCore::with(config, rest_config()).await;
    let alice = User::new(core.http, "alice");
    let conversation = ConversationId::direct("alice", "bob").to_string();
    let first = json!({"to": "bob", "client_msg_id": "m0", "content": "x"});
    assert_eq!(alice.json("POST", "/v1/messages", first).await.status, 201);
    let mut replies = Vec::new();
    for n in 1..=3 {
        replies.push(say(&alice, &conversation, &format!("m{n}"), "x").await);
    }
    let limited = replies.iter().find(|r| r.status == 429).expect("limited");
    let problem = limited.assert_problem(429, "rate_limited");
    assert!(
        problem["retry_after_ms"].as_u64().unwrap() <= 1_000,
        "{problem}"
    );
    assert_eq!(limited.header("retry-after"), Some("1"));
    core.shutdown().await;
}

#[tokio::test]
async fn the_config_tells_where_the_transports_are() {
    let rest = RestConfig {
        websocket: Advertised::Port(17_400),
        tcp: Advertised::Url("edge.example:9".into()),
        send_rate: 7,
        ..rest_config()
    };
    let core = TestCore::with(core_config(), rest).await;
    let reply = call(core.http, "GET", "/v1/config", &[], b"").await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.json(),
        json!({
            "transports": {
                "websocket": "ws://127.0.0.1:17400/v1/connect",
                "tcp": "edge.example:9",
            },
            "limits": {
                "max_content_chars": 1000, "max_frame_bytes": 65536, "send_rate": 7,
                "send_burst": 40, "group_members_max": 500, "sessions_per_user_max": 8,
            },
            "heartbeat_ms": 30000,
            "dev_tokens": true,
        })
    );
    core.shutdown().await;
}

#[tokio::test]
async fn development_tokens_work_only_when_they_are_on() {
    let core = TestCore::start().await;
    let path = "/v1/dev/token?user=alice";
    let reply = call(core.http, "GET", path, &[], b"").await;
    let token = reply.json()["token"].as_str().unwrap().to_owned();
    let headers = [("Authorization", &*format!("bearer {token}"))];
    let reply = call(core.http, "GET", "/v1/conversations", &headers, b"").await;
    assert_eq!((reply.status, reply.json()), (200, json!({"items": []})));
    for path in [
        "/v1/dev/token",
        "/v1/dev/token?user=",
        "/v1/dev/token?user=a%20b",
    ] {
        let reply = call(core.http, "GET", path, &[], b"").await;
        reply.assert_problem(400, "bad_request");
    }
    core.shutdown().await;

    let rest = RestConfig {
        dev_token_secret: None,
        ..rest_config()
    };
    let core = TestCore::with(core_config(), rest).await;
    let reply = call(core.http, "GET", path, &[], b"").await;
    reply.assert_problem(404, "not_found");
    core.shutdown().await;
}

#[tokio::test]
async fn foreign_origins_may_call_only_when_they_are_named() {
    let rest = RestConfig {
        cors_origins: vec!["https://app.example".into()],
        ..rest_config()
    };
    let core = TestCore::with(core_config(), rest).await;
    let preflight = |origin: &'static str| async move {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
        ];
        call(core.http, "OPTIONS", "/v1/messages", &headers, b"").await
    };
    let reply = preflight("https://app.example").await;
    assert_eq!(reply.status, 204);
    let allowed = reply.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://app.example"));
    let headers = reply.header("access-control-allow-headers").unwrap();
    assert!(headers.contains("Authorization"), "{headers}");
    let reply = preflight("https://evil.example").await;
    reply.assert_problem(405, "bad_request");
    assert_eq!(reply.header("access-control-allow-origin"), None);

    // Errors carry it too: else a browser hides them from the page.
    let headers = [("Origin", "https://app.example")];
    let reply = call(core.http, "GET", "/v1/conversations", &headers, b"").await;
    reply.assert_problem(401, "unauthorized");
    let allowed = reply.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://app.example"));
    assert_eq!(reply.header("vary"), Some("Origin"));
    core.shutdown().await;
}

#[tokio::test]
async fn the_demo_page_comes_with_types_tags_and_a_strict_policy() {
    let core = TestCore::start().await;
    let page = call(core.http, "GET", "/", &[], b"").await;
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(page.header("cache-control"), Some("no-cache"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'self'; connect-src 'self' ws: wss:"));
    let etag = page.header("etag").unwrap();
    let known = [("If-None-Match", etag)];
    let unchanged = call(core.http, "GET", "/index.html", &known, b"").await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    let script = call(core.http, "GET", "/app.js", &[], b"").await;
    let content_type = script.header("content-type");
    assert_eq!(content_type, Some("text/javascript; charset=utf-8"));
    let head = call(core.http, "HEAD", "/style.css", &[], b"").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let posted = call(core.http, "POST", "/index.html", &[], b"").await;
    posted.assert_problem(405, "bad_request");
    core.shutdown().await;
}

#[tokio::test]
async fn the_admin_pages_tell_how_it_is() {
    let mut core = TestCore::start().await;
    let alice = User::new(core.http, "alice");
    let body = json!({"to": "bob", "client_msg_id": "m", "content": "x"});
    assert_eq!(alice.json("POST", "/v1/messages", body).await.status, 201);
    let admin = core.admin;
    let get = |path: &'static str| call(admin, "GET", path, &[], b"");
    assert_eq!(get("/healthz").await.status, 200);
    assert_eq!(get("/readyz").await.status, 200);
    assert_eq!(get("/debug/edges").await.json(), json!([]));
    get("/nothing").await.assert_problem(404, "not_found");
    let reply = get("/metrics").await;
    let kind = reply.header("content-type").unwrap().to_owned();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = reply.text();
    let described = "# TYPE trunkline_core_store_messages_total counter";
    assert!(text.lines().any(|l| l == described), "{text}");
    let ours = |line: &str| line.starts_with('#') || line.starts_with("trunkline_core_");
    assert!(text.lines().all(ours), "{text}");
    for line in [
        "trunkline_core_commit_messages_sum 1.0",
        "trunkline_core_store_messages_total 1",
        "trunkline_core_http_requests_total{method=\"POST\",route=\"/v1/messages\",status=\"201\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    core.drain().await;
    let reply = get("/readyz").await;
    assert_eq!((reply.status, reply.text().as_str()), (503, "draining\n"));
    assert_eq!(get("/healthz").await.status, 200);
    let reply = alice.get("/v1/conversations").await;
    reply.assert_problem(503, "unavailable");
    assert_eq!(reply.header("retry-after"), Some("1"));
    core.shutdown().await;
}
