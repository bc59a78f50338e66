"""Utterances of a split together with the prompts whose voices they borrow."""

from __future__ import annotations

from dataclasses import dataclass

from slimtts.data.manifest import Utterance, read_split
from slimtts.data.prompts import read_prompts
from slimtts.errors import InvalidInputError
from slimtts.teachers.base import Prompt
from slimtts.workspace import Workspace


@dataclass(frozen=True)
class SpeakingTask:
    """What is to be said, after which prompt; `reference` holds the corpus' own codes."""

    utterance: Utterance
    prompt: Prompt


def speaking_tasks(workspace: Workspace, split: str, count: int) -> list[SpeakingTask]:
    """The first `count` utterances of a split (their order is random by seed), each with its prompt."""
    recorded = workspace.data / "recorded.jsonl"  # only there when train.jsonl holds no recordings
    voices = read_split(workspace.data, "recorded" if recorded.exists() else "train")
    prompts = read_prompts(workspace.data / "prompts.json", voices)
    tasks = []
    for utterance in read_split(workspace.data, split)[:count]:
        spoken = prompts.get(utterance.id)
        if spoken is None:
            what = f"{workspace.data / 'prompts.json'}, utterance '{utterance.id}'"
            raise InvalidInputError(what, "no prompt", "one for every utterance", "run subset_data again")
        tasks.append(SpeakingTask(utterance, Prompt(spoken.text, spoken.codes, spoken.voice)))
    return tasks
