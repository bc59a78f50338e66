import dataclasses
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from slimtts.codec.nano_codec import NanoCodec
from slimtts.data import code_cache
from slimtts.data.code_cache import cache_folder, codec_fingerprint, encode_recordings
from slimtts.data.sound_files import BadAudioError
from slimtts.data.speech_source import CodecFacts, FileRecording, encode_alone
from slimtts.testing.tiny import BeepCodec
from tests.unit.data.conftest import noise


class Counting:
    """The codec's encode; it remembers its batches and may be killed before one of them."""

    def __init__(self, facts: CodecFacts, fails_at: int | None = None) -> None:
        self.batches: list[tuple[int, int]] = []
        self._encode, self._fails_at = facts.encode, fails_at
        self.facts = dataclasses.replace(facts, encode=self)

    def __call__(self, waves: torch.Tensor) -> torch.Tensor:
        if len(self.batches) == self._fails_at:
            raise KeyboardInterrupt
        self.batches.append((len(waves), waves.shape[1]))
        return self._encode(waves)

    @property
    def rows(self) -> int:
        return sum(count for count, _ in self.batches)


@pytest.fixture
def recordings(tmp_path: Path) -> dict[str, FileRecording]:
    """Twelve recordings of four lengths, two of them resampled, and a copy of each of the first three."""
    made = {}
    for index in range(12):
        rate_hz = 24_000 if index in (5, 6) else 16_000
        soundfile.write(tmp_path / f"{index}.wav", noise(0.3 + 0.1 * (index % 4), rate_hz, index), rate_hz)
        made[f"u{index}"] = FileRecording(f"u{index}", tmp_path / f"{index}.wav")
    for index in range(3):
        (tmp_path / f"copy{index}.wav").write_bytes((tmp_path / f"{index}.wav").read_bytes())
        made[f"copy{index}"] = FileRecording(f"copy{index}", tmp_path / f"copy{index}.wav")
    return made


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(code_cache, "ROWS_A_SHARD", 5)
    folder = tmp_path / "shards"
    folder.mkdir()
    return folder


def contents(folder: Path) -> dict[str, dict[str, list[int]]]:
    return {p.name: {k: v.tolist() for k, v in np.load(p).items()} for p in folder.iterdir()}


def test_codes_equal_those_of_every_recording_alone(facts, recordings, shards: Path) -> None:
    counting, done = Counting(facts), []
    encoded = encode_recordings(recordings, counting.facts, shards, False, done.append)
    assert encoded.codes == {name: encode_alone(recording, facts) for name, recording in recordings.items()}
    assert not encoded.unusable and sum(done) == len(recordings)
    assert len(list(shards.iterdir())) == 3 and max(count for count, _ in counting.batches) > 1


def test_padding_changes_codes_so_only_equal_lengths_share_a_batch(codec: NanoCodec) -> None:
    differing = 0
    for seed in range(20):
        wave = torch.from_numpy(noise(0.4 - seed / 320, seed=seed))[None]
        alone = codec.encode(wave)[0]
        padded = codec.encode(torch.nn.functional.pad(wave, (0, 16_000)))[0][: len(alone)]
        differing += int((alone != padded).sum())
    assert differing > 0


def test_equal_sound_is_encoded_once(facts, recordings, shards: Path) -> None:
    counting = Counting(facts)
    encoded = encode_recordings(recordings, counting.facts, shards, False)
    assert counting.rows == 12 and len(encoded.codes) == 15
    assert all(encoded.codes[f"copy{i}"] == encoded.codes[f"u{i}"] for i in range(3))


def test_a_full_cache_encodes_nothing_and_a_larger_choice_only_what_is_new(facts, recordings, shards: Path) -> None:
    some = {name: recordings[name] for name in list(recordings)[:7]}
    first = Counting(facts)
    encode_recordings(some, first.facts, shards, False)
    again = Counting(facts)
    assert encode_recordings(some, again.facts, shards, False).codes.keys() == some.keys()
    assert not again.batches
    more = Counting(facts)
    assert encode_recordings(recordings, more.facts, shards, False).codes.keys() == recordings.keys()
    assert first.rows + more.rows == 12


def test_interrupted_and_resumed_equals_uninterrupted_and_encodes_no_shard_twice(
    facts, recordings, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    whole = Counting(facts)
    expected = encode_recordings(recordings, whole.facts, tmp_path / "whole", False)
    broken = Counting(facts, fails_at=len(whole.batches) - 1)
    with pytest.raises(KeyboardInterrupt):
        encode_recordings(recordings, broken.facts, shards, False)
    assert len(list(shards.iterdir())) == 2  # ten recordings are safe
    resumed = Counting(facts)
    assert encode_recordings(recordings, resumed.facts, shards, False) == expected
    assert resumed.rows == 2
    assert contents(shards) == contents(tmp_path / "whole")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_code(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"codes.npy") + 200] ^= 1
    path.write_bytes(data)


def unknown_code(path: Path) -> None:
    shard = dict(np.load(path))
    shard["codes"][0] = 4096
    np.savez(path, **shard)


def other_offsets(path: Path) -> None:
    shard = dict(np.load(path))
    np.savez(path, **{**shard, "offsets": shard["offsets"][:-1]})


def no_codes(path: Path) -> None:
    shard = dict(np.load(path))
    del shard["codes"]
    np.savez(path, **shard)


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_code, unknown_code, other_offsets, no_codes])
def test_a_damaged_shard_is_made_anew(facts, recordings, shards: Path, damage) -> None:
    expected = encode_recordings(recordings, facts, shards, False)
    sound = contents(shards)
    damage(sorted(shards.iterdir())[1])
    counting = Counting(facts)
    assert encode_recordings(recordings, counting.facts, shards, False) == expected
    assert 2 <= counting.rows <= 5 and contents(shards) == sound


def damaged(recordings: dict[str, FileRecording]) -> dict[str, FileRecording]:
    path = recordings["u3"].path
    soundfile.write(path, np.full(8_000, np.nan, dtype=np.float32), 16_000, "FLOAT")
    recordings["u4"].path.unlink()
    recordings["copy1"].path.write_bytes(path.read_bytes())
    return recordings


def test_bad_recordings_are_left_out_and_named_when_that_is_wanted(facts, recordings, shards: Path) -> None:
    encoded = encode_recordings(damaged(recordings), facts, shards, True)
    reasons = {"u3": "audio_not_finite", "copy1": "audio_not_finite", "u4": "audio_missing"}
    assert encoded.unusable == reasons
    assert encoded.codes.keys() == recordings.keys() - reasons.keys()


def test_a_bad_recording_stops_by_name_otherwise(facts, recordings, shards: Path, one_line) -> None:
    with pytest.raises(BadAudioError) as error:
        encode_recordings(damaged(recordings), facts, shards, False)
    assert "utterance 'u4'" in one_line(error.value)


def test_another_codec_has_another_folder_and_the_former_one_goes(codec: NanoCodec, tmp_path: Path) -> None:
    marks = {
        codec_fingerprint(codec, "nano"),
        codec_fingerprint(codec, "other"),
        codec_fingerprint(BeepCodec(), "nano"),
    }
    changed = NanoCodec(codec.config)
    changed.load_state_dict(codec.state_dict())
    assert codec_fingerprint(changed, "nano") in marks
    with torch.no_grad():
        changed.to_latent.bias[0] += 1
    assert len(marks | {codec_fingerprint(changed, "nano")}) == 4
    first, *_, last = sorted(marks)
    folder = cache_folder(tmp_path, first)
    (folder / "codes-1.npz").touch()
    (folder / ".codes-2.npz.abandoned").mkdir()
    assert cache_folder(tmp_path, first) == folder and [p.name for p in folder.iterdir()] == ["codes-1.npz"]
    assert list(tmp_path.iterdir()) == [folder]
    assert cache_folder(tmp_path, last) != folder and not folder.exists()


def test_a_wrapped_network_counts_for_the_fingerprint() -> None:
    class Wrapper(BeepCodec):
        def __init__(self, bias: float) -> None:
            self.network = torch.nn.Linear(1, 1)
            torch.nn.init.constant_(self.network.weight, 1.0)
            torch.nn.init.constant_(self.network.bias, bias)

    assert codec_fingerprint(Wrapper(0.5), "x") == codec_fingerprint(Wrapper(0.5), "x")
    assert codec_fingerprint(Wrapper(0.5), "x") != codec_fingerprint(Wrapper(0.6), "x")
