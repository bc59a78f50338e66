"""The body of `POST /v1/audio/speech`: OpenAI's fields, those that this server can keep.

Source: the reference of OpenAI's API, "Create speech". `instructions` and other formats are refused, not ignored.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from slimtts.data.spoken_text import check_text_to_speak
from slimtts.serving.refusals import of_bad_field, of_no_object

JSON_TYPE = "application/json"


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

    @classmethod
    def of_body(cls, body: bytes, content_type: str) -> Self:
        """Reads a request's body.

        Raises:
            Refusal: no JSON object of these fields, a key twice, or a number that is none.
            InvalidInputError: a text that cannot be spoken; the line is that of the command line and of manifests.
        """
        if content_type.partition(";")[0].strip().lower() != JSON_TYPE:
            raise of_no_object()
        try:
            fields = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_once_each, parse_constant=_no_number)
        except (ValueError, RecursionError):  # no JSON, no UTF-8, numbers of thousands of digits, endless nesting
            raise of_no_object() from None
        if not isinstance(fields, dict):
            raise of_no_object()
        if isinstance(fields.get("input"), str):
            check_text_to_speak(fields["input"])
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise of_bad_field(error) from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):  # which of them counts would be a guess
        raise of_no_object("a key twice")
    return fields


def _no_number(literal: str) -> NoReturn:
    raise ValueError(literal)
