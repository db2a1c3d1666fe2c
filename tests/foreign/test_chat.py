"""The contract's promises, seen from Python's `websockets`."""
import json
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from chat import Session
from conftest import direct_id, mint, sign


def test_a_message_reaches_its_reader_and_its_sender_gets_the_ack(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a, Session(server, bob) as b:
        ack = a.said("héllo \U0001F600", "m1", to=bob)
        message = b.expect("message")
        assert ack["conversation_id"] == message["conversation_id"] == direct_id(alice, bob)
        assert ack["seq"] == message["seq"] == 1
        assert ack["message_id"] == message["message_id"] and ack["message_id"].isdigit()
        assert ack["status"] == "sent"
        assert message["content"] == "héllo \U0001F600"
        assert message["sender_id"] == alice and message["client_msg_id"] == "m1"
        assert message["content_type"] == "text/plain"
        a.quiet("message")


def test_connected_tells_the_limits(server, user):
    name = user("alice")
    with Session(server, name) as a:
        c = a.connected
        assert c["user_id"] == name and c["device_id"] == "d1" and c["session_id"]
        assert c["heartbeat_ms"] == 30000
        assert c["limits"] == {
            "max_content_chars": 1000, "max_frame_bytes": 65536, "send_rate": 20, "send_burst": 40}


def test_a_repeated_id_is_one_message(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a, Session(server, bob) as b:
        first = a.said("once", "m1", to=bob)
        again = a.said("once", "m1", conversation_id=first["conversation_id"])
        assert again["duplicate"] is True
        assert (again["message_id"], again["seq"]) == (first["message_id"], first["seq"])
        a.say("other", "m1", to=bob)
        assert a.expect("error")["code"] == "idempotency_conflict"
        b.expect("message")
        a.said("fence", "m2", to=bob)
        assert b.expect("message")["seq"] == 2


def test_equal_ids_of_two_users_are_two_messages(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a, Session(server, bob) as b:
        assert a.said("x", "same", to=bob)["seq"] == 1
        assert b.said("x", "same", to=alice)["seq"] == 2


@pytest.mark.parametrize("letter", ["a", "é", "語", "\U0001F600"])
def test_a_thousand_scalars_pass_and_one_more_does_not(server, user, letter):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a:
        a.said(letter * 1000, "fits", to=bob)
        a.say(letter * 1001, "over", to=bob)
        error = a.expect("error", client_msg_id="over")
        assert error["code"] == "too_large"
        a.send(type="fetch", conversation_id=direct_id(alice, bob))
        assert a.expect("page")["head_seq"] == 1


def test_sender_and_ids_given_by_the_client_are_ignored(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a, Session(server, bob) as b:
        a.send(type="send_message", to=bob, client_msg_id="m", content="x", sender_id=bob,
               message_id="1", seq=77, ts=1)
        ack = a.expect("ack")
        message = b.expect("message")
        assert message["sender_id"] == alice and ack["seq"] == 1 and ack["message_id"] != "1"


def test_bad_requests_leave_the_session_alive_and_echo_the_id(server, user):
    with Session(server, user("alice")) as a:
        for frame, code in [
            ({"type": "send_message", "to": "bob"}, "bad_request"),
            ({"type": "send_message", "client_msg_id": "c", "content": "x"}, "bad_request"),
            ({"type": "send_message", "client_msg_id": "c", "content": 5, "to": "bob"}, "bad_request"),
            ({"type": "send_message", "client_msg_id": "c" * 65, "content": "x", "to": "bob"}, "bad_request"),
            ({"type": "send_message", "client_msg_id": "c", "content": "", "to": "bob"}, "bad_request"),
            ({"type": "send_message", "client_msg_id": "c", "content": "x", "to": "no spaces"}, "bad_request"),
            ({"type": "fetch"}, "bad_request"),
            ({"type": "dance"}, "unknown_frame"),
            ({"type": "typing", "conversation_id": direct_id("x", "y"), "active": True}, "not_implemented"),
            ({"type": "watch", "users": ["bob"]}, "not_implemented"),
            ({"type": "fetch", "conversation_id": direct_id("x", "y")}, "not_found"),
        ]:
            a.send(id="q7", **frame)
            error = a.expect("error")
            assert (error["code"], error.get("id")) == (code, "q7"), frame
        a.send(type="ping", nonce="n", id="z")
        pong = a.expect("pong")
        assert pong["nonce"] == "n" and pong["id"] == "z"


def closed_with(socket):
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            socket.recv(timeout=10)
    return caught.value.rcvd.code


@pytest.mark.parametrize("payload, code", [
    ("not json", 4400), ("[1]", 4400), (b"\x01\x02", 1003), ("x" * 70000, 1009)])
def test_what_cannot_be_a_frame_closes(server, user, payload, code):
    session = Session(server, user("alice"))
    session.socket.send(payload)
    assert closed_with(session.socket) == code


def test_text_on_a_protobuf_session_closes(server, user):
    socket = connect(server.ws_url(access_token=mint(user("alice"))),
                     subprotocols=["trunkline.proto.v1"])
    assert socket.subprotocol == "trunkline.proto.v1"
    socket.send("text")
    assert closed_with(socket) == 1003


def test_tokens_are_checked(server, user):
    now = int(time.time())
    with connect(server.ws_url(access_token=sign({"sub": "fine", "exp": now + 60}), device_id="d")):
        pass
    for bad in [
        "garbage", sign({"sub": "a"}, secret="another secret, also of some length"),
        sign({"sub": "a", "exp": now - 1}), sign({"sub": "a"}, algorithm="none"),
        sign({"sub": "no spaces"}), sign({"exp": now + 60}), sign({"sub": "a", "nbf": now + 60})]:
        with pytest.raises(InvalidStatus) as caught:
            connect(server.ws_url(), additional_headers={"Authorization": "Bearer " + bad})
        assert caught.value.response.status_code == 401
        with connect(server.ws_url()) as socket:
            socket.send(json.dumps({"type": "connect", "device_id": "d", "token": bad}))
            assert json.loads(socket.recv(timeout=10))["code"] == "unauthorized"
            assert closed_with(socket) == 4401


def test_a_frame_before_connect_closes(server, user):
    socket = connect(server.ws_url(access_token=mint(user("a"))))
    socket.send(json.dumps({"type": "ping"}))
    assert json.loads(socket.recv(timeout=10))["code"] == "unauthorized"
    assert closed_with(socket) == 4401


def test_the_token_may_come_in_connect_or_in_the_query(server, user):
    name = user("alice")
    with connect(server.ws_url()) as socket:
        socket.send(json.dumps({"type": "connect", "device_id": "d", "token": mint(name)}))
        assert json.loads(socket.recv(timeout=10))["type"] == "connected"
    with connect(server.ws_url(access_token=mint(name), device_id="q")) as socket:
        connected = json.loads(socket.recv(timeout=10))
        assert connected["type"] == "connected" and connected["device_id"] == "q"


def test_a_newer_session_of_the_device_replaces_the_older(server, user):
    name = user("alice")
    old = Session(server, name, device="phone")
    with Session(server, name, device="phone"), Session(server, name, device="laptop") as laptop:
        assert closed_with(old.socket) == 4409
        laptop.quiet("error")


def test_every_device_of_both_sides_sees_the_message(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice, "a1") as a1, Session(server, alice, "a2") as a2, \
            Session(server, bob, "b1") as b1, Session(server, bob, "b2") as b2:
        ack = a1.said("hi", "m", to=bob)
        for session in (a2, b1, b2):
            assert session.expect("message")["message_id"] == ack["message_id"]
        a1.quiet("message")


def test_receipts_reach_the_sender_in_order_and_never_go_back(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a, Session(server, bob, "b1") as b, Session(server, bob, "b2") as b2:
        ids = [a.said(str(n), f"m{n}", to=bob)["seq"] for n in range(3)]
        conversation = direct_id(alice, bob)
        assert ids == [1, 2, 3]

        def mark(status, seq):
            b.send(type="receipt", conversation_id=conversation, seq=seq, status=status)

        mark("delivered", 2)
        got = a.expect("receipt")
        assert (got["user_id"], got["seq"], got["status"]) == (bob, 2, "delivered")
        mark("delivered", 2)
        mark("delivered", 1)
        mark("read", 99)
        got = a.expect("receipt")
        assert (got["seq"], got["status"]) == (3, "read")
        mark("read", 3)
        mark("delivered", 3)
        b.quiet("error")
        a.quiet("receipt")
        assert b2.expect("receipt", status="read")["seq"] == 3


def test_whoever_was_away_gets_all_of_it_in_order_once(server, user):
    alice, bob = user("alice"), user("bob")
    conversation = direct_id(alice, bob)
    with Session(server, alice) as a:
        for n in range(40):
            a.said(f"line {n}", f"m{n}", to=bob)
    with Session(server, bob) as b:
        b.send(type="sync", conversations=[], limit=15)
        got, after = [], 0
        while True:
            page = b.expect("page")
            b.expect("synced", conversations=1)
            got += page["messages"]
            assert page["head_seq"] == 40
            after = got[-1]["seq"]
            if not page["more"]:
                break
            b.send(type="sync", conversations=[{"conversation_id": conversation, "after_seq": after}], limit=15)
        assert [m["seq"] for m in got] == list(range(1, 41))
        assert [m["content"] for m in got] == [f"line {n}" for n in range(40)]
        b.send(type="receipt", conversation_id=conversation, seq=40, status="delivered")
        b.send(type="sync", conversations=[])
        assert b.expect("synced").get("conversations") == 0


def test_fetch_gives_exactly_the_range(server, user):
    alice, bob = user("alice"), user("bob")
    conversation = direct_id(alice, bob)
    with Session(server, alice) as a:
        for n in range(30):
            a.said("x", f"m{n}", to=bob)

        def fetch(**bounds):
            a.send(type="fetch", conversation_id=conversation, **bounds)
            page = a.expect("page")
            return [m["seq"] for m in page["messages"]], page["more"]

        assert fetch() == (list(range(1, 31)), False)
        assert fetch(limit=5) == (list(range(26, 31)), True)
        assert fetch(before=26, limit=5) == (list(range(21, 26)), True)
        assert fetch(before=3) == ([1, 2], False)
        assert fetch(after=10, before=14) == ([11, 12, 13], False)
        assert fetch(after=10, limit=3) == ([11, 12, 13], True)
        assert fetch(after=30) == ([], False)
        a.send(type="fetch", conversation_id=conversation, limit=0)
        assert a.expect("error")["code"] == "bad_request"


def test_sync_names_what_is_not_mine_and_goes_on(server, user):
    alice, bob, eve = user("alice"), user("bob"), user("eve")
    with Session(server, alice) as a, Session(server, eve) as e:
        a.said("secret", "m", to=bob)
        e.said("own", "m", to=bob)
        e.send(type="sync", id="s", conversations=[
            {"conversation_id": direct_id(alice, bob), "after_seq": 0},
            {"conversation_id": direct_id(eve, bob), "after_seq": 0}])
        error = e.expect("error")
        assert error["code"] == "not_a_member" and error["conversation_id"] == direct_id(alice, bob)
        assert e.expect("page")["conversation_id"] == direct_id(eve, bob)
        assert e.expect("synced")["conversations"] == 1
        e.say("intrude", "x", conversation_id=direct_id(alice, bob))
        assert e.expect("error")["code"] == "not_a_member"
        e.send(type="fetch", conversation_id=direct_id(alice, bob))
        assert e.expect("error")["code"] == "not_a_member"


def test_two_devices_share_one_rate_limit(server, user):
    alice, bob = user("alice"), user("bob")
    with Session(server, alice, "d1") as one, Session(server, alice, "d2") as two:
        for n in range(35):
            one.say("x", f"one{n}", to=bob)
            two.say("x", f"two{n}", to=bob)
        outcomes = []
        for session in (one, two):
            count = 0
            while count < 35:
                frame = session.next()
                if frame["type"] in ("ack", "error"):
                    count += 1
                    outcomes.append(frame)
        acks = [f for f in outcomes if f["type"] == "ack"]
        errors = [f for f in outcomes if f["type"] == "error"]
        assert 40 <= len(acks) < 60 and errors
        assert all(e["code"] == "rate_limited" and e["retry_after_ms"] > 0 for e in errors)


def test_a_protobuf_session_and_a_json_session_see_the_same_fields(server, user):
    import client_pb2
    alice, bob = user("alice"), user("bob")
    with Session(server, alice) as a, connect(
            server.ws_url(access_token=mint(bob), device_id="p"),
            subprotocols=["trunkline.proto.v1"]) as socket:
        first = client_pb2.ServerFrame.FromString(socket.recv(timeout=10))
        assert first.connected.user_id == bob
        ack = a.said("héllo", "m1", to=bob)
        while True:
            frame = client_pb2.ServerFrame.FromString(socket.recv(timeout=10))
            if frame.WhichOneof("frame") == "message":
                break
        m = frame.message
        assert (str(m.message_id), m.seq, m.ts) == (ack["message_id"], ack["seq"], ack["ts"])
        assert (m.sender_id, m.client_msg_id, m.content) == (alice, "m1", "héllo")
        reply = client_pb2.ClientFrame(id="9")
        reply.send_message.conversation_id = m.conversation_id
        reply.send_message.client_msg_id = "r1"
        reply.send_message.content = "back"
        socket.send(reply.SerializeToString())
        answer = client_pb2.ServerFrame.FromString(socket.recv(timeout=10))
        assert answer.id == "9" and answer.ack.seq == 2
        assert a.expect("message", seq=2)["content"] == "back"
