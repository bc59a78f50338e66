"""Samples as bytes: 16-bit little-endian PCM, mono, and the header of a WAV file whose length is not known yet."""

from __future__ import annotations

import struct

import numpy as np

UNKNOWN = 0xFFFFFFFF  # what players and libsndfile take for "until the end"
BYTES_A_SAMPLE = 2


def pcm16(samples: np.ndarray) -> bytes:
    """float [N] in -1..1 -> 2 N bytes: what libsndfile writes, which rounds downwards (measured 2026-11-21)."""
    return bytes(np.floor(np.clip(samples * 32_768.0, -32_768, 32_767)).astype("<i2").tobytes())


def wav_header(sample_rate_hz: int) -> bytes:
    """44 bytes, to be followed by PCM of any length."""
    pcm, channels = 1, 1
    kind = struct.pack(
        "<HHIIHH", pcm, channels, sample_rate_hz, sample_rate_hz * BYTES_A_SAMPLE, BYTES_A_SAMPLE, 8 * BYTES_A_SAMPLE
    )
    return b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVEfmt " + struct.pack("<I", len(kind)) + kind + b"data" + (
        struct.pack("<I", UNKNOWN)
    )  # fmt: skip
