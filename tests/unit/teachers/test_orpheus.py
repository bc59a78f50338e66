"""Orpheus at its published ids: speech markers from 128,257 on, 7 x 4,096 codes from 128,266 on."""

import pytest

from slimtts.errors import InvalidInputError
from slimtts.teachers.base import Prompt
from slimtts.teachers.orpheus import OrpheusFamily

SPECIALS = {"<|begin_of_text|>": 128_000, "<|eot_id|>": 128_009} | {
    f"<custom_token_{i}>": 128_256 + i for i in range(10)
}
CODES = {f"<custom_token_{10 + code}>": 128_266 + code for code in range(7 * 4096)}
TURN_START, TURN_MIDDLE = [128_259, 128_000], [128_009, 128_260, 128_261, 128_257]
FRAME = tuple(position * 4096 + 5 for position in range(7))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_of):
    return tokenizer_of(SPECIALS | CODES, SPECIALS)


@pytest.fixture(scope="module")
def layout(tokenizer, codec_of):
    return OrpheusFamily().layout(tokenizer, codec_of(7 * 4096))


def text(tokenizer, words):
    return tokenizer.convert_tokens_to_ids(list(words.replace(" ", "Ġ")))


def test_layout_is_the_published_one(layout):
    assert (layout.first_code_id, layout.num_codes, layout.end_id) == (128_266, 28_672, 128_258)
    assert layout.to_ids(FRAME)[-1] == 128_266 + 6 * 4096 + 5


@pytest.mark.parametrize(("codes", "voice"), [((), "tara"), ((), "orpheus:tara"), (FRAME, "orpheus:tara")])
def test_a_built_in_voice_speaks_by_its_name(tokenizer, layout, codes, voice):
    ids = OrpheusFamily().prompt_ids(tokenizer, layout, "So it is.", Prompt("Yes.", codes, voice))
    assert ids == [*TURN_START, *text(tokenizer, "tara: So it is."), *TURN_MIDDLE]


@pytest.mark.parametrize("voice", ["speaker 17", "dan"])  # somebody's Dan is not Orpheus' own
def test_another_voice_speaks_its_prompt_in_a_turn_before(tokenizer, layout, voice):
    family, prompt = OrpheusFamily(), Prompt("Yes.", (*FRAME, 9, 4097), voice)
    before = [*TURN_START, *text(tokenizer, "Yes."), *TURN_MIDDLE, *layout.to_ids(FRAME), 128_258, 128_262]
    ids = family.prompt_ids(tokenizer, layout, "So it is.", prompt)
    assert ids == [*before, *TURN_START, *text(tokenizer, "So it is."), *TURN_MIDDLE]
    empty = [*TURN_START, *TURN_MIDDLE]
    spoken = [*layout.to_ids(FRAME), 128_258, 128_262]
    assert family.textless_prompt_ids(tokenizer, layout, prompt) == [*empty, *spoken, *empty]


def test_without_a_prompt_the_model_chooses_the_voice(tokenizer, layout):
    family = OrpheusFamily()
    assert family.prompt_ids(tokenizer, layout, "So.", Prompt()) == [*TURN_START, *text(tokenizer, "So."), *TURN_MIDDLE]
    assert family.prompt_ids(tokenizer, layout, "So.", Prompt("Yes.", (1, 2))) == family.prompt_ids(
        tokenizer, layout, "So.", Prompt()
    )
    named = family.textless_prompt_ids(tokenizer, layout, Prompt(voice="zoe"))
    assert named == [*TURN_START, *text(tokenizer, "zoe:"), *TURN_MIDDLE]


def test_a_built_in_voice_that_is_not_there_is_refused(tokenizer, layout):
    with pytest.raises(InvalidInputError, match="voice: observed orpheus:bob; allowed: orpheus:tara, orpheus:leah"):
        OrpheusFamily().prompt_ids(tokenizer, layout, "So.", Prompt("Yes.", FRAME, "orpheus:bob"))


def test_empty_text_is_refused(tokenizer, layout):
    with pytest.raises(InvalidInputError, match="text: observed empty"):
        OrpheusFamily().prompt_ids(tokenizer, layout, " ", Prompt(voice="tara"))


@pytest.mark.parametrize("absent", ["<|eot_id|>", "<custom_token_1>", "<custom_token_2>", "<custom_token_6>"])
def test_a_missing_marker_is_refused(tokenizer_of, codec_of, absent):
    kept = [token for token in SPECIALS if token != absent]
    tokens = {token: 300 + place for place, token in enumerate(kept)}
    codes = {f"<custom_token_{10 + code}>": 320 + code for code in range(7)}
    with pytest.raises(InvalidInputError) as refusal:
        OrpheusFamily().layout(tokenizer_of(tokens | codes, kept), codec_of(7))
    assert f"observed no token {absent}; allowed: a tokenizer of the Orpheus family" in str(refusal.value)


def test_a_codec_of_other_size_is_refused(tokenizer, codec_of):
    with pytest.raises(InvalidInputError, match="no token <custom_token_28682>"):
        OrpheusFamily().layout(tokenizer, codec_of(28_673))
