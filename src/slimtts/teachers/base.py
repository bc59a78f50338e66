"""One loaded teacher, whichever its family: model, tokenizer, prompt layout, codec, and what came with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase

from slimtts.codec.base import SpeechCodec
from slimtts.data.spoken_text import control_token_fault
from slimtts.errors import InvalidInputError
from slimtts.teachers.checkpoint import load_language_model


@dataclass(frozen=True)
class Prompt:
    """A voice to speak in: what was said, its codes, and the speaker's name. Empty means the model chooses."""

    text: str = ""
    codes: tuple[int, ...] = ()
    voice: str = ""


@dataclass(frozen=True)
class SpeechTokenLayout:
    """Where speech lives in the vocabulary: code i is id `first_code_id + i`, END closes an utterance.

    The output head has a row for every id from `first_head_id` on: 0 for a head over the whole vocabulary. So many
    ids as `labels_after_end` right behind END are labels in training, and never spoken.
    """

    first_code_id: int
    num_codes: int
    end_id: int
    pad_id: int
    first_head_id: int = 0
    labels_after_end: int = 0

    def to_ids(self, codes: Sequence[int]) -> list[int]:
        """Codec codes -> token ids."""
        return [self.first_code_id + code for code in codes]

    def to_codes(self, ids: Sequence[int]) -> list[int]:
        """Token ids -> codec codes; stops at END."""
        codes = []
        for token in ids:
            if token == self.end_id:
                break
            codes.append(token - self.first_code_id)
        return codes


def layout_from_vocabulary(
    tokenizer: PreTrainedTokenizerBase, family: str, markers: Sequence[str], end: str, codes: Sequence[str]
) -> SpeechTokenLayout:
    """Where the tokens `codes`, in the order of their codes, and `end` are; `markers` must be there too.

    Raises:
        InvalidInputError: a token is missing, or the codes are not one block of ids.
    """
    vocabulary = tokenizer.get_vocab()
    what = f"tokenizer {tokenizer.name_or_path}"
    missing = [token for token in (*markers, end, codes[0], codes[-1]) if token not in vocabulary]
    if missing:
        raise InvalidInputError(
            what,
            f"no token {missing[0]}",
            f"a tokenizer of the {family} family",
            "use the tokenizer folder that was published with the checkpoint",
        )
    first = vocabulary[codes[0]]
    for code, token in enumerate(codes):
        if vocabulary.get(token) != first + code:
            raise InvalidInputError(
                what,
                f"{token} has id {vocabulary.get(token)}",
                first + code,
                "use the codec that belongs to this teacher",
            )
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else vocabulary[end]
    return SpeechTokenLayout(first, len(codes), vocabulary[end], pad_id)


def check_text(text: str) -> None:
    """Refuses a text with nothing to speak.

    Raises:
        InvalidInputError: `text` is empty.
    """
    if not text.strip():
        raise InvalidInputError("text", "empty", "at least one word", "give a sentence to speak")


class Family(Protocol):
    """One family of teachers; one file below `teachers/` each, listed in `teachers/loading.py`."""

    name: str
    license: str  # of the published weights; it binds every student
    decoding: ClassVar[Mapping[str, float]]  # knobs of DecodingParams that its makers use; `slimtts compress` sets them
    text_markup: ClassVar[frozenset[str]] = frozenset()  # tokens of its own that a text may hold, as "[laughter]"

    @property
    def training_hours(self) -> float:
        """Of speech, behind the published weights.

        Raises:
            InvalidInputError: nobody has published them.
        """
        ...

    @property
    def corpus_folder(self) -> Path | None:
        """A token corpus that comes with the family; most have none."""
        return None

    def in_language(self, language: str) -> Family:
        """The family for texts in a language (ISO code); one that reads texts as they are written has no other form.

        Raises:
            InvalidInputError: the family cannot read that language.
        """
        return self

    def unreadable(self, text: str) -> str:
        """What of a text the family cannot read, or ""."""
        return ""

    def load_codec(self, source: str) -> SpeechCodec:
        """The codec at `source`, a folder or hub id; "" is the family's own."""
        ...

    def load_model(self, folder: Path) -> Any:
        """A checkpoint of the family, teacher or student: layers in `model.model.layers`, fp32, eval, strict."""
        return load_language_model(folder)

    def layout(self, tokenizer: PreTrainedTokenizerBase, codec: SpeechCodec) -> SpeechTokenLayout:
        """Where speech lives in the vocabulary."""
        ...

    def prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, text: str, prompt: Prompt
    ) -> list[int]:
        """Token ids of everything before the first code to speak."""
        ...

    def textless_prompt_ids(
        self, tokenizer: PreTrainedTokenizerBase, layout: SpeechTokenLayout, prompt: Prompt
    ) -> list[int]:
        """The same for no text at all, after the prompt's codes."""
        ...


@runtime_checkable
class StreamsText(Protocol):
    """A family that is also trained on text that arrives piece by piece."""

    def bistream_labels(
        self,
        tokenizer: PreTrainedTokenizerBase,
        layout: SpeechTokenLayout,
        text: str,
        prompt: Prompt,
        codes: Sequence[int],
    ) -> list[tuple[int, int | None]] | None:
        """Pairs of an id and the row of the trained head that follows it, or None; None for no such layout."""
        ...


@dataclass(frozen=True)
class Teacher:
    """A teacher ready for work, its family in `language`; sources and revision are as params name them, or empty."""

    family: Family
    model: Any
    tokenizer: PreTrainedTokenizerBase
    layout: SpeechTokenLayout
    codec: SpeechCodec
    folder: Path
    weights_sha256: str
    stated_training_hours: float | None = None
    source: str = ""
    revision: str = ""
    codec_source: str = ""
    language: str = "en"

    @property
    def training_hours(self) -> float:
        """Of speech: as the user states them, else as they are published.

        Raises:
            InvalidInputError: neither stated nor published.
        """
        return self.family.training_hours if self.stated_training_hours is None else self.stated_training_hours

    @property
    def corpus_folder(self) -> Path | None:
        """A token corpus that comes with it, or None."""
        return self.family.corpus_folder

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self.model.config.num_hidden_layers)

    def prompt_ids(self, text: str, prompt: Prompt) -> list[int]:
        """Token ids of everything before the first code to speak.

        Raises:
            InvalidInputError: the text or the prompt's names a control token of this tokenizer, or the text is empty.
        """
        for what, part in (("text", text), ("prompt text", prompt.text)):
            self._check_tokens(what, part)
        return self.family.prompt_ids(self.tokenizer, self.layout, text, prompt)

    def _check_tokens(self, what: str, text: str) -> None:
        """Every door has refused what any family calls a control token; this is what this tokenizer reads as one."""
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            name = self._control_tokens.get(token)
            if name is not None and (token != self.tokenizer.unk_token_id or name in text):
                raise control_token_fault(name).error(what)

    @cached_property
    def _control_tokens(self) -> Mapping[int, str]:
        """Ids that mean something to the model beside words: special tokens, speech, its end, padding."""
        special = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        layout = self.layout
        speech = [*range(layout.first_code_id, layout.first_code_id + layout.num_codes), layout.end_id, layout.pad_id]
        special |= {i: self.tokenizer.convert_ids_to_tokens(i) for i in speech if i < len(self.tokenizer)}
        return {i: name for i, name in special.items() if name not in self.family.text_markup}

    def textless_prompt_ids(self, prompt: Prompt) -> list[int]:
        """The same for no text at all, not even the prompt's: guidance compares with it."""
        return self.family.textless_prompt_ids(self.tokenizer, self.layout, prompt)

    def audio(self, codes: Sequence[int]) -> torch.Tensor:
        """float samples [N] of some codes; empty for no codes."""
        if not codes:
            return torch.zeros(0)
        return self.codec.decode(torch.tensor([list(codes)]))[0]
