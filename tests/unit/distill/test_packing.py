"""Sequences that share a row: each sees itself alone, and loss and gradients are those of a row each."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimtts.decoding.guidance import Guidance
from slimtts.decoding.teacher_forcing import collate, forced_sequence
from slimtts.distill import packing
from slimtts.distill.batches import PairSampler, part_of
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.packing import collate_packed, pack, sequence_bounds, use_varlen_attention, varlen_attention
from slimtts.errors import InvalidInputError
from slimtts.pruning.surgery import remove_layers
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import tiny_model, tiny_utterances

RETAINED = (0, 3)
ROW = 80


def sequences_of(teacher, count=7):
    prompts = [Prompt("anna.", (1, 2, 3)[: 1 + i % 3]) for i in range(count)]
    return [forced_sequence(teacher, u, p, True) for u, p in zip(tiny_utterances(count), prompts, strict=True)]


def both_forms(teacher):
    """The same sequences in a row each, and packed."""
    sequences, pad = sequences_of(teacher), teacher.layout.pad_id
    rows = pack([len(s.ids) for s in sequences], ROW)
    assert len(rows) < len(sequences)
    packed = collate_packed([[sequences[i] for i in row] for row in rows], ROW, pad)
    return collate(sequences, pad), packed


def loss_and_gradients(loss, student, batch):
    student.zero_grad()
    total, terms = loss(student, batch)
    total.backward()
    return total.item(), terms, {name: p.grad.clone() for name, p in student.named_parameters()}


@pytest.mark.parametrize("preset", ["default", "cross_entropy"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_packed_and_unpacked_have_one_loss_and_one_gradient(teacher, kind, attention, preset):
    model = tiny_model(kind, vocab_size=teacher.model.config.vocab_size, tied=False)
    model.set_attn_implementation(attention)
    student = remove_layers(model, RETAINED)
    student.set_attn_implementation(attention)
    listener = model.requires_grad_(False) if preset == "default" else None
    loss = HealingLoss(PRESETS[preset], teacher.layout, listener, RETAINED)
    plain, packed = both_forms(teacher)
    total, terms, expected = loss_and_gradients(loss, student, plain)
    total_packed, terms_packed, found = loss_and_gradients(loss, student, packed)
    assert total_packed == pytest.approx(total, rel=1e-5)
    assert terms_packed == pytest.approx(terms, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()) + 1e-8)


def test_without_restarted_positions_the_loss_would_be_another(teacher):
    """What the tests above would see if sequences saw their neighbours."""
    student = remove_layers(teacher.model, RETAINED)
    loss = HealingLoss(PRESETS["cross_entropy"], teacher.layout)
    plain, packed = both_forms(teacher)
    blind = replace(packed, positions=torch.arange(ROW).expand_as(packed.ids))
    assert loss(student, blind)[0].item() != pytest.approx(loss(student, plain)[0].item(), rel=1e-3)


def kernel_by_hand(q, k, v, bounds, bounds_k, longest, longest_k, scale, window_size):
    """What torch's variable-length kernel computes on CUDA: [T, H, D], one causal attention a sequence."""
    assert torch.equal(bounds, bounds_k) and bounds.dtype == torch.int32 and window_size == (-1, 0)
    assert longest == longest_k >= int(bounds.diff().max())
    assert q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype
    pieces = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        parts = [part[start:end].transpose(0, 1) for part in (q, k, v)]
        attended = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, scale=scale)
        pieces.append(attended.transpose(0, 1))
    return torch.cat(pieces)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_attention_of_cuda_gives_the_same_hidden_states(teacher, kind, monkeypatch):
    monkeypatch.setattr(packing.varlen, "varlen_attn", kernel_by_hand)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _device: torch.float32)
    model = tiny_model(kind, vocab_size=teacher.model.config.vocab_size, tied=False)
    _, packed = both_forms(teacher)
    with torch.no_grad():
        expected = model.model(input_ids=packed.ids, position_ids=packed.positions, use_cache=False).last_hidden_state
        use_varlen_attention(model)
        bounds = sequence_bounds(packed.positions)
        found = model.model(
            input_ids=packed.ids, position_ids=packed.positions, cu_seq_lens_q=bounds, max_length_q=ROW, use_cache=False
        ).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_kernel_gets_bf16_and_its_answer_has_the_type_of_the_values(monkeypatch):
    seen = []

    def kernel(q, *rest, **named):
        seen.append(q.dtype)
        return q

    monkeypatch.setattr(packing.varlen, "varlen_attn", kernel)
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    bounds = torch.tensor([0, 6], dtype=torch.int32)
    out, _ = varlen_attention(torch.nn.Identity(), q, k, k, None, scaling=1.0, cu_seq_lens_q=bounds, max_length_q=6)
    assert (seen, out.dtype, out.shape) == ([torch.bfloat16], torch.float32, (1, 6, 4, 8))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_every_sequence_is_packed_once_and_no_row_overflows(lengths):
    rows = pack(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    assert len(rows) <= 2 * -(-sum(lengths) // 20)


def test_a_sequence_longer_than_a_row_is_refused():
    with pytest.raises(InvalidInputError, match=r"sequence 1: observed 21 tokens; allowed: at most .*row_tokens, 20"):
        pack([3, 21], 20)


def test_packed_batches_have_one_shape_depend_on_the_step_alone_and_split_by_rows(teacher):
    sampler = PairSampler(teacher, tiny_utterances(20), 3 * ROW, 5, packed_row_tokens=ROW)
    steps = sampler.from_step(0)
    batches = [next(steps) for _ in range(12)]
    assert {tuple(b.ids.shape) for b in batches} == {(3, ROW)}
    later = next(sampler.from_step(10))
    assert torch.equal(later.ids, batches[10].ids) and torch.equal(later.positions, batches[10].positions)
    part = part_of(batches[0], 1, 2)
    assert torch.equal(part.positions, batches[0].positions[1::2]) and torch.equal(part.ids, batches[0].ids[1::2])
    moved = batches[0].to(torch.device("meta"))
    assert {moved.ids.device.type, moved.targets.device.type, moved.positions.device.type} == {"meta"}
    share = float(torch.cat([b.ids != teacher.layout.pad_id for b in batches]).float().mean())
    assert share > 0.8, "packing is to waste little"


def test_packing_is_refused_with_guidance_and_for_rows_longer_than_a_step(teacher):
    for tokens, guidance in ((ROW - 1, Guidance(0.0, 0.0)), (3 * ROW, Guidance(1.0, 0.0))):
        with pytest.raises(InvalidInputError, match=r"packed_row_tokens: observed 80 of"):
            PairSampler(teacher, tiny_utterances(20), tokens, 5, guidance, packed_row_tokens=ROW)
