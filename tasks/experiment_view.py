"""The view of all runs in MLflow that answers which student is best at equal depth: columns and charts made ready.

MLflow keeps a shared view as a tag of the experiment; `…/runs?viewStateShareKey=best-student` opens it. The format is
that of its own "Share" button (read in 3.17); an MLflow that does not know it shows its usual view and says so.
"""

from __future__ import annotations

import json
from typing import Any

SHARE_KEY = "best-student"
VIEW_TAG = f"mlflow.sharedViewState.{SHARE_KEY}"
COLUMNS = (
    "tags.`depth`", "tags.`verdict`", "params.`distill_student.preset`", "metrics.`compare/wer_percent`",
    "metrics.`compare/wer_gap_points.high`", "metrics.`compare/similarity`", "metrics.`compare/lm_rtf`",
)  # fmt: skip
SCATTERS = (
    ("compare/depth_percent", "compare/wer_percent"),
    ("compare/lm_rtf", "compare/wer_percent"),
    ("compare/weights_mb", "compare/wer_percent"),
)
BARS = ("wer_percent", "wer_gap_points.high", "similarity", "mos", "lm_rtf", "agreement_percent")
SECTION = "best-student"


def experiment_view() -> str:
    """The tag's value."""
    charts = [_scatter(x, y) for x, y in SCATTERS] + [_bar(f"compare/{name}") for name in BARS]
    view = {
        "selectedColumns": list(COLUMNS),
        "orderByKey": "metrics.`compare/wer_percent`",
        "orderByAsc": True,
        "hideEmptyCharts": True,
        "compareRunCharts": charts,
        "compareRunSections": [{"uuid": SECTION, "name": "Best student", "display": True, "isReordered": False}],
    }
    return json.dumps(view)


def _scatter(x: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _card("SCATTER", f"{x}-{y}", f"{_plain(y)} against {_plain(x)}") | axes


def _bar(metric: str) -> dict[str, Any]:
    return _card("BAR", metric, _plain(metric)) | {"metricKey": metric}


def _card(kind: str, name: str, title: str) -> dict[str, Any]:
    return {
        "type": kind, "uuid": f"{SECTION}-{name}", "displayName": title, "metricSectionId": SECTION, "deleted": False,
        "isGenerated": False, "runsCountToCompare": 50,
    }  # fmt: skip


def _plain(metric: str) -> str:
    return metric.split("/")[-1].replace("_", " ")
