"""Hostile numbers, languages and texts: refused in a line, or judged INCOMPLETE, never taken for a measurement."""

import json
import math
from pathlib import Path

import pytest
import yaml

from slimtts.params import parse_params
from slimtts.promotion import judge
from slimtts.results import EvaluationReport, Lineage
from tests.unit.plots.made import made_run
from tests.unit.plots.test_drawing import finished_workspace

pytestmark = pytest.mark.hostile

SHIPPED = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())


def changed(**sections):
    return {name: knobs | sections.get(name, {}) for name, knobs in SHIPPED.items()}


LANGUAGES = {
    "own sentences in another language": {"evaluate_student": {"language": "zh"}},
    "the bundled ears for German": {"teacher": {"language": "de"}},
    "English ears for German": {"teacher": {"language": "de"}, "recogniser": {"model": "small.en"}},
    "English ears for a Chinese benchmark": {
        "evaluate_student": {"language": "zh", "benchmark": "seed-tts-eval", "benchmark_source": "x"},
        "recogniser": {"model": "tiny.en"},
    },
    "the bundled ears for a Chinese benchmark": {
        "evaluate_student": {"language": "zh", "benchmark": "seed-tts-eval", "benchmark_source": "x"},
    },
    "Chinese protocol for English": {"recogniser": {"normalizer": "seed_tts_eval_zh"}},
    "no such protocol": {"recogniser": {"normalizer": "whatever"}},
    "a name for a code": {"teacher": {"language": "German"}},
    "no text": {"teacher": {"language": ["en"]}},
    "a false": {"teacher": {"language": False}},  # as YAML 1.1 reads Norwegian
    "control characters": {"evaluate_student": {"language": "e\x1b[31m"}},
    "a floor of more than all": {"register_model": {"max_reference_wer": 1.5}},
    "a floor that is none": {"register_model": {"max_teacher_wer": float("nan")}},
    "a floor below nothing": {"register_model": {"min_voice_contrast": -1}},
}


@pytest.mark.parametrize("case", LANGUAGES)
def test_settings_that_no_judge_can_obey_are_refused(refused, case):
    refused("slimtts.params:parse_params", [changed(**LANGUAGES[case]), "params.yaml"])


TEXTS = {
    "Chinese": ("\u4f60\u597d\u4e16\u754c", "en"),
    "Japanese": ("\u3053\u3093\u306b\u3061\u306f", "en"),
    "Cyrillic in between": ("the \u0440ed fox", "en"),
    "Arabic": ("\u0645\u0631\u062d\u0628\u0627", "de"),
    "a million letters": ("\u4f60" * 1_000_000, "en"),
    "Chinese as itself": ("\u4f60\u597d", "zh"),
    "no language": ("so.", ""),
    "a voice of espeak": ("so.", "en-us"),
    "a path": ("so.", "../../etc"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_without_phonemes_are_refused(refused, case):
    refused("slimtts.data.phonemes:phonemes", list(TEXTS[case]))


SCORES = {
    "no number": [0.1, math.nan, 0.3], "infinite": [math.inf, 0.1, 0.2], "all infinite": [-math.inf] * 3,
}  # fmt: skip


@pytest.mark.parametrize("case", SCORES)
def test_scores_that_rank_nothing_are_refused(refused, case):
    refused("slimtts.scoring.ties:require_finite", [SCORES[case]])


def counts(**errors):
    return {"errors": {"hits": 9, "substitutions": 1, "deletions": 0, "insertions": 0} | errors}


SENTENCES = {
    "negative errors": counts(substitutions=-1), "half a word": counts(hits=8.5), "words as text": counts(hits="9"),
    "true for one": counts(deletions=True), "more words than a library": counts(hits=10**30),
    "unlike texts": counts(hits=99), "no similarity": {"similarity": math.nan}, "endless speech": {"seconds": math.inf},
    "no score": {"mos": math.nan}, "another sentence": {"id": "s99"}, "a list for errors": {"errors": [9, 1, 0, 0]},
}  # fmt: skip


@pytest.mark.parametrize("case", SENTENCES)
def test_sentences_that_cannot_be_compared_are_refused(refused, tmp_path, case):
    for name in ("a", "b"):
        finished_workspace(tmp_path / name, made_run(name, 6, [1, 0, 1, 0]))
    path = tmp_path / "b" / "evaluation" / "utterances.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    row = next(row for row in rows if row["system"] == "student")
    row |= SENTENCES[case]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused("cli", ["compare", str(tmp_path / "a"), str(tmp_path / "b")])


GATE = parse_params(changed(register_model={"min_utterances": 1}), "params.yaml").register_model
LINEAGE = Lineage(
    git_sha="g", data_sha256="d", teacher_sha256="t", student_sha256="s", dvc_revision="r", dvc_outputs={}, asr="toy",
    normalizer="basic", retained=[0], seed=1, preset="default",
)  # fmt: skip


def evaluation(**changes):
    """As JSON, of a good student; `changes` are paths with a value."""
    report = made_run("a", 6, [0] * 4, weights_sha256={"teacher": "t", "student": "s"}).report
    values = json.loads(report.model_dump_json())
    values["gaps"][0]["wer_points"] = {"value": 0.0, "low": -1.0, "high": 1.0}
    values["other_voice_similarity"] = 0.5
    for path, value in changes.items():
        holder, *keys = values, *path.split("__")
        for key in keys[:-1]:
            holder = holder[int(key) if key.isdigit() else key]
        holder[keys[-1]] = value
    return values


FLAT = {"value": 0.8, "low": 0.8, "high": 0.8}
JUDGES = {
    "hears nothing in the originals": {"reference_wer": 1.0},
    "hears more words than there are": {"reference_wer": 7.5},
    "hears nothing in the teacher": {"systems__teacher__wer_corpus": {"value": 1.0, "low": 1.0, "high": 1.0}},
    "gives no WER": {"systems__teacher__wer_corpus": {"value": "NaN", "low": "NaN", "high": "NaN"}},
    "knows one voice": {"other_voice_similarity": 0.8},
    "likes others more": {"other_voice_similarity": 0.99},
    "gives no likeness": {"other_voice_similarity": "NaN"},
    "gives an impossible likeness": {"other_voice_similarity": -3.0},
    "gives one likeness": {"systems__teacher__similarity": FLAT},
    "gives one score": {"systems__teacher__mos": {"value": 3.0, "low": 3.0, "high": 3.0}},
    "gives no score": {"gaps__0__mos": {"value": "NaN", "low": "NaN", "high": "NaN"}},
    "timed silence": {"systems__teacher__speed__lm_rtf": 1e8},
    "timed nothing": {"systems__student__speed__lm_rtf": 0.0},
    "timed backwards": {"systems__teacher__speed__lm_rtf": -1.0},
}


def test_the_evaluation_that_these_break_is_a_good_one():
    verdict = judge(EvaluationReport.model_validate(evaluation()), GATE, LINEAGE)
    assert verdict.decision == "ACCEPT", verdict.reasons


@pytest.mark.parametrize("case", JUDGES)
def test_what_no_judge_can_mean_is_incomplete(case):
    verdict = judge(EvaluationReport.model_validate(evaluation(**JUDGES[case])), GATE, LINEAGE)
    assert verdict.decision == "INCOMPLETE" and verdict.reasons
