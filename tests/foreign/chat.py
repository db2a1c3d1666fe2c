"""A chat session over Python's `websockets`, as somebody who read the contract would write it."""
import json
import time

from websockets.sync.client import connect

from conftest import mint

PATIENCE_S = 10


class Session:
    """A JSON session. Frames that nobody asked for yet wait in `waiting`."""

    def __init__(self, server, user, device="d1", **query):
        self.user = user
        self.socket = connect(
            server.ws_url(**query), subprotocols=["trunkline.json.v1"], max_size=None,
            additional_headers={"Authorization": "Bearer " + mint(user)})
        self.waiting = []
        if "device_id" not in query:
            self.send(type="connect", device_id=device)
        self.connected = self.expect("connected")

    def send(self, **frame):
        self.socket.send(json.dumps(frame))

    def next(self, within=PATIENCE_S):
        return json.loads(self.socket.recv(timeout=within))

    def expect(self, kind, within=PATIENCE_S, **fields):
        """The next frame of this type with these fields; others are kept, in order."""
        def fits(frame):
            return frame["type"] == kind and all(frame.get(k) == v for k, v in fields.items())

        for index, frame in enumerate(self.waiting):
            if fits(frame):
                return self.waiting.pop(index)
        deadline = time.monotonic() + within
        while True:
            frame = self.next(max(0.01, deadline - time.monotonic()))
            if fits(frame):
                return frame
            self.waiting.append(frame)

    def say(self, content, client_msg_id, **where):
        self.send(type="send_message", client_msg_id=client_msg_id, content=content, **where)

    def said(self, content, client_msg_id, **where):
        self.say(content, client_msg_id, **where)
        return self.expect("ack", client_msg_id=client_msg_id)

    def quiet(self, kind):
        """Asserts that no frame of this type is under way: a ping overtakes nothing."""
        self.send(type="ping", nonce="fence")
        self.expect("pong", nonce="fence")
        assert [f for f in self.waiting if f["type"] == kind] == []

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
