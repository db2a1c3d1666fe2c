"""Bad, odd and hostile bytes: the right close code, nothing leaked, nobody else disturbed."""
import json
import os
import socket
import threading
import time

import pytest

from chat import Session
from conftest import Server, eventually, mint
from wire import RawSocket, RawTcp, dial, masked, upgrade_request, varint

PING = json.dumps({"type": "ping", "nonce": "n"}).encode()


def pong_of(raw):
    while True:
        opcode, payload = raw.frame()
        if opcode == 1 and json.loads(payload)["type"] == "pong":
            return json.loads(payload)


def test_frames_split_at_every_byte(server, user):
    raw = RawSocket(server, user("alice"))
    raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    frame = masked(1, PING)
    for cut in range(1, len(frame)):
        raw.socket.sendall(frame[:cut])
        time.sleep(0.001)
        raw.socket.sendall(frame[cut:])
        assert pong_of(raw)["nonce"] == "n"
    for byte in frame:
        raw.socket.sendall(bytes([byte]))
    assert pong_of(raw)["nonce"] == "n"


def test_pipelined_frames_are_all_answered(server, user):
    raw = RawSocket(server, user("alice"))
    raw.socket.sendall(b"".join(masked(1, PING) for _ in range(500)))
    for _ in range(500):
        pong_of(raw)


def test_frames_behind_the_handshake_in_one_segment(server, user):
    s = dial(server.address("ws"))
    s.sendall(upgrade_request(server, user("alice"), query="?device_id=d") + masked(1, PING))
    raw = object.__new__(RawSocket)
    raw.socket, raw.buffer = s, b""
    raw.until(b"\r\n\r\n")
    assert pong_of(raw)["nonce"] == "n"


def test_fragments_with_pings_in_between(server, user):
    raw = RawSocket(server, user("alice"))
    raw.socket.sendall(masked(1, PING[:5], fin=False))
    raw.socket.sendall(masked(9, b"are you there"))
    raw.socket.sendall(masked(0, PING[5:9], fin=False))
    raw.socket.sendall(masked(0, PING[9:]))
    seen = []
    while len(seen) < 2:
        opcode, payload = raw.frame()
        if opcode == 10:
            seen.append(payload)
        elif json.loads(payload)["type"] == "pong":
            seen.append(json.loads(payload)["nonce"])
    assert seen == [b"are you there", "n"]


@pytest.mark.parametrize("name, data, code", [
    ("unmasked", masked(1, PING, mask=False), 1002),
    ("reserved bit", masked(1, PING, rsv=4), 1002),
    ("reserved opcode", masked(3, b""), 1002),
    ("long ping", masked(9, b"x" * 126), 1002),
    ("fragmented ping", masked(9, b"", fin=False), 1002),
    ("continuation of nothing", masked(0, b"x"), 1002),
    ("bad utf-8", masked(1, b'{"type":"\xc3\x28"}'), 1007),
    ("bad utf-8 in a fragment", masked(1, b"\xc3", fin=False) + masked(0, b"\x28"), 1007),
    ("over the limit", masked(1, b"x" * 65537), 1009),
    ("over the limit in fragments", masked(1, b"x" * 40000, fin=False) + masked(0, b"x" * 40000), 1009),
    ("declared 2^62 bytes", bytes([0x81, 0xFF]) + (1 << 62).to_bytes(8, "big") + b"mask", 1009),
    ("binary on json", masked(2, b"x"), 1003),
    ("not json", masked(1, b"{"), 4400),
    ("a close with one byte", masked(8, b"x"), 1002),
    ("a close with 1005", masked(8, (1005).to_bytes(2, "big")), 1002),
    ("a normal close", masked(8, (1000).to_bytes(2, "big") + b"bye"), 1000),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_breaks_the_rules_gets_its_code(server, user, name, data, code):
    raw = RawSocket(server, user("alice"))
    raw.socket.sendall(data)
    assert raw.close_code() == code, name


def test_a_frame_at_the_limit_is_taken(server, user):
    raw = RawSocket(server, user("alice"))
    body = {"type": "ping", "nonce": "n", "padding": ""}
    body["padding"] = "x" * (65536 - len(json.dumps(body)))
    text = json.dumps(body).encode()
    assert len(text) == 65536
    raw.socket.sendall(masked(1, text))
    assert pong_of(raw)["nonce"] == "n"


@pytest.mark.parametrize("request_text, status", [
    (b"GET /v1/connect HTTP/1.1\r\nHost: x\r\n\r\n", (400, 426)),
    (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", (404,)),
    (b"POST /v1/connect HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi", (405,)),
    (b"garbage\r\n\r\n", (400,)),
    (b"GET /v1/connect HTTP/1.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n", (431,)),
    (b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
     b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 12\r\n\r\n", (426,)),
    (b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
     b"Sec-WebSocket-Key: short\r\nSec-WebSocket-Version: 13\r\n\r\n", (400,)),
], ids=range(7))
def test_http_that_is_no_upgrade_gets_an_answer(server, request_text, status):
    s = dial(server.address("ws"))
    s.sendall(request_text)
    answer = b""
    while chunk := s.recv(65536):
        answer += chunk
    assert answer.startswith(b"HTTP/1.1 "), answer
    assert int(answer.split()[1]) in status
    assert answer.split(b"\r\n\r\n", 1)[1], "an error explains itself"


def test_garbage_on_the_tcp_port_gets_an_error_and_the_end(server):
    for garbage in [b"\x08" + os.urandom(8) + b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n" * 20, b"\xff" * 64]:
        raw = RawTcp(server)
        raw.socket.sendall(garbage)
        frame = raw.receive()
        assert frame.error.close_code in (4400, 4401, 1009), frame
        assert raw.receive() is None


def test_a_tcp_session_speaks_with_a_websocket_session(server, user):
    import client_pb2
    alice, bob = user("alice"), user("bob")
    tcp = RawTcp(server)
    hello = client_pb2.ClientFrame(id="1")
    hello.connect.token, hello.connect.device_id = mint(bob), "t"
    tcp.send(hello)
    answer = tcp.receive()
    assert answer.id == "1" and answer.connected.user_id == bob
    with Session(server, alice) as a:
        ack = a.said("over", "m1", to=bob)
        frame = tcp.receive()
        while frame.WhichOneof("frame") != "message":
            frame = tcp.receive()
        assert frame.message.content == "over" and str(frame.message.message_id) == ack["message_id"]
        body = client_pb2.ClientFrame()
        body.send_message.to, body.send_message.client_msg_id = alice, "r"
        body.send_message.content = "back"
        data = body.SerializeToString()
        for byte in varint(len(data)) + data:
            tcp.socket.sendall(bytes([byte]))
        assert tcp.receive().ack.seq == 2
        assert a.expect("message")["content"] == "back"
        tcp.send(client_pb2.ClientFrame(heartbeat=client_pb2.Heartbeat()))
        tcp.send(client_pb2.ClientFrame(ping=client_pb2.Ping(nonce="x")))
        assert tcp.receive().pong.nonce == "x"


def test_a_bad_token_on_tcp_ends_with_4401(server, user):
    import client_pb2
    tcp = RawTcp(server)
    hello = client_pb2.ClientFrame()
    hello.connect.token, hello.connect.device_id = "garbage", "t"
    tcp.send(hello)
    frame = tcp.receive()
    assert frame.error.code == "unauthorized" and frame.error.close_code == 4401
    assert tcp.receive() is None


def test_slow_handshakes_are_ended_and_leave_nothing_behind():
    server = Server().start()
    try:
        idle = [dial(server.address("ws")) for _ in range(50)]
        dripping = [dial(server.address("ws")) for _ in range(50)]
        silent_tcp = [dial(server.address("tcp")) for _ in range(20)]
        start = time.monotonic()
        text = upgrade_request(server, "slow")
        for position in range(0, 12):
            for s in dripping:
                try:
                    s.sendall(text[position:position + 1])
                except OSError:
                    pass
            time.sleep(1)
        for s in idle + dripping:
            s.settimeout(15)
            try:
                data = s.recv(65536)
                while data and s.recv(65536):
                    pass
            except ConnectionError:
                pass
        assert time.monotonic() - start < 30
        for s in silent_tcp:
            answer = RawTcp.__new__(RawTcp)
            answer.socket, answer.buffer = s, b""
            assert answer.receive().error.close_code == 4408
            assert answer.receive() is None
        for s in idle + dripping + silent_tcp:
            s.close()
        eventually(lambda: sockets_of(server) == 0, "all sockets gone")
    finally:
        assert server.stop() == 0


def sockets_of(server):
    import urllib.request
    live = json.loads(urllib.request.urlopen(
        server.admin_url("/debug/conns?state=live"), timeout=5).read())
    return len(live["connections"])


def descriptors(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def resident_kib(server):
    for line in open(f"/proc/{server.process.pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_abuse_leaks_neither_slots_nor_descriptors_nor_memory():
    server = Server("--connect-rate", "0").start()
    try:
        def abuse(rounds):
            for n in range(rounds):
                for data in [b"garbage\r\n\r\n", b"", upgrade_request(server, "x")[:50]]:
                    s = dial(server.address("ws"))
                    s.sendall(data)
                    s.close()
                t = dial(server.address("tcp"))
                t.sendall(b"\xff" * 32)
                t.close()
                raw = RawSocket(server, f"user-{n % 10}", query=f"?device_id=d{n % 3}")
                raw.socket.sendall(masked(1, b"x" * 30000, fin=False))
                raw.socket.close()
        token = mint("warm")
        abuse(30)
        eventually(lambda: sockets_of(server) == 0, "all sockets gone")
        before_fds, before_kib = descriptors(server), resident_kib(server)
        threads = [threading.Thread(target=abuse, args=(100,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually(lambda: sockets_of(server) == 0, "all sockets gone")
        eventually(lambda: descriptors(server) <= before_fds, "descriptors back at the baseline")
        assert resident_kib(server) < before_kib + 16 * 1024, "memory stays"
        assert token
    finally:
        assert server.stop() == 0
        assert "panicked" not in server.log()


def test_a_connect_flood_of_one_address_is_limited_and_others_still_connect():
    server = Server("--connect-rate", "10", "--connect-burst", "20").start()
    try:
        refused = 0
        for _ in range(60):
            s = dial(server.address("ws"))
            s.sendall(upgrade_request(server, "flood"))
            if b" 429 " in s.recv(100):
                refused += 1
            s.close()
        assert refused >= 20
        other = socket.socket()
        other.bind(("127.0.0.2", 0))
        other.settimeout(10)
        other.connect(server.address("ws"))
        other.sendall(upgrade_request(server, "calm"))
        assert b" 101 " in other.recv(100)
    finally:
        server.stop()
