"""What a request must pass: rate, key, size, time, place; and what ends when a client leaves."""

import asyncio
import json
import threading

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from slimtts.errors import SlimttsError

SPEECH, RELOAD = "/v1/audio/speech", "/admin/reload"
ASKED = {"model": "toy", "input": "hello"}
KEY = "0123456789abcdef"


def error_of(answer):
    return answer.status_code, answer.json()["error"]["code"]


def test_beyond_the_rate_an_address_waits(server_of, scripted):
    app = server_of(scripted(), requests_per_minute=3).asgi
    one, two = (TestClient(app, base_url="http://127.0.0.1", client=(f"127.0.0.{n}", 1)) for n in (1, 2))
    assert [one.get("/v1/models").status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = one.post(SPEECH, json=ASKED)
    assert error_of(refused) == (429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert two.get("/v1/models").status_code == 200
    assert [one.get(path).status_code for path in ("/health", "/ready", "/metrics")] == [200, 200, 200]


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nowhere"])
@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer é"])
def test_without_the_key_nothing_is_told(client_of, scripted, path, given):
    client = client_of(scripted(), api_key=KEY)
    answer = client.get(path, headers={} if given is None else {"Authorization": given.encode()})
    assert error_of(answer) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text


def test_with_the_key_all_is_answered_and_health_without_it(client_of, scripted):
    client = client_of(scripted(), api_key=KEY)
    with_key = {"Authorization": f"bearer {KEY}", "Host": "speech.example.org"}
    assert client.get("/v1/models", headers=with_key).status_code == 200
    assert client.post(SPEECH, json=ASKED, headers=with_key).status_code == 200
    assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]


def test_wrong_keys_are_slowed_down_by_the_rate(client_of, scripted):
    client = client_of(scripted(), api_key=KEY, requests_per_minute=2)
    wrong = {"Authorization": "Bearer wrong"}
    assert [client.get("/v1/models", headers=wrong).status_code for _ in range(3)] == [401, 401, 429]


FOREIGN = [
    "evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:8080", "evil.com@localhost",
    "evil.com@127.0.0.1:80", "localhost@evil.com", "localhost:80@evil.com", "localhost/", "localhost?x", "localhost#x",
    "localhost evil.com", "localhost,evil.com", "localhost:", "localhost:x", "localhost:99999", "localhost:80:80",
    "localhost.", "127.0.0.1.", "127.1", "2130706433", "0x7f000001", "::1", "[::1", "[::1]x", "[::1%25lo]",
    "[127.0.0.1]", "[::ffff:10.0.0.1]", "local\\host", "%6cocalhost", "[::]", "l\xf6calhost",
]  # fmt: skip


@pytest.mark.parametrize("host", FOREIGN)
def test_without_a_key_another_sites_page_is_refused(client_of, scripted, host):
    answer = client_of(scripted()).get("/v1/models", headers={"Host": host.encode("latin-1")})
    assert error_of(answer) == (403, "foreign_host")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "[::1]:8080", "[::1]", "LocalHost", "127.9.9.9:1"]
)
def test_names_of_this_machine_are_accepted(client_of, scripted, host):
    assert client_of(scripted()).get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.com@localhost", "a b", "a/b", "a:b", "::1", "[::g]"])
def test_with_a_key_a_host_that_is_none_is_refused_and_any_other_accepted(client_of, scripted, host):
    client, key = client_of(scripted(), api_key=KEY), {"Authorization": f"Bearer {KEY}"}
    assert error_of(client.get("/v1/models", headers=key | {"Host": host})) == (400, "bad_host")
    assert client.get("/health", headers={"Host": host}).status_code == 200  # of a probe
    for name in ("speech_service:8080", "speech.example.org.", "[2001:db8::1]:443", ""):
        assert client.get("/v1/models", headers=key | {"Host": name}).status_code == 200


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"headers": [(b"a", b"b")] * 100}, 431, "headers_too_large"),
        ({"headers": [(b"a", b"b" * 16_384)]}, 431, "headers_too_large"),
        ({"headers": [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")]}, 400, "two_lengths"),
        ({"headers": [(b"content-encoding", b"gzip")]}, 415, "packed_body"),
        ({"raw_path": b"http://evil.com/health"}, 400, "bad_target"),
        ({"raw_path": b"*"}, 400, "bad_target"),
        ({"query_string": b"a" * 2_048}, 414, "target_too_long"),
        ({"http_version": "2.0"}, 505, "http_version"),
    ],
)
@pytest.mark.parametrize("path", [SPEECH, RELOAD, "/health", "/metrics"])
def test_a_head_that_is_too_large_or_ambiguous_is_refused_everywhere(
    server_of, scripted, ask, change, status, code, path
):
    speaker = scripted()
    call = ask(server_of(speaker).asgi, path=path)
    for name, value in change.items():
        call._scope[name] = call._scope["headers"] + value if name == "headers" else value
    asyncio.run(call.run())
    assert (call.status, json.loads(call.content)["error"]["code"]) == (status, code)
    assert speaker.made == 0


@pytest.mark.parametrize("path", [SPEECH, RELOAD, "/health", "/metrics", "/nowhere"])
def test_a_body_that_does_not_come_is_given_up_at_every_endpoint(server_of, scripted, ask, path):
    async def run():
        call = ask(server_of(scripted(), body_seconds=1, request_seconds=30).asgi, path=path)
        call._unread[0]["more_body"] = True
        return await asyncio.wait_for(call.run(), 5)

    call = asyncio.run(run())
    assert (call.status, json.loads(call.content)["error"]["code"]) == (408, "body_timeout")


def test_requests_beyond_the_limit_wait_and_health_answers(server_of, scripted, ask):
    async def run():
        app = server_of(scripted(), connections=2, body_seconds=1).asgi
        slow = [ask(app) for _ in range(2)]
        for call in slow:
            call._unread[0]["more_body"] = True
        running = [asyncio.create_task(call.run()) for call in slow]
        await asyncio.sleep(0.05)
        third, health = ask(app), ask(app, path="/health")
        health._scope["method"] = "GET"
        await asyncio.gather(third.run(), health.run())
        await asyncio.gather(*running)
        after = ask(app)
        await after.run()
        return third, health, after

    third, health, after = asyncio.run(run())
    assert (third.status, json.loads(third.content)["error"]["code"]) == (503, "too_many_requests")
    assert (health.status, after.status) == (200, 200)


def test_a_websocket_is_closed_before_the_application_sees_it(server_of, scripted):
    client = TestClient(server_of(scripted(), api_key=KEY).asgi, base_url="http://127.0.0.1")
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/v1/audio/speech"):
        pass
    assert closed.value.code == 1002


def test_at_most_two_reloads_wait_for_each_other(server_of, scripted, ask):
    go = threading.Event()

    def take_up():
        go.wait(10)
        raise SlimttsError("nothing newer\nat all\x1b[2J")

    async def run():
        app = server_of(scripted(), take_up=take_up).asgi
        calls = [ask(app, path=RELOAD) for _ in range(5)]
        running = [asyncio.create_task(call.run()) for call in calls]
        await asyncio.sleep(0.1)
        go.set()
        await asyncio.gather(*running)
        last = ask(app, path=RELOAD)
        await last.run()
        return [call.status for call in calls], last

    statuses, last = asyncio.run(run())
    assert statuses == [502, 502, 429, 429, 429]
    assert last.status == 502
    message = json.loads(last.content)["error"]["message"]
    assert message.startswith("nothing newer at all\\x1b[2J; the former model")


def test_without_a_key_only_this_machine_reloads(server_of, scripted):
    app = server_of(scripted()).asgi
    far = TestClient(app, base_url="http://127.0.0.1", client=("192.0.2.7", 1))
    near = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1))
    assert error_of(far.post(RELOAD)) == (403, "key_needed")
    assert error_of(near.post(RELOAD, headers={"Origin": "https://evil.example"})) == (403, "key_needed")


@pytest.mark.parametrize("spelling", ["length", "chunks"])
def test_a_large_body_is_refused_before_it_is_read(client_of, scripted, spelling):
    speaker = scripted()
    client = client_of(speaker, body_bytes=1000)
    body = json.dumps({"model": "toy", "input": "a" * 2000}).encode()
    content = body if spelling == "length" else iter([body[:700], body[700:]])
    answer = client.post(SPEECH, content=content, headers={"Content-Type": "application/json"})
    assert error_of(answer) == (413, "body_too_large")
    assert "allowed: 1000 bytes" in answer.json()["error"]["message"]
    assert speaker.made == 0


def test_a_body_that_never_ends_is_timed_out(server_of, scripted, ask):
    async def run():
        call = ask(server_of(scripted(), request_seconds=1).asgi)
        call._unread[0]["more_body"] = True
        return await call.run()

    call = asyncio.run(run())
    assert call.status == 504
    assert json.loads(call.content)["error"]["code"] == "timeout"


def test_a_call_that_waits_too_long_is_told_and_not_spoken(server_of, scripted, ask):
    speaker = scripted(go=False)

    async def run():
        app = server_of(speaker, request_seconds=1, concurrent=1).asgi
        long, waiting = ask(app), ask(app)
        running = asyncio.create_task(long.run())
        await asyncio.wait_for(long.got_audio.wait(), 5)
        await asyncio.gather(waiting.run(), running)
        return long, waiting

    long, waiting = asyncio.run(run())
    assert (waiting.status, json.loads(waiting.content)["error"]["type"]) == (504, "server_error")
    # What had begun is cut: the client sees that the end is missing.
    assert (long.status, long.is_complete) == (200, False)
    assert speaker.ended.wait(5)
    assert speaker.made == 1


def test_a_client_that_leaves_ends_its_generation(server_of, scripted, ask):
    speaker = scripted(pieces=1000, go=False)

    async def run():
        server = server_of(speaker)
        call = ask(server.asgi)
        running = asyncio.create_task(call.run())
        await asyncio.wait_for(call.got_audio.wait(), 5)
        call.leave()
        await asyncio.wait_for(running, 5)
        assert await asyncio.to_thread(speaker.ended.wait, 5)
        metrics = ask(server.asgi, path="/metrics")
        metrics._scope["method"] = "GET"
        await metrics.run()
        return metrics.content.decode()

    told = asyncio.run(run())
    assert speaker.made == 1
    assert 'slimtts_cut_streams_total{reason="client left"} 1.0' in told
    assert "slimtts_calls_in_flight 0.0" in told


def test_a_client_that_leaves_the_line_is_never_spoken_for(server_of, scripted, ask):
    speaker = scripted(pieces=2, go=False)

    async def run():
        app = server_of(speaker).asgi
        first, second = ask(app), ask(app)
        running = asyncio.create_task(first.run())
        await asyncio.wait_for(first.got_audio.wait(), 5)
        waiting = asyncio.create_task(second.run())
        await asyncio.sleep(0.05)
        second.leave()
        await asyncio.wait_for(waiting, 5)
        speaker.go.release()
        await asyncio.wait_for(running, 5)
        return first, second

    first, second = asyncio.run(run())
    assert (first.status, first.is_complete) == (200, True)
    assert second.status is None
    assert speaker.made == 2
