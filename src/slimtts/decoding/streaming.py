"""Speech while it is generated: codes one by one, and their audio in windows that equal the whole decode.

A codec whose audio depends on a known number of codes around each instant can decode a window of codes with that many
on both sides, and keep the middle: the pieces put together are what one decode of all codes gives, to rounding
(measured 2026-11-21 on the bundled codec: 2.1e-7; `TOLERANCE` is what the tests hold).
Legend: F codec frames, N samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from slimtts.codec.base import SpeechCodec
from slimtts.decoding.generation import generation_steps
from slimtts.params import DecodingParams
from slimtts.teachers.base import SpeechTokenLayout

TOLERANCE = 1e-5  # of samples in -1..1; a 16-bit step is 3e-5
# Frames of a piece: few at first, so that sound starts early; then more, because each window decodes its context too.
FIRST_FRAMES, MOST_FRAMES = 5, 40


@runtime_checkable
class WindowedCodec(SpeechCodec, Protocol):
    """A codec whose audio at frame f depends on the codes f - context_frames .. f + context_frames alone."""

    samples_per_frame: int
    context_frames: int


def stream_codes(
    model: Any, layout: SpeechTokenLayout, prompt: Sequence[int], decoding: DecodingParams, row_seed: int = 0
) -> Iterator[int]:
    """The codes that `generate_batch` gives for this prompt alone, each as soon as it is chosen."""
    for said in generation_steps(model, layout, [prompt], decoding, row_seeds=[row_seed]):
        code = int(said[0])
        if code == layout.num_codes:
            return
        yield code


def stream_audio(codes: Iterable[int], codec: WindowedCodec) -> Iterator[torch.Tensor]:
    """float [N] pieces whose concatenation is `codec.decode` of all codes within `TOLERANCE`; nothing for no codes."""
    heard: list[int] = []
    done, step = 0, FIRST_FRAMES
    for code in codes:
        heard.append(code)
        if len(heard) == done + step + codec.context_frames:
            yield _window(heard, done, done + step, codec)
            done, step = done + step, min(2 * step, MOST_FRAMES)
    if done < len(heard):
        yield _window(heard, done, len(heard), codec)


def _window(codes: Sequence[int], start: int, end: int, codec: WindowedCodec) -> torch.Tensor:
    before = max(0, start - codec.context_frames)
    samples = codec.decode(torch.tensor([codes[before : end + codec.context_frames]]))[0]
    return samples[(start - before) * codec.samples_per_frame : (end - before) * codec.samples_per_frame]
