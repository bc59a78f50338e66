"""What this model's own tokenizer reads as a control token is refused in texts and prompts; its markup is not."""

import dataclasses

import pytest

from slimtts.errors import InvalidInputError
from slimtts.teachers import loading
from slimtts.teachers.base import Prompt
from slimtts.teachers.loading import load_teacher
from slimtts.testing.families import write_teacher_folder
from slimtts.testing.tiny import NUM_CODES, BeepCodec
from slimtts.testing.tokenizers import byte_tokenizer


@pytest.fixture
def with_tokens(teacher):
    """The tiny teacher, with further special and plain tokens in its tokenizer."""

    def make(specials, plain=(), **named):
        names = {token: 300 + place for place, token in enumerate((*specials, *plain))}
        tokenizer = byte_tokenizer(names, specials, chat_template=teacher.tokenizer.chat_template, **named)
        layout = dataclasses.replace(teacher.layout, first_code_id=400, end_id=500, pad_id=501)
        return dataclasses.replace(teacher, tokenizer=tokenizer, layout=layout)

    return make


@pytest.mark.parametrize("token", ["[INST]", "<start_of_turn>", "</s>", "[gMASK]"])
def test_special_tokens_are_refused_by_name(with_tokens, token):
    teacher = with_tokens([token], ["[laugh]"])
    line = f"observed control token '{token}'; allowed: text without control tokens"
    with pytest.raises(InvalidInputError, match=r"^text: ") as error:
        teacher.prompt_ids(f"well {token} then", Prompt())
    assert line in str(error.value)
    with pytest.raises(InvalidInputError, match=r"^prompt text: ") as error:
        teacher.prompt_ids("well", Prompt(f"so {token}", (1,)))
    assert line in str(error.value)
    assert teacher.prompt_ids("well [laugh] then [INS T]", Prompt("so", (1,)))


def test_a_character_that_the_tokenizer_does_not_know_is_no_control_token(with_tokens):
    teacher = with_tokens(["[UNK]"], unk_token="[UNK]")
    unknown = teacher.tokenizer.unk_token_id
    stub = dataclasses.replace(teacher, tokenizer=_Unknowing(teacher.tokenizer, unknown))
    stub._check_tokens("text", "strange")
    with pytest.raises(InvalidInputError, match=r"control token '\[UNK\]'"):
        stub._check_tokens("text", "strange [UNK]")


class _Unknowing:
    """A tokenizer to which every word is unknown."""

    def __init__(self, tokenizer, unknown):
        self._tokenizer, self._unknown = tokenizer, unknown

    def encode(self, text, add_special_tokens):
        return [self._unknown]

    def __len__(self):
        return len(self._tokenizer)

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


@pytest.mark.parametrize(
    ("family", "refused", "spoken"),
    [
        ("llasa", ["<|SPEECH_GENERATION_END|>", "<|TEXT_UNDERSTANDING_END|>"], ["<laugh>"]),
        ("orpheus", ["<custom_token_2>", "<custom_token_5>", "<|eot_id|>"], ["<laugh>", "<sigh>"]),
        ("cosyvoice2", ["<|endofprompt|>", "<|im_end|>"], ["[laughter]", "<strong>", "[breath]"]),
    ],
)
def test_each_family_refuses_its_tokens_and_reads_its_markup(tmp_path, monkeypatch, family, refused, spoken):
    monkeypatch.setattr(loading.FAMILIES[family], "load_codec", lambda *_: BeepCodec())
    source = str(write_teacher_folder(family, tmp_path / "t", NUM_CODES))
    teacher = load_teacher(loading.TeacherParams(family=family, source=source))
    for token in refused:
        with pytest.raises(InvalidInputError, match="observed control token"):
            teacher.prompt_ids(f"hello {token} there", Prompt())
    for markup in spoken:
        assert teacher.prompt_ids(f"hello {markup} there", Prompt())
