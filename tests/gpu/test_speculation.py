"""Recorded rounds of speculative decoding: exact acceptance says what the target alone says."""

from __future__ import annotations

import pytest

from slimtts.decoding.generation import generate_batch
from slimtts.decoding.speculative import SpeculativeDecoder
from slimtts.decoding.speculative_lanes import make_lane
from slimtts.decoding.speculative_rules import make_rule
from slimtts.pruning.surgery import remove_layers
from slimtts.testing.tiny import tiny_model

pytestmark = pytest.mark.gpu
SAMPLED = dict(temperature=0.9, top_p=0.9, repetition_aware=True, repetition_penalty=1.2)


@pytest.mark.parametrize("rule_name", ["exact", "ssd:0.2", "top-k:3", "pcg:0.4"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_rounds_say_what_the_target_says(device, layout, decoding, random_prompts, rule_name, length):
    target = tiny_model("llama", tied=False).to(device)
    draft = remove_layers(target, [0, 2])
    rule = make_rule(rule_name, target, layout)
    decoder = SpeculativeDecoder(make_lane(target, layout), make_lane(draft, layout), rule, length)
    for prompt in random_prompts(3, 250, seed=length):
        spoken = decoder.generate(prompt, decoding()).codes
        if rule_name == "exact":
            assert spoken == generate_batch(target, layout, [prompt], decoding())[0].codes
        sampled = decoder.generate(prompt, decoding(**SAMPLED)).codes
        assert all(0 <= code < layout.num_codes for code in sampled)
