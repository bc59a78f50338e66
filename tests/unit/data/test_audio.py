import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from slimtts.data.audio import read_audio, resample
from slimtts.data.sound_files import read_header
from slimtts.errors import InvalidInputError

RATE_HZ = 16_000


def tone(seconds: float, rate_hz: int = RATE_HZ, pitch_hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * math.pi * pitch_hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    soundfile.write(path, samples, rate_hz, subtype="FLOAT")
    return path


def test_mono_is_read_as_it_is(tmp_path: Path) -> None:
    samples = tone(0.5)
    wave, rate_hz = read_audio(write(tmp_path / "a.wav", samples), RATE_HZ, "u1")
    assert rate_hz == RATE_HZ and wave.dtype == torch.float32
    assert torch.equal(wave, torch.from_numpy(samples))


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(0.5), 0.5 * tone(0.5, pitch_hz=700.0)
    wave, _ = read_audio(write(tmp_path / "a.wav", np.stack([left, right], axis=1)), None, "u1")
    torch.testing.assert_close(wave, torch.from_numpy((left + right) / 2))


def with_value(value: float) -> np.ndarray:
    samples = tone(0.5)
    samples[100] = value
    return samples


@pytest.mark.parametrize(
    ("samples", "rate_hz", "what"),
    [
        (tone(0.5, 8_000), 8_000, "8000 Hz in the header; allowed: 16000 Hz"),
        (with_value(math.nan), RATE_HZ, "NaN or infinite"),
        (with_value(math.inf), RATE_HZ, "NaN or infinite"),
        (tone(0.0), RATE_HZ, "empty audio"),
        (tone(0.19), RATE_HZ, "0.190 s; allowed: 0.2"),
        (np.stack([tone(0.5)] * 3, axis=1), RATE_HZ, "3 channels; allowed: 1 or 2"),
    ],
)
def test_audio_that_cannot_be_speech_is_refused(
    tmp_path: Path, one_line, samples: np.ndarray, rate_hz: int, what: str
) -> None:
    with pytest.raises(InvalidInputError) as error:
        read_audio(write(tmp_path / "a.wav", samples, rate_hz), RATE_HZ, "u1")
    message = one_line(error.value)
    assert what in message and "'u1'" in message and "a.wav" in message


@pytest.mark.parametrize("content", [None, b"", b"this is no audio at all", "folder"])
def test_a_file_that_is_no_audio_is_refused(tmp_path: Path, one_line, content: bytes | str | None) -> None:
    path = tmp_path / "a.wav"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        read_audio(path, None, "u1")
    message = one_line(error.value)
    assert ("unreadable" if isinstance(content, bytes) else "no such file") in message and "'u1'" in message


def test_a_name_that_the_file_system_refuses_is_one_line(tmp_path: Path, one_line) -> None:
    with pytest.raises(InvalidInputError) as error:
        read_header(tmp_path / ("a" * 300 + ".wav"), None, "u1")
    assert "'u1'" in one_line(error.value)


def test_a_truncated_file_is_refused(tmp_path: Path, one_line) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, RATE_HZ).astype(np.float32), RATE_HZ)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InvalidInputError) as error:
        read_audio(path, RATE_HZ, "u1")
    assert "'u1'" in one_line(error.value)


def test_resampling_keeps_pitch_and_length() -> None:
    wave = torch.from_numpy(tone(1.0, 48_000))
    out = resample(wave, 48_000, RATE_HZ)
    assert out.shape == (RATE_HZ,)
    assert int(torch.fft.rfft(out).abs().argmax()) == 440
    assert resample(out, RATE_HZ, RATE_HZ) is out
