"""Runs as they are read from their folders."""

import json

import pytest
import yaml

from slimtts.comparison.runs import flat_knobs, read_run, read_sentences
from slimtts.errors import InvalidInputError
from tests.unit.plots.made import made_run
from tests.unit.plots.test_drawing import finished_workspace


def test_a_run_is_read_back(tmp_path):
    run = made_run("run", 6, [0, 1])
    workspace = finished_workspace(tmp_path / "run", run)
    workspace.params.write_text(yaml.safe_dump({"distill_student": {"steps": 5}}))
    found = read_run(tmp_path / "run")
    assert (found.name, found.plan, found.report) == ("run", run.plan, run.report)
    assert found.sentences == run.sentences
    assert found.knobs == {"distill_student.steps": "5"}
    assert read_run(tmp_path / "run", "other", with_sentences=False).name == "other"


def test_nested_knobs_show_what_is_set():
    assert flat_knobs({"distill_student": {"loss": {"skew": None, "latent": 1.0}}}) == {
        "distill_student.loss": "{'latent': 1.0}"
    }


def test_a_run_without_an_evaluation_is_one_clear_line(tmp_path):
    with pytest.raises(InvalidInputError, match=r"evaluation\.json"):
        read_run(tmp_path)


def test_an_evaluation_without_a_student_is_refused(tmp_path):
    run = made_run("run", 6, [0, 1])
    del run.report.systems["student"]
    finished_workspace(tmp_path, run)
    with pytest.raises(InvalidInputError, match="an evaluation of teacher"):
        read_run(tmp_path)


def counts(**changed):
    return {"errors": {"hits": 1, "substitutions": 0, "deletions": 0, "insertions": 0} | changed}


@pytest.mark.parametrize(
    "change",
    [
        {"errors": {"hits": 1}}, {"errors": None}, {"seconds": "soon"}, {"mos": []},
        counts(hits=-1), counts(insertions="2"), counts(deletions=0.5), counts(hits=True), counts(hits=10**18),
        {"similarity": float("nan")}, {"similarity": float("inf")}, {"mos": float("nan")}, {"seconds": float("-inf")},
    ],
)  # fmt: skip
def test_a_damaged_sentence_names_its_line(tmp_path, change):
    good = {
        "system": "student", "id": "a", "ended": True, "seconds": 1.0, "similarity": 0.5, "mos": None,
        "errors": {"hits": 1, "substitutions": 0, "deletions": 0, "insertions": 0},
    }  # fmt: skip
    path = tmp_path / "utterances.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n")
    with pytest.raises(InvalidInputError, match="line 2"):
        read_sentences(path)
