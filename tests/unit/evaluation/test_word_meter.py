"""One way from audio to word errors: every setting counts in every stage, and none of the others counts words."""

import re
from pathlib import Path

import numpy as np
import pytest

from slimtts.errors import InvalidInputError
from slimtts.evaluation.word_errors import WordErrors
from slimtts.evaluation.word_meter import WordCounter, WordMeter, name_of_recognizer, open_recognizer
from slimtts.params import load_params
from slimtts.scoring.wli import Trial
from slimtts.stages.score_layers import by_layer_of
from slimtts.stages.teacher_speech import Demands, Line, speak_takes
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import tiny_utterances

ROOT = Path(__file__).parents[3]
SHIPPED = load_params(ROOT / "params.yaml")


def with_knobs(**sections):
    return SHIPPED.model_copy(
        update={name: getattr(SHIPPED, name).model_copy(update=knobs) for name, knobs in sections.items()}
    )


CHINESE = with_knobs(teacher={"language": "zh"})


class Ears:
    """Hears one text; notes what language it was told."""

    name, told = "ears", ""

    def __init__(self, text="", told=""):
        self.text, self.told = text, told

    def in_language(self, language):
        return Ears(self.text, language)

    def transcribe(self, waveforms, sample_rate_hz):
        return [self.text for _ in waveforms]


def test_english_needs_no_word_to_the_recogniser():
    meter = WordMeter(SHIPPED, Ears("a b"))
    assert (meter.recognizer.told, meter.counter.metric, meter.name) == ("", "WER", "ears")
    assert meter.transcribe([np.zeros(4, dtype=np.float32)], 16_000) == ["a b"]
    assert meter.count("A, b.", "a c") == WordErrors(1, 1, 0, 0)


def test_another_language_reaches_recogniser_script_and_unit():
    meter = WordMeter(CHINESE, Ears("\u6f22\u8a9e"))
    assert (meter.recognizer.told, meter.counter.metric) == ("zh", "CER")
    assert meter.transcribe([np.zeros(4, dtype=np.float32)], 16_000) == ["\u6c49\u8bed"]
    assert meter.count("\u6c49\u8bed\uff0c\u597d", "\u6c49\u5b57\u597d") == WordErrors(2, 1, 0, 0)


def test_the_language_of_an_evaluation_may_be_another_than_the_datas():
    params = with_knobs(evaluate_student={"language": "zh", "benchmark": "seed-tts-eval"})
    assert WordMeter(params, Ears()).recognizer.told == ""
    assert WordMeter(params.for_evaluation(), Ears()).recognizer.told == "zh"
    both = with_knobs(
        evaluate_student={"language": "zh", "benchmark": "seed-tts-eval"}, recogniser={"normalizer": "seed_tts_eval_zh"}
    )
    assert WordCounter.of(both.for_evaluation()).normalizer == "seed_tts_eval_zh"
    assert WordCounter.of(both).normalizer == "basic", "Chinese has no case to forget, English has"


def test_the_bundled_recogniser_refuses_what_it_does_not_know():
    recognizer = open_recognizer(SHIPPED.recogniser)
    assert recognizer.name == name_of_recognizer(SHIPPED.recogniser)
    with pytest.raises(InvalidInputError, match=r"teacher\.language or .*observed de with asr@\w+ beam 1; allowed: en"):
        WordMeter(with_knobs(teacher={"language": "de"}), recognizer)


@pytest.mark.parametrize(
    ("family", "text", "transcript", "errors"),
    [
        ("orpheus", "well <laugh> that is <Sigh> it", "well that is it", 0),
        ("cosyvoice2", "so [laughter] this is <strong>it</strong> [breath]", "so this is it", 0),
        ("orpheus", "well that is it", "well <laugh> that is it", 0),
        ("llasa", "well <laugh> that is it", "well that is it", 1),  # to it the mark is a word like others
        ("orpheus", "he said [laughter] twice", "he said twice", 1),
        ("orpheus", "<gasp>no", "no", 0),
    ],
)
def test_marks_that_a_family_does_not_speak_are_no_words(family, text, transcript, errors):
    counter = WordCounter.of(with_knobs(teacher={"family": family}))
    assert counter.count(text, transcript).errors == errors


def test_takes_and_layers_are_counted_as_the_evaluation_counts():
    """In characters for Chinese: as words a sentence is one, and a take with one wrong character wholly wrong."""
    text, heard = "\u4f60\u597d\u4e16\u754c", "\u4f60\u597d\u4e16\u4eba"
    assert by_layer_of([Trial("u", 0, text, heard, True)], CHINESE)[0] == [(WordErrors(3, 1, 0, 0), True)]
    orpheus = with_knobs(teacher={"family": "orpheus"})
    laughing = [Trial("u", 0, "so <laugh> it is", "so it is", True)]
    assert by_layer_of(laughing, orpheus)[0] == [(WordErrors(3, 0, 0, 0), True)]


def test_a_take_is_judged_in_the_language(teacher):
    row = tiny_utterances(1)[0]
    line = Line("u", "\u4f60\u597d\u4e16\u754c", row.voice, Prompt(row.text, row.codes, row.voice))
    params = CHINESE.model_copy(update={"decoding": SHIPPED.decoding.model_copy(update={"max_new_tokens": 4})})
    (takes,) = speak_takes(
        teacher, [line], params, lambda waves: ["\u4f60\u597d\u4e16\u4eba" for _ in waves], 0, Demands(1.0, 0)
    )
    assert [take.wer for take in takes] == [0.25]


ALONE = {
    "count_word_errors(": {
        "evaluation/word_errors.py",
        "evaluation/word_meter.py",
        "nano/card.py",
        "testing/finished_run.py",
    },
    "Recognizer.load(": {"evaluation/word_meter.py", "nano/card.py"},
}


@pytest.mark.parametrize("call", ALONE)
def test_nobody_else_opens_a_recogniser_or_counts_words(call):
    """The bundled teacher's own card judges one language by fixed tools; everybody else asks the meter."""
    source = ROOT / "src" / "slimtts"
    callers = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if re.search(rf"\b{re.escape(call)}", path.read_text())
    }
    assert callers <= ALONE[call]
