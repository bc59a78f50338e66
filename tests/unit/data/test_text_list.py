from pathlib import Path

import pytest

from slimtts.data.splits import Candidate
from slimtts.data.subset import select_subset
from slimtts.data.text_list import read_text_list
from slimtts.errors import InvalidInputError
from slimtts.params import load_params
from slimtts.stages import subset_data as stage
from slimtts.stages.teacher_speech import Take
from slimtts.workspace import Workspace

VOICES = {"anna", "peter", "zoe"}
SPOKEN = [Candidate("u1", "The golden island.", "anna", 1.0)]
HELD_OUT = [Candidate("t1", "A silver river.", "peter", 1.0)]


def read(path: Path, content: str | bytes, spoken=SPOKEN, seed: int = 1):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_text_list(path, VOICES, spoken, HELD_OUT, seed)


def test_lines_have_a_voice_of_their_own_or_a_drawn_one(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    rows, dropped = read(path, "\ufeffpeter\tOne more text.\r\n\n  \nAn open text.\n" + "zoe\tAn open text.\n")
    assert [(row.id, row.text) for row in rows[:2]] == [
        ("text-list-000001", "One more text."),
        ("text-list-000004", "An open text."),
    ]
    assert rows[0].voice == "peter" and rows[1].voice in VOICES and rows[-1].voice == "zoe"
    assert not dropped or dropped == {"text_list_repeated": 1}
    many = "".join(f"text number {i}\n" for i in range(60))
    drawn = [row.voice for row in read(path, many)[0]]
    assert set(drawn) == VOICES
    assert drawn == [row.voice for row in read(path, many)[0]] != [row.voice for row in read(path, many, seed=2)[0]]


def test_held_out_and_repeated_sentences_are_dropped_and_counted(tmp_path: Path) -> None:
    lines = ["anna\tthe GOLDEN island", "zoe\tthe golden island", "a silver river!", "zoe\tA silver river", "new words"]
    rows, dropped = read(tmp_path / "texts.txt", "\n".join([*lines, "new, words"]))
    assert [row.text for row in rows] == ["the golden island", "new words"]
    assert dropped == {"text_list_held_out": 2, "text_list_repeated": 2}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("fine text\n...\n", "texts.txt line 2: observed '...'"),
        ("text with <|marker|>\n", "line 1"),
        ("max\tsome text\n", "line 1: observed voice 'max'; allowed: voices of the train split: anna, peter, zoe"),
        ("\tsome text\n", "line 1: observed a tab without a voice"),
        ("anna\t\n", "line 1"),
        (b"\xff\n", "text_list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, one_line, content: str | bytes, what: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        read(tmp_path / "texts.txt", content)
    assert what in one_line(error.value)


def test_a_missing_file_and_a_taken_id_are_one_line(tmp_path: Path, one_line) -> None:
    with pytest.raises(InvalidInputError) as error:
        read_text_list(tmp_path / "absent.txt", VOICES, SPOKEN, HELD_OUT, 1)
    assert "absent.txt" in one_line(error.value)
    with pytest.raises(InvalidInputError) as error:
        read(tmp_path / "texts.txt", "some text", [Candidate("text-list-000001", "other", "anna", 1.0)])
    assert "is taken" in one_line(error.value)


def test_the_teacher_speaks_the_list_beside_its_other_texts(tmp_path: Path, teacher, monkeypatch) -> None:
    shipped = load_params(Path(__file__).parents[3] / "params.yaml")
    values = {"speech": "teacher", "selection_utterances": 5, "test_utterances": 8, "extra_texts": 3}
    knobs = shipped.subset_data.model_copy(update=values | {"text_list": "mine.txt", "max_share": 0.01})
    params = shipped.model_copy(update={"subset_data": knobs})
    workspace = Workspace(tmp_path / "run")
    workspace.root.mkdir()
    source = stage.open_source(params, teacher, workspace.root)
    subset = select_subset(source.candidates, knobs, 5.0, 0.4, 5.0)
    held_out = [row.text for row in (*subset.selection, *subset.test)]
    (workspace.root / "mine.txt").write_text("\n".join(["a\tSomething of my own.", *held_out, "Anything else."]))
    said = []

    def speak_lines(teacher, lines, *others):
        said.extend(lines)
        return [[Take((1,) * 20, line.text != "Anything else.", line.text, 0.0)] for line in lines]

    monkeypatch.setattr(stage, "speak_lines", speak_lines)
    monkeypatch.setattr(stage, "open_recognizer", lambda params: type("Nobody", (), {"name": "nobody"}))
    recorded = stage._utterances(subset.train, {row.id: source.codes_of(row.id) for row in subset.train})
    spoken, dropped = stage.speak(teacher, subset, recorded, params, workspace)
    assert len(said) == len(subset.train) + 3 + 2
    assert {line.text for line in said}.isdisjoint(held_out)
    (own,) = [row for row in spoken if row.text == "Something of my own."]
    assert (own.id, own.voice) == ("text-list-000001-spoken", "a")
    assert dropped == {"text_list_held_out": 13, "spoken_without_end": 1}
