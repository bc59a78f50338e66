"""Sizes and seeds of the recipe, and where its steps leave their results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SEED = 1
CORPUS_SEED = 20251120


@dataclass(frozen=True)
class RecipeSizes:
    """What decides quality and time. The defaults are the shipped teacher's; its card tells what changed midway."""

    utterances: int = 40_000
    codec_steps: int = 1_800
    asr_steps: int = 1_000
    lm_steps: int = 1_000
    frame_stride: int = 4  # of the codec: 4 is 25 codes a second, 2 is 50
    text_unit: Literal["words", "phones"] = "words"  # phones: the corpus' texts are phones written as text
    attention_layers: tuple[int, ...] = ()  # of the language model, taught where in the text they are


@dataclass(frozen=True)
class Training:
    """Where the trainings compute, and the folder of the codec whose weights the codec starts from (None: new)."""

    device: Literal["cpu", "cuda"] = "cpu"
    codec_start: Path | None = None


@dataclass(frozen=True)
class NanoFolders:
    """Where the steps leave their results."""

    work: Path

    @property
    def corpus(self) -> Path:
        """Spoken utterances."""
        return self.work / "corpus"

    @property
    def codec(self) -> Path:
        """The trained codec."""
        return self.work / "codec" / "codec"

    @property
    def tokens(self) -> Path:
        """The corpus as codes, with alignment."""
        return self.work / "tokens"

    @property
    def tokenizer(self) -> Path:
        """The language model's tokenizer."""
        return self.work / "tokenizer"

    @property
    def asr(self) -> Path:
        """The recogniser in CTranslate2 format."""
        return self.work / "asr" / "asr"

    @property
    def teacher(self) -> Path:
        """The language model."""
        return self.work / "lm" / "model"
