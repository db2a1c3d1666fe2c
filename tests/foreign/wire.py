"""Raw bytes on real sockets: for what no well-behaved client would send."""
import base64
import os
import socket
import struct

from conftest import mint

PATIENCE_S = 15


def dial(address):
    return socket.create_connection(address, timeout=PATIENCE_S)


def upgrade_request(server, user, extra="", query=""):
    key = base64.b64encode(os.urandom(16)).decode()
    return (f"GET /v1/connect{query} HTTP/1.1\r\nHost: {server.ports['ws']}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {mint(user)}\r\n{extra}\r\n").encode()


def masked(opcode, payload, fin=True, rsv=0, mask=True):
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack(">H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack(">Q", len(payload))
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(b ^ key[i % 4] for i, b in enumerate(payload))


class RawSocket:
    """A WebSocket by hand: what is sent is up to the test, what comes is read strictly."""

    def __init__(self, server, user, query="?device_id=raw"):
        self.socket = dial(server.address("ws"))
        self.socket.sendall(upgrade_request(server, user, query=query))
        self.buffer = b""
        head = self.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head

    def until(self, end):
        while end not in self.buffer:
            chunk = self.socket.recv(65536)
            assert chunk, "the server closed"
            self.buffer += chunk
        found, self.buffer = self.buffer.split(end, 1)
        return found + end

    def take(self, count):
        while len(self.buffer) < count:
            chunk = self.socket.recv(65536)
            if not chunk:
                raise EOFError
            self.buffer += chunk
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found

    def frame(self):
        """(opcode, payload) of the next frame."""
        first, second = self.take(2)
        assert not second & 0x80, "a server does not mask"
        assert first & 0x80 and not first & 0x70
        length = second & 0x7F
        if length == 126:
            length = struct.unpack(">H", self.take(2))[0]
        elif length == 127:
            length = struct.unpack(">Q", self.take(8))[0]
        return first & 0x0F, self.take(length)

    def close_code(self):
        """Reads on to the close frame and the end after it."""
        while True:
            opcode, payload = self.frame()
            if opcode == 8:
                code = struct.unpack(">H", payload[:2])[0] if payload else None
                self.socket.sendall(masked(8, payload[:2]))
                assert self.socket.recv(65536) == b"", "bytes after the close frame"
                return code


def varint(number):
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


class RawTcp:
    """Delimited protobuf over TCP."""

    def __init__(self, server):
        self.socket = dial(server.address("tcp"))
        self.buffer = b""

    def send(self, frame):
        body = frame.SerializeToString()
        self.socket.sendall(varint(len(body)) + body)

    def receive(self):
        """The next frame; None at the end of the stream."""
        import client_pb2
        while True:
            length = shift = 0
            for index, byte in enumerate(self.buffer):
                length |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    start = index + 1
                    if len(self.buffer) - start < length:
                        break
                    body = self.buffer[start:start + length]
                    self.buffer = self.buffer[start + length:]
                    return client_pb2.ServerFrame.FromString(body)
            chunk = self.socket.recv(65536)
            if not chunk:
                assert not self.buffer, "the stream ended within a frame"
                return None
            self.buffer += chunk
