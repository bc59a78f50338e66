"""The healing loss: a preset names the terms and weights, one pass of teacher and student computes them.

Legend: B sequences, T tokens, D hidden, V spoken vocabulary, P target positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch.nn import functional as F

from slimtts.decoding.generation import trained_head
from slimtts.decoding.guidance import UNGUIDED, Guidance, guided_log_probabilities
from slimtts.decoding.heads import padded_rows
from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.distill import losses
from slimtts.distill.head_loss import ChunkGradient, HeadTerms, TeacherLogits, chunk_gradient, head_loss, product_type
from slimtts.distill.packing import place_of_tokens
from slimtts.params import LossParams
from slimtts.teachers.base import SpeechTokenLayout


@dataclass(frozen=True)
class Preset:
    """Weights of the terms; a term of weight 0 is not computed."""

    cross_entropy: float
    skew_kl: float
    latent: float
    attention: float
    embedding: float
    latent_kind: Literal["squared", "relative"]
    matching: Literal["dynamic", "static"] = "dynamic"
    skew: float = losses.SKEW
    temperature: float = 1.0

    @property
    def needs_attention(self) -> bool:
        """Attention probabilities exist only with the slow eager attention."""
        return self.attention > 0

    def changed(self, params: LossParams) -> Preset:
        """With the values that `params` sets."""
        return replace(self, **params.model_dump(exclude_none=True))


SPADE_ALPHA = 0.25
SPADE_TERM = (1 - SPADE_ALPHA) / 4
PRESETS = {
    # arXiv 2509.20802, Eq. 2: a CE + (1 - a) / 4 (logit + latent + attention + embedding), a = 0.25.
    "spade": Preset(SPADE_ALPHA, SPADE_TERM, SPADE_TERM, SPADE_TERM, SPADE_TERM, latent_kind="squared"),
    # Measured best so far, docs/RESULTS.md: no attention term, KL in the lead, hidden states on a relative scale.
    "default": Preset(0.25, 1.0, 0.1, 0.0, 0.0, latent_kind="relative"),
    # The control: plain training of the teacher itself.
    "cross_entropy": Preset(1.0, 0.0, 0.0, 0.0, 0.0, latent_kind="squared"),
}


@dataclass(frozen=True)
class Signals:
    """What one model gives on one batch; `layers[i]` is the output of layer i before the final norm, [B, T, D].

    `hidden` [P, D] is what the output head [V, D] sees at the target positions; a head's bias is one more column of
    it, and hidden has a column of ones then.
    """

    embedding: torch.Tensor
    layers: list[torch.Tensor]
    attentions: list[torch.Tensor]
    hidden: torch.Tensor
    head: torch.Tensor
    labels: int | None = None  # rows of the head, where there are more of them than ids that can be a label

    def logits(self, rows: slice = slice(None)) -> torch.Tensor:
        """[C, V] at some of the target positions."""
        return F.linear(self.hidden[rows], self.head)[:, : self.labels]

    def as_multiplied(self) -> Signals:
        """With hidden and head in the type of autocast, for logits that are asked for when it is off."""
        dtype = product_type(self.hidden)
        return replace(self, hidden=self.hidden.to(dtype), head=padded_rows(self.head.to(dtype)), labels=len(self.head))


@contextmanager
def _recording(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects the outputs of the decoder layers; hidden_states[-1] of transformers would be after the final norm."""
    outputs: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.model.layers
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def output_head(model: Any, layout: SpeechTokenLayout) -> torch.Tensor:
    """Rows of the output head that are labels in training, [V, D], with its bias as one more column."""
    head, bias = trained_head(model, layout)
    return head if bias is None else torch.cat([head, bias.unsqueeze(1)], dim=1)


def signals(model: Any, layout: SpeechTokenLayout, batch: ForcedBatch, with_attention: bool) -> Signals:
    """One forward pass; sequences that share a row do not see each other."""
    places = place_of_tokens(batch)
    with _recording(model) as layers:
        embedding = model.get_input_embeddings()(batch.ids)
        out = model.model(inputs_embeds=embedding, use_cache=False, output_attentions=with_attention, **places)
    if with_attention and not out.attentions:
        raise ValueError("attention probabilities need model.set_attn_implementation('eager')")
    head = output_head(model, layout)
    hidden = _as_wide_as(head, batch.at_targets(out.last_hidden_state))
    return Signals(embedding, layers, list(out.attentions or []), hidden, head)


def _as_wide_as(head: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden [P, D] with a column of ones where the head [V, D + 1] has its bias."""
    return hidden if head.shape[1] == hidden.shape[1] else torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)


# What a process has of a sum -> the sum over all processes.
AddUp = Callable[[torch.Tensor], torch.Tensor]
# Of a batch: what its output head sees at the target positions [P, D], and the outputs of the matched layers there.
Memories = tuple[torch.Tensor, list[torch.Tensor]]
# Model -> loss with gradient, and every term without one, for one part of a step's batch. Nothing waits for the device.
Part = Callable[[Any], tuple[torch.Tensor, dict[str, torch.Tensor]]]


class TeacherMemory(Protocol):
    """What the teacher said before, kept so that it need not be asked again."""

    def recall(self, batch: ForcedBatch, hear: Callable[[ForcedBatch], Memories]) -> Memories:
        """What `hear` would give for the batch."""
        ...


@dataclass(frozen=True)
class Lesson:
    """What the teacher says about one part, at its P target positions.

    `layers` [P, D] are the outputs that the student's layers imitate; `energies` [layers] are those of the whole batch.
    """

    logits: TeacherLogits | None = None
    layers: Sequence[torch.Tensor] = ()
    attentions: Sequence[torch.Tensor] = ()
    embedding: torch.Tensor | None = None
    energies: torch.Tensor | None = None


class HealingLoss:
    """loss(student, batch) -> total and terms. `retained` are the student's layers in the teacher."""

    def __init__(
        self,
        preset: Preset,
        layout: SpeechTokenLayout,
        teacher_model: Any | None = None,
        retained: tuple[int, ...] = (),
        guidance: Guidance = UNGUIDED,
        of_chunk: ChunkGradient = chunk_gradient,
        memory: TeacherMemory | None = None,
    ) -> None:
        self.preset, self.layout, self.teacher_model, self.guidance = preset, layout, teacher_model, guidance
        self.of_chunk, self.memory = of_chunk, memory
        self.matches: list[int] = []
        if teacher_model is not None and preset.matching == "dynamic":
            self.matches = losses.dynamic_matches(list(retained), teacher_model.config.num_hidden_layers)
        elif teacher_model is not None:
            self.matches = list(retained)

    def __call__(self, student: Any, batch: ForcedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """Total loss with gradient, and every term as a number."""
        (part,) = self.parts([batch], int(batch.is_target.sum()), lambda values: values)
        total, terms = part(student)
        return total, {name: value.item() for name, value in terms.items()}

    def parts(self, batches: Sequence[ForcedBatch], count: int, add_up: AddUp) -> list[Part]:
        """The loss of a step whose batch was split: what the parts give the student adds up to the whole's loss.

        `count` positions are targets in the whole. The teacher speaks here, once; `add_up` adds its energies to those
        of the parts that other processes have.
        """
        lessons: list[Lesson | None] = [None for _ in batches]
        if self.teacher_model is not None:
            with torch.no_grad():
                heard = [self._lesson(batch) for batch in batches]
                energies = None
                if self.preset.latent and self.preset.latent_kind == "relative":
                    of_parts = [torch.stack([losses.energy(rows, None, count) for rows in one.layers]) for one in heard]
                    energies = add_up(torch.stack(of_parts).sum(0))
            lessons = [replace(one, energies=energies) for one in heard]
        return [
            partial(self._part, batch=batch, lesson=lesson, count=count)
            for batch, lesson in zip(batches, lessons, strict=True)
        ]

    def _lesson(self, batch: ForcedBatch) -> Lesson:
        """What the teacher says about a batch, of which only the target positions are kept."""
        preset, speaks = self.preset, self.preset.skew_kl > 0
        if self.memory is not None:
            hidden, layers = self.memory.recall(batch, self._hear)
            head = output_head(self.teacher_model, self.layout)
            remembered = Signals(hidden[:0], [], [], _as_wide_as(head, hidden), head).as_multiplied()
            return Lesson(remembered.logits if speaks else None, layers)
        t = signals(self.teacher_model, self.layout, batch, preset.needs_attention)
        return Lesson(
            self._guided(t.as_multiplied(), batch) if speaks else None,
            [batch.at_targets(t.layers[m]) for m in self.matches] if preset.latent else (),
            [t.attentions[m] for m in self.matches] if preset.attention else (),
            batch.at_targets(t.embedding) if preset.embedding else None,
        )

    def _hear(self, batch: ForcedBatch) -> Memories:
        """What is worth remembering of the teacher: enough to make its logits and its layers again."""
        t = signals(self.teacher_model, self.layout, batch, with_attention=False)
        hidden = t.hidden[:, : t.embedding.shape[-1]]  # without the column that stands for a bias
        return hidden, [batch.at_targets(t.layers[m]) for m in self.matches] if self.preset.latent else []

    def _part(
        self, student: Any, batch: ForcedBatch, lesson: Lesson | None, count: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        preset = self.preset
        s = signals(student, self.layout, batch, preset.needs_attention)
        terms = self._hidden_terms(s, lesson, batch, count) if lesson else {}
        of_head = HeadTerms(preset.cross_entropy, preset.skew_kl, preset.skew, preset.temperature)
        teacher_logits = lesson.logits if lesson else None
        total, *values = head_loss(
            s.hidden, s.head, batch.labels, teacher_logits, of_head, count=count, of_chunk=self.of_chunk
        )
        total = total + sum(getattr(preset, name) * value for name, value in terms.items())
        terms |= dict(zip(("cross_entropy", "skew_kl"), values, strict=True))
        active = {name for name in terms if getattr(of_head, name, 1.0)}
        return total, {name: value.detach() for name, value in terms.items() if name in active}

    def _guided(self, full: Signals, batch: ForcedBatch) -> TeacherLogits:
        """The teacher's distribution at some target positions, under guidance when there is any."""
        if not self.guidance.companions:
            return full.logits
        without_text, without_voice = (
            companion and signals(self.teacher_model, self.layout, companion, with_attention=False).as_multiplied()
            for companion in (batch.without_text, batch.without_voice)
        )

        def mixed(rows: slice) -> torch.Tensor:
            text, voice = (other and other.logits(rows) for other in (without_text, without_voice))
            return guided_log_probabilities(full.logits(rows), text, voice, self.guidance)

        return mixed

    def _hidden_terms(self, s: Signals, lesson: Lesson, batch: ForcedBatch, count: int) -> dict[str, torch.Tensor]:
        preset, mask = self.preset, batch.is_target
        terms = {}
        if preset.latent:
            pairs = [(batch.at_targets(rows), taught) for rows, taught in zip(s.layers, lesson.layers, strict=True)]
            if lesson.energies is None:
                each = [losses.mean_squared(rows, taught, None, count) for rows, taught in pairs]
            else:
                scales = lesson.energies.unbind()
                each = [
                    losses.relative_squared(rows, taught, None, count, scale)
                    for (rows, taught), scale in zip(pairs, scales, strict=True)
                ]
            terms["latent"] = torch.stack(each).mean()
        if preset.attention:
            matched = zip(s.attentions, lesson.attentions, strict=True)
            terms["attention"] = torch.stack(
                [losses.attention_squared(a, taught, mask, count) for a, taught in matched]
            ).mean()
        if preset.embedding and lesson.embedding is not None:
            terms["embedding"] = losses.mean_squared(batch.at_targets(s.embedding), lesson.embedding, None, count)
        return terms
