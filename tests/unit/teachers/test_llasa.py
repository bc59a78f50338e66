"""LLaSA at its published ids: 128,256 text tokens, 8 markers, 65,536 codes, and padding after them."""

import pytest

from slimtts.errors import InvalidInputError
from slimtts.params import TeacherParams
from slimtts.teachers import loading
from slimtts.teachers.base import Prompt
from slimtts.teachers.llasa import LlasaFamily
from slimtts.testing.tiny import tiny_model

MARKERS = [
    "<|TEXT_GENERATION_START|>", "<|TEXT_GENERATION_END|>", "<|TEXT_UNDERSTANDING_START|>",
    "<|TEXT_UNDERSTANDING_END|>", "<|SPEECH_GENERATION_START|>", "<|SPEECH_GENERATION_END|>",
    "<|SPEECH_UNDERSTANDING_START|>", "<|SPEECH_UNDERSTANDING_END|>",
]  # fmt: skip
HEADER = {
    "<|begin_of_text|>": 128_000,
    "<|start_header_id|>": 128_006,
    "<|end_header_id|>": 128_007,
    "<|eot_id|>": 128_009,
}
# The parts of the Llama-3.2 template that decide ids here: a dated system turn, then role headers.
TEMPLATE = """{{ '<|begin_of_text|>' }}
{%- if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n<|eot_id|>' }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}"""


@pytest.fixture(scope="module")
def tokenizer(tokenizer_of):
    codes = {f"<|s_{code}|>": 128_264 + code for code in range(65_536)}
    markers = {token: 128_256 + place for place, token in enumerate(MARKERS)}
    return tokenizer_of({**HEADER, **markers, **codes}, [*HEADER, *MARKERS], chat_template=TEMPLATE)


def test_ids_of_the_zero_shot_prompt(tokenizer, codec_of):
    family = LlasaFamily()
    layout = family.layout(tokenizer, codec_of(65_536))
    assert (layout.first_code_id, layout.num_codes, layout.end_id) == (128_264, 65_536, 128_261)
    ids = family.prompt_ids(tokenizer, layout, "So it is.", Prompt("Yes.", (0, 65_535)))
    letters = tokenizer.convert_tokens_to_ids

    def text(words):
        return letters(list(words.replace(" ", "Ġ").replace("\n", "Ċ")))

    assert ids == [
        128_000, 128_006, *text("system"), 128_007, *text("\n\nToday Date: 26 Jul 2024\n\n"), 128_009,
        128_006, *text("user"), 128_007, *text("\n\nConvert the text to speech:"),
        128_258, *text("Yes. So it is."), 128_259, 128_009,
        128_006, *text("assistant"), 128_007, *text("\n\n"), 128_260, 128_264, 193_799,
    ]  # fmt: skip
    empty = family.textless_prompt_ids(tokenizer, layout, Prompt("Yes.", (7,)))
    assert empty[-2:] == [128_260, 128_271]
    assert empty[empty.index(128_258) :][:2] == [128_258, 128_259]


def test_a_codec_of_other_size_is_refused(tokenizer, codec_of):
    with pytest.raises(InvalidInputError, match=r"no token <\|s_65536\|>; allowed: a tokenizer of the LLaSA family"):
        LlasaFamily().layout(tokenizer, codec_of(65_537))


def test_codes_that_are_not_one_block_are_refused(tokenizer_of, codec_of):
    codes = {"<|s_0|>": 310, "<|s_1|>": 312, "<|s_2|>": 311, "<|s_3|>": 313}
    mixed = tokenizer_of({token: 300 + place for place, token in enumerate(MARKERS)} | codes, MARKERS)
    with pytest.raises(InvalidInputError, match=r"<\|s_1\|> has id 312; allowed: 311; next: use the codec"):
        LlasaFamily().layout(mixed, codec_of(4))


def test_a_checkpoint_without_a_row_for_every_token_is_refused(monkeypatch, teacher, codec_of, tmp_path):
    monkeypatch.setattr(LlasaFamily, "load_codec", lambda *_: codec_of(16))
    loaded = loading.load_teacher(TeacherParams(family="llasa", source=str(teacher.folder)))
    rows = len(loaded.tokenizer)
    assert loaded.model.get_input_embeddings().num_embeddings == rows
    assert loaded.training_hours == 250_000
    tiny_model(vocab_size=rows - 1).save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=f"{rows - 1} embedding rows.*; allowed: at least {rows}"):
        loading.load_teacher(TeacherParams(family="llasa", source=str(tmp_path)), with_model=False)


def test_nothing_but_nano_is_bundled():
    with pytest.raises(InvalidInputError, match="'bundled' for family llasa; allowed: a folder or a hub id"):
        loading.load_teacher(TeacherParams(family="llasa", source="bundled"))
