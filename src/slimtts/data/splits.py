"""Which sentences choose layers, which judge, and which are left to train on.

The three are disjoint by id and by what is said (`text_key`), so nothing that judges was trained on. All draws depend
on ids, texts and the seed only, never on the order of the rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from slimtts.data.manifest import SPLITS
from slimtts.data.texts import text_key
from slimtts.errors import InvalidInputError


@dataclass(frozen=True)
class Candidate:
    """An utterance that may be chosen; `split` is the source's own, when it has one."""

    id: str
    text: str
    voice: str
    duration_s: float
    split: str | None = None


@dataclass(frozen=True)
class Splits:
    """`train` is all that may be trained on; `dropped` counts rows that may not be used, by reason."""

    train: list[Candidate]
    selection: list[Candidate]
    test: list[Candidate]
    dropped: Counter[str]


def seeded_rank(seed: int, name: str) -> bytes:
    """A random-looking place in the queue that belongs to a name."""
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()


def seeded_order(candidates: Iterable[Candidate], seed: int) -> list[Candidate]:
    """Shuffled, whatever order they came in; every beginning of it is a fair sample."""
    return sorted(candidates, key=lambda candidate: (seeded_rank(seed, candidate.id), candidate.id))


def draw_splits(
    candidates: Sequence[Candidate],
    selection_utterances: int,
    test_utterances: int,
    seed: int,
    dropped_before: Mapping[str, int] | None = None,
) -> Splits:
    """Held-out sentences, each once, in voices that remain for training (their prompts come from there).

    A source that brings its own splits keeps them: what its teacher was trained on must not judge. `dropped_before`
    counts, for the message, the rows that are not among the candidates any more.

    Raises:
        InvalidInputError: an id occurs twice, only some rows have a split or it has another name, or too few
            sentences are left.
    """
    for utterance_id, count in Counter(candidate.id for candidate in candidates).items():
        if count > 1:
            raise InvalidInputError(f"utterance '{utterance_id}'", f"{count} rows", "unique ids", "rename the others")
    given = {candidate.split for candidate in candidates}
    if None in given and len(given) > 1:
        orphan = next(candidate.id for candidate in candidates if candidate.split is None)
        raise InvalidInputError(
            f"utterance '{orphan}'",
            "no split although other rows have one",
            "a split in all rows or in none",
            "add or remove the key",
        )
    for candidate in candidates:
        if candidate.split is not None and candidate.split not in SPLITS:
            raise InvalidInputError(
                f"utterance '{candidate.id}'", f"split '{candidate.split}'", ", ".join(SPLITS), "correct the source"
            )
    ordered = seeded_order(candidates, seed)
    if None in given:
        splits = _drawn(ordered, selection_utterances, test_utterances, seed)
    else:
        splits = _given(ordered, selection_utterances, test_utterances)
    dropped = splits.dropped + Counter(dropped_before or {})
    _require(dropped, "test", len(splits.test), test_utterances)
    _require(dropped, "selection", len(splits.selection), selection_utterances)
    return splits


def _require(dropped: Mapping[str, int], name: str, have: int, wanted: int) -> None:
    if have < wanted:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "none"
        raise InvalidInputError(
            f"subset_data.{name}_utterances",
            f"{have} usable sentences (dropped rows: {reasons})",
            f"at least {wanted}",
            f"lower {name}_utterances or give a source with more sentences"
            + (", or raise decoding.max_new_tokens for longer ones" if "too_long" in dropped else ""),
        )


def _given(ordered: list[Candidate], selection_utterances: int, test_utterances: int) -> Splits:
    """The source's own splits; a held-out text that was also trained on is worthless and dropped."""
    pools = {name: [candidate for candidate in ordered if candidate.split == name] for name in SPLITS}
    trained_texts = {text_key(candidate.text) for candidate in pools["train"]}
    trained_voices = {candidate.voice for candidate in pools["train"]}
    dropped: Counter[str] = Counter()
    judged: dict[str, str] = {}  # text -> the split that has it
    held_out: dict[str, list[Candidate]] = {"test": [], "selection": []}
    for name, chosen in held_out.items():
        for candidate in pools[name]:
            key = text_key(candidate.text)
            if key in trained_texts:
                dropped[f"{name}_text_also_in_train"] += 1
            elif candidate.voice not in trained_voices:
                dropped[f"{name}_voice_not_in_train"] += 1
            elif key in judged:
                dropped[f"{name}_text_repeated" if judged[key] == name else "selection_text_also_in_test"] += 1
            else:
                judged[key] = name
                chosen.append(candidate)
    return Splits(
        pools["train"], held_out["selection"][:selection_utterances], held_out["test"][:test_utterances], dropped
    )


def _drawn(ordered: list[Candidate], selection_utterances: int, test_utterances: int, seed: int) -> Splits:
    """Whole texts are held out; the last text of a voice stays, so that every voice can be prompted."""
    rows_of: dict[str, list[Candidate]] = {}
    for candidate in ordered:
        rows_of.setdefault(text_key(candidate.text), []).append(candidate)
    voices_of = {key: {row.voice for row in rows} for key, rows in rows_of.items()}
    texts_left = Counter(voice for voices in voices_of.values() for voice in voices)
    held_out: list[Candidate] = []
    dropped: Counter[str] = Counter()
    for key in sorted(rows_of, key=lambda text: (seeded_rank(seed, text), text)):
        if len(held_out) == test_utterances + selection_utterances:
            break
        if any(texts_left[voice] == 1 for voice in voices_of[key]):
            continue
        texts_left.subtract(voices_of[key])
        held_out.append(rows_of[key][0])
        if len(rows_of[key]) > 1:
            dropped["text_held_out"] += len(rows_of[key]) - 1
    held_texts = {text_key(candidate.text) for candidate in held_out}
    train = [candidate for candidate in ordered if text_key(candidate.text) not in held_texts]
    return Splits(train, held_out[test_utterances:], held_out[:test_utterances], dropped)
