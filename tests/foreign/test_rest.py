"""The REST side, by `curl`."""
import json
import subprocess
import uuid

import pytest

from chat import Session
from conftest import Server, direct_id, mint


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.text = status, headers, body
        self.json = json.loads(body) if body and "json" in headers.get("content-type", "") else None


def curl(server, method, path, user=None, body=None, raw=None, headers=()):
    command = ["curl", "-sS", "-i", "-X", method, server.http_url(path), "--max-time", "15"]
    if user:
        command += ["-H", "Authorization: Bearer " + mint(user)]
    for header in headers:
        command += ["-H", header]
    if body is not None or raw is not None:
        command += ["-H", "Content-Type: application/json", "--data-binary", "@-"]
    data = raw if raw is not None else json.dumps(body) if body is not None else None
    out = subprocess.run(command, input=data, capture_output=True, text=True, check=True).stdout
    head, _, text = out.replace("\r\n", "\n").partition("\n\n")
    lines = head.split("\n")
    return Answer(int(lines[0].split()[1]),
                  {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}, text)


def problem(answer, status, code):
    assert (answer.status, answer.json["code"]) == (status, code), answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert answer.json["title"] and answer.json["status"] == status


def test_config_needs_no_token_and_tells_where_things_are(server):
    answer = curl(server, "GET", "/v1/config")
    assert answer.status == 200
    assert answer.json["transports"]["websocket"] == server.ws_url()
    assert answer.json["limits"]["max_content_chars"] == 1000


def test_the_page_is_served(server):
    answer = curl(server, "GET", "/")
    assert answer.status == 200 and "text/html" in answer.headers["content-type"]
    assert "content-security-policy" in answer.headers
    assert curl(server, "GET", "/trunkline.js").status == 200


def test_tokens_are_checked(server, user):
    problem(curl(server, "GET", "/v1/conversations"), 401, "unauthorized")
    problem(curl(server, "GET", "/v1/conversations", headers=["Authorization: Bearer x"]), 401, "unauthorized")


def test_a_post_is_a_send_with_the_same_dedup(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a, Session(server, bob) as b:
        ack = a.said("once", "m1", to=bob)
        body = {"to": bob, "client_msg_id": "m1", "content": "once"}
        again = curl(server, "POST", "/v1/messages", alice, body)
        assert again.status == 200
        assert again.json["message_id"] == ack["message_id"] and again.json["duplicate"] is True
        new = curl(server, "POST", "/v1/messages", alice, {**body, "client_msg_id": "m2"})
        assert new.status == 201 and new.json["seq"] == 2
        assert a.expect("message", seq=2)["client_msg_id"] == "m2"
        b.expect("message", seq=2)
        problem(curl(server, "POST", "/v1/messages", alice, {**body, "content": "other"}), 409, "idempotency_conflict")
        problem(curl(server, "POST", "/v1/messages", alice,
                     {**body, "client_msg_id": "m3", "content": "x" * 1001}), 413, "too_large")
        problem(curl(server, "POST", "/v1/messages", alice, raw="{"), 400, "bad_request")
        problem(curl(server, "POST", "/v1/messages", alice, {"content": 7}), 400, "bad_request")


def test_direct_conversations_are_idempotent(server, user):
    alice, bob = user("alice"), user("bob")
    first = curl(server, "POST", "/v1/conversations", alice, {"kind": "direct", "members": [bob]})
    assert first.status == 201 and first.json["conversation_id"] == direct_id(alice, bob)
    second = curl(server, "POST", "/v1/conversations", bob, {"kind": "direct", "members": [alice]})
    assert second.status == 200 and second.json["conversation_id"] == first.json["conversation_id"]


def test_a_groups_life(server, user):
    owner, ann, bob, eve = user("owner"), user("ann"), user("bob"), user("eve")
    with Session(server, ann) as a, Session(server, eve) as e:
        made = curl(server, "POST", "/v1/conversations", owner,
                    {"kind": "group", "title": "The group", "members": [ann, bob]})
        assert made.status == 201 and made.json["role"] == "owner" and made.json["member_count"] == 3
        group = made.json["conversation_id"]
        assert uuid.UUID(group).version == 7
        path = f"/v1/conversations/{group}"
        frame = a.expect("conversation", conversation_id=group)
        assert frame["title"] == "The group" and frame["kind"] == "group"
        assert sorted(frame["members_added"]) == sorted([owner, ann, bob])

        for n in range(3):
            curl(server, "POST", "/v1/messages", owner, {
                "conversation_id": group, "client_msg_id": f"m{n}", "content": str(n)})
        assert [a.expect("message")["seq"] for _ in range(3)] == [1, 2, 3]
        e.quiet("message")

        problem(curl(server, "PUT", f"{path}/members/{eve}", ann), 403, "forbidden")
        problem(curl(server, "GET", path, eve), 403, "not_a_member")
        assert curl(server, "PUT", f"{path}/members/{eve}", owner).status == 204
        frame = e.expect("conversation", conversation_id=group)
        assert frame["members_added"] == [eve] and frame["head_seq"] == 3
        assert curl(server, "GET", f"{path}/messages", eve).json["messages"] == []

        curl(server, "POST", "/v1/messages", bob, {"conversation_id": group, "client_msg_id": "b", "content": "4"})
        assert e.expect("message")["seq"] == 4
        assert curl(server, "DELETE", f"{path}/members/{eve}", owner).status == 204
        assert e.expect("conversation")["members_removed"] == [eve]
        curl(server, "POST", "/v1/messages", bob, {"conversation_id": group, "client_msg_id": "b2", "content": "5"})
        assert a.expect("message", seq=5)
        e.quiet("message")
        seen = curl(server, "GET", f"{path}/messages", eve).json
        assert [m["seq"] for m in seen["messages"]] == [4]
        e.say("still here?", "x", conversation_id=group)
        assert e.expect("error")["code"] == "not_a_member"

        members = curl(server, "GET", f"{path}/members", ann).json["items"]
        assert {m["user_id"]: m["role"] for m in members} == {owner: "owner", ann: "member", bob: "member"}
        assert curl(server, "PATCH", path, owner, {"title": "New"}).status == 200
        assert a.expect("conversation", title="New")["version"] > frame["version"]
        problem(curl(server, "PATCH", path, bob, {"title": "mine"}), 403, "forbidden")
        assert curl(server, "DELETE", f"{path}/members/{bob}", bob).status == 204
        problem(curl(server, "DELETE", path, ann), 403, "forbidden")
        assert curl(server, "DELETE", path, owner).status in (200, 204)
        problem(curl(server, "GET", path, owner), 404, "not_found")


def test_a_full_group_says_so():
    server = Server("--group-members-max", "5").start()
    try:
        made = curl(server, "POST", "/v1/conversations", "o", {
            "kind": "group", "title": "t", "members": ["a", "b", "c", "d"]})
        assert made.status == 201
        path = f"/v1/conversations/{made.json['conversation_id']}/members"
        problem(curl(server, "PUT", f"{path}/e", "o"), 409, "group_full")
        problem(curl(server, "POST", "/v1/conversations", "o", {
            "kind": "group", "title": "t", "members": ["a", "b", "c", "d", "e"]}), 409, "group_full")
    finally:
        assert server.stop() == 0


def test_the_list_has_unread_and_the_last_message_newest_first(server, user):
    alice, bob, carol = user("alice"), user("bob"), user("carol")
    for who in (bob, carol, bob):
        curl(server, "POST", "/v1/messages", who, {
            "to": alice, "client_msg_id": str(uuid.uuid4()), "content": f"from {who}"})
    items = curl(server, "GET", "/v1/conversations", alice).json["items"]
    assert [(i["conversation_id"], i["unread"]) for i in items] == [
        (direct_id(alice, bob), 2), (direct_id(alice, carol), 1)]
    assert items[0]["last_message"]["content"] == f"from {bob}"
    first = curl(server, "GET", "/v1/conversations?limit=1", alice).json
    assert len(first["items"]) == 1
    second = curl(server, "GET", f"/v1/conversations?limit=1&cursor={first['next_cursor']}", alice).json
    assert second["items"][0]["conversation_id"] == direct_id(alice, carol)
    path = f"/v1/conversations/{direct_id(alice, bob)}"
    assert curl(server, "POST", f"{path}/read", alice, {"last_read_seq": 1}).status == 204
    assert curl(server, "GET", "/v1/conversations", alice).json["items"][0]["unread"] == 1
    receipts = curl(server, "GET", f"{path}/receipts?seq=1", bob).json
    assert receipts["read"] == [alice] and receipts["delivered"] == [alice]
    assert curl(server, "GET", f"{path}/receipts?seq=2", bob).json["read"] == []
    for bad in ("0", "-1", "x"):
        problem(curl(server, "GET", f"/v1/conversations?limit={bad}", alice), 400, "bad_request")
    assert curl(server, "GET", "/v1/conversations?limit=9999", alice).status == 200


def test_read_over_rest_is_the_same_as_on_the_socket(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a, Session(server, bob) as b:
        a.said("x", "m", to=bob)
        assert curl(server, "POST", f"/v1/conversations/{direct_id(alice, bob)}/read", bob,
                    {"last_read_seq": 1}).status == 204
        assert a.expect("receipt")["status"] == "read"
        assert b.expect("receipt")["user_id"] == bob


def test_history_is_for_members_only_on_every_path(server, user):
    alice, bob, eve = user("alice"), user("bob"), user("eve")
    curl(server, "POST", "/v1/messages", alice, {"to": bob, "client_msg_id": "m", "content": "x"})
    path = f"/v1/conversations/{direct_id(alice, bob)}"
    for method, tail, body in [
        ("GET", "", None), ("GET", "/messages", None), ("GET", "/members", None),
        ("GET", "/receipts?seq=1", None), ("POST", "/read", {"last_read_seq": 1})]:
        problem(curl(server, method, path + tail, eve, body), 403, "not_a_member")
    problem(curl(server, "GET", f"/v1/conversations/{uuid.uuid4()}", eve), 404, "not_found")


@pytest.mark.parametrize("method, path", [
    ("GET", "/v1/history/bob"), ("GET", f"/v1/chat/{uuid.uuid4()}"), ("GET", "/v1/users/bob/status"),
    ("GET", "/v1/user/settings"), ("POST", "/v1/media"), ("PUT", "/v1/devices/d")])
def test_what_is_not_built_says_so(server, user, method, path):
    problem(curl(server, method, path, user("a"), body={} if method != "GET" else None), 501, "not_implemented")


def test_unknown_paths_and_methods_are_problems(server, user):
    problem(curl(server, "GET", "/v1/nowhere", user("a")), 404, "not_found")
    assert curl(server, "DELETE", "/v1/config").status == 405


def test_a_development_token_works_for_a_development_server():
    server = Server("--dev-tokens").start()
    try:
        token = curl(server, "GET", "/v1/dev/token?user=alice").json["token"]
        answer = curl(server, "GET", "/v1/conversations", headers=[f"Authorization: Bearer {token}"])
        assert answer.status == 200 and answer.json["items"] == []
        problem(curl(server, "GET", "/v1/dev/token?user=no%20spaces"), 400, "bad_request")
    finally:
        assert server.stop() == 0
