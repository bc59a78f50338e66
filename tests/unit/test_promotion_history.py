"""The history: retries are one event, overdue questions end, the former version is found, old files are still read."""

from datetime import UTC, datetime, timedelta

import pytest

from slimtts.errors import InvalidInputError
from slimtts.promotion_history import (
    PromotionEvent,
    event_line,
    is_decided,
    open_proposal,
    overdue,
    read_local_history,
    recorded_basis,
    recorded_limits,
    same_decision,
    valid_reason,
    version_before,
)
from slimtts.results import Basis

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
BASIS = Basis(
    test_set_sha256="t", asr="a", normalizer="basic", teacher_sha256="e", teacher_wer=0.1, student_wer=0.1
)  # fmt: skip


def event(version="1", action="promoted", former=None, minute=0, **fields):
    return PromotionEvent(
        model_name="tiny", version=version, action=action, former_version=former,
        recorded_at=NOON + timedelta(minutes=minute), **fields,
    )  # fmt: skip


def test_a_retry_is_the_same_decision():
    events = [event("1", evaluation_sha256="a"), event("2", "refused", evaluation_sha256="b")]
    assert same_decision(events, event("1", evaluation_sha256="a", minute=5, actor="someone else")) is events[0]
    assert same_decision(events, event("2", "refused", evaluation_sha256="b", minute=5)) is events[1]
    assert same_decision(events, event("1", evaluation_sha256="new")) is None
    assert same_decision(events, event("1", evaluation_sha256="a", reason="again")) is None
    assert same_decision(events, event("2", "refused", evaluation_sha256="b", decision="REGRESSION")) is None
    assert same_decision([], event()) is None


def test_a_return_to_production_is_another_decision():
    events = [event("1"), event("2", former="1")]
    assert same_decision(events, event("1")) is None
    events.append(event("1", "rolled_back", former="2"))
    assert same_decision(events, event("2", former="1")) is None
    assert same_decision(events, event("1", "rolled_back")) is events[-1]


def test_the_version_before_is_the_one_that_was_replaced():
    events = [event("1"), event("2", former="1"), event("3", former="2")]
    assert version_before(events, "3") == "2"
    events.append(event("2", "rolled_back", former="3"))
    assert version_before(events, "2") == "1", "one further back, not to and fro"
    events.append(event("2", former="2"))
    assert version_before(events, "2") == "1", "judged again while in production"
    assert version_before(events, "1") is None
    assert version_before(events, "9") is None
    assert version_before([*events, event("5", "moved_outside", former="2")], "5") == "2"


def test_an_evaluation_is_decided_once_for_each_verdict_of_its_release():
    events = [event("1", "refused", evaluation_sha256="a", decision="INCOMPLETE", release_decision="ACCEPT")]
    assert is_decided(events, "1", "a", "ACCEPT")
    assert not is_decided(events, "1", "a", "REGRESSION"), "the gate was changed"
    assert not is_decided(events, "1", "b", "ACCEPT")
    assert not is_decided(events, "2", "a", "ACCEPT")


def test_only_an_accepted_evaluation_is_a_basis():
    first, second = BASIS, BASIS.model_copy(update={"test_set_sha256": "u"})
    events = [event("1", basis=first), event("1", "refused"), event("2", basis=second)]
    assert recorded_basis(events, "1") == first
    assert recorded_basis([*events, event("1", basis=second)], "1") == second
    assert recorded_basis(events, "3") is None


def test_an_unanswered_question_expires_once():
    asked = event("2", "proposed", former="1", expires_at=NOON + timedelta(hours=1), actor="nightly")
    events = [event("1"), asked]
    assert open_proposal(events, "2") is asked
    assert overdue(events, NOON + timedelta(minutes=59)) == []
    (expired,) = overdue(events, NOON + timedelta(hours=2))
    assert (expired.action, expired.version, expired.recorded_at) == ("expired", "2", asked.expires_at)
    assert overdue([*events, expired], NOON + timedelta(hours=2)) == []
    assert open_proposal([*events, expired], "2") is None
    assert overdue([*events, event("2", former="1")], NOON + timedelta(hours=2)) == [], "it was answered"


def test_a_line_tells_when_what_who_and_why():
    line = event_line(event("2", former="1", decision="ACCEPT", actor="ann@box", reason="clearer"))
    assert line == '2025-01-01 12:00:00Z  promoted ACCEPT  1 -> 2  by ann@box: "clearer"'
    line = event_line(event("2", "refused", former="1", decision="REGRESSION", actor="ann", reasons=("Too slow.",)))
    assert line == "2025-01-01 12:00:00Z  refused REGRESSION  2  by ann: Too slow."
    assert event_line(event("1")) == "2025-01-01 12:00:00Z  promoted  none -> 1  by unknown"
    assert "2 -> none" in event_line(event("", "moved_outside", former="2"))


def test_a_line_is_one_line_whatever_the_registry_holds():
    forged = "clicks\n2025-01-02 09:00:00Z  promoted ACCEPT  1 -> 9  by ann\x1b[2J"
    line = event_line(event("2", former="1", decision="ACCEPT", actor="bob", reason=forged))
    assert line == (
        "2025-01-01 12:00:00Z  promoted ACCEPT  1 -> 2  by bob: "
        '"clicks\\n2025-01-02 09:00:00Z  promoted ACCEPT  1 -> 9  by ann\\x1b[2J"'
    )
    assert event_line(event("2", actor="a\nb")).endswith("by a\\nb")


def test_a_line_tells_softer_limits_and_the_releases_own_verdict():
    soft = {"min_speedup": "0.5 instead of 1.2", "max_no_end_rate": "1 instead of 0.02"}
    moved = event("2", former="1", decision="ACCEPT", release_decision="REGRESSION", actor="ann", softened=soft)
    assert event_line(moved) == (
        "2025-01-01 12:00:00Z  promoted ACCEPT (the release itself: REGRESSION)  1 -> 2  by ann, softer limits: "
        "min_speedup 0.5 instead of 1.2, max_no_end_rate 1 instead of 0.02"
    )
    agreed = event("2", former="1", decision="ACCEPT", release_decision="ACCEPT", actor="ann")
    assert event_line(agreed) == "2025-01-01 12:00:00Z  promoted ACCEPT  1 -> 2  by ann"
    assert recorded_limits([event(limits={"min_speedup": 2.0}), event("2", "rolled_back")]) == {"min_speedup": 2.0}
    assert recorded_limits([event()]) == {}


def test_events_of_a_file_beside_the_registry_are_still_read(tmp_path):
    path = tmp_path / "promotions.jsonl"
    assert read_local_history(path, "tiny") == []
    line = (
        '{"model_name":"tiny","version":"1","evaluation_sha256":"a","decision":"ACCEPT","action":"promoted",'
        '"former_version":null,"recorded_at":"2025-01-01T12:00:00Z"}\n'
    )
    path.write_text(line + line.replace("tiny", "other"))
    (read,) = read_local_history(path, "tiny")
    assert (read.version, read.recorded_at, read.actor) == ("1", NOON, "")
    path.write_text(line + '{"version": 2}\n')
    with pytest.raises(InvalidInputError, match=r"promotions\.jsonl line 2"):
        read_local_history(path, "tiny")


def test_reasons_are_one_printable_line_of_bounded_length():
    assert valid_reason("  a\n b ") == "a b"
    assert valid_reason("x" * 500) == "x" * 500
    for bad in ("x" * 501, "bell \x07"):
        with pytest.raises(InvalidInputError, match="--reason"):
            valid_reason(bad)
