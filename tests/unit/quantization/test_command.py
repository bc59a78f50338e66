"""`slimtts quantize` on a student's folder, and the commands that open what it wrote."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from slimtts.commands import quantize
from slimtts.errors import InvalidInputError
from slimtts.params import load_params, parse_params
from slimtts.quantization.sparsity import decoder_linears, is_two_of_four
from slimtts.speech import Speaker
from slimtts.teachers.checkpoint import load_language_model
from slimtts.teachers.nano import bundle_folder

SENTENCE = "Anna sees seven tigers."


def run(*words):
    parser = argparse.ArgumentParser()
    quantize.add_arguments(parser)
    quantize.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    out = tmp_path_factory.mktemp("quantised") / "int8"
    run("--model", bundle_folder() / "teacher", "--variant", "int8", "--out", out, "--json")
    return out


def test_the_bundled_teacher_in_8_bit_speaks_almost_the_same(int8):
    full, light = Speaker.load(), Speaker.load(int8)
    assert set(light.voices) == set(full.voices)
    heard, meant = light.speak(SENTENCE), full.speak(SENTENCE)
    assert 0.5 * len(meant) < len(heard) < 2 * len(meant) and np.abs(heard).max() > 0.01
    stored = {folder: (folder / "model.safetensors").stat().st_size for folder in (int8, bundle_folder() / "teacher")}
    assert stored[int8] < 0.7 * stored[bundle_folder() / "teacher"]


def test_it_tells_sizes_to_people_and_to_programs(teacher, tmp_path, capsys):
    run("--model", teacher.folder, "--variant", "fp8", "--out", tmp_path / "fp8", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["variant"] == "fp8" and told["loaded_mb"] < told["loaded_before_mb"]
    run("--model", teacher.folder, "--variant", "sparse24", "--out", tmp_path / "sparse")
    assert "MB in memory on a CPU" in capsys.readouterr().out
    assert all(is_two_of_four(x.weight) for x in decoder_linears(load_language_model(tmp_path / "sparse")).values())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--variant", "int4"], "variant: observed 'int4'"),
        (["--variant", "int8", "--out", "."], "which exists"),
        (["--variant", "int8", "--run", "nowhere"], "sparse24 or sparse24_int8 only"),
        (["--variant", "sparse24", "--run", "nowhere"], "without data/train.jsonl"),
        (["--variant", "int8", "--model", "nowhere"], "no config.json"),
    ],
)
def test_wrong_orders_are_refused_before_anything_is_written(words, told, teacher, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InvalidInputError, match=told):
        run("--model", teacher.folder, "--out", out, *words)
    assert not out.exists()


def test_params_refuse_unknown_variants_and_name_the_known_ones():
    values = load_params(Path(__file__).parents[3] / "params.yaml").model_dump(mode="json")
    values["evaluate_student"]["variants"] = ["int8", "int3"]
    with pytest.raises(InvalidInputError, match=r"evaluate_student\.variants\.1 = 'int3'.*'int8', 'fp8', 'sparse24'"):
        parse_params(values, "params.yaml")
