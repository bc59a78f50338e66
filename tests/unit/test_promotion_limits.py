"""The gate belongs to the team: what is softer is known by the names of limits, and a run's overrides cannot soften."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slimtts.errors import InvalidInputError
from slimtts.params import load_params
from slimtts.promotion_limits import SHIPPED, limits_of, softened, stricter, strictest, thin_measurements
from tasks.team_gate import GATE_FILE, team_gate
from tasks.workspace import compose_params

ROOT = Path(__file__).resolve().parents[2]
SOFTER = {
    "min_utterances": 99, "max_wer_gap_upper_points": 3.01, "max_similarity_drop": 2.0, "max_mos_drop_upper": 0.2,
    "max_no_end_rate": 1.0, "min_speedup": 0.01,
}  # fmt: skip
STRICTER = {
    "min_utterances": 101, "max_wer_gap_upper_points": 2.99, "max_similarity_drop": 0.0, "max_mos_drop_upper": 0.1,
    "max_no_end_rate": 0.0, "min_speedup": 1.5, "max_wer_points_over_production": 5.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_gate_file(monkeypatch):
    monkeypatch.delenv(GATE_FILE, raising=False)


def gate_file(monkeypatch, tmp_path, text):
    path = tmp_path / "gate.yaml"
    path.write_text(text)
    monkeypatch.setenv(GATE_FILE, str(path))


def test_the_shipped_limits_are_those_of_the_shipped_params():
    limits = limits_of(load_params(ROOT / "params.yaml").register_model)
    assert {name: SHIPPED[name] for name in limits} == limits


@pytest.mark.parametrize(("name", "value"), SOFTER.items())
def test_an_override_that_softens_a_limit_is_refused(name, value):
    with pytest.raises(InvalidInputError, match=rf"register_model\.{name} {value:g} instead of {SHIPPED[name]:g}"):
        compose_params("demo", [f"register_model.{name}={value}"])


@pytest.mark.parametrize(("name", "value"), STRICTER.items())
def test_an_override_that_tightens_a_limit_holds(name, value):
    assert getattr(compose_params("demo", [f"register_model.{name}={value}"]).register_model, name) == value


def test_a_profile_and_another_checkout_cannot_soften(tmp_path):
    profiles = tmp_path / "flows" / "profiles"
    profiles.mkdir(parents=True)
    (profiles / "mine.yaml").write_text("register_model: {max_no_end_rate: 0.5}")
    (profiles / "full.yaml").write_text("{}")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["register_model"] |= {"min_speedup": 0.01, "model_name": "own"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InvalidInputError, match=r"max_no_end_rate 0\.5 instead of 0\.02"):
        compose_params("mine", [], tmp_path)
    gate = compose_params("full", [], tmp_path).register_model
    assert (gate.min_speedup, gate.model_name) == (1.2, "own")


def test_the_deployments_file_changes_limits_both_ways(monkeypatch, tmp_path):
    gate_file(monkeypatch, tmp_path, "min_speedup: 1.0\nmax_no_end_rate: 0.01\n")
    gate = compose_params("demo", ["register_model.min_speedup=1.1"]).register_model
    assert (gate.min_speedup, gate.max_no_end_rate) == (1.1, 0.01)
    assert compose_params("demo", []).register_model.min_speedup == 1.0
    with pytest.raises(InvalidInputError, match=r"max_no_end_rate 0\.02 instead of 0\.01"):
        compose_params("demo", ["register_model.max_no_end_rate=0.02"])
    gate_file(monkeypatch, tmp_path, "approval: required\npromote: false\n")
    with pytest.raises(InvalidInputError, match="approval none instead of required"):
        compose_params("demo", ["register_model.approval=none"])
    with pytest.raises(InvalidInputError, match="promote true instead of false"):
        compose_params("demo", ["register_model.promote=true"])


@pytest.mark.parametrize(
    "text",
    ["- 1", "teacher: {source: x}", "model_name: other", "min_speedup: -1", "min_speedup: x", "{", "min_sped: 1"],
)
def test_a_gate_file_that_holds_something_else_is_refused(monkeypatch, tmp_path, text):
    gate_file(monkeypatch, tmp_path, text)
    with pytest.raises(InvalidInputError, match="observed"):
        team_gate()


def test_a_gate_file_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(GATE_FILE, str(tmp_path / "nowhere"))
    with pytest.raises(InvalidInputError, match=r"SLIMTTS_GATE: observed .*No such file"):
        team_gate()


def test_stricter_takes_the_stricter_of_each():
    gate = load_params(ROOT / "params.yaml").register_model
    mixed = gate.model_copy(
        update={"min_speedup": 2.0, "max_no_end_rate": 1.0, "approval": "required", "promote": False}
    )
    both = stricter(mixed, gate)
    assert (both.min_speedup, both.max_no_end_rate, both.approval, both.promote) == (2.0, 0.02, "required", False)
    assert stricter(gate, mixed) == both


def test_intervals_of_too_little_are_told():
    gate = load_params(ROOT / "params.yaml").register_model
    enough = {"bootstrap_samples": 100, "mos_utterances": 20, "speed_utterances": 5}
    assert thin_measurements(enough, gate) == []
    assert thin_measurements({}, gate) == [], "slimtts 0.1 may not tell"
    assert thin_measurements({knob: value - 1 for knob, value in enough.items()}, gate) == [
        "The evaluation was made with bootstrap_samples = 99; at least 100 are needed.",
        "The evaluation was made with mos_utterances = 19; at least 20 are needed.",
        "The evaluation was made with speed_utterances = 4; at least 5 are needed.",
    ]
    assert thin_measurements({"bootstrap_samples": 1}, gate.model_copy(update={"min_utterances": 1})) == []
    for profile in ("demo", "full"):
        assert thin_measurements(compose_params(profile, []).evaluate_student.model_dump(), gate) == []


def test_no_limit_is_the_softest_and_unknown_names_are_not_compared():
    assert softened({"max_a": None}, {"max_a": 3.0}) == {"max_a": "none instead of 3"}
    assert softened({"max_a": 3.0}, {"max_a": None}) == {}
    assert softened({"max_a": float("nan")}, {"max_a": 3.0}) == {"max_a": "nan instead of 3"}
    assert softened({"max_new": 9.0}, {"max_a": 3.0}) == {}
    assert strictest({"max_a": 3.0, "min_b": 1.0}, {"max_a": 1.0, "min_b": None}) == {"max_a": 1.0, "min_b": 1.0}


def test_a_softened_gate_is_one_line_on_the_command_line():
    command = [sys.executable, "-m", "flows.compress_model", "--dry-run", "--set", "register_model.min_speedup=0.1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "register_model.min_speedup 0.1 instead of 1.2" in done.stderr
