"""What a run would refuse later is refused before it starts, with the same line at every door."""

import importlib
import pickle
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml

import flows.compress_model as flow
import slimtts.run_checks as run_checks
from slimtts.cli import main
from slimtts.errors import InvalidInputError
from slimtts.params import Params
from slimtts.run_checks import at_workspace, check_run
from slimtts.stages import benchmark_set, distill_student, prune_layers, subset_data
from slimtts.stages.subset_data import first_choice, open_source
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import STAGES, Workspace
from tasks import run_plan
from tasks.run_plan import RefusedPlanError
from tasks.workspace import compose_params

MISTAKES = {
    "a depth that the teacher has not": (["prune_layers.keep_layers=13"], "prune_layers.keep_layers: observed 13"),
    "a layer that the teacher has not": (["prune_layers.retained=[0, 1, 12]"], "retained layers: observed [0, 1, 12]"),
    "a layer twice": (["prune_layers.retained=[0, 1, 1]"], "retained layers: observed [0, 1, 1]"),
    "a limit below one layer": (["prune_layers.max_parameter_share=0.1"], "prune_layers.max_parameter_share"),
    "a benchmark without its list": (["evaluate_student.benchmark=manifest"], "benchmark_source: observed ''"),
    "a list without its benchmark": (["evaluate_student.benchmark_source=x.jsonl"], "observed 'x.jsonl' for benchmark"),
    "a list that is not there": (
        ["evaluate_student.benchmark=seed-tts-eval", "evaluate_student.benchmark_source=/nowhere/meta.lst"],
        "/nowhere/meta.lst: observed no such file",
    ),
    "a judge of English for German": (["evaluate_student.language=de"], "language: observed de for benchmark"),
    "hard sentences of German": (
        ["evaluate_student.language=de", "evaluate_student.hard_sentences=true"], "evaluate_student."
    ),
    "no such recogniser": (["recogniser.model=/nowhere"], "recogniser.model: observed /nowhere"),
    "no such voice encoder": (["evaluate_student.similarity=/nowhere"], "evaluate_student.similarity"),
    "no data": (["subset_data.source=/nowhere.jsonl"], "/nowhere.jsonl: observed no such file"),
    "a folder of nothing": (["subset_data.source=/proc/sys"], "subset_data.source /proc/sys"),
    "more test sentences than there are": (["subset_data.test_utterances=99999"], "subset_data.test_utterances"),
    "more selection sentences": (["subset_data.selection_utterances=99999"], "subset_data.selection_utterances"),
    "a budget without a prompt": (["subset_data.max_share=1.0e-6"], "subset_data.max_share"),
    "nothing further": (
        ["subset_data.speech=further", "subset_data.extra_texts=0"], "speech: observed further with no text beside"
    ),
    "no text list": (
        ["subset_data.speech=teacher", "subset_data.text_list=/nowhere.txt"], "subset_data.text_list /nowhere.txt"
    ),
    "no texts of the vocabulary": (
        ["distill_student.vocabulary=trim", "distill_student.vocabulary_texts=/nowhere.txt"],
        "distill_student.vocabulary_texts /nowhere.txt",
    ),
    "no GPU": (["distill_student.device=cuda"], "distill_student.device: observed cuda"),
    "shards of muon": (
        ["distill_student.processes=2", "distill_student.parallel=fsdp"], "distill_student.parallel: observed fsdp"
    ),
    "packed rows longer than a step": (["distill_student.packed_row_tokens=9999"], "distill_student.packed_row_tokens"),
    "streamed text of nano": (["distill_student.bistream_share=0.5"], "distill_student.bistream_share"),
    "a cache under guidance": (
        ["distill_student.teacher_cache=cache", "distill_student.guidance_text=1.0"], "distill_student.teacher_cache"
    ),
    "a cache for SPADE": (
        ["distill_student.teacher_cache=cache", "distill_student.preset=spade"], "a loss with attention, embedding"
    ),
    "no teacher": (["teacher.source=/nowhere"], "teacher.source: observed '/nowhere'"),
    "a bundled teacher of another family": (["teacher.family=orpheus"], "observed 'bundled' for family orpheus"),
    "no codec": (["teacher.codec=/nowhere"], "teacher.codec /nowhere: observed"),
    "a remote without keys": (["storage.dvc_remote=s3://bucket/x"], "s3://bucket/x: observed no keys for it"),
    "an address without a scheme": (["storage.s3_endpoint=minio:9000"], "observed storage.s3_endpoint = 'minio:9000'"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def without_keys(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


@pytest.mark.parametrize(("overrides", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_refused_before_anything_is_computed(tmp_path, overrides, told):
    with pytest.raises(InvalidInputError) as caught:
        check_run(compose_params("demo", overrides), tmp_path / "run")
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_profiles_may_start(tmp_path):
    for profile in ("demo", "full"):
        check_run(compose_params(profile, []), tmp_path / "run")


DOORS = {
    "a depth that the teacher has not": "prune_layers.keep_layers: observed 13; allowed: 1..12; "
    "next: correct the budget in params.yaml",
    "no such recogniser": None,
}


@pytest.mark.parametrize("mistake", DOORS)
def test_three_doors_refuse_with_one_line(tmp_path, capsys, mistake):
    overrides, told = MISTAKES[mistake]
    settings = [word for override in overrides for word in ("--set", override)]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(compose_params("demo", overrides).model_dump(mode="json")))
    asked = ["--runs", str(tmp_path / "runs"), "--name", "mine", *settings]
    lines = set()
    for door in (
        lambda: main(["plan", "--workspace", str(tmp_path)]),
        lambda: main(["plan", "--check", "--workspace", str(tmp_path)]),
        lambda: flow.main([*asked, "--dry-run"]),
        lambda: flow.main(asked),
    ):
        assert door() == 2
        lines.add(capsys.readouterr().err.strip().splitlines()[-1])
    (line,) = lines
    assert told in line and line.startswith("slimtts: ")
    assert DOORS[mistake] in (None, line.removeprefix("slimtts: "))
    assert not (tmp_path / "runs").exists(), "no workspace, no server, no database"


def test_the_flow_itself_asks_and_pinned_code_of_before_is_left_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(flow, "check_run", lambda workspace, params: asked.append(params.prune_layers.keep_layers))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(compose_params("demo", []).model_dump(mode="json")))
    with flow.checked_plan(tmp_path):
        assert asked == []
    (tmp_path / "src" / "slimtts").mkdir(parents=True)
    (tmp_path / "src" / "slimtts" / "run_checks.py").touch()
    with flow.checked_plan(tmp_path), flow.checked_plan(tmp_path, depth=9):
        assert asked == [6, 9]


def test_a_question_is_asked_once_and_not_of_a_finished_run(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run_plan, "_ask", lambda *question: asked.append(question[2]))
    monkeypatch.setattr(run_plan, "_checked", set())
    params, other = compose_params("demo", []), compose_params("demo", ["distill_student.steps=7"])
    for wanted in (params, params, other):
        run_plan.check_run(tmp_path, wanted)
    assert asked == [["--finished", "", "--check"]] * 2
    monkeypatch.setattr(run_plan, "finished_stages", lambda *_: list(STAGES))
    run_plan.check_run(tmp_path / "done", params)
    assert len(asked) == 2


def test_the_line_of_the_package_survives_a_trip_between_processes():
    error = pickle.loads(pickle.dumps(RefusedPlanError("x: observed y; allowed: z; next: w")))  # noqa: S301 - ours
    assert str(error) == "x: observed y; allowed: z; next: w" and isinstance(error, InvalidInputError)


def test_what_only_finished_stages_need_is_not_asked_for(tmp_path):
    gone = compose_params("demo", ["subset_data.source=/nowhere.jsonl", "prune_layers.keep_layers=13"])
    check_run(gone, tmp_path, finished=STAGES[:3])
    with pytest.raises(InvalidInputError, match="nowhere"):
        check_run(gone, tmp_path, finished=("prune_layers",))


def test_a_folder_that_cannot_be_written_and_a_full_disk(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    params = compose_params("demo", [])
    with pytest.raises(InvalidInputError, match="a folder that can be written"):
        check_run(params, tmp_path / "file" / "run")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 100_000_000))
    with pytest.raises(InvalidInputError, match=r"observed 0\.1 GB free; allowed: 0\.\d GB"):
        check_run(params, tmp_path / "run")
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "checkpoint").open("wb") as stream:
        stream.truncate(3_000_000_000)
    check_run(params, tmp_path / "run"), "what a run has written is its own"


def test_more_processes_than_gpus(tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with pytest.raises(
        InvalidInputError, match=r"distill_student\.processes: observed process 3 of this machine with 1"
    ):
        run_checks.check_processes(compose_params("demo", ["distill_student.processes=4"]))
    run_checks.check_processes(compose_params("demo", []))
    assert chosen == [0, 0]


def test_machines_that_cannot_share_the_processes(monkeypatch):
    monkeypatch.setenv("SLIMTTS_NODES", "2")
    params = compose_params("demo", ["distill_student.processes=3", "distill_student.device=cpu"])
    with pytest.raises(InvalidInputError, match="SLIMTTS_NODE0"):
        run_checks.check_processes(params)
    monkeypatch.setenv("SLIMTTS_NODE0", "127.0.0.1:29500")
    with pytest.raises(InvalidInputError, match="a multiple of 2"):
        run_checks.check_processes(params)


def test_relative_paths_start_at_the_workspace_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    for place in (tmp_path / "run" / "own", tmp_path / "elsewhere" / "own"):
        place.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    params = compose_params("demo", ["recogniser.model=own", "distill_student.vocabulary_texts=texts.txt"])
    with at_workspace(params, tmp_path / "run") as own:
        assert own.recogniser.model == str(tmp_path / "run" / "own")
        assert own.distill_student.vocabulary_texts == str(tmp_path / "run" / "texts.txt")
        assert own.teacher.source == "bundled"
    (tmp_path / "run" / "own").rmdir()
    with pytest.raises(InvalidInputError, match=r"recogniser\.model: observed own"):
        check_run(params, tmp_path / "run")


def test_a_relative_workspace_is_found_from_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "bad.jsonl").write_text("{\n")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = ["evaluate_student.benchmark=manifest", "evaluate_student.benchmark_source=../lists/bad.jsonl"]
    with pytest.raises(InvalidInputError, match=r"lists/bad\.jsonl|bad\.jsonl line"):
        check_run(compose_params("demo", settings), Path("run"), finished=STAGES[:4])
    with pytest.raises(InvalidInputError, match=r"run/lists/bad\.jsonl: observed no such file"):
        gone = [settings[0], "evaluate_student.benchmark_source=lists/bad.jsonl"]
        check_run(compose_params("demo", gone), Path("run"), finished=STAGES[:4])


def test_the_stages_refuse_with_the_line_of_the_plan(tmp_path):
    """Each check calls what its stage calls."""
    workspace = Workspace(tmp_path)

    def line(act):
        with pytest.raises(InvalidInputError) as caught:
            act()
        return str(caught.value)

    def planned(overrides):
        return line(lambda: check_run(compose_params("demo", overrides), tmp_path))

    few = ["subset_data.test_utterances=99999"]
    params = compose_params("demo", few)
    assert planned(few) == line(lambda: subset_data.subset_data(params, workspace))
    listed = ["evaluate_student.benchmark=manifest", "evaluate_student.benchmark_source=none.jsonl"]
    params = compose_params("demo", listed)
    teacher = load_teacher(params.teacher)
    assert planned(listed) == line(lambda: benchmark_set.open_benchmark(params, workspace, teacher))
    retained = ["prune_layers.retained=[99]"]
    knobs = compose_params("demo", retained).prune_layers
    assert planned(retained) == line(lambda: prune_layers.choose_layers(knobs, teacher, workspace))
    gpu = ["distill_student.device=cuda"]
    params = compose_params("demo", gpu)
    assert planned(gpu) == line(lambda: distill_student.distill_student(params, workspace))


def test_the_trial_choice_is_that_of_the_stage(tmp_path):
    params: Params = compose_params("demo", [])
    teacher = load_teacher(params.teacher, with_model=False)
    source = open_source(params, teacher, tmp_path)
    chosen, _, _ = importlib.import_module("slimtts.stages.subset_data").choose(source, teacher, params, tmp_path)
    assert first_choice(source, teacher, params) == chosen
