"""The model that speaks now, and its replacement by a newer one: fetched, loaded and heard before it takes over.

A call keeps the model that it began with; the former one is freed when its last call ends.
"""

from __future__ import annotations

import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimtts.errors import InvalidInputError
from slimtts.serving.model_source import Fetch, ModelFiles
from slimtts.speech import Probe, Speaker

# The bundled teacher's words; a good model may lose its way in one sentence, hardly in all of them.
PROBES = ("the green tiger found my apple.", "please call anna at seven.", "the river was near the castle.")
QUIETEST = 1e-3  # root mean square of a probe that says something
MOST_REPEATED = 0.5  # share of codes in one pattern; the bundled teacher has at most 0.1


@dataclass(frozen=True)
class ServedModel:
    """A loaded model with its identity."""

    files: ModelFiles
    speaker: Speaker
    loaded_at_s: float  # since the epoch

    @property
    def id(self) -> str:
        """As clients name it."""
        return self.files.id


@dataclass(frozen=True)
class Replacement:
    """What came of looking for a newer model."""

    changed: bool
    model: ServedModel
    former_version: str | None
    took_s: float


class LiveModel:
    """Holds the model; `take_up` replaces it. Safe to use from any thread."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch, self._one_at_a_time = fetch, threading.Lock()
        self._current: ServedModel | None = None

    @property
    def current(self) -> ServedModel:
        """The model for a call that begins now.

        Raises:
            InvalidInputError: none was taken up yet.
        """
        if self._current is None:
            raise InvalidInputError("model", "none loaded", "one that was taken up", "wait until the server is ready")
        return self._current

    def take_up(self) -> Replacement:
        """Fetches and loads the source's model, lets it speak, and makes it the current one. Blocks for all of that.

        Raises:
            SlimttsError: it cannot be fetched, loaded or heard; the former model stays.
        """
        with self._one_at_a_time:
            start, former = time.monotonic(), self._current
            known = former.files.version if former else None
            with tempfile.TemporaryDirectory(prefix="slimtts-model-") as temporary:
                files = self._fetch(Path(temporary) / "model", known)
                if files is None and former is not None:
                    return Replacement(False, former, known, time.monotonic() - start)
                if files is None:
                    raise InvalidInputError("model", "nothing fetched", "a model", "name another --model")
                speaker = Speaker.load(files.folder)
            check_speaks(speaker, files.id)
            self._current = ServedModel(files, speaker, time.time())
            return Replacement(True, self._current, known, time.monotonic() - start)


def check_speaks(speaker: Speaker, what: str) -> None:
    """Refuses a model that does not speak.

    Raises:
        InvalidInputError: a number that is not finite, or no probe sentence that becomes sound, without a pattern
            that repeats, and ends.
    """
    faults = []
    for sentence in PROBES:
        probe = speaker.probe(sentence)
        fault = _fault(probe)
        if fault is None:
            return
        faults.append(fault)
        if not probe.is_finite:
            break
    observed, allowed = faults[-1]
    raise InvalidInputError(
        f"model {what}", f"{observed} for the probe sentence '{sentence}'", allowed, "promote or name another model"
    )


def _fault(probe: Probe) -> tuple[str, str] | None:
    """Observed and allowed."""
    samples = probe.samples
    level = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
    if not probe.is_finite:
        return "numbers that are not finite", "finite weights and logits"
    if not QUIETEST <= level < float("inf"):
        return f"{len(samples)} samples of level {level:.2g}", f"speech of at least {QUIETEST}"
    if probe.repeated_share > MOST_REPEATED:
        return f"one pattern in {probe.repeated_share:.0%} of the codes", f"at most {MOST_REPEATED:.0%}"
    if not probe.ended:
        return f"no end after {len(probe.codes)} codes", "speech that ends"
    return None
