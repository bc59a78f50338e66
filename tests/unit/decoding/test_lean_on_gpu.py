"""Recorded steps on a real device: the codes of the model's own forward there, in fp32."""

import pytest
import torch

from slimtts.decoding.generation import generate, generate_batch
from slimtts.decoding.lean_pool import is_lean
from slimtts.decoding.plain import plain_steps
from slimtts.decoding.streaming import stream_codes
from slimtts.params import DecodingParams
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.testing.tiny import tiny_model

LAYOUT = SpeechTokenLayout(first_code_id=40, num_codes=23, end_id=39, pad_id=0)
GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=40, batch_rows=3, seed=1)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_recorded_steps_say_what_the_plain_loop_says(kind, temperature):
    model = tiny_model(kind, tied=False).to("cuda")
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 300, (7,), generator=generator).tolist()
    prompts = [torch.randint(1, 63, (length,), generator=generator).tolist() for length in lengths]
    decoding = GREEDY.model_copy(update={"temperature": temperature})
    columns = torch.stack(list(plain_steps(model, LAYOUT, prompts, decoding)), 1).tolist()
    expected = [tuple(row[: row.index(23)] if 23 in row else row) for row in columns]
    assert is_lean(model)
    assert [row.codes for row in generate(model, LAYOUT, prompts, decoding)] == expected
    assert [row.codes for row in generate_batch(model, LAYOUT, prompts, decoding)] == expected
    assert tuple(stream_codes(model, LAYOUT, prompts[0], decoding)) == expected[0]
