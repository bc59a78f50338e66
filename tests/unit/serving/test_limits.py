"""Limits that cannot be wrong, and a rate that an address cannot exceed."""

import pytest

from slimtts.errors import InvalidInputError
from slimtts.serving import limits
from slimtts.serving.limits import RateLimit, ServingLimits


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_minutes_worth_at_once_then_the_rate():
    clock = Clock()
    rate = RateLimit(3, clock)
    assert [rate.wait_s("a") for _ in range(3)] == [0, 0, 0]
    assert rate.wait_s("a") == pytest.approx(20)
    assert rate.wait_s("b") == 0
    clock.now = 19.9
    assert 0 < rate.wait_s("a") < 0.2
    clock.now = 20.1
    assert rate.wait_s("a") == 0
    assert rate.wait_s("a") > 19
    clock.now = 10_000
    assert [rate.wait_s("a") == 0 for _ in range(4)] == [True, True, True, False]


def test_a_refused_call_does_not_lengthen_the_wait():
    clock = Clock()
    rate = RateLimit(1, clock)
    assert rate.wait_s("a") == 0
    for second in range(1, 60):
        clock.now = second
        assert rate.wait_s("a") == pytest.approx(60 - second)
    clock.now = 60
    assert rate.wait_s("a") == 0


def test_memory_is_bounded_and_forgets_the_silent(monkeypatch):
    monkeypatch.setattr(limits, "REMEMBERED_ADDRESSES", 2)
    rate = RateLimit(1, Clock())
    assert [rate.wait_s(address) for address in "abc"] == [0, 0, 0]
    assert rate.wait_s("c") > 0
    assert rate.wait_s("a") == 0


@pytest.mark.parametrize(
    "wrong", [{"concurrent": 0}, {"waiting": -1}, {"requests_per_minute": 0.0}, {"request_seconds": float("nan")},
              {"body_bytes": 0}, {"drain_seconds": float("inf")}],
)  # fmt: skip
def test_a_limit_that_is_none_is_refused(wrong):
    with pytest.raises(InvalidInputError, match="--" + next(iter(wrong)).replace("_", "-")):
        ServingLimits(**wrong)
