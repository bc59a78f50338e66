"""Trains the bundled language model: a 12-layer Llama in LLaSA's layout, on pairs of one voice.

Beside the next code, an auxiliary head on a middle layer names the word and the phones of the frame to come (flite
printed them). It teaches the model where in the text it is; its weight falls to zero and the head is not kept.
Legend: B sequences, T tokens, D hidden.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from slimtts.checkpoints import resume, save_checkpoint
from slimtts.codec.nano_codec import FiniteScalarQuantizer, NanoCodecConfig
from slimtts.data.batching import token_budget_batches
from slimtts.data.prefetching import prefetched
from slimtts.data.token_corpus import TokenCorpus, load_token_corpus
from slimtts.storage import atomic_path
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.teachers.checkpoint import load_tokenizer, save_language_model, save_tokenizer
from slimtts.teachers.llasa import prompt_ids, speech_layout

IGNORED = -100
CHECKPOINT_STEPS = 100


@dataclass(frozen=True)
class LmRecipe:
    """Everything that decides the weights."""

    steps: int
    seed: int
    tokens_per_step: int = 4096
    matrix_learning_rate: float = 4e-3
    vector_learning_rate: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    corrupted_share: float = 0.08
    single_share: float = 0.1
    auxiliary_weight: float = 0.3
    auxiliary_layer: int = 8
    warmup_steps: int = 60


@dataclass(frozen=True)
class Batch:
    """int64 tensors: ids [B, T], labels [B, T] (next token), words [B, T] (text id), phones [B, T, 2].

    `spoken` and `framed` are the positions in B x T that have a label or a word: counted where the batch is made, so
    that no device is asked for them in a step.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    words: torch.Tensor
    phones: torch.Tensor
    spoken: torch.Tensor
    framed: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on the device; the copy to CUDA runs beside what is computed there."""
        is_cuda = torch.device(device).type == "cuda"
        tensors = {name: t.pin_memory() if is_cuda else t for name, t in vars(self).items()}
        return Batch(**{name: t.to(device, non_blocking=True) for name, t in tensors.items()})


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
    weights = torch.softmax((query @ key.transpose(2, 3)) * scaling + attention_mask, dim=-1, dtype=torch.float32)
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


class PairBatches:
    """Batches of (prompt, target) pairs of one voice; the batch of a step depends on the seed and the step alone."""

    POOL_STEPS = 16

    def __init__(
        self, corpus: TokenCorpus, tokenizer: PreTrainedTokenizerBase, num_codes: int, recipe: LmRecipe
    ) -> None:
        self.corpus, self.recipe = corpus, recipe
        self.layout = layout = speech_layout(tokenizer, num_codes)
        empty = prompt_ids(tokenizer, layout, ".")
        full_stop = tokenizer.encode(".", add_special_tokens=False)
        where = next(i for i in range(len(empty)) if empty[i : i + len(full_stop)] == full_stop)
        self.before, self.after = empty[:where], empty[where + len(full_stop) :]
        self.texts = [tokenizer.encode(row["text"], add_special_tokens=False) for row in corpus.rows]
        train = [i for i, row in enumerate(corpus.rows) if row["split"] == "train"]
        voices = sorted({row["voice"] for row in corpus.rows})
        self.by_voice = [np.array([i for i in train if corpus.rows[i]["voice"] == v]) for v in voices]
        self.train = np.array(train)
        check = self.train[:2]
        expected = prompt_ids(
            tokenizer,
            layout,
            corpus.rows[check[1]]["text"],
            corpus.rows[check[0]]["text"],
            corpus.codes_of(check[0]).tolist(),
        )
        if self._sequence(check)[0][: len(expected)] != expected:
            raise ValueError("training layout differs from the prompt layout")

    def _sequence(self, members: np.ndarray) -> tuple[list[int], list[int], list[list[int]], int]:
        """ids, word ids and phones of the speech part, and where the speech starts."""
        text = [token for i in members for token in self.texts[i]]
        ids = [*self.before, *text, *self.after]
        start = len(ids)
        words: list[int] = []
        phones: list[list[int]] = []
        for i in members:
            span = slice(self.corpus.offsets[i], self.corpus.offsets[i + 1])
            ids += self.layout.to_ids(self.corpus.codes[span].tolist())
            words += [self.texts[i][w] for w in self.corpus.words[span]]
            phones += self.corpus.phones[span].tolist()
        return [*ids, self.layout.end_id], words, phones, start

    def _pool(self, pool: int) -> list[list[np.ndarray]]:
        rng = np.random.default_rng((self.recipe.seed, pool))
        groups: list[np.ndarray] = []
        lengths: list[int] = []
        budget = self.recipe.tokens_per_step * self.POOL_STEPS
        while sum(lengths) < budget * 1.1:
            voice = self.by_voice[rng.integers(len(self.by_voice))]
            members = rng.choice(voice, size=1 if rng.random() < self.recipe.single_share else 2, replace=False)
            groups.append(members)
            lengths.append(int(sum(self.corpus.offsets[i + 1] - self.corpus.offsets[i] for i in members)) + 18)
        batches = token_budget_batches(lengths, self.recipe.tokens_per_step)
        picked = rng.permutation(len(batches))[: self.POOL_STEPS]
        return [[groups[i] for i in batches[b]] for b in picked]

    def steps(self, first: int) -> Iterator[Batch]:
        """Endless batches from step `first` on."""
        pool, skip = divmod(first, self.POOL_STEPS)
        while True:
            for members in self._pool(pool)[skip:]:
                yield self.collate([self._sequence(m) for m in members])
            pool, skip = pool + 1, 0

    def collate(self, sequences: list[tuple[list[int], list[int], list[list[int]], int]]) -> Batch:
        """Right-padded batch; label t is token t+1 where that token is speech or END."""
        longest = max(len(ids) for ids, *_ in sequences) - 1
        longest += -longest % 8
        ids = torch.full((len(sequences), longest), self.layout.pad_id)
        labels = torch.full_like(ids, IGNORED)
        words = torch.full_like(ids, IGNORED)
        phones = torch.full((*ids.shape, 2), IGNORED)
        for row, (tokens, spoken, sounds, start) in enumerate(sequences):
            ids[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            labels[row, start - 1 : len(tokens) - 1] = torch.tensor(tokens[start:])
            words[row, start - 1 : start - 1 + len(spoken)] = torch.tensor(spoken)
            phones[row, start - 1 : start - 1 + len(sounds)] = torch.tensor(sounds)
        spoken, framed = ((x.flatten() != IGNORED).nonzero()[:, 0] for x in (labels, words))
        return Batch(ids, labels, words, phones, spoken, framed)


class LmWithAuxiliaryHead(nn.Module):
    """The Llama and the head that reads a middle layer while training."""

    def __init__(self, model: LlamaForCausalLM, layout: SpeechTokenLayout, num_phones: int, recipe: LmRecipe) -> None:
        super().__init__()
        self.model, self.layout, self.recipe, self.num_phones = model, layout, recipe, num_phones
        self.auxiliary = nn.Linear(model.config.hidden_size, layout.first_code_id + 2 * num_phones)

    def corrupted(self, ids: torch.Tensor) -> torch.Tensor:
        """Some codes replaced by random ones while training: the model learns to go on after its own mistakes."""
        if not self.training:
            return ids
        first, count = self.layout.first_code_id, self.layout.num_codes
        draws = torch.rand(ids.shape, device=ids.device)
        replaced = (draws < self.recipe.corrupted_share) & (ids >= first) & (ids < first + count)
        return torch.where(replaced, torch.randint(first, first + count, ids.shape, device=ids.device), ids)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy per code, auxiliary cross-entropy, greedy accuracy."""
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
        return loss, auxiliary_loss, accuracy


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
def validation_loss(trainer: LmWithAuxiliaryHead, batches: list[Batch]) -> tuple[float, float]:
    """Mean cross-entropy and accuracy on held-out pairs."""
    trainer.eval()
    with torch.autocast(trainer.model.device.type, torch.bfloat16):
        results = [trainer(batch) for batch in batches]
    trainer.train()
    return tuple(math.fsum(float(r[k]) for r in results) / len(results) for k in (0, 2))  # type: ignore[return-value]


def held_out_batches(batches: PairBatches, count: int) -> list[Batch]:
    """Pairs whose target comes from the selection split, prompt from the train split."""
    rows = batches.corpus.rows
    picked = [i for i, row in enumerate(rows) if row["split"] == "selection"][: count * 16]
    sequences = []
    for i in picked:
        prompt = next(j for j in batches.train if rows[j]["voice"] == rows[i]["voice"])
        sequences.append(batches._sequence(np.array([prompt, i])))
    return [batches.collate(sequences[k : k + 16]) for k in range(0, len(sequences), 16)]


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
    found = resume(out / "checkpoints", fingerprint, {"trainer": trainer}, optimizers)
    first = found.step if found else 0
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
            loss, auxiliary, accuracy = forward(batch)
        weight = recipe.auxiliary_weight * max(0.0, 1 - step / (0.8 * recipe.steps))
        (loss + weight * auxiliary).backward()
        nn.utils.clip_grad_norm_(trainer.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        tokens += batch.ids.numel()
        if step % 20 == 0:
            rate = tokens / (time.monotonic() - started)
            print(f"step {step} ce {loss:.3f} aux {auxiliary:.3f} acc {accuracy:.3f} {rate:.0f} tokens/s", flush=True)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            ce, correct = validation_loss(trainer, held_out)
            print(f"step {step + 1} held-out ce {ce:.3f} acc {correct:.3f}", flush=True)
            save_checkpoint(out / "checkpoints", step + 1, fingerprint, {"trainer": trainer}, optimizers, {})
    trainer.cpu().eval()
    with atomic_path(out / "model") as tmp:
        save_language_model(model, tmp)
        save_tokenizer(tokenizer, tmp)
    return model.float()
