"""WER-based layer importance: how badly the model speaks without each layer.

Source: SPADE (arXiv 2509.20802), Eq. 1: WLI_i = E[WER(synthesis without layer i, text)]. All leave-one-out models of
a group of utterances speak in one generation; finished groups are kept on disk, so an interrupted run goes on.
Silence, failures and endless speech count as full errors (capped at 1 for the ranking, raw beside it).
Sentences may be spoken in stages, after each of which layers leave that need no more of them (`early_stop`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
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
    layers: Collection[int] | None = None,
) -> list[Trial]:
    """A trial of the full model and one without each of `layers` (default: all), in one batched generation."""
    ablations = [FULL_MODEL, *(range(teacher.num_layers) if layers is None else sorted(layers))]
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
    stage_size: int | None = None,
    stopped: Callable[[list[Trial]], Collection[int]] = lambda _: (),
) -> list[Trial]:
    """Trials of all utterances; groups that are in `progress`, or that another process makes, are read from there.

    With a `stage_size`, a multiple of `group_size`, so many utterances are spoken before `stopped` is asked which
    layers need no more, given the trials so far.
    """
    trials: list[Trial] = []
    stage_size = stage_size or len(utterances)
    for start in range(0, len(utterances), stage_size):
        layers = set(range(teacher.num_layers)) - set(stopped(trials) if trials else ())
        groups = {
            f"group-{first:05d}.jsonl": slice(first, min(first + group_size, len(utterances)))
            for first in range(start, min(start + stage_size, len(utterances)), group_size)
        }

        def speak(group: slice, out: Path, layers: Collection[int] = layers) -> None:
            made = speak_without_each_layer(teacher, utterances[group], prompts[group], decoding, transcribe, layers)
            out.write_text("".join(json.dumps(asdict(trial)) + "\n" for trial in made))

        def told(name: str, groups: Mapping[str, slice] = groups) -> None:
            after_group(len(utterances[groups[name]]))

        make_items(progress, {name: partial(speak, group) for name, group in groups.items()}, told)
        lines = [line for name in groups for line in (progress / name).read_text().splitlines()]
        trials += [Trial(**json.loads(line)) for line in lines]
    return trials
