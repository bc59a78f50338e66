"""Shards of the spoken corpus are made once, and again where they are not what was written."""

import numpy as np
import pytest

from slimtts.nano import speech_synthesis
from slimtts.nano.speech_synthesis import SpokenUtterance, make_corpus, read_corpus


@pytest.fixture
def spoken(monkeypatch):
    """Utterances made so far; flite is not asked."""
    made = []

    def speak(utterance_id, text, voice):
        made.append(utterance_id)
        clip = np.full(640, len(text), dtype=np.int16)
        return SpokenUtterance(utterance_id, text, voice, "train", len(clip), [("a", 0.04)], [0.04]), clip

    monkeypatch.setattr(speech_synthesis, "speak_utterance", speak)
    monkeypatch.setattr(speech_synthesis, "require_flite", lambda: "flite")
    monkeypatch.setattr(speech_synthesis, "UTTERANCES_PER_SHARD", 3)
    return made


DAMAGE = {
    "a flipped bit of sound": lambda folder: (folder / "shard-0001.npy").write_bytes(
        (folder / "shard-0001.npy").read_bytes()[:-1] + b"\xff"
    ),
    "a truncated list": lambda folder: (folder / "shard-0001.jsonl").write_text("{"),
    "no sound": lambda folder: (folder / "shard-0001.npy").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_spoken_again_and_no_other(tmp_path, spoken, damage):
    make_corpus(tmp_path, 9, seed=1)
    before = [(u.id, u.text, clip.tolist()) for u, clip in read_corpus(tmp_path)]
    assert len(spoken) == len(before) == 9
    damage(tmp_path)
    make_corpus(tmp_path, 9, seed=1)
    assert spoken[9:] == [f"nano-0001-{number:03d}" for number in range(3)]
    assert [(u.id, u.text, clip.tolist()) for u, clip in read_corpus(tmp_path)] == before


def test_shards_of_an_earlier_version_are_kept_with_a_line(tmp_path, spoken, capsys):
    make_corpus(tmp_path, 3, seed=1)
    (tmp_path / ".hashes" / "shard-0000.json").unlink()
    make_corpus(tmp_path, 3, seed=1)
    assert len(spoken) == 3 and "its content is not verified" in capsys.readouterr().out
