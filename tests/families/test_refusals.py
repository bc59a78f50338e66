"""What a person gets wrong between a family and a stage: one line each, with what to install or to change."""

import builtins
import json

import pytest

from slimtts.data import phonemes
from slimtts.errors import InvalidInputError
from slimtts.stages.subset_data import subset_data
from slimtts.teachers import loading, neutts
from slimtts.testing.families import TOKEN_KINDS, write_teacher_folder
from slimtts.testing.toy_speech import NUM_CODES, FrameCodec, write_toy_corpus
from slimtts.workspace import Workspace

from .conftest import FAMILIES, params_for

CODEC = FrameCodec(24_000)


@pytest.fixture
def refused(tmp_path, monkeypatch, one_line):
    """Runs a stage on an untaught teacher and gives the one line that it ends with."""
    monkeypatch.setattr(neutts, "phonemes", lambda text, _: text.upper())
    for family in FAMILIES:
        monkeypatch.setattr(loading.FAMILIES[family], "load_codec", lambda *_: CODEC)

    def run(stage, family, source=None, data=None, **changes):
        folder = source or write_teacher_folder(family, tmp_path / family, NUM_CODES)
        data = data or write_toy_corpus(tmp_path / "speech", CODEC, ("anna",))
        with pytest.raises(InvalidInputError) as error:
            stage(params_for(family, folder, data, **changes), Workspace(tmp_path / "run"))
        assert not Workspace(tmp_path / "run").data.exists()
        return one_line(error.value)

    return run


@pytest.fixture
def one_line():
    def check(error):
        assert len(str(error).splitlines()) == 1
        return str(error)

    return check


def test_an_unknown_family_is_refused_before_anything_is_opened(tmp_path, one_line):
    with pytest.raises(InvalidInputError) as error:
        params_for("parler", tmp_path, tmp_path)
    assert "teacher.family = 'parler'; allowed: teacher.family: Input should be 'nano', 'llasa'" in one_line(
        error.value
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_data_of_another_codec_are_refused(family, tmp_path, refused):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"id": "u", "text": "ani.", "voice": "anna", "codes": [0, NUM_CODES]}) + "\n")
    told = refused(subset_data, family, data=manifest)
    assert told == (
        f"manifest.jsonl line 1, utterance 'u': observed code {NUM_CODES}; allowed: 0..{NUM_CODES - 1}; "
        "next: encode again with this teacher's codec"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_only_nano_brings_data_along(family, refused):
    told = refused(subset_data, family, subset_data={"source": "bundled"})
    assert "observed bundled; allowed: for this teacher, which came without a corpus, the path of a manifest" in told


def test_hours_that_nobody_published_must_be_stated(refused):
    told = refused(subset_data, "neutts", teacher={"training_hours": None}, subset_data={"speech": "corpus"})
    assert told.endswith("set teacher.training_hours to the hours that subset_data.max_share is to be a share of")


@pytest.mark.parametrize("family", TOKEN_KINDS)
def test_a_checkpoint_of_one_family_is_not_opened_as_another(family, tmp_path, refused):
    other = {"llasa": "orpheus", "neutts": "llasa", "orpheus": "neutts"}[family]
    told = refused(subset_data, family, source=write_teacher_folder(other, tmp_path / "other", NUM_CODES))
    assert told.endswith(f"observed a model of family {other}; allowed: family {family}; next: name family {other}")


def test_phonemes_need_their_packages_when_the_teacher_reads_its_first_text(refused, tmp_path, monkeypatch):
    imported = builtins.__import__

    def absent(name, *args, **named):
        if name.startswith(("phonemizer", "espeakng_loader")):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return imported(name, *args, **named)

    phonemes._espeak.cache_clear()
    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.setattr(neutts, "phonemes", phonemes.phonemes)
    told = refused(subset_data, "neutts", subset_data={"speech": "teacher"}, recogniser={"model": "bundled"})
    assert told.startswith("phonemes: observed the package ") and told.endswith("next: install slimtts[neutts]")
