"""The line through measurements, and costs on paper: closed forms."""

import json
from dataclasses import asdict, replace

import pytest
from transformers import LlamaConfig

from benchmarks.fitted_lines import Series, draw, formula, table
from benchmarks.paper_costs import Machine, Plan, Sizes, costs, llasa_1b, operations_of
from slimtts.testing.tiny import tiny_model


def test_a_formula_is_found_with_its_error():
    (a, b), error = Series("s", ("x",), [((x,), 2 + 3 * x) for x in (1, 2, 5)]).fit()
    assert (a, b) == pytest.approx((2, 3)) and error == pytest.approx(0, abs=1e-9)
    assert Series("s", ("x",), [((1,), 1), ((2,), 3), ((3,), 2)]).fit()[1] == pytest.approx(0.5**0.5 / 2)
    two = Series("s", ("x", "y"))
    for x, y in ((1e6, 1), (2e6, 5), (3e6, 2), (9e6, 7)):
        two.add(0.5 + 1e-6 * x + 2 * y, x, y)
    assert Series.of(json.loads(json.dumps(asdict(two)))) == two
    assert two.fit()[0] == pytest.approx([0.5, 1e-6, 2])
    assert formula(two) == "0.50 + 1.00e-06 x x + 2.00e+00 x y"


def test_table_and_picture_hold_every_series(tmp_path):
    made = [Series(f"stage {i}", ("x", "y")[: 1 + i % 2]) for i in range(4)]
    for series in made:
        for size in (1.0, 2.0, 4.0, 5.0):
            series.add(size + size**2 / 9, *(size, size**2)[: len(series.drivers)])
    assert all(f"| stage {i} |" in table(made) for i in range(4))
    draw(made, "title", tmp_path / "images" / "scaling.png")
    assert (tmp_path / "images" / "scaling.png").stat().st_size > 5000


def test_weights_of_a_layer_are_those_of_the_model():
    model = tiny_model(num_layers=3, width=32)
    sizes = Sizes.of(model.config, 10)
    matrices = sum(p.numel() for p in model.model.layers[0].parameters() if p.ndim == 2)
    assert (sizes.layer, sizes.head, sizes.depth) == (matrices, 320, 3)


def test_a_forward_pass_is_two_operations_a_weight_and_token():
    config = LlamaConfig(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_key_value_heads=2)
    sizes = Sizes.of(config, 5)
    assert sizes.layer == 4 * 64 + 3 * 128
    assert sizes.forward(depth=2, tokens=7, spoken=3, length=0) == 2 * (7 * 2 * sizes.layer + 3 * 5 * 8)


def test_costs_follow_hours_depth_and_price():
    sizes, plan, machine = llasa_1b(), Plan(), Machine()
    rows = {row.stage: row for row in costs(sizes, plan, machine)}
    twice = {row.stage: row for row in costs(sizes, replace(plan, hours=2 * plan.hours), machine)}
    student = "distill_student: student"
    assert twice[student].operations == pytest.approx(2 * rows[student].operations)
    assert rows[student].dollars == pytest.approx(rows[student].gpu_hours * machine.price)
    assert rows["distill_student: control"].operations > rows[student].operations
    assert rows["subset_data: the teacher speaks"].operations == 0
    total = sum(row.gpu_hours for name, row in rows.items() if "WLI" not in name and "influence" not in name)
    assert rows["all, scored by search"].gpu_hours == pytest.approx(total - rows["all, scored by search"].gpu_hours)


def test_search_on_paper_counts_every_set_of_a_beam():
    plan = Plan(beam_width=1, selection_utterances=1, text_tokens_per_s=0.0)
    sizes = Sizes(layer=100.0, head=0.0, width=0, depth=3)
    # Three sets of two layers, then two of one; each computes half of its layers.
    together, one_by_one = operations_of(sizes, plan)["score_layers: search"]
    tokens = 2 * plan.utterance_s * plan.codes_per_s
    assert (together, one_by_one) == (pytest.approx(tokens * 200 * (3 * 1 + 2 * 0.5)), 0.0)
