"""Starts real servers for foreign clients: processes of the built binary, on ports of their own."""
import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

import pytest

BINARY = os.environ.get("TRUNKLINE_BIN", str(Path(__file__).parents[2] / "target/debug/trunkline"))
SECRET = "a secret that only the tests know, of some length"
READY_S = 20


class Server:
    """One `trunkline` process, its ports and its log."""

    def __init__(self, *args, data=None, env=None, command="serve"):
        self.dir = Path(tempfile.mkdtemp(prefix="trunkline-test-"))
        self.data = data or self.dir / "data"
        self.args = [BINARY, command]
        any_port = {
            "serve": ["--ws", "--tcp", "--http", "--admin"],
            "edge": ["--ws", "--tcp", "--admin"],
            "core": ["--http", "--grpc", "--admin"],
        }[command]
        for flag in any_port:
            if flag not in args:
                self.args += [flag, "127.0.0.1:0"]
        if command == "serve":
            self.args += ["--data", str(self.data)]
        if command == "core":
            self.args += ["--store", f"embedded:{self.data}"]
        if "--echo" not in args:
            self.args += ["--jwt-secret", SECRET]
        self.args += ["--ports-file", str(self.dir / "ports.json"), *args]
        self.env = {**os.environ, **(env or {})}
        self.process = None
        self.ports = {}

    def start(self):
        with contextlib.suppress(FileNotFoundError):
            (self.dir / "ports.json").unlink()
        log = open(self.dir / "log", "ab")
        self.process = subprocess.Popen(
            self.args, env=self.env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if (self.dir / "ports.json").exists():
                self.ports = json.loads((self.dir / "ports.json").read_text())
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(self.admin_url("/readyz"), timeout=1)
                    return self
            time.sleep(0.02)
        raise AssertionError(f"{self.args} did not get ready:\n{self.log()}")

    def log(self):
        return (self.dir / "log").read_text(errors="replace")

    def address(self, name):
        host, port = self.ports[name].rsplit(":", 1)
        return host, int(port)

    def ws_url(self, **query):
        text = "&".join(f"{k}={v}" for k, v in query.items())
        return f"ws://{self.ports['ws']}/v1/connect" + (f"?{text}" if text else "")

    def http_url(self, path):
        return f"http://{self.ports['http']}{path}"

    def admin_url(self, path):
        return f"http://{self.ports['admin']}{path}"

    def metrics(self):
        """Sums over labels: {name: value}."""
        totals = {}
        text = urllib.request.urlopen(self.admin_url("/metrics"), timeout=5).read().decode()
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[1]
                totals[name] = totals.get(name, 0) + float(value)
        return totals

    def stop(self, sig=signal.SIGTERM, within=15):
        if self.process and self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(within)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"did not stop within {within} s:\n{self.log()}") from None
        return self.process.returncode

    def kill(self):
        self.stop(signal.SIGKILL)


def mint(user, ttl="1h", secret=SECRET):
    """A token, made by the product's own command."""
    return subprocess.run(
        [BINARY, "token", "--user", user, "--ttl", ttl, "--secret", secret],
        check=True, capture_output=True, text=True).stdout.strip()


def sign(claims, secret=SECRET, algorithm="HS256"):
    """A token signed here, by RFC 7515 alone."""
    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = json.dumps({"alg": algorithm, "typ": "JWT"}).encode()
    text = part(head) + b"." + part(json.dumps(claims).encode())
    digest = hmac.new(secret.encode(), text, hashlib.sha256).digest() if algorithm != "none" else b""
    return (text + b"." + part(digest)).decode()


def direct_id(a, b):
    """The direct conversation's id, computed as the contract says, not by the product."""
    low, high = sorted([a, b], key=str.encode)
    return str(uuid.uuid5(uuid.UUID("fe1939a1-c503-5c73-82b3-85a7b7106b48"), f"{low}\n{high}"))


def eventually(probe, what, within=10):
    """Waits until `probe()` is true and returns its value."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        value = probe()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {within} s: {what}")


@pytest.fixture(scope="session")
def server():
    instance = Server().start()
    yield instance
    code = instance.stop()
    assert code == 0, f"a clean drain ends with 0, not {code}:\n{instance.log()}"
    assert "panicked" not in instance.log()


@pytest.fixture
def user():
    """A maker of users that no other test has."""
    salt = uuid.uuid4().hex[:8]
    return lambda name: f"{name}-{salt}"


def pytest_configure(config):
    """Compiles the published schema, as a user of another language would."""
    import sys
    from grpc_tools import protoc
    out = tempfile.mkdtemp(prefix="trunkline-proto-")
    schema = Path(__file__).parents[2] / "proto/proto"
    code = protoc.main(["protoc", f"-I{schema}", f"--python_out={out}", str(schema / "client.proto")])
    assert code == 0, "client.proto does not compile with protoc"
    sys.path[:0] = [out, str(Path(__file__).parent)]


def pytest_addoption(parser):
    parser.addoption("--all-cases", action="store_true", help="all 517 Autobahn cases: takes long")
