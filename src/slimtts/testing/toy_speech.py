"""A language that anybody can check: a word is seven codes, its sound a chord of beeps, its spelling three letters.

`FrameCodec` turns codes into sound and back, `ToyRecognizer` sound into words: what was said decides every number, as
with a real codec and a real recogniser, in milliseconds. Frames are laid out as Orpheus lays them out: position p of
a frame of seven has a range of codes of its own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

FRAME = 7  # codes
WORDS = ("ani", "bel", "cor", "dut")
VALUES = len(WORDS)  # of each position of a frame
NUM_CODES = FRAME * VALUES


class FrameCodec:
    """Code c is 40 ms of a tone of (c + 2) * 100 Hz; whole frames are decoded, each code as its position reads it."""

    num_codes = NUM_CODES
    frame_rate_hz = 25.0

    def __init__(self, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.samples_a_code = round(sample_rate_hz / self.frame_rate_hz)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, F] -> float [B, 7 N floor(F / 7)]; a code of another position keeps its value."""
        frames = codes[:, : codes.shape[1] // FRAME * FRAME].unflatten(1, (-1, FRAME))
        here = (frames % VALUES + VALUES * torch.arange(FRAME)).flatten(1)
        time_s = torch.arange(self.samples_a_code) / self.sample_rate_hz
        return 0.3 * torch.sin(2 * torch.pi * 100 * (here.unsqueeze(-1) + 2) * time_s).flatten(1)

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """float [B, N] -> int64 [B, F], whole frames."""
        length = FRAME * self.samples_a_code
        if waveform.shape[1] < length:
            return torch.zeros(waveform.shape[0], 0, dtype=torch.int64)
        whole = waveform[:, : waveform.shape[1] // length * length]
        strength = torch.fft.rfft(whole.unflatten(1, (-1, self.samples_a_code))).abs()  # [B, F, bins of 25 Hz]
        heard = strength[..., 8 : 8 + 4 * NUM_CODES : 4].unflatten(-1, (FRAME, VALUES))
        position = torch.arange(heard.shape[1]) % FRAME
        values = heard[:, torch.arange(heard.shape[1]), position].argmax(-1)
        return values + VALUES * position


def codes_of(text: str) -> tuple[int, ...]:
    """How the words of a text are said."""
    spoken = [WORDS.index(word) for word in text.strip(".").split()]
    return tuple(VALUES * position + (word + position) % VALUES for word in spoken for position in range(FRAME))


def words_of_codes(codes: Sequence[int]) -> str:
    """What whole frames sound like: each position votes for a word; ties go to the first."""
    heard = []
    for start in range(0, len(codes) // FRAME * FRAME, FRAME):
        votes = [(code - position) % VALUES for position, code in enumerate(codes[start : start + FRAME])]
        heard.append(WORDS[max(range(VALUES), key=votes.count)])
    return " ".join(heard)


class ToyRecognizer:
    """Hears the language; stands where a Whisper would."""

    name = "toy"

    def __init__(self, codec: FrameCodec) -> None:
        self.codec = codec

    def transcribe(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> list[str]:
        """One text for each float32 [samples]."""
        if sample_rate_hz != self.codec.sample_rate_hz:
            raise ValueError(f"{sample_rate_hz} Hz, not {self.codec.sample_rate_hz}")
        return [words_of_codes(self.codec.encode(torch.from_numpy(wave)[None])[0].tolist()) for wave in waveforms]


class ToyVoices:
    """Stands where the voice encoder would: how often each code was heard."""

    name = "toy"

    def __init__(self, codec: FrameCodec) -> None:
        self.codec = codec

    def embed(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> np.ndarray:
        """float32 [B, codes], rows of length 1; zeros for silence."""
        rows = np.zeros((len(waveforms), NUM_CODES), dtype=np.float32)
        for row, wave in zip(rows, waveforms, strict=True):
            np.add.at(row, self.codec.encode(torch.from_numpy(wave)[None])[0].numpy(), 1)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class ToyMos:
    """Stands where the predictor of naturalness would: 1 for silence, 5 for the loudest sound all the time."""

    name = "toy"

    def predict(self, waveforms: Sequence[np.ndarray], sample_rate_hz: int) -> list[float]:
        """One score in 1..5 for each float32 [samples]."""
        return [1 + 4 * float(np.abs(wave).mean()) if len(wave) else 1.0 for wave in waveforms]


def write_toy_corpus(folder: Path, codec: FrameCodec, voices: Sequence[str], seed: int = 0) -> Path:
    """A manifest of all 64 texts of three words: WAV files, and codes in every fourth row; gives its path back.

    16 rows are the test split, 8 the selection split.
    """
    texts = [f"{a} {b} {c}." for a in WORDS for b in WORDS for c in WORDS]
    random.Random(seed).shuffle(texts)
    folder.mkdir(parents=True)
    rows: list[dict[str, object]] = []
    for index, text in enumerate(texts):
        row: dict[str, object] = {"id": f"u{index:02d}", "text": text, "voice": voices[index % len(voices)]}
        row["split"] = "test" if index < 16 else "selection" if index < 24 else "train"
        if index % 4 == 3:
            rows.append(row | {"codes": codes_of(text)})
        else:
            wave = codec.decode(torch.tensor([codes_of(text)]))[0].numpy()
            soundfile.write(folder / f"u{index:02d}.wav", wave, codec.sample_rate_hz, subtype="PCM_16")
            rows.append(row | {"audio": f"u{index:02d}.wav", "sample_rate_hz": codec.sample_rate_hz})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest
