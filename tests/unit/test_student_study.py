"""The comparison harness: right params for a variant, jobs claimed once, seeds paired with equal seeds."""

import json
from pathlib import Path

import pytest

from benchmarks import student_study
from benchmarks.student_study import Study, errors_of, run, table
from slimtts.errors import InvalidInputError

YAML = """
split: test
utterances: 2
seeds: [1, 2]
base: {distill_student.steps: 3}
variants:
  teacher:
  ours: {distill_student.loss: {latent: 2.0}}
  once: {seeds: [2], distill_student.steps: 5}
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "trial.yaml").write_text(YAML)
    monkeypatch.setattr(Study, "results", property(lambda self: tmp_path / f"{self.name}.jsonl"))
    return Study.read(tmp_path / "trial.yaml")


def row(variant, seed, counts):
    return {"variant": variant, "seed": seed, "retained": [0, 1], "steps": 3, "counts": counts, "no_end": 0}


def write(study, *rows):
    study.results.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_jobs_take_all_variants_before_the_next_seed_and_the_teacher_once(study):
    assert list(study.jobs()) == [("teacher", 0), ("ours", 1), ("once", 2), ("ours", 2)]


def test_params_are_the_shipped_ones_with_base_then_variant(study):
    assert study.params("ours", 2).distill_student.steps == 3
    assert study.params("ours", 2).distill_student.seed == 2
    assert study.params("ours", 2).distill_student.loss.latent == 2.0
    assert study.params("once", 2).distill_student.steps == 5
    assert not study.params("ours", 1).distill_student.control


def test_a_typo_in_a_variant_is_named(study):
    study.variants["ours"]["distill_student.stpes"] = 1
    with pytest.raises(InvalidInputError, match=r"study trial, ours: observed distill_student.stpes is not a"):
        study.params("ours", 1)


def test_a_job_is_claimed_once_and_resumed_only_when_asked(study, tmp_path, monkeypatch):
    done = []

    def fake_job(_study, variant, seed, _scratch):
        done.append((variant, seed))
        return row(variant, seed, [[1, 0, 0, 0]] * 2)

    monkeypatch.setattr(student_study, "run_job", fake_job)
    (tmp_path / "scratch" / "trial" / "ours-1").mkdir(parents=True)  # another process has it, or had it when killed
    run(study, tmp_path / "scratch", resume=False)
    assert ("ours", 1) not in done and len(done) == 3
    run(study, tmp_path / "scratch", resume=True)
    assert done[3:] == [("ours", 1)]


def test_errors_of_an_utterance_are_summed_over_seeds():
    rows = [row("a", 1, [[3, 1, 0, 0], [4, 0, 0, 0]]), row("a", 2, [[2, 1, 1, 2], [4, 0, 0, 1]])]
    assert [(e.errors, e.reference_words) for e in errors_of(rows)] == [(5, 8), (1, 8)]


def test_the_table_pairs_equal_seeds_and_the_one_teacher_with_all(study):
    write(
        study,
        row("teacher", 0, [[4, 0, 0, 0], [4, 0, 0, 0]]),
        row("ours", 1, [[3, 1, 0, 0], [4, 0, 0, 0]]),
        row("ours", 2, [[2, 2, 0, 0], [4, 0, 0, 0]]),
        row("once", 2, [[4, 0, 0, 0], [4, 0, 0, 0]]),
    )
    against_teacher = next(line for line in table(study, "teacher").splitlines() if line.startswith("| ours "))
    cells = [cell.strip() for cell in against_teacher.split("|")]
    assert cells[4] == "2" and cells[6] == "12.5, 25.0"
    assert cells[5].startswith("18.8 [") and cells[7].startswith("+18.8 [")
    # "once" has seed 2 alone, so only that seed of "ours" is compared: 25 points, not 18.8.
    against_once = next(line for line in table(study, "once").splitlines() if line.startswith("| ours "))
    assert [cell.strip() for cell in against_once.split("|")][7].startswith("+25.0 [")


def test_every_shipped_study_is_valid():
    for path in sorted((Path(student_study.__file__).parent / "studies").glob("*.yaml")):
        shipped = Study.read(path)
        assert all(shipped.params(variant, seed) for variant, seed in shipped.jobs()), path


def test_a_baseline_that_was_not_measured_is_named(study):
    write(study, row("ours", 1, [[4, 0, 0, 0]]))
    with pytest.raises(InvalidInputError, match=r"--baseline: observed 'teacher'; allowed: ours"):
        table(study, "teacher")
