"""Who speaks, and in whose voice."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from slimtts.errors import InvalidInputError
from slimtts.results import VoicePrompt, Voices
from slimtts.speech import Speaker, sentences
from slimtts.stages.distill_student import save_model
from slimtts.teachers import loading
from slimtts.teachers.base import Prompt
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.model_folder import ORIGIN, VOICES
from slimtts.testing.families import write_teacher_folder
from slimtts.testing.tiny import NUM_CODES, BeepCodec

ANNA = VoicePrompt(text="so it is.", codes=[1, 2, 3])


@pytest.fixture
def student(tmp_path, monkeypatch):
    """The folder of a student of family llasa."""
    monkeypatch.setattr(loading.FAMILIES["llasa"], "load_codec", lambda *_: BeepCodec())
    params = loading.TeacherParams(family="llasa", source=str(write_teacher_folder("llasa", tmp_path / "t", NUM_CODES)))
    teacher = load_teacher(params)
    with torch.no_grad():
        teacher.model.get_output_embeddings().weight[teacher.layout.end_id] *= 0.5  # it says something first
    save_model(teacher.model, teacher, tmp_path / "student")
    return tmp_path / "student"


def test_a_released_student_speaks_in_the_voices_of_its_folder(student):
    Voices(voices={"anna": ANNA, "bea": VoicePrompt(text="", codes=[])}).write(student / VOICES)
    moved = student.rename(student.parent / "elsewhere")
    speaker = Speaker.load(moved)
    assert speaker.model.family.name == "llasa"
    assert speaker.voices == {"anna": Prompt("so it is.", (1, 2, 3), "anna"), "bea": Prompt(voice="bea")}
    samples = speaker.speak("yes", "anna")
    assert samples.dtype == "float32"
    assert len(samples) <= 30 * speaker.sample_rate_hz
    with pytest.raises(InvalidInputError, match="observed carl; allowed: anna, bea"):
        speaker.speak("yes", "carl")


def test_a_text_is_given_to_other_families_as_it_is(student, monkeypatch):
    speaker, asked = Speaker.load(student), []
    family = type(speaker.model.family)
    monkeypatch.setattr(family, "prompt_ids", lambda *given: asked.append(given[3]) or [1])
    speaker.speak("ja。")
    assert asked == ["ja。"]


def test_without_voices_the_model_chooses_and_a_name_is_refused(student):
    speaker = Speaker.load(student)
    assert speaker.voices == {}
    assert speaker._voice(None) == Prompt()
    with pytest.raises(InvalidInputError, match="came without voices"):
        speaker.speak("yes", "anna")


@pytest.mark.parametrize("text", ["so <|SPEECH_GENERATION_END|>", "...", "so\0", "so \u202e"])
def test_a_voice_with_a_text_that_nobody_can_have_said_is_refused(student, text):
    Voices(voices={"anna\x1b[2J": VoicePrompt(text=text, codes=[1])}).write(student / VOICES)
    with pytest.raises(InvalidInputError, match=r"voice anna\\x1b\[2J, text: observed") as error:
        Speaker.load(student)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("how", ["speak", "stream", "speak_with_draft"])
@pytest.mark.parametrize("text", ["hi <|SPEECH_GENERATION_END|>", "\U0001f600", "...", "hi \ud83d", "hi \0"])
def test_no_way_to_speak_takes_a_text_that_cannot_be_spoken(student, how, text):
    speaker = Speaker.load(student)
    draft = {"draft": student} if how == "speak_with_draft" else {}
    with pytest.raises(InvalidInputError, match=r"^text: observed"):
        getattr(speaker, how)(text, **draft)
    if not draft:
        with pytest.raises(InvalidInputError, match=r"^prompt text: observed"):
            getattr(speaker, how)("hi", prompt_text=text, prompt_codes=[1])


@pytest.mark.parametrize("content", ["", '{"voices": {"anna": "so it is"}}', None])
def test_damaged_voices_are_one_line(student, content):
    foreign = json.dumps({"voices": {"anna": {"text": "a", "codes": [NUM_CODES]}}})
    (student / VOICES).write_text(foreign if content is None else content)
    with pytest.raises(InvalidInputError, match=r"voices\.json") as error:
        Speaker.load(student)
    assert "\n" not in str(error.value)


def test_a_folder_of_before_is_of_the_bundled_family_with_its_voices(tmp_path):
    from slimtts.teachers.nano import bundle_folder

    shutil.copytree(bundle_folder() / "teacher", tmp_path / "old")
    assert not (tmp_path / "old" / ORIGIN).exists()
    speaker = Speaker.load(tmp_path / "old")
    assert set(speaker.voices) == {"slt", "rms", "awb"}
    assert speaker.decoding.max_new_tokens == 160
    Voices(voices={"mine": ANNA}).write(tmp_path / "old" / VOICES)
    assert set(Speaker.load(tmp_path / "old").voices) == {"mine"}


class WindowedBeep(BeepCodec):
    """Beeps of one code do not reach into the next."""

    samples_per_frame, context_frames = 640, 0


def _pieces_of(student, codec, text, **wanted):
    speaker = Speaker.load(student)
    speaker = dataclasses.replace(speaker, model=dataclasses.replace(speaker.model, codec=codec))
    return speaker, list(speaker.stream(text, **wanted))


def test_a_stream_is_what_is_spoken_in_pieces(student):
    speaker, pieces = _pieces_of(student, WindowedBeep(), "yes. no.")
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate([piece.samples for piece in pieces]), speaker.speak("yes. no."))
    assert all(piece.lm_s > 0 for piece in pieces)


def test_a_codec_of_unknown_reach_gives_a_piece_a_sentence(student):
    speaker, pieces = _pieces_of(student, BeepCodec(), "yes. no.")
    spoken = [speaker.speak("yes."), speaker.speak("no.")]
    assert [len(piece.samples) for piece in pieces] == [len(samples) for samples in spoken]
    assert all(np.array_equal(piece.samples, samples) for piece, samples in zip(pieces, spoken, strict=True))


@pytest.mark.parametrize("codec", [BeepCodec(), WindowedBeep()])
def test_a_stream_that_nobody_wants_ends_at_the_next_code(student, codec):
    asked = []
    _, pieces = _pieces_of(student, codec, "yes. no.", is_wanted=lambda: asked.append(1) or len(asked) < 4)
    assert sum(len(piece.samples) for piece in pieces) <= 3 * 640
    assert 4 <= len(asked) <= 5


@pytest.mark.parametrize("text", ["", " ", "a" * 501])
def test_a_stream_refuses_before_its_first_piece(student, text):
    with pytest.raises(InvalidInputError):
        Speaker.load(student).stream(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one. two! three?", ["one.", "two!", "three?"]),
        ("version 1.5 is out. ok", ["version 1.5 is out.", "ok"]),
        ("\u662f\u3002\u5426\u3002", ["\u662f\u3002", "\u5426\u3002"]),
        ("well... !", ["well...!"]),
        ("no mark", ["no mark"]),
        ("... well. yes.", ["... well.", "yes."]),
        ("\U0001f600! hi. \u2764\ufe0f! \U0001f600.", ["\U0001f600! hi.\u2764\ufe0f!\U0001f600."]),
        ("", [""]),
    ],
)
def test_sentences(text, parts):
    assert sentences(text) == parts


def test_a_draft_changes_who_works_and_not_what_is_said(student):
    speaker = Speaker.load(student)
    alone = speaker.speak("so it is", "anna" if "anna" in speaker.voices else None)
    drafted, counts = speaker.speak_with_draft("so it is", student)
    assert np.allclose(drafted, alone, atol=1e-6)
    assert counts.acceptance == 1.0, "the model is its own draft here"
    assert counts.codes_per_target_pass > 1
    with pytest.raises(InvalidInputError, match="rule"):
        speaker.speak_with_draft("so it is", student, rule="guess")
