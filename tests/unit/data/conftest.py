import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from slimtts.codec.nano_codec import NanoCodec, NanoCodecConfig
from slimtts.data.llasa_memmap import TokenRows
from slimtts.data.sources import open_path
from slimtts.data.speech_source import CodecFacts, SpeechSource
from slimtts.errors import InvalidInputError
from slimtts.teachers.base import SpeechTokenLayout, Teacher
from slimtts.testing.tiny import TinyFamily

NAMES = "anna peter maria oscar julia thomas robert emma".split()
VERBS = "found carried painted followed stole washed".split()
THINGS = "apple bottle window table hammer guitar ticket pencil".split()


def say_what(error: InvalidInputError) -> str:
    """The message, after checking that it is one line with all four parts."""
    message = str(error)
    assert "\n" not in message
    for part in ("observed", "allowed", "next"):
        assert f"{part}" in message
    assert error.what and str(error.observed) and str(error.allowed) and error.next_step
    return message


@pytest.fixture
def one_line() -> Callable[[InvalidInputError], str]:
    return say_what


@pytest.fixture(scope="session")
def codec() -> NanoCodec:
    torch.manual_seed(0)
    return NanoCodec(
        NanoCodecConfig(
            encoder_channels=8,
            decoder_channels=8,
            spectrum_channels=8,
            encoder_blocks=1,
            decoder_blocks=1,
            spectrum_blocks=1,
        )
    ).eval()


@pytest.fixture
def facts(codec: NanoCodec) -> CodecFacts:
    return CodecFacts(codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codes, codec.encode)


@pytest.fixture
def open_source(facts: CodecFacts) -> Callable[..., SpeechSource]:
    """Opens a path that holds no token rows."""

    def refuse(ids: list[int]) -> str:
        raise AssertionError("no token rows here")

    return lambda path, drop=False: open_path(path, facts, TokenRows(refuse, 0, 1, 0), drop)


@pytest.fixture
def refusal(open_source, one_line) -> Callable[[Path], str]:
    """The one line with which a path is refused."""

    def refused(path: Path) -> str:
        with pytest.raises(InvalidInputError) as error:
            open_source(path)
        return one_line(error.value)

    return refused


def noise(seconds: float, rate_hz: int = 16_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate_hz)).astype(np.float32)


def everything(source: SpeechSource) -> list[tuple[object, ...]]:
    """Rows with their codes, whatever the order."""
    return sorted((row.id, row.text, row.voice, row.duration_s, source.codes_of(row.id)) for row in source.candidates)


@pytest.fixture
def token_corpus(tmp_path: Path) -> Path:
    """600 rows in three voices with the splits that a hash of the text gives."""
    rng = random.Random(0)
    rows, codes = [], []
    for index in range(600):
        text = f"{rng.choice(NAMES)} {rng.choice(VERBS)} the {rng.choice(THINGS)}"
        bucket = sum(text.encode()) % 10
        split = "test" if bucket == 0 else "selection" if bucket == 1 else "train"
        rows.append({"id": f"row-{index:03d}", "text": text + ".", "voice": rng.choice("abc"), "split": split})
        codes.append(np.array([rng.randrange(4096) for _ in range(rng.randint(15, 70))], dtype=np.int16))
    folder = tmp_path / "corpus"
    folder.mkdir()
    np.savez(folder / "codes.npz", codes=np.concatenate(codes), offsets=np.cumsum([0, *map(len, codes)]))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def teacher(codec: NanoCodec, token_corpus: Path) -> Teacher:
    return Teacher(
        family=TinyFamily(token_corpus, 5.0),
        model=None,
        tokenizer=None,
        layout=SpeechTokenLayout(10, 4096, 1, 0),
        codec=codec,
        folder=token_corpus,
        weights_sha256="0" * 64,
    )
