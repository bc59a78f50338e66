"""The healing loss: a preset names the terms and weights, one pass of teacher and student computes them.

Legend: B sequences, T tokens, D hidden, V spoken vocabulary, P target positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

from slimtts.decoding.generation import spoken_head
from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.distill import losses
from slimtts.teachers.llasa import SpeechTokenLayout


@dataclass(frozen=True)
class Preset:
    """Weights of the terms; a term of weight 0 is not computed."""

    cross_entropy: float
    skew_kl: float
    latent: float
    attention: float
    embedding: float
    latent_kind: Literal["squared", "relative"]

    @property
    def needs_attention(self) -> bool:
        """Attention probabilities exist only with the slow eager attention."""
        return self.attention > 0


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
    """What one model gives on one batch; `layers[i]` is the output of layer i before the final norm, [B, T, D]."""

    embedding: torch.Tensor
    layers: list[torch.Tensor]
    attentions: list[torch.Tensor]
    logits: torch.Tensor


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


def signals(model: Any, layout: SpeechTokenLayout, batch: ForcedBatch, with_attention: bool) -> Signals:
    """One forward pass; logits [P, V] at the target positions only."""
    with _recording(model) as layers:
        embedding = model.get_input_embeddings()(batch.ids)
        out = model.model(inputs_embeds=embedding, use_cache=False, output_attentions=with_attention)
    if with_attention and not out.attentions:
        raise ValueError("attention probabilities need model.set_attn_implementation('eager')")
    logits = F.linear(out.last_hidden_state[batch.is_target], spoken_head(model, layout))
    return Signals(embedding, layers, list(out.attentions or []), logits)


class HealingLoss:
    """loss(student, batch) -> total and terms. `retained` are the student's layers in the teacher."""

    def __init__(
        self,
        preset: Preset,
        layout: SpeechTokenLayout,
        teacher_model: Any | None = None,
        retained: tuple[int, ...] = (),
    ) -> None:
        self.preset, self.layout, self.teacher_model = preset, layout, teacher_model
        self.matches: list[int] = []
        if teacher_model is not None:
            self.matches = losses.dynamic_matches(list(retained), teacher_model.config.num_hidden_layers)

    def __call__(self, student: Any, batch: ForcedBatch) -> tuple[torch.Tensor, dict[str, float]]:
        """Total loss with gradient, and every term as a number."""
        preset = self.preset
        s = signals(student, self.layout, batch, preset.needs_attention)
        terms: dict[str, torch.Tensor] = {}
        if preset.cross_entropy:
            terms["cross_entropy"] = losses.cross_entropy(s.logits, batch.targets[batch.is_target])
        if self.teacher_model is not None:
            with torch.no_grad():
                t = signals(self.teacher_model, self.layout, batch, preset.needs_attention)
            terms |= self._teacher_terms(s, t, batch)
        total = sum((getattr(preset, name) * value for name, value in terms.items()), torch.zeros(()))
        return total, {name: value.item() for name, value in terms.items()}

    def _teacher_terms(self, s: Signals, t: Signals, batch: ForcedBatch) -> dict[str, torch.Tensor]:
        preset, mask = self.preset, batch.is_target
        terms = {}
        if preset.skew_kl:
            terms["skew_kl"] = losses.skew_kl(s.logits, t.logits)
        if preset.latent:
            compare = losses.mean_squared if preset.latent_kind == "squared" else losses.relative_squared
            pairs = list(zip(s.layers, self.matches, strict=True))
            terms["latent"] = torch.stack([compare(h, t.layers[m], mask) for h, m in pairs]).mean()
        if preset.attention:
            pairs = list(zip(s.attentions, self.matches, strict=True))
            terms["attention"] = torch.stack(
                [losses.attention_squared(a, t.attentions[m], mask) for a, m in pairs]
            ).mean()
        if preset.embedding:
            terms["embedding"] = losses.mean_squared(s.embedding, t.embedding, mask)
        return terms
