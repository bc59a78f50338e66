"""WER-based layer importance: how badly the model speaks without each layer.

Source: SPADE (arXiv 2509.20802), Eq. 1: WLI_i = E[WER(synthesis without layer i, text)]. All leave-one-out models of
a group of utterances speak in one generation; finished groups are kept on disk, so an interrupted run goes on.
Silence, failures and endless speech count as full errors (capped at 1 for the ranking, raw beside it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from slimtts.data.manifest import Utterance
from slimtts.decoding.generation import generate
from slimtts.params import DecodingParams
from slimtts.shared_work import make_items
from slimtts.teachers.base import Prompt, Teacher

FULL_MODEL = -1
Transcribe = Callable[[Sequence[torch.Tensor]], list[str]]


@dataclass(frozen=True)
class Trial:
    """One utterance spoken without one layer (`layer` -1: by the full model)."""

    utterance_id: str
    layer: int
    text: str
    transcript: str
    ended: bool


def speak_without_each_layer(
    teacher: Teacher,
    utterances: Sequence[Utterance],
    prompts: Sequence[Prompt],
    decoding: DecodingParams,
    transcribe: Transcribe,
) -> list[Trial]:
    """(L + 1) trials an utterance, spoken in one batched generation."""
    ablations = [FULL_MODEL, *range(teacher.num_layers)]
    rows = [(u, p, layer) for u, p in zip(utterances, prompts, strict=True) for layer in ablations]
    skip = torch.zeros(len(rows), teacher.num_layers, dtype=torch.bool)
    for row, (_, _, layer) in enumerate(rows):
        if layer != FULL_MODEL:
            skip[row, layer] = True
    ids = [teacher.prompt_ids(u.text, p) for u, p, _ in rows]
    spoken = generate(teacher.model, teacher.layout, ids, decoding, skip)
    transcripts = transcribe([teacher.audio(s.codes) for s in spoken])
    return [
        Trial(u.id, layer, u.text, transcript, s.ended)
        for (u, _, layer), s, transcript in zip(rows, spoken, transcripts, strict=True)
    ]


def leave_one_out(
    teacher: Teacher,
    utterances: Sequence[Utterance],
    prompts: Sequence[Prompt],
    decoding: DecodingParams,
    transcribe: Transcribe,
    progress: Path,
    group_size: int,
    after_group: Callable[[int], object] = lambda _: None,
) -> list[Trial]:
    """Trials of all utterances; groups that are in `progress`, or that another process makes, are read from there."""
    groups = {
        f"group-{start:05d}.jsonl": slice(start, start + group_size) for start in range(0, len(utterances), group_size)
    }

    def speak(group: slice, out: Path) -> None:
        made = speak_without_each_layer(teacher, utterances[group], prompts[group], decoding, transcribe)
        out.write_text("".join(json.dumps(asdict(trial)) + "\n" for trial in made))

    makers = {name: partial(speak, group) for name, group in groups.items()}
    make_items(progress, makers, lambda name: after_group(len(utterances[groups[name]])))
    lines = [line for name in groups for line in (progress / name).read_text().splitlines()]
    return [Trial(**json.loads(line)) for line in lines]
