"""A tiny run whose evaluation also judges the student's lighter variants."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from slimtts.evaluation.speed import measure_here
from slimtts.evaluation.table import evaluation_table
from slimtts.params import load_params, parse_params
from slimtts.quantization.sparsity import decoder_linears, is_two_of_four
from slimtts.results import EvaluationReport
from slimtts.stages import distill_student, evaluate_student, prune_layers, score_layers, student_variants, subset_data
from slimtts.teachers import loading
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.families import write_teacher_folder
from slimtts.testing.toy_speech import NUM_CODES, FrameCodec, ToyMos, ToyRecognizer, ToyVoices, write_toy_corpus
from slimtts.workspace import Workspace
from tasks.stage_numbers import evaluation_numbers

ROOT = Path(__file__).parents[3]
KNOBS = {
    "decoding": {"max_new_tokens": 40},
    "subset_data": {
        "selection_utterances": 8, "test_utterances": 16, "max_share": 0.4, "extra_texts": 0, "speech": "corpus",
    },
    "prune_layers": {"keep_layers": 2, "retained": [0, 3]},
    "distill_student": {"steps": 0, "control": False, "device": "cpu"},
    "evaluate_student": {
        "utterances": 6, "mos_utterances": 2, "speed_utterances": 1, "bootstrap_samples": 50,
        "agreement_utterances": 2, "audio_utterances": 2, "variants": ["int8", "sparse24_int8"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root, codec = tmp_path_factory.mktemp("run"), FrameCodec(16_000)
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
        yield params, workspace, evaluate_student.evaluate_student(params, workspace)


def test_each_variant_is_a_row_with_gaps_to_teacher_and_student(run):
    _, workspace, report = run
    assert list(report.systems) == ["teacher", "pruned", "student", "student-int8", "student-sparse24_int8"]
    for name in ("student-int8", "student-sparse24_int8"):
        for baseline in ("teacher", "student"):
            assert report.gap(name, baseline).system == name
        assert report.systems[name].parameters == report.systems["student"].parameters
        assert (
            report.systems[name].weight_mb < report.systems["student"].weight_mb < report.systems["teacher"].weight_mb
        )
        assert report.systems[name].speed.lm_rtf > 0
        assert report.weights_sha256[name] != report.weights_sha256["student"]
        assert len(list((workspace.evaluation / "audio" / name).glob("*.wav"))) == 2
    assert EvaluationReport.read(workspace.evaluation / "evaluation.json").systems == report.systems
    assert "| student-int8 | 2 |" in evaluation_table(report)
    assert evaluation_numbers(report)["student-int8.weight_mb"] == report.systems["student-int8"].weight_mb


def test_what_is_judged_is_the_student_with_its_weights_in_the_variants_form(run):
    params, workspace, _ = run
    hearing = evaluate_student.open_hearing(params, workspace)
    folders = evaluate_student.judged_folders(params, workspace, hearing)
    student = load_language_model(folders["student"])
    for name, is_sparse in {"student-int8": False, "student-sparse24_int8": True}.items():
        variant = load_language_model(folders[name])
        assert torch.equal(variant.lm_head.weight, student.lm_head.weight)
        for place, linear in decoder_linears(variant).items():
            assert is_two_of_four(linear.weight.qdata) == is_sparse, place


def test_variants_are_made_once_and_only_when_asked_for(run, monkeypatch):
    params, workspace, report = run
    made = []
    monkeypatch.setattr(student_variants, "make_variant", lambda *arguments: made.append(arguments))
    again = evaluate_student.evaluate_student(params, workspace)
    assert not made
    assert again.systems["student-int8"].wer_corpus == report.systems["student-int8"].wer_corpus
    without = params.evaluate_student.model_copy(update={"variants": ()})
    plain = evaluate_student.evaluate_student(params.model_copy(update={"evaluate_student": without}), workspace)
    assert list(plain.systems) == ["teacher", "pruned", "student"] and not made
    heard = {name: system.wer_corpus for name, system in plain.systems.items()}
    assert heard == {name: report.systems[name].wer_corpus for name in heard}


def test_a_report_from_before_weights_were_measured_is_still_read(run, tmp_path):
    _, _, report = run
    older = json.loads(report.model_dump_json())
    for system in older["systems"].values():
        del system["weight_mb"]
    (tmp_path / "evaluation.json").write_text(json.dumps(older))
    assert EvaluationReport.read(tmp_path / "evaluation.json").systems["student"].weight_mb is None
