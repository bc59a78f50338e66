"""The table of speculative decoding: what each way of speaking cost, what was taken, what one could foresee."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimtts.decoding.generation import Generated
from slimtts.decoding.speculative import SpeculativeDecoder
from slimtts.results import Interval


@dataclass
class Way:
    """One row of the table: how a sentence is spoken, and what came of it."""

    rule: str
    length: int
    temperature: float
    speak: Callable[[int], Generated]
    decoder: SpeculativeDecoder | None = None
    agreement: float | None = None
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)  # steadier than the clock where others compute too
    spoken: list[Generated] = field(default_factory=list)


def foreseen_speedup(codes_per_pass: float, length: int, draft_share: float, block_cost: float) -> float:
    """Codes of a round / its cost in passes of the target: `length` of the draft's, and one over length + 1 tokens."""
    return codes_per_pass / (length * draft_share + block_cost)


def measured_row(way: Way, plain: Way, frame_rate_hz: float) -> dict[str, Any]:
    codes, ended = sum(len(s.codes) for s in way.spoken), sum(s.ended for s in way.spoken)
    plain_codes = sum(len(s.codes) + s.ended for s in plain.spoken)
    row: dict[str, Any] = {
        "rule": way.rule,
        "draft_length": way.length,
        "temperature": way.temperature,
        "sentences": len(way.spoken),
        "codes": codes,
        "no_end": len(way.spoken) - ended,
        "ms_per_code": 1000 * sum(way.seconds) / (codes + ended),
        "lm_rtf": sum(way.seconds) * frame_rate_hz / max(1, codes),
        "speedup": (sum(plain.seconds) / plain_codes) / (sum(way.seconds) / (codes + ended)),
        "speedup_processor": sum(plain.processor_seconds) / plain_codes * (codes + ended) / sum(way.processor_seconds),
        "same_codes_as_plain": sum(a == b for a, b in zip(way.spoken, plain.spoken, strict=True)),
    }
    if way.agreement is not None:
        row["agreement"] = way.agreement
    if way.decoder is not None:
        counts = way.decoder.counts
        row |= {
            "acceptance": counts.acceptance,
            "codes_per_target_pass": counts.codes_per_target_pass,
            "proposed": counts.proposed,
            "taken": counts.taken,
        }
    return row


def as_dict(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def add_foreseen(result: dict[str, Any]) -> None:
    """What the costs of single passes let one expect of every row."""
    of_target = {int(tokens): ms for tokens, ms in result["costs"]["target_pass_ms"].items()}
    for row in result["rows"]:
        if "acceptance" in row:
            length = row["draft_length"]
            block = float(np.interp(length + 1, list(of_target), list(of_target.values()))) / of_target[1]
            share = result["costs"]["draft_share"]
            row["foreseen"] = foreseen_speedup(row["codes_per_target_pass"], length, share, block)


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    on_nano = "wer" in result["rows"][0]
    heads = ["temperature", "rule", "draft length"]
    heads += [] if on_nano else ["agreement"]
    heads += [
        "taken",
        "codes a target pass",
        "ms a code",
        "LM-RTF",
        "speed-up",
        "by processor time",
        "foreseen",
        "as plain",
    ]
    heads += ["WER % [95 %]", "minus plain, points [95 %]", "similarity", "no END"] if on_nano else []
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in result["rows"]:
        cells = [f"{row['temperature']:g}", row["rule"], str(row["draft_length"] or "")]
        cells += [] if on_nano else [f"{row['agreement']:g}"]
        has_draft = "acceptance" in row
        cells += [f"{100 * row['acceptance']:.0f} %" if has_draft else ""]
        cells += [f"{row['codes_per_target_pass']:.2f}" if has_draft else ""]
        cells += [f"{row['ms_per_code']:.2f}", f"{row['lm_rtf']:.3f}", f"{row['speedup']:.2f}"]
        cells += [f"{row['speedup_processor']:.2f}"]
        cells += [f"{row['foreseen']:.2f}" if has_draft else ""]
        cells += [f"{row['same_codes_as_plain']}/{row['sentences']}"]
        if on_nano:
            cells += [shown(row["wer"], 100, ".1f"), shown(row["wer_points_over_plain"], 1, "+.1f")]
            cells += [f"{row['similarity']:.3f}", str(row["no_end"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: dict[str, float], scale: float, form: str) -> str:
    middle, low, high = (format(scale * value[key], form) for key in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"


def log_to_mlflow(uri: str, result: dict[str, Any], markdown: str) -> None:
    """A run with the table, and one inside it for every row, so that rows can be compared and plotted."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("speculative-decoding")
    about = {key: result[key] for key in ("model", "device", "machine", "draft", "command")}
    with mlflow.start_run(run_name=f"{result['model']} on {result['device']}"):
        mlflow.log_params(about)
        mlflow.log_text(markdown, "table.md")
        mlflow.log_dict(result, "rows.json")
        for row in result["rows"]:
            name = f"T {row['temperature']:g}, {row['rule']}, {row['draft_length']}"
            with mlflow.start_run(run_name=name, nested=True):
                mlflow.log_params(
                    {**about, **{k: row[k] for k in ("rule", "draft_length", "temperature", "agreement") if k in row}}
                )
                flat = {k: v["value"] if isinstance(v, dict) else v for k, v in row.items()}
                mlflow.log_metrics({k: float(v) for k, v in flat.items() if isinstance(v, int | float)})
