"""When numbers may stand beside published ones, and beside each other."""

import pytest

from slimtts.evaluation.protocols import deviations, unlike
from slimtts.results import EvaluationReport

WHISPER = "whisper-large-v3@0123456789ab beam 1"


def report(**changes):
    values = {
        "asr": WHISPER, "normalizer": "seed_tts_eval", "test_set_sha256": "a" * 64, "utterances": 1088,
        "reference_wer": None, "systems": {}, "gaps": [], "machine": "m", "benchmark": "seed-tts-eval",
        "similarity_predictor": "resemblyzer 0.1.4",
    }  # fmt: skip
    return EvaluationReport(**values | changes)


SIMILARITY = "Similarity by resemblyzer 0.1.4 instead of WavLM-large fine-tuned for speaker verification."


def test_as_published_only_the_similarity_differs():
    assert deviations(report(), 1088) == [SIMILARITY]


@pytest.mark.parametrize(
    ("changes", "rows_there", "told"),
    [
        ({"asr": "asr@0123 beam 1"}, 1088, "Recogniser asr@0123 beam 1 instead of whisper-large-v3 beam 1."),
        ({"asr": "whisper-large-v3-turbo@0 beam 1"}, 1088, "instead of whisper-large-v3 beam 1."),
        ({"asr": WHISPER.replace("beam 1", "beam 5")}, 1088, "instead of whisper-large-v3 beam 1."),
        ({"normalizer": "basic"}, 1088, "Normaliser basic instead of seed_tts_eval."),
        ({"utterances": 500}, 1088, "The first 500 of 1088 sentences."),
        ({"language": "zh", "normalizer": "seed_tts_eval_zh"}, 1088, "instead of paraformer-zh."),
        (
            {"benchmark": "librispeech-pc", "normalizer": "f5_tts", "asr": WHISPER.replace("beam 1", "beam 5")},
            1088, "A list of 1088 sentences instead of 1127.",
        ),
        ({"benchmark": "librispeech-pc", "normalizer": "f5_tts", "utterances": 1127}, 1127, "whisper-large-v3 beam 5."),
    ],
)  # fmt: skip
def test_every_other_way_is_told(changes, rows_there, told):
    found = deviations(report(**changes), rows_there)
    assert len(found) == 2 and found[0].endswith(told) and found[1] == SIMILARITY


def test_sets_that_nobody_published_have_no_protocol():
    assert deviations(report(benchmark="nano"), 3) == deviations(report(benchmark="manifest"), 3) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"benchmark": "nano"}, {"language": "zh"}, {"metric": "CER"}, {"test_set_sha256": "b" * 64}, {"asr": "other"},
        {"normalizer": "basic"}, {"similarity_predictor": "verifier x-vector@1"},
    ],
)  # fmt: skip
def test_unlike_evaluations_are_not_compared(changes):
    ((name, value),) = changes.items()
    assert [line.split(":")[0] for line in unlike(report(), report(**changes))] == [name]
    assert unlike(report(**changes), report(**changes)) == []
    assert str(value) in unlike(report(), report(**changes))[0]


def test_what_an_older_evaluation_did_not_record_does_not_differ():
    assert unlike(report(), report(similarity_predictor="")) == []
