"""Recorded decode steps: the codes of the model's own forward on the same device, in fp32 and bf16."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from slimtts.decoding import row_slots
from slimtts.decoding.generation import generate, generate_batch
from slimtts.decoding.lean_pool import is_lean, lean_pool
from slimtts.decoding.plain import plain_steps
from slimtts.decoding.streaming import stream_codes
from slimtts.testing.tiny import tiny_model

pytestmark = pytest.mark.gpu
WAYS = {
    "greedy": {},
    "sampled": dict(temperature=0.9),
    "nucleus": dict(temperature=0.9, top_p=0.8),
    "top_k": dict(temperature=0.9, top_k=5),
    "ras": dict(temperature=0.9, top_p=0.8, repetition_aware=True),
    "penalty": dict(repetition_penalty=1.3),
}


def spoken_plainly(model, layout, prompts, knobs, **more):
    columns = torch.stack([c.clone() for c in plain_steps(model, layout, prompts, knobs, **more)], 1).tolist()
    end = layout.num_codes
    return [tuple(row[: row.index(end)] if end in row else row) for row in columns]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("way", WAYS)
def test_recorded_steps_say_what_the_plain_loop_says(device, layout, decoding, random_prompts, kind, way):
    model, prompts, knobs = tiny_model(kind, tied=False).to(device), random_prompts(7), decoding(**WAYS[way])
    assert is_lean(model)
    expected = spoken_plainly(model, layout, prompts, knobs)
    for _ in range(2):  # the second call reuses recorded graphs
        assert [row.codes for row in generate(model, layout, prompts, knobs)] == expected
        assert [row.codes for row in generate_batch(model, layout, prompts, knobs)] == expected
        assert tuple(stream_codes(model, layout, prompts[0], knobs)) == expected[0]


def test_rows_that_skip_layers_say_what_the_plain_loop_says(device, layout, decoding, random_prompts):
    model, prompts, knobs = tiny_model(tied=False).to(device), random_prompts(6, 60), decoding(max_new_tokens=24)
    skip = torch.zeros(6, 4, dtype=torch.bool)
    skip[range(1, 5), range(4)] = True
    expected = spoken_plainly(model, layout, prompts, knobs, skip=skip)
    for turn in (skip, skip.flip(0), skip):  # graphs of the first call must be right for other rows
        expected = spoken_plainly(model, layout, prompts, knobs, skip=turn)
        assert [row.codes for row in generate_batch(model, layout, prompts, knobs, turn)] == expected


def test_guided_passes_say_what_the_plain_loop_says(device, layout, decoding, random_prompts):
    model, prompts, knobs = tiny_model(tied=False).to(device), random_prompts(6, 60), decoding(max_new_tokens=24)

    def mix(logits):
        full, poorer = logits.chunk(2)
        return 1.5 * full - 0.5 * poorer

    guided = generate_batch(model, layout, prompts, knobs, passes=2, mix=mix)
    assert [row.codes for row in guided] == spoken_plainly(model, layout, prompts, knobs, passes=2, mix=mix)


def test_compiled_layers_say_the_same(device, layout, decoding, random_prompts, on_cuda):
    if not on_cuda:
        pytest.skip("compiling for a CPU takes minutes and is nobody's default")
    model, prompts = tiny_model(tied=False).to(device), random_prompts(3, 60)
    expected = [row.codes for row in generate_batch(model, layout, prompts, decoding())]
    lean_pool(model, layout, compiled=True)
    assert [row.codes for row in generate_batch(model, layout, prompts, decoding())] == expected


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", ["greedy", "nucleus"])
def test_recorded_steps_in_bf16_are_the_steps_not_recorded(
    device, layout, decoding, random_prompts, monkeypatch, seed, way
):
    """The same kernels, recorded or not: the same codes to the last."""

    class Unrecorded:
        def __init__(self, step, state):
            self.run = step

    model = tiny_model(tied=False, width=256, vocab_size=512, seed=seed).to(device, torch.bfloat16)
    prompts, knobs = random_prompts(5, 300, seed=seed), decoding(**WAYS[way])
    recorded = [row.codes for row in generate_batch(model, layout, prompts, knobs)]
    monkeypatch.setattr(row_slots, "StepGraphs", Unrecorded)
    model.lm_head.weight.data = model.lm_head.weight.data.clone()  # another address: nothing recorded is reused
    assert [row.codes for row in generate_batch(model, layout, prompts, knobs)] == recorded


def test_threads_may_record_at_the_same_time(device, layout, decoding, random_prompts):
    model, prompts = tiny_model(tied=False).to(device), random_prompts(4, 60)
    expected = [spoken_plainly(model, layout, [prompt], decoding())[0] for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        spoken = list(pool.map(lambda prompt: generate_batch(model, layout, [prompt], decoding())[0].codes, prompts))
    assert spoken == expected
