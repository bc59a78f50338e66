"""A student's folder says how to open it, and carries its teacher's licence."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from slimtts.errors import InvalidInputError
from slimtts.params import TeacherParams
from slimtts.pruning.surgery import remove_layers
from slimtts.results import ModelOrigin
from slimtts.stages.distill_student import save_model
from slimtts.teachers import loading
from slimtts.teachers.model_folder import FAMILY_NAMES, ORIGIN, params_of, read_origin
from slimtts.teachers.nano import bundle_folder
from slimtts.testing.families import write_teacher_folder

NUM_CODES = 21


@pytest.fixture
def student_of(tmp_path, monkeypatch):
    """A student, saved, of a teacher of this family whose codec lies in the relative folder `codec`."""
    monkeypatch.chdir(tmp_path)
    Path("codec").mkdir()

    def make(family):
        codec = SimpleNamespace(num_codes=NUM_CODES, sample_rate_hz=16_000, frame_rate_hz=50.0)
        monkeypatch.setattr(loading.FAMILIES[family], "load_codec", lambda *_: codec)
        folder = write_teacher_folder(family, tmp_path / "teacher", NUM_CODES)
        (folder / "LICENSE").write_text("do as you like")
        (folder / "NOTICE.md").write_text("made by somebody")
        teacher = loading.load_teacher(TeacherParams(family=family, source="teacher", codec="codec"))
        save_model(remove_layers(teacher.model, [0, 3]), teacher, tmp_path / "student", [0, 3])
        return teacher

    return make


@pytest.mark.parametrize("family", ["llasa", "neutts", "orpheus", "cosyvoice2"])
def test_a_moved_student_still_opens_as_what_it_is(student_of, tmp_path, monkeypatch, family):
    teacher = student_of(family)
    (tmp_path / "far").mkdir()
    moved = (tmp_path / "student").rename(tmp_path / "far" / "away")
    monkeypatch.chdir(moved)
    params = params_of(moved)
    assert (params.family, params.codec) == (family, str(tmp_path / "codec"))
    student = loading.load_teacher(params)
    assert (student.num_layers, student.layout) == (2, teacher.layout)
    assert read_origin(moved) == ModelOrigin(
        family=family, codec=str(tmp_path / "codec"), teacher_source=str(tmp_path / "teacher"), teacher_revision="",
        teacher_sha256=teacher.weights_sha256, license=teacher.family.license, retained=[0, 3],
    )  # fmt: skip
    assert (moved / "LICENSE").read_text() == "do as you like"
    assert (moved / "NOTICE.md").read_text() == "made by somebody"


def test_the_names_of_families_are_the_registered_ones():
    assert set(FAMILY_NAMES) == set(loading.FAMILIES)


def test_a_family_that_is_not_known_is_one_line(student_of, tmp_path):
    student_of("llasa")
    path = tmp_path / "student" / ORIGIN
    path.write_text(json.dumps(json.loads(path.read_text()) | {"family": "parrot"}))
    with pytest.raises(InvalidInputError, match=r"slimtts\.json: observed family 'parrot'; allowed: nano") as error:
        params_of(tmp_path / "student")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "{}", '{"family": 3}', "[]"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / ORIGIN).write_text(content)
    with pytest.raises(InvalidInputError, match=r"slimtts\.json") as error:
        params_of(tmp_path)
    assert "\n" not in str(error.value)


def test_a_codec_that_is_gone_is_named(student_of, tmp_path):
    student_of("llasa")
    (tmp_path / "codec").rmdir()
    with pytest.raises(InvalidInputError, match="codec, where nothing is"):
        params_of(tmp_path / "student")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidInputError, match=r"absent: observed no such folder"):
        params_of(tmp_path / "absent")


def test_a_folder_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="tokens of no known family"):
        params_of(tmp_path)


@pytest.mark.parametrize("family", ["llasa", "neutts", "orpheus", "cosyvoice2"])
def test_a_folder_without_an_origin_is_what_its_files_show(tmp_path, family):
    folder = write_teacher_folder(family, tmp_path / "teacher", NUM_CODES)
    codec = str(folder) if family == "cosyvoice2" else ""
    assert params_of(folder) == TeacherParams(family=family, source=str(folder), codec=codec)


def test_the_bundled_teachers_folder_is_of_family_nano():
    folder = bundle_folder() / "teacher"
    assert params_of(folder) == TeacherParams(family="nano", source=str(folder))


def test_a_student_is_read_in_its_teachers_language(tmp_path, monkeypatch):
    codec = SimpleNamespace(num_codes=NUM_CODES, sample_rate_hz=16_000, frame_rate_hz=50.0)
    monkeypatch.setattr(loading.FAMILIES["neutts"], "load_codec", lambda *_: codec)
    write_teacher_folder("neutts", tmp_path / "teacher", NUM_CODES)
    params = TeacherParams(family="neutts", source=str(tmp_path / "teacher"), language="de")
    teacher = loading.load_teacher(params)
    save_model(remove_layers(teacher.model, [0, 3]), teacher, tmp_path / "student", [0, 3])
    assert params_of(tmp_path / "student").language == "de"
    student = loading.load_teacher(params_of(tmp_path / "student"))
    assert student.family.language == loading.load_beside(teacher, tmp_path / "student").family.language == "de"
    origin = json.loads((tmp_path / "student" / ORIGIN).read_text())
    del origin["language"]  # as it was written before
    (tmp_path / "student" / ORIGIN).write_text(json.dumps(origin))
    assert params_of(tmp_path / "student").language == "en"
    with pytest.raises(InvalidInputError, match=r"teacher\.language: observed zh"):
        loading.load_teacher(params.model_copy(update={"language": "zh"}))
