"""The prompt layout, pinned literally."""

import pytest

from slimtts.errors import InvalidInputError
from slimtts.teachers import llasa
from slimtts.teachers.base import Prompt


def test_zero_shot_prompt_is_text_then_prompt_codes(teacher):
    ids = teacher.prompt_ids("the green tiger.", Prompt("anna found my apple.", (3, 0, 15)))
    assert teacher.tokenizer.convert_ids_to_tokens(ids) == [
        "<|begin_of_text|>", "Convert the text to speech:", "<|TEXT_UNDERSTANDING_START|>",
        "Ġanna", "Ġfound", "Ġmy", "Ġapple", ".", "Ġthe", "Ġgreen", "Ġtiger", ".",
        "<|TEXT_UNDERSTANDING_END|>", "<|SPEECH_GENERATION_START|>", "<|s_3|>", "<|s_0|>", "<|s_15|>",
    ]  # fmt: skip


def test_without_a_prompt_the_model_chooses_the_voice(teacher):
    tokens = teacher.tokenizer.convert_ids_to_tokens(teacher.prompt_ids("anna.", Prompt()))
    assert tokens[-4:] == ["Ġanna", ".", "<|TEXT_UNDERSTANDING_END|>", "<|SPEECH_GENERATION_START|>"]


def test_codes_and_ids_are_inverse_and_stop_at_end(teacher):
    layout = teacher.layout
    ids = layout.to_ids([0, 7, 15])
    assert ids == [layout.first_code_id, layout.first_code_id + 7, layout.first_code_id + 15]
    assert layout.to_codes([*ids, layout.end_id, layout.first_code_id]) == [0, 7, 15]


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_empty_text_is_refused(teacher, text):
    with pytest.raises(InvalidInputError, match=r"text: observed empty; allowed: at least one word"):
        teacher.prompt_ids(text, Prompt())


def test_wrong_codec_is_refused(teacher):
    with pytest.raises(InvalidInputError, match=r"no token <\|s_31\|>"):
        llasa.speech_layout(teacher.tokenizer, 32)


def test_a_tokenizer_without_markers_is_refused(teacher, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(InvalidInputError, match=r"allowed: a tokenizer of the LLaSA family"):
        llasa.speech_layout(plain, 16)
