"""Repetition-aware sampling in closed form: what was just said is drawn again, without the limits."""

import torch

from slimtts.decoding.generation import generate_batch, sample
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
