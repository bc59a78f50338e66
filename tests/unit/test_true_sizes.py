"""The walk through all parts works and tells a wrong number; the published shapes have the expected parameters."""

from dataclasses import replace

import pytest
import torch

from benchmarks.true_sizes import SIZES, Size, go_through, table
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.testing.tiny import tiny_config, tiny_model

CPU = torch.device("cpu")


def tiny_size():
    config = tiny_config("llama", 4, 300, tied=True)
    whole, half = (tiny_model("llama", layers, 300).num_parameters() for layers in (4, 2))
    return Size(config, SpeechTokenLayout(200, 64, 199, 198), (whole, half), 64.0)


def test_all_parts_are_gone_through():
    ledger = go_through(tiny_size(), CPU)
    assert ledger.problems == []
    assert [row[0].split(",")[0] for row in ledger.rows] == [
        "build", "cut to 2 layers", "save", "open strictly", "healing step", "speak 20 codes",
    ]  # fmt: skip
    assert "| healing step |" in table("tiny", ledger)


def test_a_wrong_number_and_too_much_memory_are_told():
    size = tiny_size()
    ledger = go_through(replace(size, parameters=(size.parameters[0], 1), memory_gib=0.01), CPU)
    assert ledger.problems == ["parameters, 2 layers", "peak memory at most 0.01 GiB"]


@pytest.mark.parametrize("name", SIZES)
def test_the_published_shapes_have_the_expected_parameters(name):
    from transformers import AutoModelForCausalLM

    size = SIZES[name]()
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(size.config).num_parameters() == size.parameters[0]
