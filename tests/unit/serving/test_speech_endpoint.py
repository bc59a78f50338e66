"""What a client gets for what it asks, good and bad, in OpenAI's shapes."""

import io
import json
import logging

import numpy as np
import pytest
import soundfile

from slimtts.serving.waveform_bytes import pcm16

SPEECH = "/v1/audio/speech"
ASKED = {"model": "toy", "input": "anna.", "voice": "anna"}


@pytest.fixture
def client(client_of, speaker):
    return client_of(speaker)


def test_wav_is_what_the_speaker_says(client, speaker):
    answer = client.post(SPEECH, json=ASKED)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    samples, rate_hz = soundfile.read(io.BytesIO(answer.content), dtype="int16")
    assert rate_hz == 16_000
    assert samples.tobytes() == pcm16(speaker.speak("anna.", "anna"))
    assert len(samples) > 640
    assert np.abs(samples).max() > 1_000


def test_pcm_is_the_body_of_the_wav(client):
    wav, pcm = (client.post(SPEECH, json=ASKED | {"response_format": kind}) for kind in ("wav", "pcm"))
    assert pcm.headers["content-type"] == "audio/pcm;rate=16000"
    assert pcm.headers["x-sample-rate-hz"] == "16000"
    assert wav.content[44:] == pcm.content


def test_voices_differ_and_the_first_is_the_default(client):
    said = {
        voice: client.post(SPEECH, json={k: v for k, v in (ASKED | {"voice": voice}).items() if v}).content
        for voice in ("anna", "bea", None)
    }
    assert said["anna"] == said[None] != said["bea"]


@pytest.mark.parametrize("extra", [{"speed": 1}, {"speed": 1.0}, {"stream_format": "audio"}])
def test_what_changes_nothing_is_accepted(client, extra):
    assert client.post(SPEECH, json=ASKED | extra).status_code == 200


BAD = {
    "speed": (ASKED | {"speed": 1.5}, 400, "speed", "observed 1.5; allowed: 1"),
    "speed true": (ASKED | {"speed": True}, 400, "speed", "observed True"),
    "format": (ASKED | {"response_format": "mp3"}, 400, "response_format", "'wav' or 'pcm'"),
    "events": (ASKED | {"stream_format": "sse"}, 400, "stream_format", "'audio'"),
    "unknown key": (ASKED | {"instructions": "sing"}, 400, "instructions", "a key that is not known"),
    "no input": ({"model": "toy"}, 400, "input", "observed nothing"),
    "input of another type": (ASKED | {"input": 7}, 400, "input", "observed 7"),
    "empty input": (ASKED | {"input": "  "}, 400, None, "text: observed empty"),
    "long input": (ASKED | {"input": "a" * 501}, 400, None, "observed 501 characters; allowed: at most 500"),
    "other model": (ASKED | {"model": "tts-1"}, 404, "model", "observed 'tts-1'; allowed: toy"),
    "other voice": (ASKED | {"voice": "carl"}, 400, None, "voice: observed carl; allowed: anna, bea"),
    "a list": ([1], 400, None, "no JSON object"),
    "control token": (ASKED | {"input": "a <|s_1|>"}, 400, None, "text: observed control token '<|s_1|>'"),
    "emoji alone": (
        ASKED | {"input": "\U0001f600"},
        400,
        None,
        "text: observed '\U0001f600'; allowed: text with at least",
    ),
    "half an emoji": (ASKED | {"input": "a \ud83d"}, 400, None, "text: observed half a character U+D83D"),
    "half an emoji as voice": (ASKED | {"voice": "\ud83d"}, 400, None, "voice: observed \\ud83d; allowed: anna"),
    "escape as model": (ASKED | {"model": "\x1b[2J"}, 404, "model", "observed '\\x1b[2J'"),
    "line end as key": (ASKED | {"a\nb": 1}, 400, "a b", "a b: observed a key that is not known"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_told_in_one_line(client, case):
    body, status, param, told = BAD[case]
    content = json.dumps(body).encode()  # half characters as escapes, which UTF-8 cannot hold
    answer = client.post(SPEECH, content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error["message"].isprintable()
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert told in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{", "application/json"), (b"", "application/json"), (b"\xff\xfe", "application/json"),
     (b'{"model": "toy", "input": "hi"}', "text/plain"), (b'{"model": "toy", "input": "hi"}', ""),
     (b"[" * 60_000, "application/json"), (b'{"speed": ' + b"9" * 5_000 + b"}", "application/json"),
     (b'{"model": "toy", "input": "hi", "speed": NaN}', "application/json"),
     ('{"model": "toy", "input": "hi"}'.encode("utf-16"), "application/json")],
)  # fmt: skip
def test_what_is_no_json_is_refused(client, content, kind):
    answer = client.post(SPEECH, content=content, headers={"content-type": kind})
    assert answer.status_code == 400
    assert "a JSON object" in answer.json()["error"]["message"]


def test_a_key_twice_is_refused_and_a_parameter_of_the_kind_is_not(client):
    twice = b'{"model": "toy", "input": "one", "input": "two"}'
    answer = client.post(SPEECH, content=twice, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("body: observed a key twice; allowed: a JSON object")
    good = b'\xef\xbb\xbf{"model": "toy", "input": "one"}'
    assert client.post(SPEECH, content=good, headers={"content-type": "Application/JSON; charset=utf-8"}).is_success


def test_unknown_places_and_methods_answer_in_the_same_shape(client):
    assert client.get("/v1/audio").json()["error"]["code"] == "not_found"
    answer = client.get(SPEECH)
    assert (answer.status_code, answer.json()["error"]["type"]) == (405, "invalid_request_error")
    assert [client.get(place).status_code for place in ("/docs", "/openapi.json", "/redoc")] == [404] * 3


def test_the_model_tells_its_version_and_voices(client):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["version"], model["voices"]) == ("toy", "1", ["anna", "bea"])


def test_numbers_count_what_was_said(client, speaker):
    client.post(SPEECH, json=ASKED)
    client.post(SPEECH, json=ASKED | {"speed": 2})
    client.get("/nowhere/secret")
    told = client.get("/metrics").text
    audio_s = len(speaker.speak("anna.", "anna")) / 16_000
    assert 'slimtts_requests_total{endpoint="/v1/audio/speech",status="200"} 1.0' in told
    assert 'slimtts_requests_total{endpoint="/v1/audio/speech",status="400"} 1.0' in told
    assert 'slimtts_requests_total{endpoint="other",status="404"} 1.0' in told
    assert f"slimtts_audio_seconds_total {audio_s}" in told
    assert "slimtts_lm_rtf_count 1.0" in told
    assert "slimtts_first_audio_seconds_count 1.0" in told
    assert "slimtts_calls_in_flight 0.0" in told
    assert "nowhere" not in told


def test_an_error_of_ours_tells_the_client_nothing_and_the_log_all(server_of, caplog):
    from starlette.testclient import TestClient

    class Broken:
        sample_rate_hz, voices = 16_000, {}

        def stream(self, text, voice, is_wanted):
            raise RuntimeError("weights of /private/path")

    client = TestClient(server_of(Broken()).asgi, base_url="http://127.0.0.1", raise_server_exceptions=False)
    answer = client.post(SPEECH, json={"model": "toy", "input": "hello"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "private" not in answer.text
    assert client.get("/metrics").text.count("slimtts_calls_in_flight 0.0") == 1


def test_a_text_is_never_logged(client, caplog):
    with caplog.at_level(logging.INFO):
        client.post(SPEECH, json=ASKED | {"input": "private words."})
    assert "spoke 14 characters" in caplog.text
    assert "private" not in caplog.text


def test_a_model_that_says_nothing_is_an_error(client_of):
    class Mute:
        sample_rate_hz, voices = 16_000, {}

        def stream(self, text, voice, is_wanted):
            return iter(())

    answer = client_of(Mute()).post(SPEECH, json={"model": "toy", "input": "hello"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "no_speech")
