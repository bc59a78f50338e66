"""Models placed on the device in bf16: near their numbers on a CPU, rotary angles whole, 2:4 by kernels of its own."""

from __future__ import annotations

import pytest
import torch

from slimtts.quantization.folders import write_variant
from slimtts.quantization.placement import place
from slimtts.quantization.sparsity import decoder_linears
from slimtts.quantization.variants import NAMES
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.tiny import tiny_model

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", NAMES)
def test_variants_say_on_the_device_what_they_say_on_a_cpu(device, on_cuda, assert_close, name, tmp_path):
    tiny_model(width=256, vocab_size=512).half().save_pretrained(tmp_path / "student")
    write_variant(tmp_path / "student", name, tmp_path / name)
    ids = torch.arange(10, 40).unsqueeze(0)
    with torch.inference_mode():
        expected = load_language_model(tmp_path / name)(input_ids=ids).logits
    model = place(load_language_model(tmp_path / name), device, torch.bfloat16)
    if name == "sparse24" and on_cuda:
        kinds = {type(linear.weight.data).__name__ for linear in decoder_linears(model).values()}
        assert all("SemiStructured" in kind for kind in kinds), kinds
    with torch.inference_mode():
        logits = model(input_ids=ids.to(device)).logits
    assert logits.dtype == torch.bfloat16
    assert_close(logits, expected, 0.05)


def test_rotary_angles_stay_in_fp32(device):
    frequencies = tiny_model(tied=False).model.rotary_emb.inv_freq
    placed = place(tiny_model(tied=False), device, torch.bfloat16).model.rotary_emb.inv_freq
    assert placed.dtype == torch.float32
    assert torch.equal(placed.cpu(), frequencies)
