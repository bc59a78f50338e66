"""The table of speculative decoding at a tiny true size."""

import json

import pytest

from benchmarks import speculative_speed, true_sizes
from benchmarks.speculative_rows import foreseen_speedup
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.testing.tiny import tiny_config


@pytest.fixture
def tiny_size(monkeypatch):
    layout = SpeechTokenLayout(first_code_id=40, num_codes=20, end_id=60, pad_id=0)
    size = true_sizes.Size(tiny_config("llama", 4, 64, tied=True), layout, (0, 0), 1.0)
    monkeypatch.setitem(true_sizes.SIZES, "tiny", lambda: size)


def test_a_row_for_each_way_and_agreement(tiny_size, tmp_path, capsys):
    out, draft = tmp_path / "rows.json", "--draft /somewhere/student"
    speculative_speed.main(
        ["--model", "tiny", "--codes", "20", "--prompt-tokens", "8", "--agreements", "0", "1", "--rules", "exact",
         "--lengths", "3", "--out", str(out), *draft.split()]
    )  # fmt: skip
    result = json.loads(out.read_text())
    rows = result["rows"]
    assert [(row["rule"], row["agreement"]) for row in rows] == [
        (rule, agreement) for agreement in (1.0, 0.0) for rule in ("plain", "draft alone", "exact")
    ]
    partly, wholly = rows[2], rows[5]
    assert wholly["acceptance"] > 0.9  # in bf16 both round differently
    assert partly["acceptance"] < wholly["acceptance"]
    assert wholly["codes_per_target_pass"] == pytest.approx(4, abs=0.7)
    assert rows[0]["speedup"] == 1
    assert set(result["costs"]["target_pass_ms"]) == {"1", "2", "3", "4", "6", "9"}
    assert "--out" not in result["command"] and "/somewhere" not in result["command"]
    printed = capsys.readouterr().out
    assert printed.count("| 0.8 | exact | 3 |") == 2


def test_the_speed_that_costs_foresee():
    assert foreseen_speedup(3.4, length=3, draft_share=0.5, block_cost=1.0) == pytest.approx(3.4 / 2.5)
    assert foreseen_speedup(1.0, length=0, draft_share=0.5, block_cost=1.0) == 1
