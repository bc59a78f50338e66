"""A real server process, a real registry, the bundled teacher: streamed, replaced in flight, stopped in order."""

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from slimtts.results import Lineage, Release, VoicePrompt, Voices
from slimtts.storage import files_sha256
from slimtts.workspace import Workspace
from tasks.fetch_model import fetch_model
from tasks.registry import _create_version, _upload
from tasks.tracking import TrackedRun, mlflow_client
from tasks.workspace import CHECKOUT

MODEL, ALIAS = "slimtts-nano", "production"
TEXT, VOICE = "the green tiger found my apple.", "slt"
SHORT = "the green tiger."
SPEECH = "/v1/audio/speech"
API_KEY, AWS_SECRET = "key-of-the-test-0123456789", "aws-secret-of-the-test-0123456789"
STEP = 1 / 32_768  # of 16-bit samples
START_S = 120


class Registry:
    """Versions as the pipeline registers them, in a store of their own."""

    def __init__(self, root, empty_db):
        root.mkdir()
        shutil.copy(empty_db, root / "mlflow.db")
        self.root, self.uri = root, f"sqlite:///{root / 'mlflow.db'}"
        self.client = mlflow_client(self.uri)
        self.client.create_registered_model(MODEL)
        self.experiment = self.client.create_experiment("slimtts", artifact_location=str(root / "artifacts"))

    def new_run(self):
        return self.client.create_run(self.experiment).info.run_id

    def register(self, student):
        """The number of a version with this folder."""
        run = TrackedRun(self.uri, self.new_run(), self.root)
        workspace = Workspace(self.root / run.run_id)
        shutil.copytree(student, workspace.release / "model")
        sha256 = files_sha256(sorted(student.glob("*.safetensors")))
        release = Release.model_construct(model_name=MODEL, lineage=Lineage.model_construct(student_sha256=sha256))
        _upload(run, release, workspace.release / "model")
        return str(_create_version(self.client, run, release, workspace).version)

    def promote(self, version):
        self.client.set_registered_model_alias(MODEL, ALIAS, version)


@pytest.fixture(scope="module")
def registry(empty_mlflow_db, tmp_path_factory):
    return Registry(tmp_path_factory.mktemp("registry") / "runs", empty_mlflow_db)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """The bundled teacher as a student, and another whose weights differ in a row that is never read."""
    from slimtts.teachers.nano import bundle_folder

    root = tmp_path_factory.mktemp("students")
    for name in ("one", "two"):
        shutil.copytree(bundle_folder() / "teacher", root / name)
    weights = load_file(root / "two" / "model.safetensors")
    weights["model.embed_tokens.weight"][716] += 1  # the pad's
    save_file(weights, root / "two" / "model.safetensors", metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def speaker():
    from slimtts.speech import Speaker

    return Speaker.load()


@contextmanager
def serving(folder, model, *options, **environment):
    """Address, process and log of a server; killed in the end if it still runs."""
    log = folder / "server.log"
    command = [
        sys.executable,
        "-m",
        "slimtts.cli",
        "serve",
        "--model",
        model,
        "--port",
        "0",
        "--threads",
        "1",
        *options,
    ]
    given = {
        name: value for name, value in os.environ.items() if name not in ("SLIMTTS_API_KEY", "MLFLOW_TRACKING_URI")
    }
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            env=given | {"PYTHONPATH": str(CHECKOUT / "src"), **environment},
            stdout=out,
            stderr=out,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + START_S
        while not (running := re.search(r"running on (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield running[1], process, log
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(registry, students, tmp_path_factory):
    """Serves @production, with a key, while secrets are in its environment."""
    registry.promote(registry.register(students / "one"))
    secrets = {"SLIMTTS_API_KEY": API_KEY, "AWS_SECRET_ACCESS_KEY": AWS_SECRET, "MLFLOW_TRACKING_URI": registry.uri}
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, f"models:/{MODEL}@{ALIAS}", "--requests-per-minute", "600", **secrets) as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server[0], headers={"Authorization": f"Bearer {API_KEY}"}, timeout=60) as client:
        yield client


def asked(**changes):
    return {"model": MODEL, "input": TEXT, "voice": VOICE, **changes}


def version_of(http):
    return http.get("/v1/models").json()["data"][0]["version"]


def number(http, name):
    return float(re.search(rf"^{re.escape(name)} (\S+)$", http.get("/metrics").text, re.MULTILINE)[1])


def test_the_wav_is_streamed_and_is_what_the_model_says(http, speaker):
    shares = []
    for _ in range(3):
        start, arrived, content = time.monotonic(), [], b""
        with http.stream("POST", SPEECH, json=asked()) as answer:
            assert answer.status_code == 200
            assert answer.headers["transfer-encoding"] == "chunked"
            for chunk in answer.iter_raw():
                content += chunk
                if len(content) > 44:
                    arrived.append(time.monotonic() - start)
        shares.append(arrived[0] / arrived[-1])
        assert len(arrived) >= 3
    assert sorted(shares)[1] < 0.85  # 20 of 47 codes
    samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32")
    whole = speaker.speak(TEXT, VOICE)
    assert (rate_hz, samples.shape) == (16_000, whole.shape)
    assert np.abs(samples - whole).max() <= 2 * STEP
    pcm = http.post(SPEECH, json=asked(response_format="pcm")).content
    assert pcm == content[44:]


def test_without_the_key_there_is_no_speech(server):
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = httpx.post(f"{server[0]}{SPEECH}", json=asked(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{server[0]}/ready").status_code == 200


def test_a_client_that_is_killed_ends_its_generation(server, http):
    before = number(http, "slimtts_audio_seconds_total")
    text = "the green tiger found my apple and the seven castle."
    body = json.dumps(asked(input=text)).encode()
    head = (
        f"POST {SPEECH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    address = httpx.URL(server[0])
    with closing(socket.create_connection((address.host, address.port))) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # close as a kill does: by reset
        client.sendall(head.encode() + body)
        assert b"200 OK" in client.recv(64)
    deadline = time.monotonic() + 20
    while 'slimtts_cut_streams_total{reason="client left"}' not in http.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    while number(http, "slimtts_calls_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    whole_s = len(http.post(SPEECH, json=asked(input=text, response_format="pcm")).content) / 32_000
    assert number(http, "slimtts_audio_seconds_total") - before < 2 * whole_s


def test_a_reload_amid_twenty_calls_loses_none(server, http, registry, students):
    assert version_of(http) == "1"
    alone = http.post(SPEECH, json=asked(input=SHORT)).content
    registry.promote(registry.register(students / "two"))
    with ThreadPoolExecutor(21) as pool:
        calls = [pool.submit(http.post, SPEECH, json=asked(input=SHORT)) for _ in range(20)]
        reload = pool.submit(http.post, "/admin/reload", timeout=120)
        answers = [call.result() for call in calls]
    told = reload.result().json()
    assert (told["changed"], told["version"], told["former_version"]) == (True, "2", "1")
    assert [answer.status_code for answer in answers] == [200] * 20
    assert {answer.content for answer in answers} == {alone}
    assert version_of(http) == "2"
    again = http.post("/admin/reload", timeout=120).json()
    assert (again["changed"], again["version"]) == (False, "2")


def test_a_promoted_pickle_is_refused_and_the_former_model_goes_on(server, http, registry, students, tmp_path):
    import mlflow

    marker, before = tmp_path / "payload-ran", version_of(http)

    class Payload(mlflow.pyfunc.PythonModel):
        def __reduce__(self):
            return Path.touch, (marker,)

        def predict(self, context, model_input, params=None):
            return None

    run_id, folder = registry.new_run(), tmp_path / "model"
    mlflow.pyfunc.save_model(
        str(folder), python_model=Payload(), artifacts={"student": str(students / "one")}, pip_requirements=["numpy"]
    )
    registry.client.log_artifacts(run_id, str(folder), "model")
    tags = {"student_sha256": files_sha256([students / "one" / "model.safetensors"])}
    made = registry.client.create_model_version(MODEL, f"runs:/{run_id}/model", run_id=run_id, tags=tags)
    registry.promote(str(made.version))
    answer = http.post("/admin/reload", timeout=120)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "reload_failed")
    assert "speech_pyfunc.py" in error["message"] or "python_model.pkl" in error["message"]
    assert "\n" not in error["message"]
    assert version_of(http) == before
    assert http.post(SPEECH, json=asked(input=SHORT)).status_code == 200
    # And `mlflow models serve` of it, as docs/SERVING.md says to start it.
    done = subprocess.run(
        [sys.executable, "-c", f"import mlflow; mlflow.pyfunc.load_model({str(folder)!r})"],
        env=os.environ | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode
    assert "pickle is disallowed" in done.stderr
    assert not marker.exists()


def test_no_secret_is_in_the_log(server, http):
    httpx.get(f"{server[0]}/{API_KEY}?key={API_KEY}", headers={"Authorization": f"Bearer {API_KEY}"})
    log = server[2].read_text()
    assert "LM-RTF" in log
    assert API_KEY not in log
    assert AWS_SECRET not in log
    assert TEXT not in log


def test_sigterm_lets_the_call_in_flight_end_and_limits_hold(tmp_path):
    with serving(tmp_path, "bundled", "--requests-per-minute", "3", "--body-bytes", "2000") as (address, process, log):
        with httpx.Client(base_url=address, timeout=60) as http:
            large = http.post(SPEECH, content=b"x" * 3000, headers={"Content-Type": "application/json"})
            assert large.status_code == 413
            said, content = {"model": "bundled", "input": TEXT, "voice": VOICE, "response_format": "pcm"}, b""
            whole = http.post(SPEECH, json=said).content
            with http.stream("POST", SPEECH, json=said) as answer:
                for chunk in answer.iter_raw():
                    if not content:
                        assert httpx.get(f"{address}/v1/models").status_code == 429
                        process.send_signal(signal.SIGTERM)
                    content += chunk
            assert content == whole
        assert process.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
        assert "Traceback" not in log.read_text()


def test_a_missing_version_is_one_line(registry, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tasks.fetch_model", f"models:/{MODEL}@absent", str(tmp_path / "m")],
        cwd=CHECKOUT, env=os.environ | {"MLFLOW_TRACKING_URI": registry.uri}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fetch_model: ")
    assert "absent" in last
    assert not (tmp_path / "m").exists()


def test_a_fetched_student_is_byte_for_byte_the_registered_one(registry, students, tmp_path):
    version = registry.register(students / "one")
    fetched = fetch_model(registry.client, f"models:/{MODEL}/{version}", tmp_path / "student")
    assert fetched.student_sha256 == files_sha256([students / "one" / "model.safetensors"])
    for path in (students / "one").iterdir():
        assert (tmp_path / "student" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.pipeline
def test_mlflow_models_serve_speaks(registry, students, speaker, tmp_path):
    Voices(voices={VOICE: VoicePrompt(text=speaker.voices[VOICE].text, codes=list(speaker.voices[VOICE].codes))}).write(
        tmp_path / "student" / "voices.json"
    )
    shutil.copytree(students / "one", tmp_path / "student", dirs_exist_ok=True)
    version = registry.register(tmp_path / "student")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", f"models:/{MODEL}/{version}"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "MLFLOW_TRACKING_URI": registry.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    with (tmp_path / "log").open("w") as out:
        process = subprocess.Popen(
            command, env=os.environ | environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ping").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        rows = {"dataframe_records": [{"text": TEXT, "voice": VOICE}]}
        (said,) = httpx.post(f"http://127.0.0.1:{port}/invocations", json=rows, timeout=60).json()["predictions"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(said["audio_base64"])), dtype="float32")
    assert rate_hz == said["sample_rate_hz"] == 16_000
    assert np.abs(samples - speaker.speak(TEXT, VOICE)).max() <= 2 * STEP
