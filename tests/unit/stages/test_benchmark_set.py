"""A tiny teacher of the toy language on every benchmark's layout: the stage, its report, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from slimtts.errors import InvalidInputError
from slimtts.evaluation.speed import measure_here
from slimtts.evaluation.table import evaluation_table
from slimtts.evaluation.word_errors import count_word_errors
from slimtts.params import load_params, parse_params
from slimtts.promotion import judge
from slimtts.results import EvaluationReport, Lineage
from slimtts.stages import distill_student, evaluate_student, prune_layers, score_layers, subset_data
from slimtts.stages.benchmark_set import hash_tasks, open_benchmark
from slimtts.stages.heard import Heard, one_set_of_judges
from slimtts.stages.sentence_groups import BUNDLED_EARS, CHOSEN_BY_ITS_JUDGE, sentence_groups
from slimtts.stages.voices import speaking_tasks
from slimtts.teachers import loading
from slimtts.testing.benchmark_layouts import LAYOUTS, SpokenSentence
from slimtts.testing.families import write_teacher_folder
from slimtts.testing.toy_speech import (
    NUM_CODES,
    FrameCodec,
    ToyMos,
    ToyRecognizer,
    ToyVoices,
    codes_of,
    write_toy_corpus,
)
from slimtts.workspace import Workspace
from tasks.stage_numbers import evaluation_numbers

ROOT = Path(__file__).parents[3]
RATE = 16_000
KNOBS = {
    "decoding": {"max_new_tokens": 30},
    "subset_data": {
        "selection_utterances": 8, "test_utterances": 16, "max_share": 0.4, "extra_texts": 0, "speech": "corpus",
    },
    "prune_layers": {"keep_layers": 2, "retained": [0, 3]},
    "distill_student": {"steps": 0, "control": False, "device": "cpu"},
    "evaluate_student": {
        "utterances": 3, "mos_utterances": 1, "speed_utterances": 1, "bootstrap_samples": 50,
        "agreement_utterances": 1, "audio_utterances": 2,
    },
}  # fmt: skip


def said(text):
    return FrameCodec(RATE).decode(torch.tensor([codes_of(text)]))[0].numpy()


SENTENCES = [
    SpokenSentence(text, prompt, said(prompt), said(text), voice)
    for text, prompt, voice in (("ani bel.", "cor dut.", 1), ("dut cor ani.", "bel bel.", 2), ("cor.", "ani ani.", 1))
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Params and workspace of a run whose student is not healed; the ears hear the toy language."""
    root, codec = tmp_path_factory.mktemp("run"), FrameCodec(RATE)
    values = load_params(ROOT / "params.yaml").model_dump(mode="json")
    source = write_teacher_folder("llasa", root / "teacher", NUM_CODES, tied=False, width=64)
    values["teacher"] = {"family": "llasa", "source": str(source), "training_hours": 0.02}
    values["subset_data"]["source"] = str(write_toy_corpus(root / "speech", codec, ("anna", "tara")))
    for section, knobs in KNOBS.items():
        values[section] |= knobs
    params, workspace = parse_params(yaml.safe_load(yaml.safe_dump(values)), "test"), Workspace(root / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading.FAMILIES["llasa"], "load_codec", lambda *_: codec)
        for stage in (subset_data, score_layers, evaluate_student):
            patch.setattr(stage, "open_recognizer", lambda _: ToyRecognizer(codec))
        patch.setattr(evaluate_student, "SpeakerSimilarity", lambda: ToyVoices(codec))
        patch.setattr(evaluate_student, "MosPredictor", ToyMos)
        patch.setattr(evaluate_student, "measure_speed", measure_here)  # a new process would not hear the toy codec
        subset_data.subset_data(params, workspace)
        prune_layers.prune_layers(params, workspace)
        distill_student.distill_student(params, workspace)
        yield params, workspace


def with_knobs(params, **knobs):
    return params.model_copy(update={"evaluate_student": params.evaluate_student.model_copy(update=knobs)})


def evaluated(run, **knobs):
    params, workspace = run
    return evaluate_student.evaluate_student(with_knobs(params, **knobs), workspace)


def rows_of(workspace, name):
    return [json.loads(line) for line in (workspace.evaluation / name).read_text().splitlines()]


def test_the_own_test_split_is_the_default_and_keeps_its_name(run):
    _, workspace = run
    report = evaluated(run)
    assert (report.benchmark, report.language, report.metric, report.deviations) == ("nano", "en", "WER", [])
    assert report.test_set_sha256 == hash_tasks(speaking_tasks(workspace, "test", 3))
    assert (report.similarity_predictor, report.groups) == ("toy", [])
    assert not (workspace.evaluation / "groups.jsonl").exists() and "Benchmark" not in evaluation_table(report)
    without = report.model_dump(
        exclude={"benchmark", "language", "metric", "similarity_predictor", "deviations", "groups"}
    )
    assert EvaluationReport.model_validate(without).benchmark == "nano", "an older report is one of this kind"


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_spoken_after_its_own_prompts(run, kind, tmp_path):
    params, workspace = run
    source = LAYOUTS[kind](tmp_path, SENTENCES, RATE)
    report = evaluated(run, benchmark=kind, benchmark_source=str(source))
    assert (report.benchmark, report.utterances, report.reference_wer) == (kind, 3, 0.0)
    rows = [row for row in rows_of(workspace, "utterances.jsonl") if row["system"] == "student"]
    assert [row["text"] for row in rows] == [sentence.text for sentence in SENTENCES]
    assert (report.deviations == []) == (kind == "manifest")
    assert f"Benchmark {kind}" in evaluation_table(report)
    assert EvaluationReport.read(workspace.evaluation / "evaluation.json") == report
    teacher = loading.load_teacher(params.teacher, with_model=False)
    opened = open_benchmark(with_knobs(params, benchmark=kind, benchmark_source=str(source)), workspace, teacher)
    assert [task.prompt.codes for task in opened.tasks] == [codes_of(s.prompt_text) for s in SENTENCES]
    assert [task.prompt.text for task in opened.tasks] == [s.prompt_text for s in SENTENCES]
    assert opened.prompt_waves(teacher)[1] == pytest.approx(SENTENCES[1].prompt, abs=1e-4), "as it was recorded"
    assert opened.sha256 == report.test_set_sha256


def test_sounds_are_encoded_once(run, tmp_path, monkeypatch):
    params, workspace = run
    source = LAYOUTS["seed-tts-eval"](tmp_path, SENTENCES, RATE)
    asked = with_knobs(params, benchmark="seed-tts-eval", benchmark_source=str(source))
    teacher, calls = loading.load_teacher(params.teacher, with_model=False), []
    encode = FrameCodec.encode
    monkeypatch.setattr(FrameCodec, "encode", lambda codec, wave: calls.append(len(wave)) or encode(codec, wave))
    first = open_benchmark(asked, workspace, teacher)
    made = len(calls)
    assert open_benchmark(asked, workspace, teacher) == first and len(calls) == made


def test_a_shorter_benchmark_is_another_set_and_says_so(run, tmp_path):
    source = str(LAYOUTS["seed-tts-eval"](tmp_path, SENTENCES, RATE))
    all_of_it = evaluated(run, benchmark="seed-tts-eval", benchmark_source=source)
    part = evaluated(run, benchmark="seed-tts-eval", benchmark_source=source, utterances=2)
    assert part.test_set_sha256 != all_of_it.test_set_sha256
    assert "The first 2 of 3 sentences." in part.deviations
    assert "The first 3 of 3 sentences." not in all_of_it.deviations


def test_without_originals_there_is_no_reference(run, tmp_path):
    sentences = [SpokenSentence(s.text, s.prompt_text, s.prompt, None, s.voice) for s in SENTENCES]
    source = str(LAYOUTS["seed-tts-eval"](tmp_path, sentences, RATE))
    report = evaluated(run, benchmark="seed-tts-eval", benchmark_source=source)
    assert report.reference_wer is None
    assert "originals" not in evaluation_table(report) and "reference_wer" not in evaluation_numbers(report)


def test_an_utterance_without_audio_is_a_full_error(run, tmp_path, monkeypatch):
    _, workspace = run
    source = str(LAYOUTS["manifest"](tmp_path, SENTENCES, RATE))
    dumb = evaluate_student.Generated((), True)
    monkeypatch.setattr(evaluate_student, "generate", lambda model, layout, prompts, *_: [dumb] * len(prompts))
    report = evaluated(run, benchmark="manifest", benchmark_source=source, utterances=2)
    assert report.systems["student"].failures == 2
    assert [report.systems["student"].wer_corpus.value, report.systems["student"].wer_mean.value] == [1.0, 1.0]
    assert all(row["seconds"] == 0 for row in rows_of(workspace, "utterances.jsonl"))


def test_characters_are_counted_in_another_language(run, tmp_path, monkeypatch):
    params, workspace = run
    source = str(LAYOUTS["manifest"](tmp_path, SENTENCES, RATE))
    told = []
    monkeypatch.setattr(ToyRecognizer, "in_language", lambda ears, code: told.append(code) or ears, raising=False)
    report = evaluated(run, benchmark="manifest", benchmark_source=source, language="zh")
    assert (report.metric, report.language, told) == ("CER", "zh", ["zh"])
    for row in rows_of(workspace, "utterances.jsonl"):
        errors = count_word_errors(row["text"], row["transcript"], params.recogniser.normalizer, "CER")
        assert row["errors"]["hits"] == errors.hits and errors.reference_words == len(
            row["text"].strip(".").replace(" ", "")
        )
    assert "CER % [95 %]" in evaluation_table(report)


class OneScore(ToyMos):
    def predict(self, waveforms, sample_rate_hz):
        return [3.0 for _ in waveforms]


class NoScore(ToyMos):
    def predict(self, waveforms, sample_rate_hz):
        return [float("nan") for _ in waveforms]


class OneVoice(ToyVoices):
    def embed(self, waveforms, sample_rate_hz):
        return np.ones((len(waveforms), 1), dtype=np.float32)


class NoEars(ToyRecognizer):
    def transcribe(self, waveforms, sample_rate_hz):
        return ["" for _ in waveforms]


# Other numbers of rated sentences, so that nothing is taken from what other judges heard.
USELESS = {
    "one score": (2, "MosPredictor", lambda _: OneScore(), "The MOS was 3 for every sentence of the teacher"),
    "no score": (3, "MosPredictor", lambda _: NoScore(), "The lower bound of the MOS gap was nan"),
    "one voice": (4, "SpeakerSimilarity", OneVoice, "The similarity was 1 for every sentence of the teacher"),
    "deaf": (5, "open_recognizer", NoEars, "The recogniser got 100 % of the originals' words wrong"),
}


@pytest.mark.parametrize("case", USELESS)
def test_the_gate_hears_of_a_judge_that_cannot_judge(run, monkeypatch, case):
    rated, name, judge_of, reason = USELESS[case]
    made = judge_of(FrameCodec(RATE))
    monkeypatch.setattr(evaluate_student, name, (lambda _: made) if name == "open_recognizer" else (lambda: made))
    report = evaluated(run, mos_utterances=rated)
    weights = report.weights_sha256
    lineage = Lineage(
        git_sha="g", data_sha256="d", teacher_sha256=weights["teacher"], student_sha256=weights["student"],
        dvc_revision="r", dvc_outputs={}, asr=report.asr, normalizer=report.normalizer, retained=[0], seed=1,
        preset="default",
    )  # fmt: skip
    gate = run[0].register_model.model_copy(update={"min_utterances": 1})
    verdict = judge(report, gate, lineage)
    assert verdict.decision == "INCOMPLETE"
    assert any(told.startswith(reason) for told in verdict.reasons), verdict.reasons


def test_what_other_judges_heard_is_not_mixed_in(run):
    _, workspace = run
    evaluated(run, mos_utterances=6)
    folders = sorted(workspace.evaluation_progress.glob("*/student-*"), key=lambda folder: folder.stat().st_mtime)
    student = Heard.read(folders[-1])
    assert one_set_of_judges({"teacher": student, "student": student}) is student
    with pytest.raises(InvalidInputError, match="what was heard of student: observed toy, toy, another; allowed"):
        one_set_of_judges({"teacher": student, "student": replace(student, mos_predictor="another")})


def test_hard_sentences_and_best_of_have_numbers_of_their_own(run):
    params, workspace = run
    plain, more = evaluated(run), evaluated(run, hard_sentences=True, best_of=3, best_of_temperature=1.0)
    for name in ("teacher", "student"):
        assert more.systems[name].wer_corpus == plain.systems[name].wer_corpus, "single attempts stay what they are"
    groups = {(group.group, group.system): group for group in more.groups}
    assert {name for name, _ in groups} == {
        "hard", "hard/repetition", "hard/numbers", "hard/twisters", "hard/long", "hard/short", "best_of_3_by_wer",
    }  # fmt: skip
    whole, best = groups["hard", "student"], groups["best_of_3_by_wer", "student"]
    assert whole.utterances == sum(
        g.utterances for (n, s), g in groups.items() if n.startswith("hard/") and s == "student"
    )
    assert (whole.takes, whole.temperature) == (1, params.decoding.temperature)
    assert (best.takes, best.temperature, best.utterances) == (3, 1.0, 3)
    assert best.test_set_sha256 == more.test_set_sha256 != whole.test_set_sha256
    rows = rows_of(workspace, "groups.jsonl")
    assert {row["group"] for row in rows} == {"hard", "best_of_3_by_wer"}
    assert len(rows) == sum(g.utterances for g in more.groups if "/" not in g.group)
    assert not any("group" in row for row in rows_of(workspace, "utterances.jsonl"))
    assert "group.hard.long.student.wer_corpus" in evaluation_numbers(more)
    table = evaluation_table(more)
    assert "| best_of_3_by_wer | student | 3 |" in table
    assert table.count(BUNDLED_EARS) == 1, "the toy's params name the bundled ears"
    assert (whole.caveat, best.caveat) == (BUNDLED_EARS, CHOSEN_BY_ITS_JUDGE) and table.count(CHOSEN_BY_ITS_JUDGE) == 1
    ears = params.recogniser.model_copy(update={"model": "large-v3"})
    (others,) = sentence_groups(
        with_knobs(params, hard_sentences=True).model_copy(update={"recogniser": ears}),
        speaking_tasks(workspace, "test", 3),
    )
    assert others.caveat == ""


@pytest.mark.parametrize(
    ("knobs", "wanted"),
    [
        ({"benchmark_source": "x.jsonl"}, "'x.jsonl' for benchmark nano"),
        ({"benchmark": "manifest"}, "'' for benchmark manifest"),
        ({"benchmark": "manifest", "benchmark_source": "missing.jsonl"}, "no such file"),
        ({"hard_sentences": True, "language": "de"}, "true for language de"),
        ({"similarity": "no/such"}, "evaluate_student.similarity"),
    ],
)
def test_what_does_not_fit_is_refused(run, knobs, wanted):
    with pytest.raises(InvalidInputError) as error:
        evaluated(run, **knobs)
    assert wanted in str(error.value) and "\n" not in str(error.value)


def test_a_lost_prompt_stops_the_evaluation(run, tmp_path):
    source = LAYOUTS["seed-tts-eval"](tmp_path, SENTENCES, RATE)
    (tmp_path / "prompt-wavs" / "made_0002_prompt.wav").unlink()
    with pytest.raises(InvalidInputError, match=r"made_0002.*no such file"):
        evaluated(run, benchmark="seed-tts-eval", benchmark_source=str(source))
