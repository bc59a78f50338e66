"""The fast decoder against the model's own forward: same codes for every kind of layer, prompt, batch and skip."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaForCausalLM, Qwen2ForCausalLM

from slimtts.decoding import row_slots
from slimtts.decoding.generation import generate, generate_batch, generate_rows, generation_steps
from slimtts.decoding.lean_model import LeanModel
from slimtts.decoding.lean_pool import is_lean, lean_pool
from slimtts.decoding.plain import plain_steps
from slimtts.decoding.row_slots import Ask
from slimtts.decoding.streaming import stream_codes
from slimtts.params import DecodingParams
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.testing.tiny import tiny_config

LAYOUT = SpeechTokenLayout(first_code_id=40, num_codes=23, end_id=39, pad_id=0)
GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=24, batch_rows=8, seed=1)
SAMPLED = GREEDY.model_copy(update={"temperature": 1.0, "top_p": 0.95, "top_k": 20})
WAYS = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "repetition aware": SAMPLED.model_copy(update={"top_p": 0.6, "repetition_aware": True}),
    "penalty": GREEDY.model_copy(update={"repetition_penalty": 1.4}),
}
ROPE = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, wide heads, one for keys": ("llama", {"head_dim": 12, "num_key_value_heads": 1}),
    "llama, as many for keys": ("llama", {"num_key_value_heads": 4}),
    "llama, scaled positions": ("llama", {"rope_parameters": ROPE | {"original_max_position_embeddings": 16}}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
}


def model_of(kind, seed=0, **changes):
    architecture, own = KINDS[kind]
    config = tiny_config(architecture, 3, 63, tied=False)
    for name, value in (own | changes).items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}[architecture](config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases and norms of a new model are zeros and ones, which would hide that they are left out.
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def prompts_of(count, seed=0, longest=30):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(1, 63, (length,), generator=generator).tolist() for length in lengths]


def plainly(model, prompts, decoding, skip=None, row_seeds=None, passes=1, mix=None):
    steps = list(plain_steps(model, LAYOUT, prompts, decoding, skip, row_seeds, passes, mix))
    return [tuple(codes) for codes in torch.stack(steps, 1).tolist()]


def spoken(made, steps):
    """As `plain_steps` tells it."""
    return [(*row.codes, *[LAYOUT.num_codes] * (steps - len(row.codes))) for row in made]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_codes_are_those_of_the_plain_loop(kind, way):
    model, prompts = model_of(kind), prompts_of(5)
    expected = plainly(model, prompts, WAYS[way])
    assert is_lean(model)
    assert spoken(generate_batch(model, LAYOUT, prompts, WAYS[way]), len(expected[0])) == expected
    assert len({codes for row in expected for codes in row}) > 5


@pytest.mark.parametrize("rows", range(1, 9))
def test_every_batch_and_prompt_length(rows):
    model, prompts = model_of("llama"), prompts_of(rows, seed=rows, longest=60)
    expected = plainly(model, prompts, GREEDY)
    assert spoken(generate_batch(model, LAYOUT, prompts, GREEDY), len(expected[0])) == expected


@pytest.mark.parametrize("prompt", [[5], [5, 6], [39]])
def test_the_shortest_prompts(prompt):
    model = model_of("qwen2")
    assert spoken(generate_batch(model, LAYOUT, [prompt], GREEDY), 24)[0][:5] == plainly(model, [prompt], GREEDY)[0][:5]


@pytest.mark.parametrize("way", WAYS)
def test_layers_that_rows_skip(way):
    model, prompts = model_of("qwen2"), [prompt for prompt in prompts_of(3) for _ in range(5)]
    skip = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.bool).repeat(3, 1)
    expected = plainly(model, prompts, WAYS[way], skip)
    made = generate_batch(model, LAYOUT, prompts, WAYS[way], skip)
    assert spoken(made, len(expected[0])) == expected


def test_rows_that_are_equal_so_far_are_computed_once():
    model, prompt, rows_of = model_of("llama"), [*prompts_of(1)[0], 5, 6], []

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.scaled_dot_product_attention and args[0].shape[2] > 1:
                rows_of.append(args[0].shape[0])
            return function(*args, **(kwargs or {}))

    with Watched():
        generate_batch(model, LAYOUT, [prompt] * 3, GREEDY, torch.eye(3, dtype=torch.bool))
    assert rows_of[:3] == [1, 2, 3]


@pytest.mark.parametrize("way", WAYS)
def test_passes_share_their_codes(way):
    def mix(logits):
        full, other = logits.chunk(2)
        return (1.7 * full.log_softmax(-1) - 0.7 * other.log_softmax(-1)).log_softmax(-1)

    model, prompts = model_of("llama"), prompts_of(8)
    expected = plainly(model, prompts, WAYS[way], None, [3, 1, 4, 1], 2, mix)
    made = generate_batch(model, LAYOUT, prompts, WAYS[way], None, [3, 1, 4, 1], 2, mix)
    assert spoken(made, len(expected[0])) == expected
    # Two places for four rows of two passes: refilled.
    asks = [Ask(row, (prompts[row], prompts[4 + row]), [3, 1, 4, 1][row]) for row in range(4)]
    assert generate_rows(model, LAYOUT, asks, WAYS[way], 2, mix) == made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("skipping", [False, True])
def test_places_are_refilled_and_dropped_without_a_trace(way, skipping):
    """Rows end at different steps, so that others take their places while the batch goes on."""
    model, prompts = model_of("llama"), prompts_of(17)
    skip = torch.rand(17, 3, generator=torch.Generator().manual_seed(0)) < 0.3 if skipping else None
    alone = [
        generate_batch(model, LAYOUT, [p], WAYS[way], None if skip is None else skip[i : i + 1], [i])[0]
        for i, p in enumerate(prompts)
    ]
    assert len({len(row.codes) for row in alone}) > 3
    for rows in (1, 3, 8, 17):
        decoding = WAYS[way].model_copy(update={"batch_rows": rows})
        assert generate(model, LAYOUT, prompts, decoding, skip) == alone


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("skipping", [False, True])
def test_steps_that_run_ahead_of_the_host_change_nothing(way, skipping, monkeypatch):
    """As on CUDA: four steps at a time over padded columns, and the host learns of an END four to eight steps later."""
    model, prompts = model_of("qwen2"), prompts_of(9)
    skip = torch.rand(9, 3, generator=torch.Generator().manual_seed(1)) < 0.3 if skipping else None
    expected = generate(model, LAYOUT, prompts, WAYS[way], skip)
    stepwise = torch.stack(list(generation_steps(model, LAYOUT, prompts, WAYS[way], skip)), 1)
    monkeypatch.setattr(row_slots, "runs_ahead", lambda device: True)
    monkeypatch.setattr(row_slots, "WIDTH_STEP", 16)
    other = model_of("qwen2")  # no slots are kept of it
    for rows in (2, 9):
        assert generate(other, LAYOUT, prompts, WAYS[way].model_copy(update={"batch_rows": rows}), skip) == expected
    ahead = torch.stack(list(generation_steps(other, LAYOUT, prompts, WAYS[way], skip)), 1)
    assert torch.equal(ahead, stepwise)


def test_nothing_to_say():
    assert generate(model_of("llama"), LAYOUT, [], GREEDY) == []


def test_a_later_call_begins_where_its_prompt_differs(monkeypatch):
    model, prompt, computed = model_of("llama"), list(range(1, 31)), []
    prefill = LeanModel.prefill
    monkeypatch.setattr(LeanModel, "prefill", lambda s, ids, *a: computed.append(ids.shape[1]) or prefill(s, ids, *a))
    other = [*prompt[:20], 7, 7, 7]
    for asked in (prompt, prompt, other, [9, 9, 9, *prompt], prompt):
        fresh = plainly(model, [asked], SAMPLED, None, [2])
        assert spoken(generate_batch(model, LAYOUT, [asked], SAMPLED, None, [2]), len(fresh[0])) == fresh
    # All; nothing; two tokens after the shared twenty; all, twice.
    assert computed == [29, 2, 32, 29]


def test_a_stream_that_is_left_and_others_at_the_same_time_disturb_nobody():
    model, prompts = model_of("qwen2"), prompts_of(6, longest=40)
    alone = [generate_batch(model, LAYOUT, [p], SAMPLED, None, [i])[0].codes for i, p in enumerate(prompts)]
    left = stream_codes(model, LAYOUT, prompts[0], SAMPLED)
    next(left)
    streams = [stream_codes(model, LAYOUT, p, SAMPLED, i) for i, p in enumerate(prompts)]
    heard = [[] for _ in streams]
    for _ in range(24):
        for codes, stream in zip(heard, streams, strict=True):
            codes.extend(code for code in [next(stream, None)] if code is not None)
    left.close()
    assert [tuple(codes) for codes in heard] == alone
    with ThreadPoolExecutor(3) as pool:
        made = pool.map(lambda i: generate_batch(model, LAYOUT, [prompts[i]], SAMPLED, None, [i])[0].codes, range(6))
        assert list(made) == alone


def test_changed_weights_are_seen():
    model, prompts = model_of("llama"), prompts_of(3)
    generate_batch(model, LAYOUT, prompts, GREEDY)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor([prompts[0]])).logits.square().mean().backward()
    optimizer.step()
    expected = plainly(model, prompts, GREEDY)
    assert spoken(generate_batch(model, LAYOUT, prompts, GREEDY), len(expected[0])) == expected
    pool = lean_pool(model, LAYOUT)
    assert lean_pool(model, LAYOUT) is pool
    model.double()
    assert lean_pool(model, LAYOUT) is not pool
    expected = plainly(model, prompts, GREEDY)
    assert spoken(generate_batch(model, LAYOUT, prompts, GREEDY), len(expected[0])) == expected


def test_nothing_outlives_the_model():
    model = model_of("llama")
    generate_batch(model, LAYOUT, prompts_of(1), GREEDY)
    alive = weakref.ref(lean_pool(model, LAYOUT).lean)
    del model
    gc.collect()
    assert alive() is None


def hooked(model):
    model.model.layers[1].register_forward_hook(lambda module, args, output: 1.1 * output)


def other_activation(model):
    model.model.config.hidden_act = "gelu"
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()


def other_linear(model):
    class Doubling(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.model.layers[0].mlp.up_proj.__class__ = Doubling


@pytest.mark.parametrize("change", [hooked, other_activation, other_linear])
def test_what_is_not_known_goes_through_the_models_own_forward(change):
    model, prompts = model_of("llama"), prompts_of(3)
    before = generate_batch(model, LAYOUT, prompts, GREEDY)
    change(model)
    assert not is_lean(model)
    expected = plainly(model, prompts, GREEDY)
    after = generate(model, LAYOUT, prompts, GREEDY)
    assert spoken(after, len(expected[0])) == expected
    assert after != before
    columns = torch.stack(list(generation_steps(model, LAYOUT, prompts, GREEDY)), 1)
    assert [tuple(row) for row in columns.tolist()] == expected


def test_a_model_that_was_asked_for_hidden_states_stays_known():
    model, prompts = model_of("llama"), prompts_of(2)
    before = generate_batch(model, LAYOUT, prompts, GREEDY)
    model(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)
    assert model.model.layers[0]._forward_hooks
    assert is_lean(model)
    assert generate_batch(model, LAYOUT, prompts, GREEDY) == before


def test_sampled_codes_have_the_models_distribution():
    """The first two codes of 4,000 rows against the joint distribution of the plain model, by a chi-square test."""
    model, prompt, count = model_of("llama"), prompts_of(1)[0], 4000
    decoding = GREEDY.model_copy(update={"temperature": 0.7, "max_new_tokens": 2, "batch_rows": 500})
    made = generate(model, LAYOUT, [prompt] * count, decoding)
    ids = [*range(40, 63), 39]
    end = LAYOUT.num_codes
    with torch.inference_mode():
        first = torch.softmax(model(torch.tensor([prompt])).logits[0, -1, ids].double() / 0.7, -1)
        then = torch.softmax(
            model(torch.tensor([[*prompt, token] for token in ids])).logits[:, -1, ids].double() / 0.7, -1
        )
    expected = first[:, None] * then
    expected[end] = torch.zeros(end + 1).index_fill(0, torch.tensor([0]), float(first[end]))  # nothing after END
    observed = torch.zeros_like(expected)
    for row in made:
        codes = [*row.codes, *[end] * (2 - len(row.codes))]
        observed[codes[0], 0 if codes[0] == end else codes[1]] += 1
    expected, observed = expected.flatten() * count, observed.flatten()
    often = expected >= 5
    cells = [*zip(observed[often].tolist(), expected[often].tolist(), strict=True)]
    cells.append((float(observed[~often].sum()), float(expected[~often].sum())))
    chi_square, freedom = sum((o - e) ** 2 / e for o, e in cells if e > 0), len(cells) - 1
    assert freedom > 20
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5  # four standard deviations above its mean


def test_a_wish_for_compiled_layers_lasts_and_makes_a_pool_of_its_own(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    model, prompts = model_of("llama"), prompts_of(3)
    before = generate_batch(model, LAYOUT, prompts, GREEDY)
    pool = lean_pool(model, LAYOUT, compiled=True)
    assert [function.__name__ for function in compiled] == ["before_attention", "after_attention"]
    assert lean_pool(model, LAYOUT) is pool
    assert generate_batch(model, LAYOUT, prompts, GREEDY) == before
    assert not lean_pool(model, LAYOUT, compiled=False).lean.compiled
