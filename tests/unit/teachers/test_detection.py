"""Which family a folder is of, from its files alone."""

import json

import pytest

from slimtts.errors import InvalidInputError
from slimtts.teachers.detection import detect_family, stated_layers
from slimtts.teachers.nano import bundle_folder
from slimtts.testing.families import write_teacher_folder


@pytest.mark.parametrize("family", ["llasa", "neutts", "orpheus", "cosyvoice2"])
def test_each_family_shows_itself(tmp_path, family):
    folder = write_teacher_folder(family, tmp_path / "teacher", 21)
    assert detect_family(folder) == family
    assert stated_layers(folder) == 4


def test_the_bundled_teacher_is_nano_by_its_number_of_codes():
    assert detect_family(bundle_folder() / "teacher") == "nano"
    assert stated_layers(bundle_folder() / "teacher") == 12


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json"])
def test_any_of_the_tokenizers_files_tells(tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"<|speech_0|>": 151_671}))
    assert detect_family(tmp_path) == "neutts"


def test_a_converted_cosyvoice_is_one(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "slimtts_cosyvoice2"}')
    assert detect_family(tmp_path) == "cosyvoice2"


@pytest.mark.parametrize("tokens", [[], ["<|s_1|>", "s_0"], ["<|s_0|>", "<|speech_0|>"]])
def test_none_or_two_are_refused_in_one_line(tmp_path, tokens):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(InvalidInputError, match="name the family") as error:
        detect_family(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"num_hidden_layers": "many"}'])
def test_layers_that_are_not_stated_are_none(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert stated_layers(tmp_path) is None
