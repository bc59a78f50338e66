"""Classifier-free guidance: what a prompt adds to a distribution, added once more.

The same codes are continued after up to three prompts: the full one, one without text, and one without a voice.
Where the full prompt makes a code likelier than the poorer one does, guidance makes it likelier still.
Source: arXiv 2207.12598 in its form for two conditions; a student that has learned the mixture needs one pass.
Legend: B rows, P target positions, V spoken vocabulary (codes + END).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from slimtts.decoding.generation import Generated, generate_rows
from slimtts.decoding.row_slots import Ask
from slimtts.decoding.teacher_forcing import ForcedBatch, ForcedSequence, collate
from slimtts.params import DecodingParams
from slimtts.teachers.base import Prompt, SpeechTokenLayout, Teacher


@dataclass(frozen=True)
class Guidance:
    """How often the effect of the text and that of the voice are added; 0 leaves that condition as it is."""

    text_scale: float
    voice_scale: float

    @property
    def companions(self) -> tuple[str, ...]:
        """Passes needed beside the full one, as `PromptPasses` names them."""
        scales = {"without_text": self.text_scale, "without_voice": self.voice_scale}
        return tuple(name for name, scale in scales.items() if scale)


UNGUIDED = Guidance(0.0, 0.0)


@dataclass(frozen=True)
class PromptPasses:
    """Token ids of everything before the first code to speak, for each pass."""

    full: list[int]
    without_text: list[int]
    without_voice: list[int]


def prompt_passes(teacher: Teacher, text: str, prompt: Prompt) -> PromptPasses:
    """Without text, the prompt's codes stay and no word is left; without a voice, the text stands alone.

    Raises:
        InvalidInputError: `text` is empty.
    """
    return PromptPasses(
        teacher.prompt_ids(text, prompt), teacher.textless_prompt_ids(prompt), teacher.prompt_ids(text, Prompt())
    )


def guided_log_probabilities(
    full: torch.Tensor, without_text: torch.Tensor | None, without_voice: torch.Tensor | None, guidance: Guidance
) -> torch.Tensor:
    """log p + s_t (log p - log p_without_text) + s_v (log p - log p_without_voice), renormalised, fp32 [.., V].

    All are logits of one shape; one whose scale is 0 may be None.

    Raises:
        ValueError: a pass that the guidance needs is missing.
    """
    log_p = full.float().log_softmax(-1)
    if not guidance.companions:
        return log_p
    guided = log_p
    for other, scale in ((without_text, guidance.text_scale), (without_voice, guidance.voice_scale)):
        if scale and other is None:
            raise ValueError(f"guidance needs the passes {guidance.companions}")
        if scale and other is not None:
            guided = guided + scale * (log_p - other.float().log_softmax(-1))
    return guided.log_softmax(-1)


def generate_guided(
    model: Any,
    layout: SpeechTokenLayout,
    prompts: Sequence[PromptPasses],
    decoding: DecodingParams,
    guidance: Guidance,
) -> list[Generated]:
    """`generate` under guidance: the passes of a row share a batch of at most `batch_rows` and the row's codes."""
    names = ("full", *guidance.companions)

    def mix(logits: torch.Tensor) -> torch.Tensor:
        passes = dict(zip(names, logits.chunk(len(names)), strict=True))
        return guided_log_probabilities(
            passes["full"], passes.get("without_text"), passes.get("without_voice"), guidance
        )

    asks = [Ask(row, tuple(getattr(asked, name) for name in names), row) for row, asked in enumerate(prompts)]
    # One pass is left as it is: the logarithm of its own softmax would only round it.
    rows_together = max(1, decoding.batch_rows // len(names))
    return generate_rows(model, layout, asks, decoding, rows_together, mix if guidance.companions else None)


def after_other_prompt(sequence: ForcedSequence, before: Sequence[int]) -> ForcedSequence:
    """The same targets after other token ids."""
    spoken = sequence.ids[sequence.target_start + 1 :]
    return ForcedSequence((*before, *spoken), len(before) - 1, sequence.targets)


def collate_passes(
    sequences: Sequence[ForcedSequence], passes: Sequence[PromptPasses], pad_id: int, guidance: Guidance
) -> ForcedBatch:
    """The batch and the companions that guidance needs: the same targets in the same order, after poorer prompts.

    The targets of a sequence must be its own codes alone, not those of its prompt.
    """
    companions = {
        name: collate([after_other_prompt(s, getattr(p, name)) for s, p in zip(sequences, passes, strict=True)], pad_id)
        for name in guidance.companions
    }
    return replace(
        collate(sequences, pad_id),
        without_text=companions.get("without_text"),
        without_voice=companions.get("without_voice"),
    )
