"""A smaller vocabulary: which rows a student needs, and model and tokenizer with only those, numbered anew.

Needed are all speech tokens and markers, the 256 bytes, and what the family's prompts of some texts are made of, with
every piece that byte-pair encoding puts together on the way there: those texts keep their tokens. Any other text is
spelled with what is left, in more and shorter tokens.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from slimtts.data.markup import MARKS
from slimtts.errors import InvalidInputError
from slimtts.pruning.surgery import built_from
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.checkpoint import load_tokenizer

OF_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias")  # tensors with a row for every id
TOKENIZER = "tokenizer.json"


def _refused(observed: str) -> InvalidInputError:
    return InvalidInputError(
        "distill_student.vocabulary",
        f"trim for {observed}",
        "keep, or a family whose head has a row for every id and whose tokenizer is a byte-level BPE",
        "set distill_student.vocabulary to keep",
    )


def _definition(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE."""
    if not tokenizer.is_fast:
        raise _refused(f"a {type(tokenizer).__name__}")
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, byte_level = parts["model"]["type"], "ByteLevel" in json.dumps(parts["pre_tokenizer"])
    if (
        kind != "BPE"
        or not byte_level
        or not set(pre_tokenizers.ByteLevel.alphabet()) <= parts["model"]["vocab"].keys()
    ):
        raise _refused(f"a {kind} tokenizer that does not spell every byte")
    return parts


def pieces(token: str, rank: dict[tuple[str, str], int]) -> set[str]:
    """`token` and everything that BPE puts together on the way to it, from its single characters on.

    A token inside a word is made by the very merges that make it alone: none of them crossed its borders.
    """
    parts, made = list(token), {token}
    while ranked := [(rank[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in rank]:
        _, place = min(ranked)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        made.add(parts[place])
    return made


def prompted_ids(teacher: Teacher, asked: Iterable[tuple[str, Prompt]]) -> set[int]:
    """Every id in the prompts of some texts, alone and after their prompt: what stands before a text changes it.

    The family's marks are among the texts: spelled out, a laugh that no text of the run held would be read aloud.
    """
    ids = set(teacher.textless_prompt_ids(Prompt()))
    marks = [(f"{mark} a {mark}", Prompt()) for mark in MARKS.get(teacher.family.name, ())]
    for text, prompt in [*asked, *marks]:
        ids.update(teacher.prompt_ids(text, Prompt()), teacher.prompt_ids(text, prompt))
    return ids


def needed_ids(teacher: Teacher, used: Iterable[int]) -> list[int]:
    """The ids that stay, ascending, when `used` must stay.

    Raises:
        InvalidInputError: this family's vocabulary cannot be trimmed.
    """
    if teacher.layout.first_head_id:
        raise _refused(f"family {teacher.family.name}, whose checkpoints must keep their rows")
    parts, layout = _definition(teacher.tokenizer), teacher.layout
    vocabulary = parts["model"]["vocab"]
    token_of = {index: token for token, index in vocabulary.items()}
    rank = {(a, b): place for place, (a, b) in enumerate(parts["model"]["merges"])}
    tokens = set(pre_tokenizers.ByteLevel.alphabet())
    for index in used:
        if index in token_of:
            tokens |= pieces(token_of[index], rank)
    ids = {vocabulary[token] for token in tokens if token in vocabulary}
    ids.update(added["id"] for added in parts["added_tokens"])
    last = layout.end_id + 1 + layout.labels_after_end
    ids.update(range(layout.first_code_id, layout.first_code_id + layout.num_codes), range(layout.end_id, last))
    return sorted(ids | {layout.pad_id})


def _renumbered(processor: dict[str, Any] | None, new: dict[int, int]) -> None:
    """The ids of a post-processor, in place."""
    if processor is None:
        return
    for part in processor.get("processors", []):
        _renumbered(part, new)
    if processor["type"] == "TemplateProcessing":
        for special in processor["special_tokens"].values():
            special["ids"] = [new[index] for index in special["ids"]]
    elif processor["type"] not in ("Sequence", "ByteLevel"):
        raise _refused(f"a tokenizer with {processor['type']}")


def trim_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """A tokenizer of only the ids `kept`, the i-th of them now i; the given one is not touched.

    Raises:
        InvalidInputError: not a byte-level BPE, or one whose added tokens do not follow its vocabulary.
    """
    parts, new = _definition(tokenizer), {old: index for index, old in enumerate(kept)}
    model = parts["model"]
    model["vocab"] = {token: new[index] for token, index in model["vocab"].items() if index in new}
    model["merges"] = [[a, b] for a, b in model["merges"] if {a, b, a + b} <= model["vocab"].keys()]
    parts["added_tokens"] = [added | {"id": new[added["id"]]} for added in parts["added_tokens"]]
    parts["padding"] = None  # set with every call
    _renumbered(parts["post_processor"], new)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / TOKENIZER).write_text(json.dumps(parts, ensure_ascii=False), encoding="utf-8")
        trimmed: PreTrainedTokenizerBase = load_tokenizer(Path(folder))
    trimmed.name_or_path = tokenizer.name_or_path
    wanted = {token: new[index] for token, index in tokenizer.get_vocab().items() if index in new}
    if trimmed.get_vocab() != wanted:
        raise _refused("a tokenizer whose added tokens do not follow its vocabulary")
    return trimmed


def _renamed(ids: Any, new: dict[int, int]) -> Any:
    """New ids for old; those that went are left out, or None."""
    if isinstance(ids, list):
        return [new[index] for index in ids if index in new]
    return new.get(ids)


def trim_rows(model: Any, kept: Sequence[int]) -> Any:
    """A new model with only the embedding and head rows `kept`; ids in its configs follow."""
    new = {old: index for index, old in enumerate(kept)}
    config, settings = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    config.vocab_size = len(kept)
    for owner in (config, settings):
        for name, value in vars(owner).items():
            if name.endswith("_token_id") or name in ("suppress_tokens", "begin_suppress_tokens"):
                setattr(owner, name, _renamed(value, new))
    state = {
        name: tensor[list(kept)] if name in OF_VOCABULARY else tensor for name, tensor in model.state_dict().items()
    }
    trimmed = built_from(model, config, state)
    trimmed.generation_config = settings
    return trimmed


def trim_vocabulary(model: Any, teacher: Teacher, kept: Sequence[int]) -> Teacher:
    """A student in the teacher's place, with rows and tokens of its own: the ids `kept`, renumbered in their order.

    Raises:
        InvalidInputError: this family's vocabulary cannot be trimmed.
    """
    tokenizer = trim_tokenizer(teacher.tokenizer, kept)
    layout = teacher.family.layout(tokenizer, teacher.codec)
    return replace(teacher, model=trim_rows(model, kept), tokenizer=tokenizer, layout=layout)
