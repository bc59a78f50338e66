"""What CUDA needs and a CPU can show: whole rotary angles, attention without plans, few waits, aligned sizes."""

import copy

import pytest
import torch

from slimtts.decoding import heads, row_slots
from slimtts.decoding.generation import generate_batch
from slimtts.decoding.lean_pool import lean_pool
from slimtts.decoding.row_slots import Ask, RowSlots
from slimtts.decoding.sampling import likeliest, sample
from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.distill.packing import PackedBatch
from slimtts.machine import prepare_cuda
from slimtts.params import DecodingParams
from slimtts.pruning.surgery import remove_layers
from slimtts.quantization.placement import place
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.testing.tiny import tiny_model

CPU = torch.device("cpu")
LAYOUT = SpeechTokenLayout(first_code_id=40, num_codes=23, end_id=39, pad_id=0)
GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=24, batch_rows=4, seed=1)


def test_cudnns_attention_is_taken_out_of_the_choice_on_cuda_alone():
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        prepare_cuda(CPU)
        assert torch.backends.cuda.cudnn_sdp_enabled()
        prepare_cuda(torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_on)


def test_placing_a_model_in_16_bit_leaves_its_rotary_angles_whole():
    frequencies = tiny_model(tied=False).model.rotary_emb.inv_freq.clone()
    placed = place(tiny_model(tied=False), CPU, torch.bfloat16)
    assert torch.equal(placed.model.rotary_emb.inv_freq, frequencies)
    assert placed.lm_head.weight.dtype == torch.bfloat16
    cut = remove_layers(placed, [0, 2])
    assert torch.equal(cut.model.rotary_emb.inv_freq, frequencies)
    position = torch.tensor([[1000]])
    angles, expected = (
        model.model.rotary_emb(torch.zeros(1, 1, 1), position)[0] for model in (cut, tiny_model(tied=False))
    )
    assert torch.equal(angles, expected)


def test_a_model_of_benchmarks_does_not_give_its_attention_to_the_next_one():
    from benchmarks.distillation_steps import TrueSize
    from benchmarks.true_sizes import Size
    from slimtts.testing.tiny import tiny_config

    size = TrueSize.__new__(TrueSize)
    size.size, size.layout, size.retained = (
        Size(tiny_config("llama", 4, 64, tied=True), LAYOUT, (0, 0), 1.0),
        LAYOUT,
        (0,),
    )
    first = size.make_teacher(CPU)
    before = first.config._attn_implementation
    first.set_attn_implementation("eager")
    assert size.make_teacher(CPU).config._attn_implementation == before != "eager"


@pytest.mark.parametrize("top_k", [0, 3, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_the_likeliest_ids_are_those_of_a_whole_sort(top_p, top_k):
    probabilities = torch.softmax(torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 2, -1)
    ordered, order = probabilities.sort(-1, descending=True)
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0)
    if top_k:
        ordered[:, top_k:] = 0
    expected = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    kept, ids = likeliest(probabilities, top_p, top_k)
    assert torch.equal(kept if ids is None else torch.zeros_like(probabilities).scatter(-1, ids, kept), expected)


def test_no_sort_where_nothing_is_limited(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "sort", lambda *_a, **_k: pytest.fail("a sort of the whole vocabulary"))
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    uniform = torch.tensor([0.0, 0.3, 0.6, 0.999])
    chosen = sample(logits, 0.8, 1.0, uniform)
    cumulative = torch.softmax(logits / 0.8, -1).cumsum(-1)
    for row, code in enumerate(chosen.tolist()):
        below = cumulative[row, code - 1] if code else 0.0
        assert below <= uniform[row] * cumulative[row, -1] <= cumulative[row, code]


def test_a_draw_without_limits_follows_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1]])).expand(4000, 4)
    uniform = torch.linspace(0, 1 - 1e-6, 4000)
    shares = torch.bincount(sample(logits, 1.0, 1.0, uniform), minlength=4) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.2, 0.2, 0.1], abs=1e-3)


def test_a_padded_head_says_the_same(monkeypatch):
    model = tiny_model(tied=False)
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    expected = generate_batch(model, LAYOUT, prompts, GREEDY)
    monkeypatch.setitem(heads.ROW_MULTIPLE, "cpu", 64)
    same = copy.deepcopy(model)
    assert len(lean_pool(same, LAYOUT).lean.head.by_out) == 64
    assert generate_batch(same, LAYOUT, prompts, GREEDY) == expected


@pytest.mark.parametrize("prompt_tokens", [3, 100, 129])
def test_caches_are_as_wide_as_attention_reads_best(monkeypatch, prompt_tokens):
    monkeypatch.setattr(row_slots, "runs_ahead", lambda device: True)
    pool = lean_pool(tiny_model(tied=False), LAYOUT)
    slots = RowSlots(pool.lean, LAYOUT, GREEDY, 2, prompt_tokens + 24)
    assert slots._cache.memory.shape[4] % 16 == 0
    slots.admit([Ask(0, ([1] * prompt_tokens,), 0)])
    assert slots.advance() == row_slots.CHUNK


def test_steps_that_run_ahead_are_reused_for_rows_that_skip(monkeypatch):
    """Each call would record its graphs anew otherwise."""
    from slimtts.decoding import generation

    monkeypatch.setattr(generation, "runs_ahead", lambda device: True)
    model, skip = tiny_model(tied=False), torch.eye(4, dtype=torch.bool)
    prompts = [[1, 2, 3 + row] for row in range(4)]
    expected = [generate_batch(model, LAYOUT, prompts, GREEDY, turn) for turn in (skip, skip.flip(0))]
    assert len(lean_pool(model, LAYOUT).idle) == 1
    assert [generate_batch(model, LAYOUT, prompts, GREEDY, turn) for turn in (skip, skip.flip(0))] == expected


@pytest.mark.parametrize("packed", [False, True])
def test_targets_are_counted_before_a_batch_moves(packed):
    ids = torch.arange(12).view(2, 6)
    targets = torch.tensor([[-100, 3, 4, -100, -100, -100], [-100, -100, 7, 8, 9, -100]])
    batch = PackedBatch(ids, targets, positions=ids % 6) if packed else ForcedBatch(ids, targets)
    moved = batch.to(torch.device("meta"))
    assert type(moved) is type(batch)
    assert moved.__dict__["target_places"].device.type == "meta"
    assert batch.target_places.tolist() == [1, 2, 8, 9, 10]
    assert batch.labels.tolist() == [3, 4, 7, 8, 9]
    assert batch.at_targets(ids.unsqueeze(-1)).flatten().tolist() == ids[batch.is_target].tolist()
