"""One loaded teacher, whichever its family: model, tokenizer, prompt layout, codec, and what came with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from slimtts.codec.base import SpeechCodec
from slimtts.teachers.llasa import SpeechTokenLayout


@dataclass(frozen=True)
class Prompt:
    """A voice to speak in: what was said, and its codes. Empty means the model chooses."""

    text: str = ""
    codes: tuple[int, ...] = ()


class Family(Protocol):
    """How one family of teachers is laid out; one file below `teachers/` each."""

    name: str

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


@dataclass(frozen=True)
class Teacher:
    """A teacher ready for work; `corpus_folder` is a token corpus that comes with it, or None."""

    family: Family
    model: Any
    tokenizer: PreTrainedTokenizerBase
    layout: SpeechTokenLayout
    codec: SpeechCodec
    folder: Path
    weights_sha256: str
    training_hours: float
    corpus_folder: Path | None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self.model.config.num_hidden_layers)

    def prompt_ids(self, text: str, prompt: Prompt) -> list[int]:
        """Token ids of everything before the first code to speak."""
        return self.family.prompt_ids(self.tokenizer, self.layout, text, prompt)

    def textless_prompt_ids(self, prompt: Prompt) -> list[int]:
        """The same for no text at all, not even the prompt's: guidance compares with it."""
        return self.family.textless_prompt_ids(self.tokenizer, self.layout, prompt)

    def audio(self, codes: Sequence[int]) -> torch.Tensor:
        """float samples [N] of some codes; empty for no codes."""
        if not codes:
            return torch.zeros(0)
        return self.codec.decode(torch.tensor([list(codes)]))[0]
