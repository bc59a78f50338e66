"""What a release holds: a folder that opens itself, speaks in evaluated voices, and names its licence."""

import json

import pytest
import yaml

from slimtts.data.manifest import write_utterances
from slimtts.evaluation.word_meter import open_recognizer
from slimtts.params import load_params
from slimtts.results import (
    EvaluationReport,
    Interval,
    ModelOrigin,
    PairedGap,
    PrunePlan,
    SpeedResult,
    SplitSummary,
    SubsetReport,
    SystemResult,
    Voices,
)
from slimtts.stages.distill_student import save_model
from slimtts.stages.model_card import front_matter
from slimtts.stages.register_model import register_model
from slimtts.teachers.checkpoint import hash_weights
from slimtts.testing.tiny import tiny_utterances
from slimtts.workspace import Workspace

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE = Interval(value=1, low=1, high=1)


def system(name, teacher):
    speed = SpeedResult(lm_rtf=1, end_to_end_rtf=1, tokens_per_s=1, latency_p50_s=1, latency_p95_s=1, peak_memory_mb=1)
    return SystemResult(
        name=name, num_layers=4, parameters=9, utterances=3, wer_corpus=ONE, wer_mean=ONE, no_end_rate=0, failures=0,
        similarity=ONE, mos=ONE, mos_predictor="toy", speed=speed,
    )  # fmt: skip


@pytest.fixture
def workspace(tmp_path, teacher, request):
    """All that the stage reads; three of four test sentences were evaluated."""
    space = Workspace(tmp_path)
    rows = tiny_utterances(8)
    train, test = rows[:4], rows[4:]
    space.data.mkdir()
    write_utterances(space.data / "train.jsonl", train)
    write_utterances(space.data / "test.jsonl", test)
    prompts = {test[0].id: train[2].id, test[1].id: train[3].id, test[2].id: train[0].id, test[3].id: train[1].id}
    (space.data / "prompts.json").write_text(json.dumps(prompts))
    SubsetReport(
        strategy="random", teacher_hours=1, share=0.04, word_coverage=1, dropped={}, data_sha256="d", teacher_spoken=77,
        splits={"train": SplitSummary(utterances=4, hours=0.1, words=6)},
    ).write(space.data / "report.json")  # fmt: skip
    PrunePlan(
        num_layers=4, retained=[0, 1, 2, 3], dropped=[], teacher_parameters=9, student_parameters=9, teacher_sha256="t"
    ).write(space.pruned / "plan.json")
    EvaluationReport(
        asr="toy", normalizer="basic", test_set_sha256="t", utterances=3, reference_wer=0, machine="toy",
        systems={name: system(name, teacher) for name in ("teacher", "student")},
        gaps=[PairedGap(system="student", baseline="teacher", wer_points=ONE, p_value=1, similarity=ONE, mos=ONE)],
    ).write(space.evaluation / "evaluation.json")  # fmt: skip
    space.student.mkdir()
    from transformers import AutoModelForCausalLM

    save_model(AutoModelForCausalLM.from_pretrained(teacher.folder), teacher, space.student / "student", range(4))
    return space


def test_the_lineage_names_what_can_be_checked_again(workspace, request):
    lock = {
        "subset_data": {"outs": [{"path": "data", "md5": "1.dir"}, {"path": "progress/subset_data", "md5": "2.dir"}]},
        "distill_student": {"outs": [{"path": "student", "md5": "3.dir"}]},
        "register_model": {"outs": [{"path": "release", "md5": "of an earlier release"}]},
    }
    (workspace.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}))
    params = load_params(request.config.rootpath / "params.yaml")
    lineage = register_model(params, workspace).lineage
    assert lineage.dvc_outputs == {"data": "1.dir", "student": "3.dir"}
    assert (lineage.data_sha256, lineage.teacher_sha256) == ("d", "t")
    assert lineage.student_sha256 == hash_weights(workspace.student / "student")
    assert lineage.asr == open_recognizer(params.recogniser).name
    lock["distill_student"]["outs"][0]["md5"] = "4.dir"
    (workspace.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": lock}))
    assert register_model(params, workspace).lineage.dvc_revision != lineage.dvc_revision


def test_a_release_judges_its_own_evaluation(workspace, request):
    params = load_params(request.config.rootpath / "params.yaml")
    gate = params.register_model.model_copy(update={"min_utterances": 1})
    params = params.model_copy(update={"register_model": gate})
    release = register_model(params, workspace)
    assert release.verdict.decision == "INCOMPLETE"
    stale = [reason.split(" of the evaluation")[0] for reason in release.verdict.reasons]
    assert stale == [f"Stale numbers: {what}" for what in ("teacher's weights", "student's weights", "recogniser")]
    assert release.lineage.dvc_revision == "none", "made without DVC"


def test_a_release_is_complete(workspace, request):
    register_model(load_params(request.config.rootpath / "params.yaml"), workspace)
    model = workspace.release / "model"
    rows = {row.id: row for row in tiny_utterances(8)}
    voices = Voices.read(model / "voices.json").voices
    assert {name: (said.text, tuple(said.codes)) for name, said in voices.items()} == {
        "a": (rows["u2"].text, rows["u2"].codes),
        "b": (rows["u3"].text, rows["u3"].codes),
    }
    origin = ModelOrigin.read(model / "slimtts.json")
    assert (origin.family, origin.retained) == ("nano", [0, 1, 2, 3])
    readme = (model / "README.md").read_text()
    _, head, card = readme.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    assert "base_model" not in yaml.safe_load(head)
    assert "The teacher spoke 77 texts" in card
    assert card.strip() == (workspace.release / "card.md").read_text().strip()


def test_the_base_model_is_named_when_it_is_on_the_hub():
    origin = ModelOrigin(
        family="llasa", codec="", teacher_source="owner/Llasa-1B", teacher_revision=COMMIT, teacher_sha256="t",
        license="CC-BY-NC-4.0",
    )  # fmt: skip
    head = yaml.safe_load(front_matter(origin).strip().strip("-"))
    assert head["base_model"] == "owner/Llasa-1B"
    assert head["license"] == "cc-by-nc-4.0"
