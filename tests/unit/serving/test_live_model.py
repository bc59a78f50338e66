"""A newer model takes over only when it speaks; calls keep the model that they began with."""

import asyncio
import dataclasses
import json

import numpy as np
import pytest
import torch

from slimtts.errors import SlimttsError
from slimtts.serving import live_model
from slimtts.serving.app import SpeechServer
from slimtts.serving.limits import ServingLimits
from slimtts.serving.live_model import LiveModel
from slimtts.serving.model_source import ModelFiles
from slimtts.speech import Probe, Speaker, SpeechPiece

RELOAD = "/admin/reload"


class Versioned:
    """Says its version's number, as samples; `gate` holds it after the first piece."""

    sample_rate_hz, voices = 16_000, {}

    def __init__(self, version, level=0.5, **probe):
        self.version, self.gate, self.probed = version, None, []
        good = {"codes": tuple(range(40)), "ended": True, "is_finite": True}
        self.answers = Probe(samples=np.full(1600, level, np.float32), **good | probe)

    def probe(self, text):
        self.probed.append(text)
        return self.answers

    def stream(self, text, voice=None, is_wanted=lambda: True):
        for _ in range(3):
            yield SpeechPiece(np.full(160, self.version / 100, np.float32), 0.001)
            while self.gate is not None and not self.gate.wait(0.01) and is_wanted():
                pass


class Registry:
    """Gives the promoted version, unless it is known; `problem` is raised instead."""

    def __init__(self, monkeypatch):
        self.version, self.problem, self.speakers, self.asked = 1, None, {}, []
        monkeypatch.setattr(live_model, "Speaker", self)

    def fetch(self, folder, present):
        self.asked.append(present)
        if self.problem is not None:
            raise self.problem
        if present == str(self.version):
            return None
        folder.mkdir()
        (folder / "weights").write_text("w")
        return ModelFiles("toy", folder, str(self.version), "run", "a" * 64)

    def load(self, folder):
        assert (folder / "weights").is_file()
        self.folder = folder
        return self.speakers.setdefault(self.version, Versioned(self.version))


@pytest.fixture
def registry(monkeypatch):
    return Registry(monkeypatch)


def test_a_promoted_version_is_taken_up_and_its_download_removed(registry):
    live = LiveModel(registry.fetch)
    with pytest.raises(SlimttsError, match="none loaded"):
        _ = live.current
    assert live.take_up().model.files.version == "1"
    assert not registry.folder.exists()
    assert not live.take_up().changed
    registry.version = 2
    replaced = live.take_up()
    assert (replaced.changed, replaced.former_version, live.current.files.version) == (True, "1", "2")
    assert registry.asked == [None, "1", "1"]


@pytest.mark.parametrize("level", [0.0, 1e-5, float("nan"), float("inf")])
def test_a_model_that_is_not_heard_is_not_taken_up(registry, level):
    live = LiveModel(registry.fetch)
    live.take_up()
    registry.version, registry.speakers[2] = 2, Versioned(2, level)
    with pytest.raises(SlimttsError, match="for the probe sentence"):
        live.take_up()
    assert live.current.files.version == "1"
    registry.version = 3
    assert live.take_up().changed


@pytest.mark.parametrize(
    ("probe", "observed", "sentences"),
    [
        ({"is_finite": False}, "numbers that are not finite", 1),
        ({"ended": False}, "no end after 40 codes", 3),
        ({"codes": (7,) * 40}, "one pattern in 100% of the codes", 3),
        ({"codes": (1, 2, 3, 4, 5) * 8}, "one pattern in 100% of the codes", 3),
        ({"codes": tuple(range(12)) + (5,) * 28}, "one pattern in 69% of the codes", 3),
    ],
)
def test_a_model_that_speaks_noise_is_not_taken_up(registry, probe, observed, sentences):
    live = LiveModel(registry.fetch)
    live.take_up()
    assert registry.speakers[1].probed == [live_model.PROBES[0]]
    registry.version, registry.speakers[2] = 2, Versioned(2, **probe)
    with pytest.raises(SlimttsError, match=observed):
        live.take_up()
    assert len(registry.speakers[2].probed) == sentences
    assert live.current.files.version == "1"


def test_one_sentence_that_goes_wrong_is_no_reason(registry):
    speaker = Versioned(1)
    good, speaker.answers = speaker.answers, dataclasses.replace(speaker.answers, ended=False)

    def probe(text):
        speaker.probed.append(text)
        return good if text == live_model.PROBES[1] else speaker.answers

    speaker.probe = probe
    live_model.check_speaks(speaker, "toy")
    assert speaker.probed == list(live_model.PROBES[:2])


def _in_one(value):
    def damage(model):
        model.model.layers[3].mlp.up_proj.weight[5, 5] = value

    return damage


def _in_all(change):
    def damage(model):
        for weight in model.parameters():
            weight.copy_(change(weight))

    return damage


def _shuffled(weight):
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))
    return weight.flatten()[order].view_as(weight)


DAMAGE = {
    "one NaN": (_in_one(float("nan")), "logits of the model: observed not"),
    "one infinite": (_in_one(float("inf")), "logits of the model: observed not"),
    "all NaN": (
        _in_all(lambda weight: torch.full_like(weight, float("nan"))),
        "logits of the model: observed not",
    ),
    "all zero": (_in_all(torch.zeros_like), "one pattern in 100% of the codes|of level 0"),
    "shuffled": (_in_all(_shuffled), "one pattern in|no end after 160 codes"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_real_weights_that_are_damaged_do_not_speak(case):
    speaker, (damage, observed) = Speaker.load(), DAMAGE[case]
    with torch.no_grad():
        damage(speaker.model.model)
    with pytest.raises(SlimttsError, match=observed):
        live_model.check_speaks(speaker, "toy")


def test_the_bundled_teacher_passes_each_probe():
    speaker = Speaker.load()
    for sentence in live_model.PROBES:
        probe = speaker.probe(sentence)
        assert (probe.ended, probe.is_finite) == (True, True)
        assert probe.repeated_share < 0.2
        assert np.array_equal(probe.samples, speaker.speak(sentence))


def server_of_registry(registry, **limits):
    live = LiveModel(registry.fetch)
    live.take_up()
    return SpeechServer(live, ServingLimits(**limits), None)


def test_a_reload_tells_what_changed_and_a_failed_one_why(registry, ask):
    app = server_of_registry(registry).asgi

    async def reload():
        call = await ask(app, path=RELOAD).run()
        return call.status, json.loads(call.content)

    status, told = asyncio.run(reload())
    assert (status, told["changed"], told["version"]) == (200, False, "1")
    registry.version = 2
    status, told = asyncio.run(reload())
    assert (status, told["changed"], told["version"], told["former_version"]) == (200, True, "2", "1")
    registry.problem = SlimttsError("registry: observed no answer of s3://user:secret@host; next: wait")
    status, told = asyncio.run(reload())
    assert (status, told["error"]["code"], told["error"]["type"]) == (502, "reload_failed", "server_error")
    assert "observed no answer" in told["error"]["message"]
    assert "the former model goes on" in told["error"]["message"]
    assert "secret" not in told["error"]["message"]


def test_calls_in_flight_end_on_the_model_that_they_began_with(registry, ask):
    import threading

    app = server_of_registry(registry, concurrent=2).asgi
    registry.speakers[1].gate = threading.Event()

    async def run():
        old, new = ask(app), ask(app)
        running = asyncio.create_task(old.run())
        await asyncio.wait_for(old.got_audio.wait(), 5)
        registry.version = 2
        assert (await asyncio.wait_for(ask(app, path=RELOAD).run(), 5)).status == 200
        await asyncio.wait_for(new.run(), 5)
        assert not running.done()
        registry.speakers[1].gate.set()
        await asyncio.wait_for(running, 5)
        return old, new

    for call, version in zip(asyncio.run(run()), (1, 2), strict=True):
        samples = np.frombuffer(call.content[44:], "<i2")
        assert call.is_complete
        assert len(samples) == 480
        assert set(samples) == {int(np.floor(np.float32(version / 100) * 32_768))}


def test_a_follower_takes_up_newer_versions_and_outlives_failures(registry):
    live = LiveModel(registry.fetch)
    live.take_up()
    server = SpeechServer(live, ServingLimits(), None, follow_s=0.02)

    async def until(condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.01)

    async def run():
        lifespan = server._lifespan(None)
        async with lifespan:
            registry.version = 2
            await until(lambda: live.current.files.version == "2")
            for problem in (SlimttsError("away"), ZeroDivisionError()):
                registry.problem, asked = problem, len(registry.asked)
                await until(lambda asked=asked: len(registry.asked) > asked + 1)
            registry.problem, registry.version = None, 3
            await until(lambda: live.current.files.version == "3")

    asyncio.run(run())
