"""Whose voice a held-out sentence is spoken in: a training utterance of the same voice with another text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from slimtts.data.manifest import Utterance
from slimtts.data.splits import Candidate, seeded_rank
from slimtts.errors import InvalidInputError
from slimtts.outside_files import read_text

# Long enough to carry a voice, short enough to leave the context to the target.
PREFERRED_S = (1.2, 2.5)


def prompt_length_gap_s(duration_s: float) -> float:
    """Seconds outside the preferred range; 0 within it."""
    shortest, longest = PREFERRED_S
    return max(shortest - duration_s, duration_s - longest, 0.0)


def assign_prompts(held_out: Sequence[Candidate], train: Sequence[Candidate], seed: int) -> dict[str, str]:
    """Held-out id -> training id; drawn among the voice's utterances of preferred length, else the nearest to it.

    Raises:
        InvalidInputError: a voice has no training utterance.
    """
    by_voice: dict[str, list[Candidate]] = {}
    for candidate in train:
        by_voice.setdefault(candidate.voice, []).append(candidate)
    eligible: dict[str, list[str]] = {}
    for voice, rows in by_voice.items():
        smallest = min(prompt_length_gap_s(row.duration_s) for row in rows)
        eligible[voice] = sorted(row.id for row in rows if prompt_length_gap_s(row.duration_s) == smallest)
    prompts = {}
    for candidate in held_out:
        ids = eligible.get(candidate.voice)
        if ids is None:
            raise InvalidInputError(
                f"utterance '{candidate.id}'",
                f"no training utterance of voice '{candidate.voice}'",
                "at least one",
                "raise subset_data.max_share",
            )
        place = int.from_bytes(seeded_rank(seed, f"prompt/{candidate.id}"), "big")
        prompts[candidate.id] = ids[place % len(ids)]
    return prompts


def read_prompts(path: Path, train: Sequence[Utterance]) -> dict[str, Utterance]:
    """Held-out id -> its prompt among `train`.

    Raises:
        InvalidInputError: the file is missing or damaged, or names an utterance that is not in `train`.
    """
    next_step = "run subset_data again"
    allowed = "prompts written by subset_data"
    text = read_text(path, str(path), allowed, next_step)
    try:
        prompts = TypeAdapter(dict[str, str]).validate_json(text)
    except ValidationError as error:
        raise InvalidInputError(str(path), error.errors()[0]["msg"], allowed, next_step) from None
    known = {utterance.id: utterance for utterance in train}
    for utterance_id, prompt_id in prompts.items():
        if prompt_id not in known:
            raise InvalidInputError(f"utterance {utterance_id}", f"prompt {prompt_id}", "a training id", next_step)
    return {utterance_id: known[prompt_id] for utterance_id, prompt_id in prompts.items()}
