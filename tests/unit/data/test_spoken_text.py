"""One verdict on a text to be spoken, and one line, whichever door it comes through."""

import json

import pytest

from slimtts.cli import main
from slimtts.data.benchmark_files import read_seed_tts_eval
from slimtts.data.manifest import audio_entry, read_audio_manifest, read_prompted_manifest, read_utterances
from slimtts.data.spoken_text import LONGEST_AT_ONCE, LONGEST_IN_CORPUS, check_spoken_text, check_text_to_speak
from slimtts.data.text_list import read_text_list
from slimtts.errors import InvalidInputError

NO_CONTROL = "text without control tokens"
NO_WORD = "text with at least one word"
HIDING = "text without characters that hide or reorder others"
WHOLE = "whole characters, as UTF-8 has them"
PLAIN = "text without control characters"
REFUSED = {
    "empty": ("", "empty", NO_WORD),
    "blanks": (" \t\u3000\n", "empty", NO_WORD),
    "marks": ("...?!", "'...?!'", NO_WORD),
    "emoji": ("\U0001f600", "'\U0001f600'", NO_WORD),
    "emoji with a selector": ("\u2764\ufe0f", "'\u2764\ufe0f'", NO_WORD),
    "family emoji": ("\U0001f468\u200d\U0001f469", "'\U0001f468\\u200d\U0001f469'", NO_WORD),
    "accents alone": ("\u0301\u0308", "'\u0301\u0308'", NO_WORD),
    "blank letters": ("\u3164\u115f\uffa0", "'\u3164\u115f\uffa0'", NO_WORD),
    "LLaSA's token": ("hi <|SPEECH_GENERATION_END|>", "control token '<|SPEECH_GENERATION_END|>'", NO_CONTROL),
    "LLaSA's code": ("<|s_17|>", "control token '<|s_17|>'", NO_CONTROL),
    "half a token": ("hello <|", "control token '<|'", NO_CONTROL),
    "Orpheus' token": ("hi <custom_token_2>", "control token '<custom_token_2>'", NO_CONTROL),
    "capitals": ("hi <CUSTOM_TOKEN_2>", "control token '<custom_token_2>'", NO_CONTROL),
    "sentencepiece's": ("hi </s>", "control token '</s>'", NO_CONTROL),
    "fullwidth": ("\uff1c\uff5ceot_id\uff5c\uff1e hi", "control token '<|eot_id|>'", NO_CONTROL),
    "small forms": ("\ufe64|eot_id|\ufe65 hi", "control token '<|eot_id|>'", NO_CONTROL),
    "parted invisibly": ("<\u200b|eot_id|> hi", "control token '<|eot_id|>'", NO_CONTROL),
    "parted by an accent": ("<\u0338|eot_id|> hi", "control token '<|eot_id|>'", NO_CONTROL),
    "half an emoji": ("hi \ud83d", "half a character U+D83D", WHOLE),
    "byte that is no UTF-8": ("hi \udcff", "half a character U+DCFF", WHOLE),
    "NUL": ("hi\0", "control character U+0000", PLAIN),
    "escape": ("hi \x1b[2J", "control character U+001B", PLAIN),
    "eight-bit control": ("hi \x9b2J", "control character U+009B", PLAIN),
    "no character": ("hi \uffff", "control character U+FFFF", PLAIN),
    "right to left": ("hi \u202eolleh", "invisible character U+202E", HIDING),
    "isolate": ("hi \u2066x", "invisible character U+2066", HIDING),
    "hidden tags": ("hi \U000e0068\U000e0069", "invisible character U+E0068", HIDING),
    "marks without end": ("a" + "\u0301" * 9, "more than 8 marks on one letter", "letters as they are written"),
    "absurd length": (
        "a" * (LONGEST_IN_CORPUS + 1), "2001 characters",
        "at most 500 to speak at once, 2000 in a row of a corpus; sentence by sentence",
    ),
}  # fmt: skip
ACCEPTED = {
    "plain": "the green tiger.",
    "digits": "1234",
    "lines": "one line,\r\nand another\tone",
    "emoji beside words": "good morning \U0001f600\ufe0f",
    "brackets": "3 < 4 | 5 > 2, <laugh> and [breath]",
    "Hindi": "\u0928\u092e\u0938\u094d\u0924\u0947",
    "Persian joiner": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \u200f(\u0633\u0644\u0627\u0645)",
    "Vietnamese, decomposed": "Vie\u0323\u0302t Nam",
    "Hebrew with cantillation": "\u05d1\u05b0\u05bc\u05e8\u05b5\u05d0\u05e9\u05b4\u05c1\u0596\u05d9\u05ea",
    "Chinese": "\u4f60\u597d\u3002",
    "soft hyphen": "un\u00adder",
}
AUDIO = {"id": "u1", "voice": "v", "audio": "a.wav"}


def line_of(fault_of, *arguments, **named):
    with pytest.raises(InvalidInputError) as error:
        fault_of(*arguments, **named)
    return str(error.value)


def verdict(line):
    """What every door says alike: all but where."""
    assert line.isprintable(), line
    return line[line.index("observed ") :]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_spoken_is_named(case):
    text, observed, allowed = REFUSED[case]
    expected = f"text: observed {observed}; allowed: {allowed}; next: correct this text or leave it out"
    assert line_of(check_spoken_text, text) == expected
    assert verdict(line_of(check_text_to_speak, text)) == verdict(line_of(check_spoken_text, text))


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_can_be_spoken_is_accepted(case):
    check_text_to_speak(ACCEPTED[case])


def test_a_row_of_a_corpus_may_be_longer_than_what_is_spoken_at_once():
    check_text_to_speak("a" * LONGEST_AT_ONCE)
    check_spoken_text("a" * LONGEST_IN_CORPUS)
    assert "observed 501 characters; allowed: at most 500" in line_of(check_text_to_speak, "a" * 501)


# Half characters cannot be in a UTF-8 file: readers of JSON refuse their escapes themselves.
WRITTEN = {case: text for case, (text, *_) in REFUSED.items() if not any("\ud800" <= c <= "\udfff" for c in text)}


@pytest.mark.parametrize("case", WRITTEN)
def test_every_door_gives_the_same_line(tmp_path, case, capsys):
    text = WRITTEN[case]
    expected = verdict(line_of(check_spoken_text, text))
    path = tmp_path / "rows.jsonl"
    utterance = {"id": "u1", "voice": "v", "codes": [1], "duration_s": 1.0}
    prompted = {"id": "u1", "prompt_text": "well", "prompt_codes": [1]}
    for reader, row in (
        (read_audio_manifest, AUDIO | {"text": text}),
        (read_utterances, utterance | {"text": text}),
        (read_prompted_manifest, prompted | {"text": text}),
        (read_prompted_manifest, prompted | {"text": "well", "prompt_text": text}),
    ):
        path.write_text(json.dumps(row) + "\n")
        line = line_of(reader, path)
        assert verdict(line) == expected
        assert line.startswith("rows.jsonl line 1, utterance 'u1', ")
    assert verdict(line_of(audio_entry, AUDIO | {"text": text}, "row 3")) == expected
    assert main(["say", "--out", str(tmp_path / "out.wav"), "--", text]) == 2
    assert verdict(capsys.readouterr().err.rstrip("\n")) == expected
    assert not (tmp_path / "out.wav").exists()
    if not set(text) & set("\n\t|") and text.strip():
        path.write_text(text)
        assert verdict(line_of(read_text_list, path, {"v"}, [], [], 1)) == expected
        path.write_text(f"u1|{text}|p.wav|words")
        assert verdict(line_of(read_seed_tts_eval, path)) == expected


@pytest.mark.parametrize("half", ["\\ud83d", "\\ude00"])
def test_half_an_emoji_in_a_manifest_is_refused_in_one_line(tmp_path, half):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(AUDIO).replace("}", f', "text": "hi {half}"}}'))
    line = line_of(read_audio_manifest, path)
    assert line.isprintable()
    assert line.startswith("rows.jsonl line 1")
    assert line_of(audio_entry, AUDIO | {"text": "hi \ud83d"}, "row 3").isprintable()
