"""What the teacher said, on disk: a training that meets the same rows again reads instead of asking.

Kept are the hidden states under the output head, and those of the layers that the student imitates, at target positions
in fp16: logits are made of them a chunk at a time. A row is known by the hash of its tokens and targets, whatever the
order of rows and batches: the same tokens are the same lesson. A shard is a safetensors file of the rows that one step
missed; its header names the teacher and the hash of its content. A shard that does not hold what its header says is
removed, and its rows are made again.
Legend: P target positions of a row, M matched layers, D hidden.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.distill.batches import rows_of
from slimtts.distill.healing import Memories
from slimtts.distill.packing import place_of_tokens
from slimtts.errors import InvalidInputError
from slimtts.storage import atomic_path

MADE_BY, CONTENT, HEADER = "made_by", "content_sha256", "made_by_sha256"


@dataclass(frozen=True)
class TeacherIdentity:
    """What else decides the cached numbers: the teacher's weights, the layers kept, and its spoken rows."""

    weights_sha256: str
    layers: tuple[int, ...]
    spoken_rows: tuple[int, int, int]

    def text(self) -> str:
        """As a shard's header holds it."""
        return json.dumps(vars(self), sort_keys=True)


def row_keys(batch: ForcedBatch) -> list[str]:
    """A name for every row, "" for one without targets; padding after the last target changes nothing."""
    facts = [batch.ids, batch.targets, *place_of_tokens(batch.to(torch.device("cpu"))).values()]
    table = torch.stack([fact.cpu() for fact in facts], dim=1)
    keys = []
    for row, has_target in zip(table, batch.is_target.cpu(), strict=True):
        ends = has_target.nonzero().flatten().tolist()
        content = row[:, : ends[-1] + 1].contiguous() if ends else None
        keys.append("" if content is None else hashlib.sha256(content.numpy().tobytes()).hexdigest())
    return keys


def content_sha256(rows: Mapping[str, torch.Tensor]) -> str:
    """Over names, shapes and bytes of [1 + M, P, D] rows."""
    digest = hashlib.sha256()
    for name in sorted(rows):
        digest.update(f"{name} {tuple(rows[name].shape)}".encode())
        digest.update(rows[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _header_sha256(made_by: str) -> str:
    return hashlib.sha256(made_by.encode()).hexdigest()


def _is_as_written(shard: Path) -> bool:
    """Rows and header are those of their hashes; shards of earlier versions have none of the header."""
    try:
        with safe_open(shard, "pt") as opened:
            header = opened.metadata() or {}
        made_by = header.get(MADE_BY, "")
        is_right = header.get(HEADER, _header_sha256(made_by)) == _header_sha256(made_by)
        return is_right and content_sha256(load_file(shard)) == header.get(CONTENT)
    except (SafetensorError, OSError):
        return False


class TeacherCache:
    """A folder of such shards, which several trainings may share, one after the other or at once.

    `recall` is what `HealingLoss` asks; `hits` and `misses` count different rows of each call.

    Raises:
        InvalidInputError: the folder was filled by another teacher, or for other layers.
    """

    def __init__(self, folder: Path, identity: TeacherIdentity) -> None:
        self.folder, self.identity = folder, identity
        self.hits = self.misses = 0
        self._shard_of: dict[str, Path] = {}
        self._verified: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        for shard in sorted(folder.glob("*.safetensors")):
            self._register(shard)

    def recall(self, batch: ForcedBatch, hear: Callable[[ForcedBatch], Memories]) -> Memories:
        """What `hear` gives for the batch, in fp32 on the batch's device; only rows that are new are heard."""
        keys = row_keys(batch)
        rows = {key: self._read(key) for key in dict.fromkeys(keys) if key}
        missing = [keys.index(key) for key, row in rows.items() if row is None]
        self.hits += len(rows) - len(missing)
        self.misses += len(missing)
        if missing:
            rows |= self._listen(batch, missing, keys, hear)
        found = [row for key in keys if key and (row := rows[key]) is not None]
        if not found:  # a part of a step that has no target
            return hear(batch)
        together = torch.cat([row.to(batch.ids.device).float() for row in found], dim=1)
        return together[0], list(together[1:])

    def _listen(
        self, batch: ForcedBatch, missing: list[int], keys: list[str], hear: Callable[[ForcedBatch], Memories]
    ) -> dict[str, torch.Tensor]:
        """Asks the teacher about some rows and keeps the answers."""
        new = rows_of(batch, missing)
        hidden, layers = hear(new)
        states = torch.stack([hidden.float(), *(layer.float() for layer in layers)]).half().cpu()
        if not bool(states.isfinite().all()):
            raise InvalidInputError(
                "distill_student.teacher_cache",
                "hidden states beyond the range of fp16",
                "at most 65504",
                "set it to the empty text",
            )
        pieces = states.split(new.is_target.sum(1).tolist(), dim=1)
        heard = {keys[row]: piece.contiguous() for row, piece in zip(missing, pieces, strict=True)}
        name = hashlib.sha256("".join(sorted(heard)).encode()).hexdigest()[:32]
        shard = self.folder / f"{name}.safetensors"
        made_by = self.identity.text()
        header = {MADE_BY: made_by, CONTENT: content_sha256(heard), HEADER: _header_sha256(made_by)}
        with atomic_path(shard) as temporary:
            save_file(heard, temporary, metadata=header)
        self._verified.add(shard)
        self._shard_of |= dict.fromkeys(heard, shard)
        return heard

    def _register(self, shard: Path) -> None:
        try:
            with safe_open(shard, "pt") as opened:
                header, names = opened.metadata() or {}, list(opened.keys())
        except (SafetensorError, OSError):
            self._drop(shard)
            return
        if header.get(MADE_BY) != self.identity.text():
            if header.keys() & {MADE_BY, CONTENT, HEADER} and not _is_as_written(shard):
                self._drop(shard)  # one of ours, damaged; a stranger's file is not ours to remove
                return
            raise InvalidInputError(
                f"distill_student.teacher_cache, {shard.name}",
                header.get(MADE_BY, "a file without a header of ours"),
                self.identity.text(),
                "give every teacher and every set of layers its own folder",
            )
        self._shard_of |= dict.fromkeys(names, shard)

    def _read(self, key: str) -> torch.Tensor | None:
        """[1 + M, P, D], or None when it must be made."""
        shard = self._shard_of.get(key)
        if shard is None:
            return None
        try:
            if shard not in self._verified:
                self._verify(shard)
            with safe_open(shard, "pt") as opened:
                row: torch.Tensor = opened.get_tensor(key)
            return row
        except (SafetensorError, OSError):
            self._drop(shard)
            return None

    def _verify(self, shard: Path) -> None:
        """Once a process; raises SafetensorError where the content is not what was written."""
        if not _is_as_written(shard):
            raise SafetensorError(f"{shard} holds other bytes than were written")
        self._verified.add(shard)

    def _drop(self, shard: Path) -> None:
        print(f"teacher cache: {shard.name} is damaged, its rows are made again", file=sys.stderr)
        shard.unlink(missing_ok=True)
        self._shard_of = {key: of for key, of in self._shard_of.items() if of != shard}
