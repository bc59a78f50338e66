"""Decisions on a real MLflow store: by the gate, against production, by a person, back again, and all on record."""

from functools import partial

import pytest
import yaml

from flows.promote_model import main as promote
from flows.roll_back_model import main as roll_back
from slimtts.errors import InvalidInputError
from slimtts.promotion_history import event_line
from tasks.evidence import Evidence
from tasks.promotion import Promotions, Request
from tasks.promotion_log import PRODUCTION
from tasks.registry import register_release
from tests.flows.toy_release import (
    ANN,
    MODEL,
    decide,
    evaluation,
    events,
    judged,
    make_regression,
    production,
    promotions,
    set_gate,
    set_team_gate,
    slow,
    toy_release,
)


@pytest.fixture
def released(runs_root, monkeypatch):
    monkeypatch.setenv("SLIMTTS_GIT_SHA", "abc")
    return partial(toy_release, runs_root)


def test_other_test_set_than_productions_is_refused_until_a_person_accepts_it(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    judged(second, test_set_sha256="harder")
    register_release(second, promote=True)
    refused = promotions(first).log.read().events[-1]
    assert (refused.action, refused.decision, refused.release_decision) == ("refused", "INCOMPLETE", "ACCEPT")
    assert "The test set is harder; version 1 in production was judged on test." in refused.reasons
    assert decide(first, "2").action == "refused", "asking again does not help"
    event = decide(first, "2", Request("ann@box", "new sentences", accept_new_basis="harder from March on"))
    assert (event.action, event.former_version, event.actor) == ("promoted", "1", "ann@box")
    assert event.reason == "new sentences; new basis: harder from March on"
    third = released("c", seed=3)
    judged(third, test_set_sha256="harder")
    register_release(third, promote=True)
    assert production(first) == "3", "the accepted test set is the one of production from now on"


def test_production_judged_again_on_a_new_test_set_is_the_new_basis(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    judged(first, test_set_sha256="harder")
    register_release(first, promote=True)
    assert events(first) == ["promoted", "promoted"], "a new evaluation is a new decision"
    judged(second, test_set_sha256="harder")
    register_release(second, promote=True)
    assert production(first) == "2"
    assert promotions(first).roll_back("", ANN).version == "1", "being judged again is no replacement"


def test_student_worse_than_production_is_refused_where_the_gate_says_so(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    report = evaluation(second)
    student = report.systems["student"]
    wer = student.wer_corpus.model_copy(update={"value": student.wer_corpus.value + 0.01})
    judged(second, systems={**report.systems, "student": student.model_copy(update={"wer_corpus": wer})})
    set_gate(second, max_wer_points_over_production=0.5)
    register_release(second, promote=True)
    refused = promotions(first).log.read().events[-1]
    assert (refused.action, refused.decision) == ("refused", "REGRESSION")
    assert refused.reasons[0].startswith("The student's WER is 1 points above that of version 1 in production")


def test_roll_back_returns_the_former_version_and_a_repeated_run_does_not_undo_it(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    register_release(second, promote=True)
    assert production(first) == "2"
    event = promotions(first).roll_back("", ANN)
    assert (event.former_version, event.version, event.actor, event.reason) == ("2", "1", "ann@box", "because")
    register_release(second, promote=True)
    assert production(first) == "1"
    assert events(first) == ["promoted", "promoted", "rolled_back"]
    with pytest.raises(InvalidInputError, match="nothing before it"):
        promotions(first).roll_back("", ANN)
    assert promotions(first).roll_back("2", ANN).version == "2", "where it was before it may go again"
    assert production(first) == "2"
    assert promotions(first).roll_back("2", ANN).version == "2"
    assert events(first) == ["promoted", "promoted", "rolled_back", "rolled_back"], "asked twice, done once"


@pytest.mark.parametrize(
    ("main", "arguments", "line"),
    [
        (roll_back, ["--reason", "x"], "slimtts-nano@production: observed version 1, nothing before it"),
        (roll_back, ["--reason", "x", "--to", "9"], "--to: observed version 9, never in production; allowed: 1"),
        (roll_back, ["--reason", "x", "--model", "nobody"], "--model: observed nobody; allowed: slimtts-nano"),
        (promote, ["9"], "version of slimtts-nano: observed '9'; allowed: 1"),
        (promote, ["1", "--set", "register_model.min_speedup=1"], "register_model.min_speedup 1 instead of 1.2"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_a_server_starts(released, capfd, main, arguments, line):
    run = released("a")
    register_release(run, promote=True)
    capfd.readouterr()
    assert main([*arguments, "--runs", str(run.workspace.parent)]) == 2
    shown = capfd.readouterr().err
    assert line in shown and shown.count("\n") == 1
    assert events(run) == ["promoted"]


def test_roll_back_does_not_pass_by_the_gate(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    make_regression(second)
    register_release(second, promote=True)
    with pytest.raises(InvalidInputError, match="version 2, never in production; allowed: 1; next: slimtts promote 2"):
        promotions(first).roll_back("2", ANN)


def test_the_same_flow_run_rolls_back_once(released):
    runs = [released(name, seed=seed) for seed, name in enumerate("abc", start=1)]
    for run in runs:
        register_release(run, promote=True)
    request = Request("ann", "clicks", flow_run="one")
    of_model = promotions(runs[0])
    assert [of_model.roll_back("", request).version for _ in range(2)] == ["2", "2"]
    assert of_model.roll_back("", Request("ann", "more clicks", flow_run="two")).version == "1"


def test_deciding_again_by_a_changed_gate(released, monkeypatch, tmp_path):
    run = released("a")
    make_regression(run)
    register_release(run, promote=True)
    assert decide(run, "1", min_speedup=5.0).action == "refused"
    assert decide(run, "1", min_speedup=0.5).action == "refused", "who asks cannot soften the team's limit"
    set_team_gate(monkeypatch, tmp_path, min_speedup=0.5)
    event = decide(run, "1")
    assert event.action == "promoted"
    assert decide(run, "1") == event, "a second promotion finds the first"
    assert production(run) == "1"
    assert events(run)[-1] == "promoted" and events(run).count("promoted") == 1
    line = event_line(event)
    assert "promoted ACCEPT (the release itself: REGRESSION)" in line
    assert ", softer limits: min_speedup 0.5 instead of 1.2: " in line
    assert event.limits["min_speedup"] == 0.5 and event.limits["max_wer_gap_upper_points"] == 3.0
    set_team_gate(monkeypatch, tmp_path, min_speedup=0.4)
    assert decide(run, "1", Request("ann")).softened == {"min_speedup": "0.4 instead of 1.2"}
    monkeypatch.delenv("SLIMTTS_GATE")
    assert decide(run, "1").softened == {}, "at the shipped limits again"


def test_a_run_cannot_soften_the_gate_that_judges_it(released):
    run = released("a")
    assert judged(run, systems=slow(evaluation(run))) == "REGRESSION"
    set_gate(run, min_speedup=0.01, max_wer_gap_upper_points=10_000)
    assert judged(run) == "ACCEPT", "by its own limits"
    register_release(run, promote=True)
    event = promotions(run).log.read().events[-1]
    assert (event.action, event.decision, event.release_decision) == ("refused", "REGRESSION", "ACCEPT")
    assert (event.limits["min_speedup"], event.limits["max_wer_gap_upper_points"]) == (1.2, 3.0)
    assert "refused REGRESSION (the release itself: ACCEPT)" in event_line(event)
    assert production(run) is None


def test_a_run_cannot_narrow_the_interval_by_measuring_less(released):
    run = released("a")
    path = run.workspace / "params.yaml"
    params = yaml.safe_load(path.read_text())
    params["evaluate_student"]["bootstrap_samples"] = 1
    path.write_text(yaml.safe_dump(params))
    register_release(run, promote=True)
    event = promotions(run).log.read().events[-1]
    assert (event.action, event.decision, event.release_decision) == ("refused", "INCOMPLETE", "ACCEPT")
    assert event.reasons == ("The evaluation was made with bootstrap_samples = 1; at least 100 are needed.",)
    assert decide(run, "1").decision == "INCOMPLETE"


def test_a_run_cannot_promote_where_the_team_promotes_by_hand(released, monkeypatch, tmp_path):
    set_team_gate(monkeypatch, tmp_path, promote=False)
    run = released("a")
    set_gate(run, promote=True)
    register_release(run, promote=True)
    assert (events(run), production(run)) == ([], None)
    assert decide(run, "1").action == "promoted", "a person may"


def test_a_team_that_asks_a_person_asks_whatever_the_run_says(released, monkeypatch, tmp_path):
    run = released("a")
    set_team_gate(monkeypatch, tmp_path, approval="required")
    register_release(run, promote=True)
    assert (events(run), production(run)) == (["proposed"], None)


def test_production_can_be_emptied(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    register_release(second, promote=True)
    event = promotions(first).roll_back("none", ANN)
    assert (event.action, event.former_version, event.version) == ("rolled_back", "2", "")
    assert "rolled_back  2 -> none  by ann@box" in event_line(event)
    assert production(first) is None
    assert promotions(first).roll_back("none", ANN).version == "", "asked twice, done once"
    register_release(second, promote=True)
    assert (production(first), len(events(first))) == (None, 3), "a repeated run does not undo it"
    with pytest.raises(InvalidInputError, match="observed version none, nothing before it"):
        promotions(first).roll_back("", ANN)
    assert promotions(first).roll_back("1", ANN).version == "1"
    assert production(first) == "1"
    assert promotions(first).roll_back("none", Request("ann", "again", flow_run="x")).version == ""
    assert promotions(first).roll_back("none", Request("ann", "again", flow_run="x")).version == ""
    assert production(first) is None


def test_an_alias_that_somebody_else_moved_is_told_not_hidden(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    register_release(second, promote=False)
    first.client.set_registered_model_alias(MODEL, PRODUCTION, "2")
    promotions(first).settle()
    promotions(first).settle()
    outside = promotions(first).log.read().events[-1]
    assert events(first) == ["promoted", "moved_outside"]
    assert (outside.former_version, outside.version, outside.actor) == ("1", "2", "unknown")
    assert promotions(first).roll_back("", ANN).version == "1"
    first.client.delete_registered_model_alias(MODEL, PRODUCTION)
    promotions(first).settle()
    assert promotions(first).log.read().events[-1].version == ""
    assert decide(first, "1").action == "promoted"
    assert production(first) == "1"


def test_a_proposal_moves_nothing_until_a_person_agrees(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    set_gate(second, approval="required")
    register_release(second, promote=True)
    register_release(second, promote=True)
    assert events(first) == ["promoted", "proposed"]
    assert production(first) == "1"
    assert decide(first, "2", Request("bob"), approval="none").action == "proposed", "an open question stays open"
    agreed = Request("nightly", "fine", approver="ann")
    event = decide(first, "2", agreed, approval="required")
    assert (event.action, event.actor, event.reason) == ("promoted", "ann", "fine")
    assert decide(first, "2", approval="required").action == "promoted", "who is in production needs no question"


def test_no_is_recorded_and_so_is_silence(released):
    first, second = released("a"), released("b", seed=2)
    register_release(first, promote=True)
    register_release(second, promote=False)
    assert decide(first, "2", approval="required").action == "proposed"
    declined = promotions(first).decline("2", Request("nightly", "it clicks", approver="ann"))
    assert (declined.action, declined.actor, declined.reason) == ("declined", "ann", "it clicks")
    assert promotions(first).decline("2", Request("nightly", "again", approver="bob")) == declined
    assert decide(first, "2", approval="required", approval_hours=1e-9).action == "proposed"
    register_release(first, promote=True)  # any later call finds it overdue
    assert events(first) == ["promoted", "proposed", "declined", "proposed", "expired"]
    assert production(first) == "1"
    assert first.client.get_model_version(MODEL, "2").tags["last_action"] == "expired"


def test_local_history_is_read_and_not_written(released, runs_root):
    run = released("a")
    old = (
        '{"model_name":"slimtts-nano","version":"7","evaluation_sha256":"a","decision":"ACCEPT","action":"promoted",'
        '"former_version":null,"recorded_at":"2025-01-01T12:00:00Z"}\n'
    )
    (runs_root / "promotions.jsonl").write_text(old)
    register_release(run, promote=True)
    assert [event.version for event in promotions(run).log.read().events] == ["7", "1"]
    assert (runs_root / "promotions.jsonl").read_text() == old


def test_an_event_fits_the_column_that_holds_it(released):
    run = released("a")
    register_release(run, promote=True)
    log = promotions(run).log
    seen = log.read()
    long = seen.events[-1].model_copy(update={"reasons": ("x" * 900,) * 9, "reason": "y" * 500})
    key = log.append(long, seen)
    assert len(run.client.get_registered_model(MODEL).tags[key]) <= 5000
    stored = log.read().events[-1]
    assert stored.reasons == long.reasons[: len(stored.reasons)] and len(stored.reasons) >= 2
    assert stored.reason == "y" * 500


def test_a_damaged_record_is_named(released):
    run = released("a")
    register_release(run, promote=True)
    run.client.set_registered_model_tag(MODEL, "promotion.000009-00000000", "{")
    with pytest.raises(InvalidInputError, match=r"tag promotion\.000009-00000000 of slimtts-nano in MLflow"):
        promotions(run).log.read()


def test_unknown_models_and_versions_are_named(released):
    run = released("a")
    register_release(run, promote=True)
    with pytest.raises(InvalidInputError, match="--model: observed nobody; allowed: slimtts-nano"):
        Promotions(run.client, run.workspace.parent, "nobody").log.read()
    with pytest.raises(InvalidInputError, match="version of slimtts-nano: observed '9'; allowed: 1"):
        Evidence.of_version(run.client, MODEL, "9")
