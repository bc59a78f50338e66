"""Texts that no model is to be given: the command line refuses each in one line, before it loads a model."""

import pytest

pytestmark = pytest.mark.hostile

TEXTS = {
    "empty": "",
    "marks": "...",
    "emoji": "\U0001f600\u2764\ufe0f",
    "blank letters": "\u3164\u115f",
    "control token": "hi <|SPEECH_GENERATION_END|>",
    "another family's token": "hi <custom_token_2>",
    "sentencepiece's token": "hi </s>",
    "fullwidth token": "\uff1c\uff5cpad\uff5c\uff1e hi",
    "token parted invisibly": "<\u200b|pad|> hi",
    "escape": "hi \x1b]0;owned\x07",
    "eight-bit control": "hi \x9b2J",
    "line end of a log": "hi\x85INFO forged",
    "right to left": "hi \u202eolleh",
    "hidden tags": "hi \U000e0068",
    "marks without end": "a" + "\u0301" * 100_000,
    "a million characters": "a" * 1_000_000,
    "half a character": "hi \udcff",
    "no character": "hi \uffff",
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_cannot_be_spoken_is_refused(refused, tmp_path, case):
    line = refused("cli", ["say", "--out", str(tmp_path / "out.wav"), "--", TEXTS[case]])
    assert line.startswith("slimtts: text: observed ")
    assert len(line) < 300
    assert not (tmp_path / "out.wav").exists()
