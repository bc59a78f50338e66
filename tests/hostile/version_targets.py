"""What the hostile texts of test_versions.py are put into; imported in the process that tries them."""

from datetime import UTC, datetime

from slimtts.promotion_history import PromotionEvent, event_line
from slimtts.results import Lineage
from tasks.lineage import VersionLineage, lineage_text


def print_history(text: str) -> None:
    """One event whose every text is the hostile one."""
    event = PromotionEvent(
        model_name=text, version=text, action="refused", former_version=text, actor=text, reason=text, reasons=(text,),
        recorded_at=datetime(2025, 1, 1, 12, tzinfo=UTC), decision="REGRESSION", release_decision="ACCEPT",
        softened={text: text},
    )  # fmt: skip
    print(event_line(event))


def print_lineage(text: str) -> None:
    """A lineage whose every text is the hostile one."""
    lineage = Lineage(
        git_sha=text, data_sha256=text, teacher_sha256=text, student_sha256=text, dvc_revision=text,
        dvc_outputs={text: text}, asr=text, normalizer=text, retained=[1], seed=1, preset=text,
    )  # fmt: skip
    params = {"teacher": {"family": text, "source": text, "revision": text}, text: {text: text}}
    found = VersionLineage(
        model_name=text, version=text, aliases=[text], run_id=text, registered_ms=1, lineage=lineage, verdict="ACCEPT",
        evaluation_sha256=text, test_set_sha256=text, params=params, metrics={text: 1.0},
    )  # fmt: skip
    print(lineage_text(found))
