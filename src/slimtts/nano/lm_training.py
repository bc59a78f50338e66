"""Trains the bundled language model: a 12-layer Llama in LLaSA's layout, on pairs of one voice.

Beside the next code, an auxiliary head on a middle layer names the word and the phones of the frame to come (the
synthesiser knows them), and head 0 of `attention_layers` is taught to look at the text token of that word. Both teach
the model where in the text it is; their weight falls to zero, and what is kept is a plain Llama.
Legend: B sequences, T tokens, D hidden, P positions that speak a known word.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from slimtts.checkpoints import resume, save_checkpoint
from slimtts.codec.nano_codec import FiniteScalarQuantizer, NanoCodecConfig
from slimtts.data.prefetching import prefetched
from slimtts.data.token_corpus import load_token_corpus
from slimtts.nano.lm_batches import Batch, LmRecipe, PairBatches, held_out_batches
from slimtts.storage import atomic_path
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.teachers.checkpoint import load_tokenizer, save_language_model, save_tokenizer

CHECKPOINT_STEPS = 100


class Losses(NamedTuple):
    """Cross-entropy per code, of the auxiliary head and of the taught attention (0 without); greedy accuracy of the
    codes and of the word being spoken."""

    codes: torch.Tensor
    auxiliary: torch.Tensor
    attention: torch.Tensor
    accuracy: torch.Tensor
    position_accuracy: torch.Tensor


def short_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Plain attention [B, H, T, D/H]: on a CPU its backward pass is faster than the fused one at 100 tokens."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(2, 3)) * scaling + attention_mask
    if hasattr(module, "taught_scores"):
        module.taught_scores = scores[:, 0]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    return (weights.to(query.dtype) @ value).transpose(1, 2).contiguous(), None


def nano_config(vocab_size: int, layout: SpeechTokenLayout) -> LlamaConfig:
    """12 layers, 8.4 M parameters, tied head."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=layout.end_id,
        pad_token_id=layout.pad_id,
    )


def initialize_from_codes(model: LlamaForCausalLM, layout: SpeechTokenLayout, seed: int) -> None:
    """Codes that share FSQ digits start with similar embeddings; output projections start at zero."""
    generator = torch.Generator().manual_seed(seed)
    levels = NanoCodecConfig().levels
    table = torch.randn(len(levels), max(levels), model.config.hidden_size, generator=generator) * 0.02
    digits = FiniteScalarQuantizer(levels).digits(torch.arange(layout.num_codes))
    with torch.no_grad():
        rows = sum(table[d, digits[:, d]] for d in range(len(levels)))
        first = layout.first_code_id
        model.model.embed_tokens.weight[first : first + layout.num_codes] += 0.7 * rows
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()


class LmWithAuxiliaryHead(nn.Module):
    """The Llama and the head that reads a middle layer while training."""

    def __init__(self, model: LlamaForCausalLM, layout: SpeechTokenLayout, num_phones: int, recipe: LmRecipe) -> None:
        super().__init__()
        self.model, self.layout, self.recipe, self.num_phones = model, layout, recipe, num_phones
        self.auxiliary = nn.Linear(model.config.hidden_size, layout.first_code_id + 2 * num_phones)
        self.taught = [model.model.layers[index].self_attn for index in recipe.attention_layers]
        for module in self.taught:
            module.taught_scores = None  # `short_attention` leaves head 0's scores [B, T, T] here

    def corrupted(self, ids: torch.Tensor) -> torch.Tensor:
        """Some codes replaced by random ones while training: the model learns to go on after its own mistakes."""
        if not self.training:
            return ids
        first, count = self.layout.first_code_id, self.layout.num_codes
        draws = torch.rand(ids.shape, device=ids.device)
        replaced = (draws < self.recipe.corrupted_share) & (ids >= first) & (ids < first + count)
        return torch.where(replaced, torch.randint(first, first + count, ids.shape, device=ids.device), ids)

    def forward(self, batch: Batch) -> Losses:
        """What the model is trained for, and how often it is right."""
        decoder = self.model.model
        h = F.dropout(decoder.embed_tokens(self.corrupted(batch.ids)), self.recipe.dropout, self.training)
        length = batch.ids.shape[1]
        positions = torch.arange(length, device=h.device).unsqueeze(0)
        rotary = decoder.rotary_emb(h, positions)
        # Padding is on the right, so the causal mask is all that is needed.
        causal = torch.full((length, length), -torch.inf, device=h.device).triu(1)
        causal = causal.to(torch.get_autocast_dtype(h.device.type))
        middle = h
        for index, layer in enumerate(decoder.layers):
            h = layer(h, attention_mask=causal, position_embeddings=rotary, position_ids=positions)
            if index + 1 == self.recipe.auxiliary_layer:
                middle = h
        first = self.layout.first_code_id
        head = torch.cat(
            [self.model.lm_head.weight[first:], self.model.lm_head.weight[self.layout.end_id : self.layout.end_id + 1]]
        )
        logits = F.linear(decoder.norm(h.flatten(0, 1)[batch.spoken]), head).float()
        target = batch.labels.flatten()[batch.spoken]
        target = torch.where(target == self.layout.end_id, self.layout.num_codes, target - first)
        loss = F.cross_entropy(logits, target, label_smoothing=0.0)
        accuracy = (logits.argmax(-1) == target).float().mean()
        auxiliary = self.auxiliary(middle.flatten(0, 1)[batch.framed]).float()
        words, left, right = auxiliary.split([first, self.num_phones, self.num_phones], dim=-1)
        sounds = batch.phones.flatten(0, 1)[batch.framed]
        auxiliary_loss = F.cross_entropy(words, batch.words.flatten()[batch.framed]) + 0.5 * (
            F.cross_entropy(left, sounds[:, 0]) + F.cross_entropy(right, sounds[:, 1])
        )
        position_accuracy = (words.argmax(-1) == batch.words.flatten()[batch.framed]).float().mean()
        return Losses(loss, auxiliary_loss, self._attention_loss(batch), accuracy, position_accuracy)

    def _attention_loss(self, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy of the taught heads, whose scores [P, T] choose among the row's tokens."""
        if not self.taught:
            return torch.zeros((), device=batch.ids.device)
        keys = batch.keys.flatten()[batch.framed]
        scores = (module.taught_scores.flatten(0, 1)[batch.framed].float() for module in self.taught)
        return torch.stack([F.cross_entropy(s, keys) for s in scores]).mean()


def teaching_loss(losses: Losses, step: int, recipe: LmRecipe) -> torch.Tensor:
    """What teaches the place in the text; its weight falls to zero over the first 80 % of the steps."""
    remaining = max(0.0, 1 - step / (0.8 * recipe.steps))
    loss = recipe.auxiliary_weight * remaining * losses.auxiliary
    return loss + recipe.attention_weight * remaining * losses.attention if recipe.attention_layers else loss


def schedule(step: int, recipe: LmRecipe) -> float:
    """Warm-up, constant, then linear to 2 % over the last 45 %."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    left = (recipe.steps - step) / (0.45 * recipe.steps)
    return warm * max(0.02, min(1.0, left))


def make_optimizers(model: nn.Module, recipe: LmRecipe) -> dict[str, torch.optim.Optimizer]:
    """Muon for the decoder's matrices, AdamW for embeddings, norms and the auxiliary head."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in named if not (p.ndim == 2 and ".layers." in n)]
    return {
        "muon": torch.optim.Muon(
            matrices,
            lr=recipe.matrix_learning_rate,
            weight_decay=recipe.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        "adamw": torch.optim.AdamW(
            others, lr=recipe.vector_learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        ),
    }


@torch.no_grad()
def validation_losses(trainer: LmWithAuxiliaryHead, batches: list[Batch]) -> tuple[float, float, float]:
    """Mean cross-entropy, accuracy and accuracy of the word being spoken on held-out pairs."""
    trainer.eval()
    with torch.autocast(trainer.model.device.type, torch.bfloat16):
        results = [trainer(batch) for batch in batches]
    trainer.train()
    names = ("codes", "accuracy", "position_accuracy")
    return tuple(math.fsum(float(getattr(r, n)) for r in results) / len(results) for n in names)  # type: ignore[return-value]


def train_language_model(
    token_corpus: Path,
    tokenizer_folder: Path,
    out: Path,
    recipe: LmRecipe,
    compiled: bool = False,
    device: torch.device | str = "cpu",
) -> LlamaForCausalLM:
    """Trains, resuming from `out/checkpoints`, and writes a standard fp16 checkpoint to `out/model`."""
    device = torch.device(device)
    torch.manual_seed(recipe.seed)
    tokenizer = load_tokenizer(tokenizer_folder)
    corpus = load_token_corpus(token_corpus)
    batches = PairBatches(corpus, tokenizer, FiniteScalarQuantizer(NanoCodecConfig().levels).num_codes, recipe)
    model = LlamaForCausalLM(nano_config(len(tokenizer), batches.layout))
    AttentionInterface.register("short", short_attention)
    model.set_attn_implementation("short")
    initialize_from_codes(model, batches.layout, recipe.seed)
    trainer = LmWithAuxiliaryHead(model, batches.layout, int(corpus.phones.max()) + 1, recipe).to(device)
    optimizers = make_optimizers(trainer, recipe)
    peaks = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
    fingerprint = str(recipe)
    resumed = resume(out / "checkpoints", fingerprint, {"trainer": trainer}, optimizers)
    first = resumed.step if resumed else 0
    trainer.train()
    forward = torch.compile(trainer, dynamic=True) if compiled else trainer
    held_out = [batch.to(device) for batch in held_out_batches(batches, 8)]
    started, tokens = time.monotonic(), 0
    coming = prefetched(batch.to(device) for batch in batches.steps(first))
    for step, batch in enumerate(coming, start=first):
        if step >= recipe.steps:
            break
        factor = schedule(step, recipe)
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = peaks[name] * factor
        with torch.autocast(device.type, torch.bfloat16):
            losses = forward(batch)
        (losses.codes + teaching_loss(losses, step, recipe)).backward()
        nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.ids.numel()
        if step % 20 == 0:
            rate = tokens / (time.monotonic() - started)
            progress = f"ce {losses.codes:.3f} aux {losses.auxiliary:.3f} acc {losses.accuracy:.3f}"
            print(f"step {step} {progress} {rate:.0f} tokens/s", flush=True)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            ce, correct, placed = validation_losses(trainer, held_out)
            print(f"step {step + 1} held-out ce {ce:.3f} acc {correct:.3f} position acc {placed:.3f}", flush=True)
            save_checkpoint(out / "checkpoints", step + 1, fingerprint, {"trainer": trainer}, optimizers, {})
    trainer.cpu().eval()
    with atomic_path(out / "model") as tmp:
        save_language_model(model, tmp)
        save_tokenizer(tokenizer, tmp)
    return model.float()
