"""Attention by groups is transformers' eager attention, forward and backward, under every kind of mask."""

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from slimtts.decoding.teacher_forcing import collate
from slimtts.distill.attention import GROUPED, grouped_attention, use_grouped_attention
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.pruning.surgery import remove_layers
from slimtts.testing.tiny import tiny_model
from tests.unit.distill.test_packing import both_forms, loss_and_gradients, sequences_of

RETAINED = (0, 3)


class Module(torch.nn.Module):
    """What the reference asks a layer's attention for."""

    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (4, 4), (6, 1)])
def test_outcome_and_gradients_are_those_of_the_eager_form(heads, shared, dtype):
    torch.manual_seed(1)
    rows, tokens, channels = 3, 11, 8
    parts = [torch.randn(rows, n, tokens, channels, dtype=dtype).requires_grad_() for n in (heads, shared, shared)]
    mask = torch.full((rows, 1, tokens, tokens), torch.finfo(torch.float32).min).triu(1)
    mask[1, :, 5:, :5] = torch.finfo(torch.float32).min  # two sequences in one row
    upstream = torch.randn(rows, tokens, heads, channels, dtype=dtype)
    scaling = channels**-0.5
    found, _ = grouped_attention(Module(1), *parts, mask, scaling=scaling)
    mine = torch.autograd.grad(found, parts, upstream)
    expected, _ = eager_attention_forward(Module(heads // shared), *parts, mask, scaling)
    theirs = torch.autograd.grad(expected, parts, upstream)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found, expected, **tolerance)
    for mine_one, theirs_one in zip(mine, theirs, strict=True):
        torch.testing.assert_close(mine_one, theirs_one, **tolerance)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_healing_loss_is_the_same_with_it(teacher, kind, packed):
    model = tiny_model(kind, vocab_size=teacher.model.config.vocab_size, tied=False).requires_grad_(False)
    student = remove_layers(model, RETAINED).requires_grad_(True)
    loss = HealingLoss(PRESETS["default"], teacher.layout, model, RETAINED)
    plain = collate(sequences_of(teacher), teacher.layout.pad_id)
    batch = both_forms(teacher)[1] if packed else plain
    for one in (model, student):
        one.set_attn_implementation("eager")
    total, terms, expected = loss_and_gradients(loss, student, batch)
    for one in (model, student):
        use_grouped_attention(one)
        assert one.config._attn_implementation == GROUPED
    total_grouped, terms_grouped, found = loss_and_gradients(loss, student, batch)
    assert total_grouped == pytest.approx(total, rel=1e-5)
    assert terms_grouped == pytest.approx(terms, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_a_cache_goes_on_where_it_was():
    """A trained model may be asked to speak by its own forward."""
    model, ids = tiny_model("llama"), torch.arange(12).view(2, 6)
    use_grouped_attention(model)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :4], use_cache=True)
        rest = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole)
