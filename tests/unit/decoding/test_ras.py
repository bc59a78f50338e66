"""Repetition: what was just said is drawn again, or becomes less likely; both in closed form."""

import torch

from slimtts.decoding.generation import codes_met, generate_batch, penalized, sample
from slimtts.decoding.ras import WINDOW, is_repetition
from slimtts.params import DecodingParams
from slimtts.teachers.base import Prompt

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))


def test_one_occurrence_in_the_window_is_a_repetition():
    recent = torch.tensor([[1, 2, 3], [1, 2, 3], [3, 3, 3]])
    assert is_repetition(torch.tensor([2, 0, 3]), recent).tolist() == [True, False, True]
    assert is_repetition(torch.tensor([2]), torch.zeros(1, 0, dtype=torch.long)).tolist() == [False]


def test_top_k_limits_and_is_of_the_whole_distribution():
    # Two codes hold .8; at u = .99 the second is drawn, at u < .5 / .8 the first.
    assert sample(LOGITS, 1.0, 1.0, torch.tensor([0.99]), top_k=2).tolist() == [1]
    assert sample(LOGITS, 1.0, 1.0, torch.tensor([0.62]), top_k=2).tolist() == [0]
    # The nucleus of .79 needs two codes of the whole distribution; of the best three alone it would too.
    assert sample(LOGITS, 1.0, 0.79, torch.tensor([0.99]), top_k=3).tolist() == [1]
    assert sample(LOGITS, 1.0, 1.0, torch.tensor([0.99])).tolist() == [3]


def test_what_was_met_becomes_less_likely_in_both_signs():
    logits, met = torch.tensor([[2.0, 1.5, -1.0, -1.0]]), torch.tensor([[True, False, True, False]])
    assert penalized(logits, met, 2.0).tolist() == [[1.0, 1.5, -2.0, -1.0]]


def test_codes_of_the_prompt_are_met_and_so_is_its_end(teacher):
    layout = teacher.layout
    met = codes_met([teacher.prompt_ids("anna.", Prompt("anna.", (1, 2))), [layout.end_id]], layout)
    assert met.nonzero().tolist() == [[0, 1], [0, 2], [1, layout.num_codes]]


def test_a_penalty_equals_the_plain_loop(teacher):
    """Greedy, code by code, over the logits of the uncached model."""
    layout, penalty, ids = teacher.layout, 50.0, teacher.prompt_ids("anna.", Prompt("anna.", (1, 2)))
    rows = [*layout.to_ids(range(layout.num_codes)), layout.end_id]
    expected, said = [], list(ids)
    with torch.inference_mode():
        while len(expected) < 12:
            logits = teacher.model(torch.tensor([said]), use_cache=False).logits[0, -1][rows]
            for place, row in enumerate(rows):
                if row in said:
                    logits[place] = logits[place] / penalty if logits[place] > 0 else logits[place] * penalty
            chosen = int(logits.argmax())
            if chosen == layout.num_codes:
                break
            expected.append(chosen)
            said.append(rows[chosen])
    plain = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=12, batch_rows=4, seed=1)
    decoding = plain.model_copy(update={"repetition_penalty": penalty})  # more than allowed: this model insists
    other = teacher.prompt_ids("the green tiger.", Prompt())
    made = generate_batch(teacher.model, layout, [ids, other], decoding)
    assert made[0].codes == tuple(expected)
    assert generate_batch(teacher.model, layout, [ids], plain)[0].codes != made[0].codes


def test_generation_draws_repetitions_again_and_only_those(teacher):
    """With a nucleus of one code, plain sampling is greedy; every other code comes from a second draw."""
    decoding = DecodingParams(temperature=1.0, top_p=1e-6, max_new_tokens=40, batch_rows=4, seed=1)
    prompt = teacher.prompt_ids("anna.", Prompt("anna.", (1, 2)))

    def say(**changes):
        return generate_batch(teacher.model, teacher.layout, [prompt], decoding.model_copy(update=changes))[0].codes

    greedy, aware = say(), say(repetition_aware=True)
    assert aware == say(repetition_aware=True) and aware != greedy
    first = next(i for i, code in enumerate(greedy) if code in greedy[max(0, i - WINDOW) : i])
    assert aware[:first] == greedy[:first]
    assert say(repetition_aware=True, temperature=0.0) == greedy
