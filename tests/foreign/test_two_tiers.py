"""`edge` and `core` as processes of their own: the same chat, the schema by reflection, one of them
killed."""
import json
import subprocess

import pytest

from chat import Session
from conftest import Server, direct_id, eventually


@pytest.fixture
def tiers():
    core = Server(command="core").start()
    edge = Server("--core", f"http://{core.ports['grpc']}", command="edge").start()
    yield core, edge
    edge.stop()
    core.stop()


def grpcurl(core, *args):
    return subprocess.run(["grpcurl", "-plaintext", *args[:-1], core.ports["grpc"], args[-1]],
                          capture_output=True, text=True, check=True, timeout=20).stdout


def test_the_core_describes_itself(tiers):
    core, _ = tiers
    assert "trunkline.link.v1.Link" in grpcurl(core, "list")
    described = subprocess.run(
        ["grpcurl", "-plaintext", core.ports["grpc"], "describe", "trunkline.link.v1.Link"],
        capture_output=True, text=True, check=True, timeout=20).stdout
    assert "Attach" in described
    health = subprocess.run(
        ["grpcurl", "-plaintext", core.ports["grpc"], "grpc.health.v1.Health/Check"],
        capture_output=True, text=True, check=True, timeout=20).stdout
    assert json.loads(health)["status"] == "SERVING"


def test_two_processes_chat_as_one(tiers, user):
    _, edge = tiers
    alice, bob = user("alice"), user("bob")
    with Session(edge, alice) as a, Session(edge, bob) as b:
        assert a.said("hi", "m1", to=bob)["seq"] == 1
        assert b.expect("message")["content"] == "hi"
        b.send(type="receipt", conversation_id=direct_id(alice, bob), seq=1, status="read")
        assert a.expect("receipt")["status"] == "read"


def test_a_core_killed_and_started_again_is_found_again(tiers, user):
    core, edge = tiers
    alice, bob = user("alice"), user("bob")
    with Session(edge, alice) as a, Session(edge, bob) as b:
        first = a.said("before", "m1", to=bob)
        b.expect("message")
        grpc, http, admin = (core.ports[k] for k in ("grpc", "http", "admin"))
        core.kill()
        eventually(lambda: not ready(edge), "the edge says that it is not ready")
        a.say("during", "m2", to=bob)
        assert a.expect("error", client_msg_id="m2")["code"] in ("unavailable", "overloaded")
        again = Server("--grpc", grpc, "--http", http, "--admin", admin, command="core", data=core.data)
        again.start()
        eventually(lambda: ready(edge), "the edge is ready again", within=20)
        a.expect("conversation", conversation_id=direct_id(alice, bob), head_seq=1, within=20)
        assert a.said("during", "m2", to=bob)["seq"] == 2
        assert a.said("before", "m1", to=bob)["message_id"] == first["message_id"]
        assert b.expect("message", within=20)["content"] == "during"
        again.stop()


def ready(server):
    import urllib.error
    import urllib.request
    try:
        return urllib.request.urlopen(server.admin_url("/readyz"), timeout=2).status == 200
    except urllib.error.HTTPError:
        return False
