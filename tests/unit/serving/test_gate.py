"""What a request must pass: rate, key, size, time, place; and what ends when a client leaves."""

import asyncio
import json

import pytest
from starlette.testclient import TestClient

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


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil.example:8080"])
def test_without_a_key_another_sites_page_is_refused(client_of, scripted, host):
    answer = client_of(scripted()).get("/v1/models", headers={"Host": host})
    assert error_of(answer) == (403, "foreign_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "[::1]:8080", "[::1]"])
def test_names_of_this_machine_are_accepted(client_of, scripted, host):
    assert client_of(scripted()).get("/v1/models", headers={"Host": host}).status_code == 200


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
