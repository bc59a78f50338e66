"""Guidance: the maths by hand, its passes, and generation against a loop of separate full passes."""

import pytest
import torch

from slimtts.decoding.generation import generate, spoken_head
from slimtts.decoding.guidance import (
    UNGUIDED,
    Guidance,
    after_other_prompt,
    collate_passes,
    generate_guided,
    guided_log_probabilities,
    prompt_passes,
)
from slimtts.decoding.teacher_forcing import collate, forced_sequence
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import tiny_utterances

GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=12, batch_rows=4, seed=1)
SAMPLED = GREEDY.model_copy(update={"temperature": 1.0, "top_p": 0.9})
GUIDANCES = [Guidance(2.0, 0.0), Guidance(0.0, 1.5), Guidance(1.0, 0.7)]
TEXTS = ["anna.", "the green tiger.", "seven apple castle green tiger.", "tiger.", "green apple."]


def passes(teacher):
    return [prompt_passes(teacher, text, Prompt("anna.", (1, 2, 3)[: k + 1])) for k, text in enumerate(TEXTS)]


def logits(seed, rows=5, vocabulary=17):
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    full, no_text, no_voice = (torch.tensor(p) for p in ([0.5, 0.5], [0.8, 0.2], [0.25, 0.75]))
    # p^(1+2+1) / (p_without_text^2 p_without_voice): 0.0625 / (0.64 * 0.25) and 0.0625 / (0.04 * 0.75).
    first, second = 0.0625 / 0.16, 0.0625 / 0.03
    expected = torch.tensor([first, second]) / (first + second)
    got = guided_log_probabilities(full.log(), no_text.log(), no_voice.log(), Guidance(2.0, 1.0))
    torch.testing.assert_close(got.exp(), expected)


@pytest.mark.parametrize("guidance", [UNGUIDED, *GUIDANCES])
def test_renormalised_and_blind_to_the_offset_of_the_logits(guidance):
    got = guided_log_probabilities(logits(1), logits(2), logits(3), guidance)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(5))
    shifted = guided_log_probabilities(logits(1) + 7, logits(2) - 3, logits(3) + 1, guidance)
    torch.testing.assert_close(got, shifted, rtol=1e-5, atol=1e-5)


def test_scales_of_zero_are_the_plain_distribution_and_need_no_other_pass():
    assert torch.equal(guided_log_probabilities(logits(1), None, None, UNGUIDED), logits(1).log_softmax(-1))
    one = guided_log_probabilities(logits(1), logits(2), None, Guidance(1.0, 0.0))
    assert torch.equal(one, guided_log_probabilities(logits(1), logits(2), logits(3), Guidance(1.0, 0.0)))


def test_a_missing_pass_is_named():
    with pytest.raises(ValueError, match="without_voice"):
        guided_log_probabilities(logits(1), logits(2), None, Guidance(1.0, 1.0))


def test_what_each_pass_is_asked(teacher):
    prompt = Prompt("anna found my apple.", (3, 0, 15))
    got = prompt_passes(teacher, "the green tiger.", prompt)
    assert got.full == teacher.prompt_ids("the green tiger.", prompt)
    assert got.without_voice == teacher.prompt_ids("the green tiger.", Prompt())
    assert teacher.tokenizer.convert_ids_to_tokens(got.without_text) == [
        "<|begin_of_text|>", "Convert the text to speech:", "<|TEXT_UNDERSTANDING_START|>",
        "<|TEXT_UNDERSTANDING_END|>", "<|SPEECH_GENERATION_START|>", "<|s_3|>", "<|s_0|>", "<|s_15|>",
    ]  # fmt: skip


def test_empty_text_is_still_refused(teacher):
    with pytest.raises(InvalidInputError, match="text: observed empty"):
        prompt_passes(teacher, "  ", Prompt("anna.", (1,)))


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED])
def test_unguided_generation_is_plain_generation(teacher, decoding):
    plain = generate(teacher.model, teacher.layout, [p.full for p in passes(teacher)], decoding)
    assert generate_guided(teacher.model, teacher.layout, passes(teacher), decoding, UNGUIDED) == plain


def slow_reference(teacher, row, guidance):
    """Greedy with no cache, no padding, one forward pass for each prompt and code."""
    layout, head = teacher.layout, spoken_head(teacher.model, teacher.layout)
    codes = []
    with torch.inference_mode():
        while len(codes) < GREEDY.max_new_tokens:
            said = layout.to_ids(codes)
            full, no_text, no_voice = (
                (teacher.model.model(torch.tensor([before + said])).last_hidden_state[0, -1] @ head.T).log_softmax(-1)
                for before in (row.full, row.without_text, row.without_voice)
            )
            score = full + guidance.text_scale * (full - no_text) + guidance.voice_scale * (full - no_voice)
            chosen = int(score.argmax())
            if chosen == layout.num_codes:
                return tuple(codes), True
            codes.append(chosen)
    return tuple(codes), False


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_greedy_generation_equals_separate_full_passes(teacher, guidance):
    made = generate_guided(teacher.model, teacher.layout, passes(teacher), GREEDY, guidance)
    assert [(m.codes, m.ended) for m in made] == [slow_reference(teacher, row, guidance) for row in passes(teacher)]
    assert made != generate_guided(teacher.model, teacher.layout, passes(teacher), GREEDY, UNGUIDED)


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED])
def test_a_row_does_not_depend_on_its_batch(teacher, guidance, decoding):
    results = [
        generate_guided(
            teacher.model, teacher.layout, passes(teacher), decoding.model_copy(update={"batch_rows": rows}), guidance
        )
        for rows in (1, 6, 64)
    ]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_companions_have_the_same_targets_in_the_same_order(teacher, guidance):
    utterances, prompt = tiny_utterances(4), Prompt("anna found.", (7, 8, 9))
    sequences = [forced_sequence(teacher, u, prompt) for u in utterances]
    asked = [prompt_passes(teacher, u.text, prompt) for u in utterances]
    batch = collate_passes(sequences, asked, teacher.layout.pad_id, guidance)
    assert torch.equal(batch.ids, collate(sequences, teacher.layout.pad_id).ids)
    assert (batch.without_text is not None, batch.without_voice is not None) == (
        guidance.text_scale > 0,
        guidance.voice_scale > 0,
    )
    for name in guidance.companions:
        companion = getattr(batch, name)
        assert torch.equal(companion.targets[companion.is_target], batch.targets[batch.is_target])
        assert companion.is_target.sum(1).tolist() == batch.is_target.sum(1).tolist()
        for row, (utterance, before) in enumerate(zip(utterances, asked, strict=True)):
            spoken = teacher.layout.to_ids(utterance.codes)
            expected = [*getattr(before, name), *spoken]
            assert companion.ids[row, : len(expected)].tolist() == expected
            assert companion.is_target[row].nonzero()[0] == len(expected) - len(spoken) - 1


def test_another_prompt_moves_the_targets_along(teacher):
    sequence = forced_sequence(teacher, tiny_utterances(1)[0], Prompt("anna.", (1, 2)))
    moved = after_other_prompt(sequence, [5, 6, 7])
    assert moved.ids[:3] == (5, 6, 7)
    assert moved.ids[3:] == sequence.ids[sequence.target_start + 1 :]
    assert (moved.target_start, moved.targets) == (2, sequence.targets)
