"""Known utterances as model input: which tokens go in, and which codes the model should have said.

Legend: B sequences, T tokens, V spoken vocabulary (codes + END), P target positions of a batch, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch

from slimtts.data.manifest import Utterance
from slimtts.teachers.base import Prompt, StreamsText, Teacher

NO_TARGET = -100


@dataclass(frozen=True)
class ForcedSequence:
    """Token ids up to the last code, and what comes next from `target_start` on: codes, then END."""

    ids: tuple[int, ...]
    target_start: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class ForcedBatch:
    """int64 ids [B, T], right-padded; targets [B, T] in 0..V-1, NO_TARGET elsewhere.

    `without_text` and `without_voice` hold the same targets after poorer prompts, where guidance asks for them.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    without_text: ForcedBatch | None = None
    without_voice: ForcedBatch | None = None

    @property
    def is_target(self) -> torch.Tensor:
        """bool [B, T]."""
        return self.targets != NO_TARGET

    @cached_property
    def target_places(self) -> torch.Tensor:
        """int64 [P]: where the targets stand among the B x T positions, row by row."""
        return self.is_target.flatten().nonzero().flatten()

    @property
    def labels(self) -> torch.Tensor:
        """int64 [P]: the targets themselves."""
        return self.targets.flatten().index_select(0, self.target_places)

    def at_targets(self, values: torch.Tensor) -> torch.Tensor:
        """Values [B, T, D] at the target positions [P, D]."""
        return values.flatten(0, 1).index_select(0, self.target_places)

    def to(self, device: torch.device) -> Self:
        """The same batch on a device."""
        moved = replace(self, **self._moved(device))
        # Counted where the batch was made: on CUDA a count waits for all work before it.
        moved.__dict__["target_places"] = self.target_places.to(device, non_blocking=True)
        return moved

    def _moved(self, device: torch.device) -> dict[str, Any]:
        return {
            "ids": self.ids.to(device, non_blocking=True),
            "targets": self.targets.to(device, non_blocking=True),
            "without_text": self.without_text and self.without_text.to(device),
            "without_voice": self.without_voice and self.without_voice.to(device),
        }


def forced_sequence(
    teacher: Teacher, utterance: Utterance, prompt: Prompt, prompt_is_target: bool = False
) -> ForcedSequence:
    """The utterance after its prompt.

    Its own codes and END are targets; with `prompt_is_target` the prompt's codes too, as the LLaSA family trains,
    where the family lays them right before.
    """
    before = teacher.prompt_ids(utterance.text, prompt)
    ids = [*before, *teacher.layout.to_ids(utterance.codes)]
    continued = before[len(before) - len(prompt.codes) :] == teacher.layout.to_ids(prompt.codes)
    spoken_before = prompt.codes if prompt_is_target and continued else ()
    targets = (*spoken_before, *utterance.codes, teacher.layout.num_codes)
    return ForcedSequence(tuple(ids), len(before) - len(spoken_before) - 1, targets)


def bistream_sequence(teacher: Teacher, utterance: Utterance, prompt: Prompt) -> ForcedSequence | None:
    """Prompt and utterance as one, in the layout for text that arrives piece by piece; None where there is none.

    The targets have gaps, NO_TARGET, and are rows of the head in training: codes, END, then the layout's other labels.
    """
    if not isinstance(teacher.family, StreamsText):
        return None
    pairs = teacher.family.bistream_labels(teacher.tokenizer, teacher.layout, utterance.text, prompt, utterance.codes)
    if pairs is None:
        return None
    ids, labels = zip(*pairs, strict=True)
    return ForcedSequence(ids, 0, tuple(NO_TARGET if label is None else label for label in labels))


def collate(sequences: Sequence[ForcedSequence], pad_id: int) -> ForcedBatch:
    """Right-padded batch."""
    longest = max(len(s.ids) for s in sequences)
    ids = torch.full((len(sequences), longest), pad_id)
    targets = torch.full((len(sequences), longest), NO_TARGET)
    for row, s in enumerate(sequences):
        ids[row, : len(s.ids)] = torch.tensor(s.ids)
        targets[row, s.target_start : s.target_start + len(s.targets)] = torch.tensor(s.targets)
    return ForcedBatch(ids, targets)


def hidden_states(model: Any, batch: ForcedBatch) -> torch.Tensor:
    """Final hidden states [B, T, D]. Padding is on the right, where a causal model cannot see it."""
    hidden: torch.Tensor = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return hidden
