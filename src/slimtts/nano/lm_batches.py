"""Batches for the bundled language model: pairs of one voice in LLaSA's layout, with where each frame is in the text.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from slimtts.data.batching import token_budget_batches
from slimtts.data.token_corpus import TokenCorpus
from slimtts.teachers.llasa import prompt_ids, speech_layout

IGNORED = -100


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
    attention_layers: tuple[int, ...] = ()  # 5 and 7 reach plain's loss with half the tokens (docs/LOG.md)
    attention_weight: float = 1.0
    warmup_steps: int = 60


@dataclass(frozen=True)
class Batch:
    """int64 tensors: ids [B, T], labels [B, T] (next token), words [B, T] (text id), phones [B, T, 2].

    `keys` [B, T] says where in its row that text id stands. `spoken` and `framed` are the positions in B x T that have
    a label or a word: counted where the batch is made, so that no device is asked for them in a step.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    words: torch.Tensor
    phones: torch.Tensor
    keys: torch.Tensor
    spoken: torch.Tensor
    framed: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on the device; the copy to CUDA runs beside what is computed there."""
        is_cuda = torch.device(device).type == "cuda"
        tensors = {name: t.pin_memory() if is_cuda else t for name, t in vars(self).items()}
        return Batch(**{name: t.to(device, non_blocking=True) for name, t in tensors.items()})


class Sequence(NamedTuple):
    """One row of a batch before padding: ids, and for each frame the text id, two phones and the text id's place."""

    ids: list[int]
    words: list[int]
    phones: list[list[int]]
    keys: list[int]
    start: int  # of the speech


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
        if self._sequence(check).ids[: len(expected)] != expected:
            raise ValueError("training layout differs from the prompt layout")

    def _sequence(self, members: np.ndarray) -> Sequence:
        """One pair, or one utterance alone."""
        text = [token for i in members for token in self.texts[i]]
        ids = [*self.before, *text, *self.after]
        start = len(ids)
        words: list[int] = []
        phones: list[list[int]] = []
        keys: list[int] = []
        text_start = len(self.before)
        for i in members:
            span = slice(self.corpus.offsets[i], self.corpus.offsets[i + 1])
            ids += self.layout.to_ids(self.corpus.codes[span].tolist())
            words += [self.texts[i][w] for w in self.corpus.words[span]]
            phones += self.corpus.phones[span].tolist()
            keys += (text_start + self.corpus.words[span].astype(np.int64)).tolist()
            text_start += len(self.texts[i])
        return Sequence([*ids, self.layout.end_id], words, phones, keys, start)

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

    def collate(self, sequences: list[Sequence]) -> Batch:
        """Right-padded batch; label t is token t+1 where that token is speech or END."""
        longest = max(len(sequence.ids) for sequence in sequences) - 1
        longest += -longest % 8
        ids = torch.full((len(sequences), longest), self.layout.pad_id)
        labels = torch.full_like(ids, IGNORED)
        words = torch.full_like(ids, IGNORED)
        phones = torch.full((*ids.shape, 2), IGNORED)
        keys = torch.full_like(ids, IGNORED)
        for row, (tokens, of_words, of_phones, of_keys, start) in enumerate(sequences):
            ids[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
            labels[row, start - 1 : len(tokens) - 1] = torch.tensor(tokens[start:])
            frames = slice(start - 1, start - 1 + len(of_words))
            words[row, frames] = torch.tensor(of_words)
            phones[row, frames] = torch.tensor(of_phones)
            keys[row, frames] = torch.tensor(of_keys)
        spoken, framed = ((x.flatten() != IGNORED).nonzero()[:, 0] for x in (labels, words))
        return Batch(ids, labels, words, phones, keys, spoken, framed)


def held_out_batches(batches: PairBatches, count: int) -> list[Batch]:
    """Pairs whose target comes from the selection split, prompt from the train split."""
    rows = batches.corpus.rows
    picked = [i for i, row in enumerate(rows) if row["split"] == "selection"][: count * 16]
    sequences = []
    for i in picked:
        prompt = next(j for j in batches.train if rows[j]["voice"] == rows[i]["voice"])
        sequences.append(batches._sequence(np.array([prompt, i])))
    return [batches.collate(sequences[k : k + 16]) for k in range(0, len(sequences), 16)]
