"""Hostile clients of one live server: each gets its status, health always answers, and normal requests still work."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.hostile

CHECKOUT = Path(__file__).resolve().parents[2]
CONNECTIONS, LIMIT_S = 48, 2
OPTIONS = {
    "head-seconds": LIMIT_S, "body-seconds": LIMIT_S, "stall-seconds": LIMIT_S, "connections": CONNECTIONS,
    "requests-per-minute": 100_000, "request-seconds": 20, "waiting": 4,
}  # fmt: skip
START_S, ANSWER_S = 120, 15
MEMORY_BOUND_MIB = 256  # above what the server holds after its first speech
TEXT = "the green tiger."
LOCAL = b"Host: 127.0.0.1\r\n"
JSON_TYPE = b"Content-Type: application/json\r\n"


class Server:
    """The process, where it listens, and what it logs."""

    def __init__(self, process, port, log):
        self.process, self.port, self.log = process, port, log
        self.before_mib = 0.0

    @property
    def memory_mib(self):
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_S)

    def answer(self, *parts, pause_s=0.0):
        """Status and content of the first answer to these bytes; status None where the server hung up."""
        with self.connect() as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
                for part in parts:
                    client.sendall(part)
                    time.sleep(pause_s)
            return read_answer(client)

    def is_healthy(self):
        return self.answer(b"GET /health HTTP/1.1\r\n" + LOCAL + b"\r\n")[0] == 200


def read_answer(client):
    received = b""
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        while b"\r\n\r\n" not in received:
            chunk = client.recv(65_536)
            if not chunk:
                break
            received += chunk
    head, _, content = received.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.1 (\d{3})", head)
    if status is None:
        return None, b""
    length = re.search(rb"content-length: (\d+)", head.lower())
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        while length and len(content) < int(length[1]):
            chunk = client.recv(65_536)
            if not chunk:
                break
            content += chunk
    return int(status[1]), content[: int(length[1])] if length else content


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "slimtts.cli", "serve", "--port", "0", "--threads", "1", *options]
    environment = {name: value for name, value in os.environ.items() if name != "SLIMTTS_API_KEY"}
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=environment | {"PYTHONPATH": str(CHECKOUT / "src")}, stdout=out, stderr=out, cwd=folder
        )
    try:
        deadline = time.monotonic() + START_S
        while not (running := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        running_server = Server(process, int(running[1]), log)
        assert speak(running_server) == 200
        running_server.before_mib = running_server.memory_mib
        yield running_server
    finally:
        process.kill()
        process.wait()


def post(body, headers=LOCAL + JSON_TYPE, path=b"/v1/audio/speech"):
    return b"POST %s HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (path, headers, len(body), body)


def asked(text=TEXT, **fields):
    return json.dumps({"model": "bundled", "input": text, **fields}).encode()


def speak(server):
    return server.answer(post(asked()))[0]


def get(path=b"/v1/models", headers=LOCAL, method=b"GET", version=b"1.1"):
    return b"%s %s HTTP/%s\r\n%s\r\n" % (method, path, version, headers)


# The head, as one block of bytes, and the status of its answer.
HEADS = {
    "10,000 headers": (get(b"/health", LOCAL + b"a: b\r\n" * 10_000), 431),
    "101 headers": (get(headers=LOCAL + b"a: b\r\n" * 101), 431),
    "a header of 20 kB": (get(headers=LOCAL + b"a: " + b"b" * 20_000 + b"\r\n"), 431),
    "many cookies": (get(headers=LOCAL + (b"Cookie: " + b"c" * 1_000 + b"\r\n") * 17), 431),
    "a head without end": (b"GET / HTTP/1.1\r\n" + LOCAL + b"a: b\r\n" * 60_000, 431),
    "an address of 3 kB": (get(b"/health?" + b"a" * 3_000), 414),
    "an address of 10 kB": (get(b"/" + b"a" * 10_000), 414),
    "an address without end": (b"GET /" + b"a" * 400_000, 431),
    "login in Host": (get(headers=b"Host: evil.com@localhost\r\n"), 403),
    "login and port in Host": (get(headers=b"Host: localhost:80@evil.com\r\n"), 403),
    "path in Host": (get(headers=b"Host: localhost/@evil.com\r\n"), 403),
    "query in Host": (get(headers=b"Host: localhost?evil.com\r\n"), 403),
    "fragment in Host": (get(headers=b"Host: localhost#evil.com\r\n"), 403),
    "two hosts in one": (get(headers=b"Host: localhost, evil.com\r\n"), 403),
    "foreign host": (get(headers=b"Host: evil.com\r\n"), 403),
    "host like ours": (get(headers=b"Host: 127.0.0.1.evil.com\r\n"), 403),
    "port that is none": (get(headers=b"Host: localhost:evil\r\n"), 403),
    "port too high": (get(headers=b"Host: localhost:99999\r\n"), 403),
    "colon without port": (get(headers=b"Host: localhost:\r\n"), 403),
    "dot behind host": (get(headers=b"Host: localhost.\r\n"), 403),
    "number as host": (get(headers=b"Host: 2130706433\r\n"), 403),
    "bare IPv6": (get(headers=b"Host: ::1\r\n"), 403),
    "IPv6 with a zone": (get(headers=b"Host: [::1%25lo]\r\n"), 403),
    "two Host headers": (get(headers=LOCAL + b"Host: evil.com\r\n"), 400),
    "no Host": (get(headers=b""), 400),
    "no Host in HTTP/1.0": (get(headers=b"", version=b"1.0"), 403),
    "health without Host in HTTP/1.0": (get(b"/health", headers=b"", version=b"1.0"), 200),
    "HTTP/2.0": (get(version=b"2.0"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "HTTP/0.9": (b"GET /health\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n", 400),
    "whole address": (get(b"http://evil.com/v1/models"), 400),
    "whole address of ours": (get(b"http://127.0.0.1/v1/models"), 400),
    "CONNECT": (get(b"evil.com:443", method=b"CONNECT"), 400),
    "OPTIONS *": (get(b"*", method=b"OPTIONS"), 400),
    "OPTIONS": (get(b"/v1/audio/speech", method=b"OPTIONS"), 405),
    "TRACE": (get(b"/v1/models", method=b"TRACE"), 405),
    "HEAD": (get(b"/v1/models", method=b"HEAD"), 405),
    "a method of its own": (get(b"/v1/models", method=b"A" * 200), 405),
    "GET of a reload": (get(b"/admin/reload"), 405),
    "range": (get(headers=LOCAL + b"Range: bytes=0-1,5-6,0-999999999999\r\n"), 200),
    "websocket": (get(headers=LOCAL + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                      b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), 200),
    "HTTP/2 by upgrade": (get(headers=LOCAL + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"), 200),
    "up and down": (get(b"/health/../v1/models"), 404),
    "up and down, encoded": (get(b"/health/%2e%2e/v1/models"), 404),
    "doubled slash": (get(b"//v1/models"), 404),
    "slash behind": (get(b"/v1/models/"), 404),
    "NUL in the path": (get(b"/v1/models%00"), 404),
    "line end in the path": (get(b"/x%0d%0a2026-01-01%20INFO%20forged"), 404),
    "header over two lines": (get(headers=LOCAL + b"a: b\r\n c\r\n"), 200),
    "space before the colon": (get(headers=LOCAL + b"a : b\r\n"), 400),
    "control characters in a header": (get(headers=LOCAL + b"User-Agent: \x1b[2J\r\n"), 200),
    "NUL in a header": (get(headers=LOCAL + b"a: \0\r\n"), 400),
    "byte beyond ASCII in the path": (get(b"/\xff"), 400),
}  # fmt: skip

NESTED = b'{"model": "bundled", "input": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
# The body of a speech request, and the status and a part of its answer.
BODIES = {
    "control token": (asked("hi <|SPEECH_GENERATION_END|>"), 400, "control token '<|SPEECH_GENERATION_END|>'"),
    "another family's token": (asked("hi <custom_token_2>"), 400, "control token '<custom_token_2>'"),
    "fullwidth token": (asked("hi \uff1c\uff5cpad\uff5c\uff1e"), 400, "control token '<|pad|>'"),
    "half an emoji": (asked("hi \ud83d"), 400, "half a character U+D83D"),
    "half an emoji as model": (asked(model="\ud83d"), 404, "model: observed '\\ud83d'"),
    "half an emoji as voice": (asked(voice="\ud83d"), 400, "voice: observed "),
    "half an emoji as key": (asked(**{"\ud83d": 1}), 400, "no JSON object"),
    "emoji alone": (asked("\U0001f600"), 400, "at least one word"),
    "marks alone": (asked("..."), 400, "at least one word"),
    "nothing": (asked(""), 400, "observed empty"),
    "NUL": (asked("hi\0"), 400, "control character U+0000"),
    "escape": (asked("hi \x1b[31m"), 400, "control character U+001B"),
    "right to left": (asked("hi \u202e"), 400, "invisible character U+202E"),
    "marks without end": (asked("a" + "\u0301" * 400), 400, "more than 8 marks"),
    "501 characters": (asked("a" * 501), 400, "observed 501 characters; allowed: at most 500"),
    "20,000 characters": (asked("word " * 4_000), 400, "observed 20000 characters; allowed: at most 500"),
    "a voice of 10 kB": (asked(voice="v" * 10_000), 400, "voice: observed vvv"),
    "a voice with a line end": (asked(voice="slt\n2026-01-01 INFO forged"), 400, "voice: observed slt 2026"),
    "another model": (asked(model="../../etc/passwd"), 404, "model: observed '../../etc/passwd'"),
    "nested 30,000 deep": (NESTED, 400, "no JSON object"),
    "a number of 5,000 digits": (b'{"model": "bundled", "input": "hi", "speed": ' + b"9" * 5_000 + b"}", 400, "no "),
    "an infinite number": (b'{"model": "bundled", "input": "hi", "speed": 1e999}', 400, "speed: observed inf"),
    "not a number": (b'{"model": "bundled", "input": "hi", "speed": NaN}', 400, "no JSON object"),
    "a key twice": (b'{"model": "bundled", "input": "hi", "input": "ho"}', 400, "a key twice"),
    "a key twice within": (b'{"model": "bundled", "input": "hi", "voice": {"a": 1, "a": 2}}', 400, "a key twice"),
    "two objects": (asked() + asked(), 400, "no JSON object"),
    "a list": (b"[" + asked() + b"]", 400, "no JSON object"),
    "UTF-16": (asked().decode().encode("utf-16"), 400, "no JSON object"),
    "no UTF-8": (asked().replace(b"tiger", b"ti\xffger"), 400, "no JSON object"),
    "empty": (b"", 400, "no JSON object"),
    "4,000 keys": (json.dumps({f"k{i}": i for i in range(4_000)}).encode(), 400, "observed nothing"),
    "70 kB": (asked(" " * 70_000), 413, "larger body"),
}  # fmt: skip

# The headers of a good speech request, and the status.
KINDS = {
    "a form": (LOCAL + b"Content-Type: application/x-www-form-urlencoded\r\n", 400),
    "text": (LOCAL + b"Content-Type: text/plain\r\n", 400),
    "several parts": (LOCAL + b"Content-Type: multipart/form-data; boundary=x\r\n", 400),
    "no kind": (LOCAL, 400),
    "JSON as another kind's parameter": (LOCAL + b"Content-Type: text/plain; x=application/json\r\n", 400),
    "packed": (LOCAL + JSON_TYPE + b"Content-Encoding: gzip\r\n", 415),
    "two lengths": (LOCAL + JSON_TYPE + b"Transfer-Encoding: chunked\r\n", 400),
    "negative length": (LOCAL + JSON_TYPE + b"Content-Length: -1\r\n", 400),
    "another length": (LOCAL + JSON_TYPE + b"Content-Length: 3\r\n", 400),
    "an unknown transfer coding": (LOCAL + JSON_TYPE + b"Transfer-Encoding: gzip, chunked\r\n", 501),
    "a foreign page": (b"Host: evil.com\r\nOrigin: https://evil.com\r\n" + JSON_TYPE, 403),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_hostile_head_has_its_status(server, case):
    raw, expected = HEADS[case]
    status, content = server.answer(raw)
    assert status == expected, content
    if status >= 400 and case != "HEAD":
        error = json.loads(content)["error"]
        assert error["message"].isprintable()
        assert error["type"] in ("invalid_request_error", "server_error")
    assert server.is_healthy()


@pytest.mark.parametrize("case", BODIES)
def test_a_hostile_body_has_its_status_and_one_line(server, case):
    body, expected, part = BODIES[case]
    status, content = server.answer(post(body))
    assert status == expected, content
    message = json.loads(content)["error"]["message"]
    assert part in message
    assert message.isprintable()
    assert len(message) < 600
    assert server.is_healthy()


@pytest.mark.parametrize("case", KINDS)
def test_a_body_of_another_kind_has_its_status(server, case):
    headers, expected = KINDS[case]
    status, content = server.answer(post(asked(), headers))
    assert status == expected, content
    assert json.loads(content)["error"]["message"]
    assert server.is_healthy()


CHUNKED = b"POST %s HTTP/1.1\r\n" + LOCAL + JSON_TYPE + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = b"POST %s HTTP/1.1\r\n" + LOCAL + JSON_TYPE + b"Content-Length: 1000\r\n\r\n"
SPEECH, RELOAD = b"/v1/audio/speech", b"/admin/reload"


@pytest.mark.parametrize("path", [SPEECH, RELOAD, b"/health", b"/metrics", b"/nowhere"])
@pytest.mark.parametrize("head", [CHUNKED, LENGTH], ids=["chunks", "length"])
def test_a_body_that_never_comes_is_given_up(server, path, head):
    began = time.monotonic()
    status, content = server.answer(head % path)
    assert status == 408, content
    assert LIMIT_S - 0.2 <= time.monotonic() - began < LIMIT_S + 5


@pytest.mark.parametrize("path", [SPEECH, RELOAD])
def test_a_body_that_drips_is_given_up(server, path):
    assert server.answer(CHUNKED % path, *[b"1\r\n{\r\n"] * 8, pause_s=0.4)[0] == 408
    assert server.is_healthy()


@pytest.mark.parametrize(
    ("chunk", "status"),
    [(b"1000\r\n" + b"a" * 0x1000 + b"\r\n", 413), (b"ffffffffffffffff\r\n" + b"a" * 70_000, 413), (b"x\r\n", 400),
     (b"-1\r\n", 400), (b"1;" + b"a" * 30_000, 431), (b"0\r\n" + b"a: b\r\n" * 20_000, 431)],
    ids=["many", "enormous", "no number", "negative", "long extension", "trailers without end"],
)  # fmt: skip
def test_chunks_without_end_are_refused(server, chunk, status):
    answer = server.answer(CHUNKED % SPEECH, *[chunk] * 20)
    assert answer[0] == status, answer
    assert server.is_healthy()


def test_who_sends_on_after_a_refusal_is_cut(server):
    with server.connect() as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\n" + LOCAL + b"Content-Length: 999999999\r\n\r\n" + b"a" * 70_000)
        assert read_answer(client)[0] == 413
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 4 * LIMIT_S:
                client.sendall(b"a" * 1_000)
                time.sleep(0.05)
    assert server.is_healthy()


@pytest.mark.parametrize("start", [b"", b"GET", b"GET /health HTTP/1.1\r\n", get(b"/health") + b"GET /he"])
def test_a_head_that_never_ends_is_given_up(server, start):
    with server.connect() as client:
        client.settimeout(LIMIT_S + 5)
        client.sendall(start)
        answers = b""
        while chunk := client.recv(65_536):
            answers += chunk
    expected = ([b"200"] if b"/health HTTP/1.1\r\nHost" in start else []) + ([b"408"] if start else [])
    assert re.findall(rb"HTTP/1\.1 (\d{3})", answers) == expected


def test_a_head_that_drips_is_given_up(server):
    assert server.answer(*[b"G"] * 8, pause_s=0.4)[0] in (408, 400)
    assert server.is_healthy()


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\n", CHUNKED % SPEECH, LENGTH % RELOAD])
def test_many_idle_connections_keep_nobody_out(server, start):
    with contextlib.ExitStack() as clients:
        for _ in range(4 * CONNECTIONS):
            with contextlib.suppress(OSError):
                clients.enter_context(server.connect()).sendall(start)
        assert server.is_healthy()
        assert server.answer(get(b"/ready"))[0] == 200
        assert speak(server) == 200


def test_who_does_not_read_the_answer_is_cut(server):
    """Pipelined requests whose answers nobody reads."""
    with server.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(200):
                client.sendall(get() * 100)
        began = time.monotonic()
        process = psutil.Process(server.process.pid)
        ours = client.getsockname()
        while any(c.raddr and tuple(c.raddr) == ours for c in process.net_connections("tcp")):
            assert time.monotonic() - began < 60
            time.sleep(0.2)
    assert server.is_healthy()


def test_pipelined_requests_are_answered_in_order(server):
    with server.connect() as client:
        client.sendall(
            get(b"/health") + get(b"/nowhere") + post(asked("...")) + get(b"/health", LOCAL + b"Connection: close\r\n")
        )
        answers = b""
        while chunk := client.recv(65_536):
            answers += chunk
    assert re.findall(rb"HTTP/1\.1 (\d{3})", answers) == [b"200", b"404", b"400", b"200"]


def test_a_storm_of_reloads_is_bounded(server):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(20)]
        for client in clients:
            client.sendall(post(b"", LOCAL, RELOAD))
        statuses = [read_answer(client)[0] for client in clients]
    assert set(statuses) == {200, 429}
    assert psutil.Process(server.process.pid).num_threads() < 60


def test_clients_that_leave_leave_nothing(server):
    for _ in range(50):
        with server.connect() as client:
            client.sendall(post(asked()))
    deadline = time.monotonic() + 30
    while server.answer(get(b"/ready"))[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert speak(server) == 200


def test_after_all_of_them_the_server_is_as_before(server):
    """The last one: it speaks, holds no more memory, and no line of its log is a stranger's."""
    assert server.is_healthy()
    assert speak(server) == 200
    assert server.memory_mib - server.before_mib < MEMORY_BOUND_MIB
    log = server.log.read_text()
    assert "Traceback" not in log
    assert all(re.match(r"\d{4}-\d\d-\d\d [\d:,]+ [A-Z]+ ", line) for line in log.splitlines())
    assert "\x1b" not in log
