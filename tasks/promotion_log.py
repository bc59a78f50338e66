"""The history of a model's promotions, in MLflow where a team shares it: one tag of the registered model an event.

Tags are written whole or not at all, and a key is never used twice (number, then a hash of the event), so writers
cannot lose each other's events. Alias and history come in one answer of the server and belong together.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from slimtts.errors import InvalidInputError
from slimtts.promotion_history import PromotionEvent, read_local_history

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

PRODUCTION = "production"
KEY = re.compile(r"promotion\.(\d{6})-[0-9a-f]{8}")
APPLIED = "promotion.applied"  # key of the last move that the alias has followed
LOCAL_HISTORY = "promotions.jsonl"  # where earlier releases kept it, below the runs; read, never written
MAX_TAG_CHARACTERS = 5000  # of MLflow's column registered_model_tags.value


@dataclass(frozen=True)
class Snapshot:
    """Alias and history at one moment; `keys` belong to the last events, those that MLflow holds."""

    production: str | None
    events: tuple[PromotionEvent, ...]
    keys: tuple[str, ...]
    applied: str

    @property
    def last_move(self) -> tuple[str, PromotionEvent] | None:
        """The last move that MLflow holds, with its key."""
        shared = self.events[len(self.events) - len(self.keys) :]
        moves = [(key, event) for key, event in zip(self.keys, shared, strict=True) if event.is_move]
        return moves[-1] if moves else None


@dataclass(frozen=True)
class PromotionLog:
    """The history of one model."""

    client: MlflowClient
    runs_root: Path
    model_name: str

    def read(self) -> Snapshot:
        """Alias and history.

        Raises:
            InvalidInputError: no such model, or a record that is no event.
        """
        model = registered_model(self.client, self.model_name)
        keys = tuple(sorted(key for key in model.tags if KEY.fullmatch(key)))
        shared = [self._parse(key, model.tags[key]) for key in keys]
        local = read_local_history(self.runs_root / LOCAL_HISTORY, self.model_name)
        version = model.aliases.get(PRODUCTION)
        return Snapshot(None if version is None else str(version), (*local, *shared), keys, model.tags.get(APPLIED, ""))

    def append(self, event: PromotionEvent, after: Snapshot) -> str:
        """Adds the event behind those of `after`; gives its key."""
        text = event.model_dump_json(exclude_defaults=True)
        while len(text) > MAX_TAG_CHARACTERS and event.reasons:
            event = event.model_copy(update={"reasons": event.reasons[:-1]})
            text = event.model_dump_json(exclude_defaults=True)
        number = 1 + max((int(KEY.fullmatch(key)[1]) for key in after.keys), default=0)  # type: ignore[index]
        key = f"promotion.{number:06d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        self.client.set_registered_model_tag(self.model_name, key, text)
        return key

    def mark_applied(self, key: str) -> None:
        """Says that the alias is where the move `key` put it."""
        self.client.set_registered_model_tag(self.model_name, APPLIED, key)

    def _parse(self, key: str, text: str) -> PromotionEvent:
        try:
            return PromotionEvent.model_validate_json(text)
        except ValidationError as error:
            raise InvalidInputError(
                f"tag {key} of {self.model_name} in MLflow", str(error).splitlines()[0], "a promotion event",
                "bring the tag back from a backup of MLflow's database, or delete it",
            ) from None  # fmt: skip


def registered_model(client: MlflowClient, model_name: str) -> RegisteredModel:
    """The entry of the registry.

    Raises:
        InvalidInputError: there is none of that name.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

    try:
        return client.get_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        known = ", ".join(model.name for model in client.search_registered_models()) or "none"
        raise InvalidInputError("--model", model_name, known, "compress a teacher first, or correct the name") from None
