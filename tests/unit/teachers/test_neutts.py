"""NeuTTS Air: phonemes between markers, then codes; the phonemes are upper case here, so that no espeak is needed."""

import pytest

from slimtts.errors import InvalidInputError
from slimtts.params import TeacherParams
from slimtts.teachers import neutts
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.neutts import NeuTtsFamily

MARKERS = [
    "<|TEXT_PROMPT_START|>", "<|TEXT_PROMPT_END|>", "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>",
]  # fmt: skip


@pytest.fixture(autouse=True)
def upper_case(monkeypatch):
    monkeypatch.setattr(neutts, "phonemes", lambda text, language: text.upper() if language == "en" else f"{language}.")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_of):
    markers = {token: 300 + place for place, token in enumerate(MARKERS)}
    return tokenizer_of({**markers, **{f"<|speech_{code}|>": 310 + code for code in range(16)}}, MARKERS)


def test_ids_of_the_zero_shot_prompt(tokenizer, codec_of):
    family = NeuTtsFamily()
    layout = family.layout(tokenizer, codec_of(16))
    assert (layout.first_code_id, layout.num_codes, layout.end_id, layout.pad_id) == (310, 16, 303, 303)
    ids = family.prompt_ids(tokenizer, layout, "so it is.", Prompt("yes.", (0, 15)))
    assert ids[-3:] == [302, 310, 325]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *"user:ĠConvertĠtheĠtextĠtoĠspeech:", "<|TEXT_PROMPT_START|>", *"YES.ĠSOĠITĠIS.", "<|TEXT_PROMPT_END|>",
        *"Ċassistant:", "<|SPEECH_GENERATION_START|>", "<|speech_0|>", "<|speech_15|>",
    ]  # fmt: skip
    alone = tokenizer.convert_ids_to_tokens(family.prompt_ids(tokenizer, layout, "so.", Prompt()))
    assert alone[alone.index("<|TEXT_PROMPT_START|>") + 1 : alone.index("<|TEXT_PROMPT_END|>")] == ["S", "O", "."]
    empty = family.textless_prompt_ids(tokenizer, layout, Prompt("yes.", (1,)))
    assert empty == [*ids[: ids.index(300) + 1], *ids[ids.index(301) : -2], 311]


def test_the_language_reaches_the_phonemes(tokenizer, codec_of):
    german = NeuTtsFamily().in_language("de")
    layout = german.layout(tokenizer, codec_of(16))
    tokens = tokenizer.convert_ids_to_tokens(german.prompt_ids(tokenizer, layout, "guten tag.", Prompt("ja.", (0,))))
    spoken = tokens[tokens.index("<|TEXT_PROMPT_START|>") + 1 : tokens.index("<|TEXT_PROMPT_END|>")]
    assert "".join(spoken) == "de.Ġde."
    with pytest.raises(InvalidInputError, match=r"teacher\.language: observed zh"):
        NeuTtsFamily().in_language("zh")
    assert NeuTtsFamily().unreadable("so 你好") == "你好"


@pytest.mark.parametrize("absent", MARKERS)
def test_a_missing_marker_is_refused(tokenizer_of, codec_of, absent):
    kept = [token for token in MARKERS if token != absent]
    tokens = {token: 300 + place for place, token in enumerate(kept)} | {"<|speech_0|>": 310, "<|speech_1|>": 311}
    with pytest.raises(InvalidInputError) as refusal:
        NeuTtsFamily().layout(tokenizer_of(tokens, kept), codec_of(2))
    assert f"observed no token {absent}; allowed: a tokenizer of the NeuTTS family" in str(refusal.value)


def test_a_codec_of_other_size_is_refused(tokenizer, codec_of):
    with pytest.raises(InvalidInputError, match=r"no token <\|speech_16\|>"):
        NeuTtsFamily().layout(tokenizer, codec_of(17))


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_text_is_refused(tokenizer, codec_of, text):
    layout = NeuTtsFamily().layout(tokenizer, codec_of(16))
    with pytest.raises(InvalidInputError, match="text: observed empty"):
        NeuTtsFamily().prompt_ids(tokenizer, layout, text, Prompt("yes.", (1,)))


def test_unpublished_hours_must_be_stated(teacher):
    parts = (NeuTtsFamily(), None, teacher.tokenizer, teacher.layout, teacher.codec, teacher.folder, "0" * 64)
    with pytest.raises(InvalidInputError, match=r"next: set teacher\.training_hours"):
        _ = Teacher(*parts).training_hours
    stated = TeacherParams(family="neutts", source="x", training_hours=1234.5).training_hours
    assert Teacher(*parts, stated).training_hours == 1234.5
