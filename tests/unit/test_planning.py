"""The plan of a run: counts that follow the parameters, prices that were measured, one table."""

import json

import pytest
import yaml

import slimtts.planning as planning
from slimtts.cli import main
from slimtts.params import Params
from slimtts.planning import Prices, Workload, count_work, disk_bytes, stage_rows, what_is_not_known
from slimtts.results import RunEstimate
from slimtts.teachers.loading import load_teacher
from tasks.workspace import compose_params

PRICES = Prices(open_s=1, encode=0, speak=2, hear=1, rate=5, layer=0.5, student_step=3, control_step=4, peak_bytes=1)


def changed(params, **sections):
    values = params.model_dump()
    for section, knobs in sections.items():
        values[section] |= knobs
    return Params.model_validate(values)


@pytest.fixture(scope="module")
def demo():
    return compose_params("demo", [])


@pytest.fixture(scope="module")
def teacher(demo):
    return load_teacher(demo.teacher)


def seconds(params, teacher, work=Workload(0, 0, 2.0, ())):  # noqa: B008
    return {row.stage: row.seconds for row in stage_rows(params, teacher, work, PRICES)}


def test_each_stage_follows_its_knobs(demo, teacher):
    demo = changed(demo, distill_student={"steps": 200, "control_steps": None})
    base = seconds(demo, teacher)
    assert base["distill_student"] == 1 + 200 * 7
    assert seconds(changed(demo, distill_student={"steps": 400}), teacher)["distill_student"] == 1 + 400 * 7
    longer = changed(demo, distill_student={"control_steps": 500})
    assert seconds(longer, teacher)["distill_student"] == 1 + 200 * 7, "no longer than the student"
    shorter = changed(demo, distill_student={"control_steps": 50})
    assert seconds(shorter, teacher)["distill_student"] == 1 + 200 * 3 + 50 * 4
    wli = changed(demo, score_layers={"method": "wli", "utterances": 10})
    assert seconds(wli, teacher)["score_layers"] == 1 + 13 * 10 * 3
    influence = changed(demo, score_layers={"method": "block_influence", "utterances": 10})
    assert seconds(influence, teacher)["score_layers"] == 1 + 10 * 12 * 0.5
    spoken = seconds(demo, teacher, Workload(0, 100, 2.0, ()))
    assert spoken["subset_data"] - base["subset_data"] == 100 * 3
    fewer = seconds(changed(demo, evaluate_student={"utterances": 100}), teacher)
    assert fewer["evaluate_student"] < base["evaluate_student"]
    without = seconds(changed(demo, distill_student={"control": False}), teacher)
    assert without["evaluate_student"] < base["evaluate_student"]


def test_the_work_is_that_of_the_real_subset(demo, teacher, tmp_path):
    full = compose_params("full", [])
    demo_work, full_work = count_work(demo, teacher, tmp_path), count_work(full, teacher, tmp_path)
    assert demo_work.texts == demo.subset_data.extra_texts > 0, "no text of the recordings"
    corpus = changed(demo, subset_data={"speech": "corpus"})
    assert count_work(corpus, teacher, tmp_path).texts == 0
    assert full_work.texts > 4000, "the subset and 4,000 further texts"
    further = changed(demo, subset_data={"speech": "further", "extra_texts": 300})
    assert count_work(further, teacher, tmp_path).texts == 300, "no text of the recordings again"
    assert 1 < full_work.utterance_s < 4
    assert all(row.codes for row in demo_work.trial)


def test_the_plan_counts_every_system_and_sentence_and_says_what_it_leaves_out(demo, teacher):
    base = seconds(demo, teacher)["evaluate_student"]
    lighter = changed(demo, evaluate_student={"variants": ["int8", "fp8"]})
    assert seconds(lighter, teacher)["evaluate_student"] > base + 2 * 200 * 2
    often = changed(demo, evaluate_student={"best_of": 3})
    assert seconds(often, teacher)["evaluate_student"] > base + 3 * 200 * 4
    hard = changed(demo, evaluate_student={"hard_sentences": True})
    assert seconds(hard, teacher)["evaluate_student"] > base + 40 * 4
    assert what_is_not_known(demo) == ["what MLflow, Prefect and DVC take, and copies to a remote"]
    many = changed(
        demo, distill_student={"processes": 2}, score_layers={"method": "wli"}, prune_layers={"max_latency_share": 0.6}
    )
    told = "; ".join(what_is_not_known(many))
    assert "not 2" in told and "settled early" in told and "latency" in told


def test_disk_grows_with_the_state_of_the_optimiser(demo, teacher):
    work = Workload(0, 0, 2.0, ())
    adamw = changed(demo, distill_student={"optimizer": "adamw"})
    assert disk_bytes(adamw, teacher, work) > disk_bytes(demo, teacher, work) > 4 * teacher.model.num_parameters()


def test_the_command_measures_and_prints(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "TRIAL_UTTERANCES", 2)
    small = changed(demo, distill_student={"tokens_per_step": 256}, decoding={"max_new_tokens": 80})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small.model_dump(mode="json")))
    given = ["plan", "--workspace", str(tmp_path), "--finished", "subset_data,score_layers"]
    assert main([*given, "--json"]) == 0
    found = RunEstimate.model_validate(json.loads(capsys.readouterr().out))
    cost = {row.stage: row.seconds for row in found.stages}
    assert (cost["subset_data"], cost["score_layers"]) == (0, 0)
    assert cost["distill_student"] > 200 * 0.01
    assert found.seconds == pytest.approx(sum(cost.values()))
    assert found.peak_memory_gb > 0.1 and found.free_disk_gb > 0
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"], "nothing was started"


def test_the_table_names_what_is_done():
    from slimtts.commands.plan import duration, plan_table

    rows = [{"stage": "prune_layers", "work": "12 -> 6", "seconds": 0}, {"stage": "x", "work": "y", "seconds": 5}]
    found = RunEstimate(
        stages=rows, finished=["prune_layers"], seconds=7200, peak_memory_gb=1, disk_gb=2, free_disk_gb=3, machine="m"
    )
    assert "not in these times" not in plan_table(found)
    assert plan_table(found.model_copy(update={"unknown": ["a", "b"]})).endswith("not in these times: a; b")
    lines = plan_table(found).splitlines()
    assert "up to date" in lines[0] and lines[1].split()[1:3] == ["5", "s"]
    assert "2.0 h" in lines[2] and "disk 2.0 GB of 3 GB free" in lines[3]
    assert [duration(s) for s in (5, 89, 600, 7200)] == ["5 s", "89 s", "10 min", "2.0 h"]


def test_a_stage_that_is_none_is_refused(tmp_path, capsys):
    assert main(["plan", "--workspace", str(tmp_path), "--finished", "bake"]) == 2
    assert "observed bake" in capsys.readouterr().err


def test_a_recording_that_the_run_would_drop_does_not_stop_the_plan():
    rows = [planning.Candidate(f"u{i}", "a word", "v", 1.0) for i in range(40)]

    def codes_of(utterance_id):
        if utterance_id < "u2":
            raise planning.BadAudioError(utterance_id, "digital silence", "speech", "replace it", "silent")
        return (1, 2)

    source = planning.SpeechSource(tuple(rows), codes_of)
    trial = planning._trial(rows, source, drop_bad_audio=True)
    assert len(trial) == planning.TRIAL_UTTERANCES
    assert all(row.id >= "u2" for row in trial)
    with pytest.raises(planning.BadAudioError, match="digital silence"):
        planning._trial(rows, source, drop_bad_audio=False)
