"""What a recording looks like: the outline of its waveform, and its spectrogram.

Levels are absolute, not stretched for each recording, so that pictures of different systems can be compared.
Legend: N samples, C columns, R rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

OUTLINE_COLUMNS = 160
WINDOW_S = 0.016
HOP_S = 0.010
FLOOR_DB, CEILING_DB = -95.0, -24.0  # of a sine at full scale: what quiet and loud speech cover
SHADES = 32  # few enough to compress well, more than an eye tells apart at this size


def outline(samples: np.ndarray) -> list[int]:
    """Largest magnitude in each of `OUTLINE_COLUMNS` equal parts of float [N], as 0..255; empty for no samples."""
    if not len(samples):
        return []
    edges = np.linspace(0, len(samples), OUTLINE_COLUMNS + 1).astype(int)
    starts = np.minimum(edges[:-1], len(samples) - 1)
    peaks = np.maximum.reduceat(np.abs(samples), starts)
    return [round(255 * min(1.0, float(peak))) for peak in peaks]


def spectrogram(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """uint8 [R, C] of float [N]: a shade of 0..SHADES-1, low frequencies in the last row."""
    window = np.hanning(round(WINDOW_S * rate_hz))
    hop = round(HOP_S * rate_hz)
    padded = np.pad(samples, (0, max(0, len(window) - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, len(window))[::hop]  # [C, window]
    level_db = 20 * np.log10(np.abs(np.fft.rfft(frames * window)) / (window.sum() / 2) + 1e-9)
    shade = (level_db - FLOOR_DB) / (CEILING_DB - FLOOR_DB) * SHADES
    return np.clip(shade, 0, SHADES - 1).astype(np.uint8).T[:0:-1]  # without the constant part


def write_spectrogram(out: Path | BinaryIO, samples: np.ndarray, rate_hz: int) -> None:
    """A PNG of a few kilobytes."""
    from matplotlib import colormaps
    from PIL import Image

    image = Image.fromarray(spectrogram(samples, rate_hz), mode=None).convert("P")
    shades = colormaps["magma"](np.linspace(0, 1, SHADES))[:, :3]
    image.putpalette((255 * shades).astype(np.uint8).tobytes())
    image.save(out, format="PNG", optimize=True, bits=5)
