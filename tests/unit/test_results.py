import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from slimtts.errors import InvalidInputError
from slimtts.results import EvaluationReport, Interval, PairedGap, PrunePlan, SplitSummary, SubsetReport

REPORT = SubsetReport(
    strategy="coverage", teacher_hours=10.9, share=0.0449, word_coverage=1.0,
    splits={"train": SplitSummary(utterances=3, hours=0.1, words=7)}, dropped={"too_long": 2}, data_sha256="ab" * 32,
)  # fmt: skip
PLAN = PrunePlan(
    num_layers=4, retained=[0, 3], dropped=[1, 2], teacher_parameters=10, student_parameters=6, teacher_sha256="c" * 64
)


@pytest.mark.parametrize("result", [REPORT, PLAN])
def test_what_is_written_is_what_is_read(tmp_path: Path, result: SubsetReport | PrunePlan) -> None:
    path = tmp_path / "deep" / "result.json"
    result.write(path)
    assert type(result).read(path) == result
    assert [p.name for p in path.parent.iterdir()] == ["result.json"]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.floats())
def test_every_number_survives_as_valid_json(tmp_path: Path, value: float) -> None:
    path = tmp_path / "interval.json"
    Interval(value=value, low=0.1, high=1e-300).write(path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    again = Interval.read(path)
    assert again.value == value or (math.isnan(again.value) and math.isnan(value))
    assert (again.low, again.high) == (0.1, 1e-300)


def test_results_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        PLAN.num_layers = 5
    with pytest.raises(ValidationError):
        Interval(value=1, low=0, high=2, middle=1)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "No such file"),
        (b"", "Invalid JSON"),
        (b'{"num_layers": 4', "Invalid JSON"),
        (b"\xff\xfe", "decode"),
        (b"[]", "content: "),
        (json.dumps(PLAN.model_dump() | {"retained": ["first"]}).encode(), "retained.0: "),
        (json.dumps(PLAN.model_dump() | {"extra": 1}).encode(), "extra: "),
        (REPORT.model_dump_json().encode(), "num_layers: Field required"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        PrunePlan.read(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message and what in message and "a PrunePlan" in message and "run the stage" in message


def test_a_gap_is_found_by_its_pair_and_its_absence_is_said() -> None:
    zero = Interval(value=0, low=0, high=0)
    gap = PairedGap(system="student", baseline="teacher", wer_points=zero, p_value=1, similarity=zero, mos=zero)
    report = EvaluationReport(
        asr="a", normalizer="basic", test_set_sha256="d", utterances=1, reference_wer=0, systems={}, gaps=[gap],
        machine="m",
    )  # fmt: skip
    assert report.gap("student", "teacher") is gap
    with pytest.raises(InvalidInputError, match="no comparison of teacher with student; allowed: student against"):
        report.gap("teacher", "student")
