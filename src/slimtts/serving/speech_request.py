"""The body of `POST /v1/audio/speech`: OpenAI's fields, those that this server can keep.

Source: the reference of OpenAI's API, "Create speech". `instructions` and other formats are refused, not ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _normal_speed(value: object) -> object:
    if value != 1 or isinstance(value, bool):
        raise ValueError("1: speech is not stretched here")
    return 1.0


class SpeechRequest(BaseModel):
    """What to say, by which model, in whose voice, as which bytes. Without a voice, the model's first."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: str
    input: str
    voice: str | None = None
    response_format: Literal["wav", "pcm"] = "wav"
    speed: Annotated[float, BeforeValidator(_normal_speed)] = 1.0
    stream_format: Literal["audio"] = "audio"
