"""How published numbers of each benchmark were made, and in what an evaluation of ours differs from that.

seed-tts-eval: run_wer.py, average_wer.py and cal_sim.sh of BytedanceSpeech/seed-tts-eval; LibriSpeech-PC: utils_eval.py
of SWivid/F5-TTS (both read 2026-11-21). All report the mean of the utterances' rates. Both leave an utterance without
audio out or stop; here it is a full error.
"""

from __future__ import annotations

from dataclasses import dataclass

from slimtts.results import EvaluationReport

PUBLISHED_SIMILARITY = "WavLM-large fine-tuned for speaker verification"


@dataclass(frozen=True)
class Protocol:
    """Who listened to the published numbers, and how; `rows` is the size of the set where there is only one."""

    recogniser: str
    beam: int | None
    normalizer: str
    rows: int | None = None


# By benchmark and language.
PROTOCOLS = {
    ("seed-tts-eval", "en"): Protocol("whisper-large-v3", 1, "seed_tts_eval"),
    ("seed-tts-eval", "zh"): Protocol("paraformer-zh", None, "seed_tts_eval_zh"),
    ("librispeech-pc", "en"): Protocol("whisper-large-v3", 5, "f5_tts", 1127),
}

# What two evaluations must share before their numbers stand side by side.
SHARED = (
    "benchmark", "language", "metric", "test_set_sha256", "asr", "normalizer", "similarity_predictor",
)  # fmt: skip


def deviations(report: EvaluationReport, rows_there: int) -> list[str]:
    """Why these numbers are not those of the published protocol, one sentence each; none: they may stand beside them.

    `rows_there` is how many the benchmark's file holds. Sets without a published protocol have no deviations.
    """
    protocol = PROTOCOLS.get((report.benchmark, report.language))
    if protocol is None:
        return []
    found = []
    model, beam = protocol.recogniser, protocol.beam
    if not report.asr.startswith(f"{model}@") or (beam is not None and not report.asr.endswith(f" beam {beam}")):
        wanted = model if beam is None else f"{model} beam {beam}"
        found.append(f"Recogniser {report.asr} instead of {wanted}.")
    if report.normalizer != protocol.normalizer:
        found.append(f"Normaliser {report.normalizer} instead of {protocol.normalizer}.")
    if report.utterances != rows_there:
        found.append(f"The first {report.utterances} of {rows_there} sentences.")
    if protocol.rows is not None and rows_there != protocol.rows:
        found.append(f"A list of {rows_there} sentences instead of {protocol.rows}.")
    return [*found, f"Similarity by {report.similarity_predictor} instead of {PUBLISHED_SIMILARITY}."]


def unlike(first: EvaluationReport, second: EvaluationReport) -> list[str]:
    """In what two evaluations differ so that their numbers must not be compared; none: they may be."""
    pairs = [(name, getattr(first, name), getattr(second, name)) for name in SHARED]
    one, other = (
        ", ".join(sorted({system.mos_predictor for system in report.systems.values()})) for report in (first, second)
    )
    pairs.append(("mos_predictor", one, other))
    # What older evaluations did not record cannot differ.
    return [f"{name}: {one} against {other}" for name, one, other in pairs if one != other and one and other]
