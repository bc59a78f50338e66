"""Audio files by libsndfile, inside a `slimtts.sandbox` child: a file is a path, or all of its bytes.

Legend: N samples, C channels.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from slimtts.data.sound_content import Flaw, content_flaw
from slimtts.sandbox import Buffer

# Beyond the length that a file states; FLAC is read ahead in blocks of 8 KiB, and some writers pad with a few bytes.
MAX_HIDDEN_BYTES = {"FLAC": 8192, "WAV": 1024, "AIFF": 1024}
_ENDLESS = 0xFFFFFFFF
_CHUNKS = {b"RIFF": ("little", b"data"), b"FORM": ("big", b"SSND")}


def sound_headers(arguments: dict[str, Any], _: bytes) -> tuple[dict[str, Any], Buffer]:
    """`header_of` of each of `paths`."""
    return {"headers": [header_of(path) for path in arguments["paths"]]}, b""


def sound_header(arguments: dict[str, Any], content: bytes) -> tuple[dict[str, Any], Buffer]:
    """`header_of` a file."""
    return header_of(arguments["path"] or io.BytesIO(content)), b""


def header_of(file: str | BinaryIO) -> dict[str, Any]:
    """What a file says: sample_rate_hz, channels, frames; or `observed` where it cannot be read."""
    try:
        info = soundfile.info(file)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        return {"observed": f"unreadable: {(str(error).strip().splitlines() or [''])[0].rsplit(': ', 1)[-1]}"}
    return {"sample_rate_hz": info.samplerate, "channels": info.channels, "frames": info.frames}


def sound_samples(arguments: dict[str, Any], content: bytes) -> tuple[dict[str, Any], Buffer]:
    """`header_of` a file, and its samples as float32 [N] in mono, `duration_s` from `start_s` on or all (null).

    No samples where they are more than `max_samples`, channels counted: the header says so. With `is_speech`, `flaw`
    tells why they cannot be speech, or that the file holds more than it states.
    """
    with _file(arguments, content) as file, soundfile.SoundFile(file) as sound:
        rate_hz, part_s = sound.samplerate, arguments["duration_s"]
        values: dict[str, Any] = {"sample_rate_hz": rate_hz, "channels": sound.channels, "frames": sound.frames}
        start = 0 if part_s is None else min(round(arguments["start_s"] * rate_hz), sound.frames)
        left = sound.frames - start
        wanted = left if part_s is None else min(round(part_s * rate_hz), left)
        if wanted * sound.channels > arguments["max_samples"]:
            return values, b""
        sound.seek(start)
        samples = sound.read(wanted, dtype="float32", always_2d=True)  # [N, C]
        if arguments["is_speech"]:
            hidden = _hidden_sound(file, sound.format) if part_s is None else None
            flaw = hidden or content_flaw(samples, rate_hz)
            values["flaw"] = vars(flaw) if flaw is not None else None
        mono = samples[:, 0] if sound.channels == 1 else samples.mean(axis=1)
    return values, np.ascontiguousarray(mono).data.cast("B")


def _file(arguments: dict[str, Any], content: bytes) -> BinaryIO:
    path = arguments.get("path")
    return Path(path).open("rb") if path is not None else io.BytesIO(content)


def _hidden_sound(file: BinaryIO, kind: str) -> Flaw | None:
    """A file that goes on after the length in its header: the text may be longer than what is read."""
    position = file.tell()
    size = file.seek(0, io.SEEK_END)
    place = position if kind == "FLAC" else _end_of_chunks(file, size) if kind in MAX_HIDDEN_BYTES else size
    file.seek(place)
    hidden = 0 if place >= size else len(file.read(1 << 20).strip(b"\0"))
    if hidden <= MAX_HIDDEN_BYTES.get(kind, 0):
        return None
    observed = f"{size - place} bytes after the length that its header states"
    return Flaw("other_length", observed, "a header that tells the length", "write the file again")


def _end_of_chunks(file: BinaryIO, size: int) -> int:
    """Where in a WAV or AIFF the first thing after the samples is that is no chunk; `size` where there is none."""
    file.seek(0)
    byte_order, data = _CHUNKS.get(file.read(4), ("", b""))
    if not data:
        return size
    place, is_after_data = 12, False
    while place + 8 <= size:
        file.seek(place)
        name, length = file.read(4), int.from_bytes(file.read(4), byte_order)  # type: ignore[arg-type]
        is_chunk = name.isascii() and name.decode().isprintable() and length <= size - place - 8
        if is_after_data and not is_chunk:
            return place
        if name == data:
            if length == _ENDLESS:
                return size
            is_after_data = True
        place += 8 + length + length % 2
    return min(place, size) if is_after_data else size
