"""Generation: independent of batch, padding and cache; END; skipped layers; only speakable ids."""

import pytest
import torch

from slimtts.decoding.generation import generate, generate_batch, sample, skipping_layers
from slimtts.params import DecodingParams
from slimtts.pruning.surgery import remove_layers
from slimtts.teachers.base import Prompt

GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=12, batch_rows=4, seed=1)
SAMPLED = GREEDY.model_copy(update={"temperature": 0.9, "top_p": 0.95})
TEXTS = ["anna.", "the green tiger.", "seven apple castle green tiger.", "tiger.", "green apple."]


def prompts(teacher):
    return [teacher.prompt_ids(text, Prompt("anna.", (1, 2, 3)[:k])) for k, text in enumerate(TEXTS)]


def slow_reference(teacher, ids, steps):
    """Plain loop: no cache, no padding, full head with every unspeakable id masked."""
    layout = teacher.layout
    allowed = [*range(layout.first_code_id, layout.first_code_id + layout.num_codes), layout.end_id]
    codes = []
    with torch.inference_mode():
        for _ in range(steps):
            logits = teacher.model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            masked = torch.full_like(logits, -torch.inf)
            masked[allowed] = logits[allowed]
            chosen = int(masked.argmax())
            if chosen == layout.end_id:
                return tuple(codes), True
            codes.append(chosen - layout.first_code_id)
            ids = [*ids, chosen]
    return tuple(codes), False


def test_batched_cached_left_padded_generation_equals_the_plain_loop(teacher):
    made = generate(teacher.model, teacher.layout, prompts(teacher), GREEDY)
    expected = [slow_reference(teacher, ids, GREEDY.max_new_tokens) for ids in prompts(teacher)]
    assert [(m.codes, m.ended) for m in made] == expected


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED])
def test_a_row_does_not_depend_on_its_batch_or_order(teacher, decoding):
    ids = prompts(teacher)
    together = generate_batch(teacher.model, teacher.layout, ids, decoding, row_seeds=range(5))
    alone = [generate_batch(teacher.model, teacher.layout, [p], decoding, row_seeds=[i])[0] for i, p in enumerate(ids)]
    assert together == alone


def test_sampling_is_seeded(teacher):
    first = generate(teacher.model, teacher.layout, prompts(teacher), SAMPLED)
    again = generate(teacher.model, teacher.layout, prompts(teacher), SAMPLED)
    other = generate(teacher.model, teacher.layout, prompts(teacher), SAMPLED.model_copy(update={"seed": 2}))
    assert first == again
    assert first != other


def test_rows_that_skip_layers_equal_the_model_without_them(teacher):
    ids = prompts(teacher)
    rows = [p for p in ids for _ in range(teacher.num_layers)]
    skip = torch.eye(teacher.num_layers, dtype=torch.bool).repeat(len(ids), 1)
    together = generate(teacher.model, teacher.layout, rows, GREEDY, skip)
    for layer in range(teacher.num_layers):
        short = remove_layers(teacher.model, [i for i in range(teacher.num_layers) if i != layer])
        assert generate(short, teacher.layout, ids, GREEDY) == together[layer :: teacher.num_layers]


def test_model_is_restored_when_the_block_raises(teacher):
    skip = torch.ones(1, teacher.num_layers, dtype=torch.bool)
    hooks = [dict(layer._forward_hooks) for layer in teacher.model.model.layers]
    with pytest.raises(RuntimeError), skipping_layers(teacher.model, skip):
        raise RuntimeError
    assert [dict(layer._forward_hooks) for layer in teacher.model.model.layers] == hooks


def test_end_stops_a_row_and_only_that_row(teacher):
    class EndsRowZero(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.inner, self.model, self.config = model, self, model.config
            self.step = 0

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def forward(self, **inputs):
            out = self.inner.model(**inputs)
            head = self.inner.get_output_embeddings().weight
            if self.step == 2:
                out.last_hidden_state[0, -1] = 1e3 * head[teacher.layout.end_id]
            self.step += 1
            return out

    decoding = GREEDY.model_copy(update={"max_new_tokens": 5})
    rows = prompts(teacher)[:2]
    free = generate_batch(teacher.model, teacher.layout, rows, decoding)
    made = generate_batch(EndsRowZero(teacher.model), teacher.layout, rows, decoding)
    assert made[0].ended
    assert made[0].codes == free[0].codes[:2]
    assert made[1] == free[1]


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20_000, 1)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(sample(logits, 1.0, 1.0, uniform), minlength=4).double()
    expected = torch.softmax(logits[0].double(), -1) * 20_000
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 16.3  # 3 degrees of freedom, p = 0.001


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 1)
    uniform = torch.linspace(0, 0.9999, 2000)
    assert set(sample(logits, 1.0, 0.7, uniform).tolist()) == {0, 1}
