"""Small sets in the file layouts of published benchmarks, with speech that somebody else made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile


@dataclass(frozen=True)
class SpokenSentence:
    """A sentence and its prompt; float32 [N] of the prompt and, where there is one, of the sentence as it was said."""

    text: str
    prompt_text: str
    prompt: np.ndarray
    original: np.ndarray | None
    voice: int


def write_seed_tts_eval(folder: Path, sentences: Sequence[SpokenSentence], rate_hz: int) -> Path:
    """meta.lst, prompt-wavs/ and wavs/; the path of the list."""
    lines = []
    for number, sentence in enumerate(sentences):
        name, prompt = f"made_{number:04d}", f"prompt-wavs/made_{number:04d}_prompt.wav"
        _write(folder / prompt, sentence.prompt, rate_hz)
        if sentence.original is not None:
            _write(folder / "wavs" / f"{name}.wav", sentence.original, rate_hz)
        lines.append("|".join((name, sentence.prompt_text, prompt, sentence.text)))
    return _listed(folder / "meta.lst", lines)


def write_librispeech_pc(folder: Path, sentences: Sequence[SpokenSentence], rate_hz: int) -> Path:
    """The cross-sentence list of F5-TTS and test-clean/SPEAKER/CHAPTER/ID.flac; the path of the list."""
    lines = []
    for number, sentence in enumerate(sentences):
        fields = []
        for chapter, text, wave in ((1, sentence.prompt_text, sentence.prompt), (2, sentence.text, sentence.original)):
            name = f"{sentence.voice}-{chapter}-{number:04d}"
            if wave is not None:
                _write(folder / "test-clean" / str(sentence.voice) / str(chapter) / f"{name}.flac", wave, rate_hz)
            fields += [name, f"{0 if wave is None else len(wave) / rate_hz:.3f}", text]
        lines.append("\t".join(fields))
    return _listed(folder / "test_clean_cross_sentence.lst", lines)


def write_prompted_manifest(folder: Path, sentences: Sequence[SpokenSentence], rate_hz: int) -> Path:
    """manifest.jsonl and audio/; its path."""
    lines = []
    for number, sentence in enumerate(sentences):
        name = f"made-{number:04d}"
        row = {"id": name, "text": sentence.text, "prompt_text": sentence.prompt_text, "voice": str(sentence.voice)}
        row["prompt_audio"] = f"audio/{name}-prompt.wav"
        _write(folder / row["prompt_audio"], sentence.prompt, rate_hz)
        if sentence.original is not None:
            row["audio"] = f"audio/{name}.wav"
            _write(folder / row["audio"], sentence.original, rate_hz)
        lines.append(json.dumps(row))
    return _listed(folder / "manifest.jsonl", lines)


LAYOUTS: dict[str, Callable[[Path, Sequence[SpokenSentence], int], Path]] = {
    "seed-tts-eval": write_seed_tts_eval,
    "librispeech-pc": write_librispeech_pc,
    "manifest": write_prompted_manifest,
}


def _write(path: Path, wave: np.ndarray, rate_hz: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Rounded here: libsndfile rounds floats for FLAC otherwise than for WAV, and one step changes codes of a prompt.
    samples = np.round(np.clip(wave, -1, 1) * 32_767).astype(np.int16)
    soundfile.write(path, samples, rate_hz, subtype="PCM_16")


def _listed(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
