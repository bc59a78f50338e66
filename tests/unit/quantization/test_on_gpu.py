"""Variants on CUDA in bf16: near the 16-bit model's numbers on a CPU, 2:4 by kernels of its own."""

import pytest
import torch

from slimtts.quantization.folders import write_variant
from slimtts.quantization.placement import place
from slimtts.quantization.sparsity import decoder_linears
from slimtts.quantization.variants import NAMES
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.tiny import tiny_model


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_variants_say_on_cuda_what_they_say_on_a_cpu(name, tmp_path):
    tiny_model(width=256, vocab_size=512).half().save_pretrained(tmp_path / "student")
    write_variant(tmp_path / "student", name, tmp_path / name)
    ids = torch.arange(10, 40).unsqueeze(0)
    with torch.inference_mode():
        meant = load_language_model(tmp_path / name)(input_ids=ids).logits
    model = place(load_language_model(tmp_path / name), torch.device("cuda"), torch.bfloat16)
    if name == "sparse24":
        kinds = {type(linear.weight.data).__name__ for linear in decoder_linears(model).values()}
        assert all("SemiStructured" in kind for kind in kinds), kinds
    with torch.inference_mode():
        told = model(input_ids=ids.cuda()).logits
    assert told.dtype == torch.bfloat16
    assert (told.float().cpu() - meant).norm() < 0.05 * meant.norm()
