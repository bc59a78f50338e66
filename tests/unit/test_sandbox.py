"""A child that crashes, hangs, swells or babbles is one refusal, and the next call is answered."""

import json
import os
import time

import pytest

from slimtts import sandbox
from slimtts.sandbox import Refusal, Sandbox

PARSERS = """
import os, signal, time
from slimtts.sandbox import Refusal

def echo(arguments, content):
    return {"given": arguments, "pid": os.getpid()}, content[::-1]

def die(arguments, content):
    os.kill(os.getpid(), arguments["signal"])

def leave(arguments, content):
    os._exit(3)

def hang(arguments, content):
    while True:
        pass

def swell(arguments, content):
    return {"length": len(bytearray(arguments["bytes"]))}, b""

def refuse(arguments, content):
    raise Refusal("seven", "six", "take one away", "too_many")

def stumble(arguments, content):
    raise KeyError("a\\nb")

def babble(arguments, content):
    print("babble", flush=True)
    os.write(1, b"babble")
    return {"ok": 1}, b""

def environment(arguments, content):
    return dict(os.environ), b""
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "some_parsers.py").write_text(PARSERS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    made = Sandbox("some_parsers", memory_limit_bytes=256 << 20, time_limit_s=0.5)
    yield made
    made.close()


def test_values_and_bytes_come_back_from_one_child(child):
    first = child.call("echo", {"a": [1, "é", None]}, b"xyz" * 100_000)
    assert first.values["given"] == {"a": [1, "é", None]}
    assert bytes(first.content) == b"zyx" * 100_000
    assert child.call("echo", {}).values["pid"] == first.values["pid"] != os.getpid()


@pytest.mark.parametrize(
    ("function", "arguments", "what"),
    [
        ("die", {"signal": 11}, "the parser died of it (SIGSEGV)"),
        ("die", {"signal": 6}, "the parser died of it (SIGABRT)"),
        ("leave", {}, "the parser gave no answer"),
        ("hang", {}, "not read after 0 s"),
        ("swell", {"bytes": 1 << 30}, "more memory wanted"),
        ("stumble", {}, "KeyError: 'a\\nb'"),
        ("refuse", {}, "seven"),
    ],
)
def test_what_goes_wrong_is_a_refusal_and_the_next_call_is_answered(child, function, arguments, what):
    began = time.monotonic()
    with pytest.raises(Refusal) as refusal:
        child.call(function, arguments)
    assert what in refusal.value.observed
    assert time.monotonic() - began < 20
    assert child.call("echo", {"a": 1}).values["given"] == {"a": 1}


def test_a_refusal_keeps_its_parts(child):
    with pytest.raises(Refusal) as refusal:
        child.call("refuse", {})
    assert vars(refusal.value) == {
        "observed": "seven", "allowed": "six", "next_step": "take one away", "reason": "too_many"
    }  # fmt: skip


def test_what_a_parser_prints_is_no_answer(child):
    assert child.call("babble", {}).values == {"ok": 1}


def test_no_secret_reaches_the_child(child, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    assert "s3cret" not in json.dumps(child.call("environment", {}).values)


def test_an_answer_without_bound_is_not_read(child, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_CONTENT_BYTES", 1000)
    with pytest.raises(Refusal, match="an answer of"):
        child.call("echo", {}, b"x" * 2000)
    assert child.call("echo", {}).content == b""


def test_a_fork_does_not_share_the_child(child):
    ours = child.call("echo", {}).values["pid"]
    reader, writer = os.pipe()
    fork = os.fork()
    if not fork:
        os.write(writer, str(child.call("echo", {}).values["pid"]).encode())
        os._exit(0)
    os.waitpid(fork, 0)
    assert int(os.read(reader, 100)) != ours
    assert child.call("echo", {}).values["pid"] == ours


def test_the_child_ends_with_its_owner(child):
    pid = child.call("echo", {}).values["pid"]
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
