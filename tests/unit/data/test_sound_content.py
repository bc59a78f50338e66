"""What no header tells: each flaw is refused, or dropped and counted by its reason; real speech passes."""

import io
import math
import struct

import numpy as np
import pytest
import soundfile
import torch

from slimtts.data.audio import read_audio, resample
from slimtts.data.sound_content import content_flaw
from slimtts.data.sound_files import BadAudioError, read_header
from slimtts.evaluation.waveforms import to_16_khz

RATE_HZ = 16_000
SECOND = np.arange(RATE_HZ) / RATE_HZ


def voice(seconds: float = 1.0, rate_hz: int = RATE_HZ) -> np.ndarray:
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    envelope = 0.3 * (0.6 + 0.4 * np.sin(2 * math.pi * 3 * time_s))
    return (envelope * sum(np.sin(2 * math.pi * 140 * k * time_s) / k for k in range(1, 8))).astype(np.float32)


def click() -> np.ndarray:
    samples = np.zeros(RATE_HZ)
    samples[8000] = 1.0
    return samples


FLAWED = {
    "silence": (np.zeros(RATE_HZ), "silent"),
    "one bit of noise": (np.random.default_rng(0).choice([-1, 0, 1], RATE_HZ) / 32768, "too_quiet"),
    "speech at -80 dBFS": (voice() * 1e-4, "too_quiet"),
    "a click in silence": (click(), "too_quiet"),
    "50 ms of speech in silence": (np.concatenate([voice(0.05), np.zeros(RATE_HZ)]), "too_quiet"),
    "a constant": (np.full(RATE_HZ, 0.5), "constant"),
    "full scale": (np.ones(RATE_HZ), "constant"),
    "a slow ramp": (np.linspace(-0.5, 0.5, RATE_HZ), "too_quiet"),
    "all clipped": (np.sign(voice() + 1e-9), "clipped"),
    "clipped and turned down": (np.clip(voice() * 50, -1, 1) * 0.1, "clipped"),
    "one channel clipped": (np.stack([voice(), np.sign(voice())], axis=1), "clipped"),
    "integers as floats": (voice() * 32768, "not_scaled"),
    "opposite phase": (np.stack([voice(), -voice()], axis=1), "opposite_phase"),
    "nearly opposite phase": (np.stack([voice(), -0.9 * voice()], axis=1), "opposite_phase"),
    "NaN": (np.where(SECOND < 0.5, voice(), np.nan), "not_finite"),
}


def write(path, samples, rate_hz=RATE_HZ, subtype="FLOAT"):
    soundfile.write(path, samples.astype(np.float32), rate_hz, subtype=subtype)
    return path


@pytest.mark.parametrize("case", FLAWED)
def test_a_flaw_has_its_reason(tmp_path, case):
    samples, reason = FLAWED[case]
    path = write(tmp_path / "a.wav", samples)
    assert read_header(path, RATE_HZ, "u1").duration_s >= 1.0  # no header tells
    with pytest.raises(BadAudioError) as error:
        read_audio(path, RATE_HZ, "u1")
    assert error.value.reason == f"audio_{reason}"
    assert "'u1', a.wav: observed" in str(error.value)
    assert "; allowed: " in str(error.value)


@pytest.mark.parametrize(
    "samples",
    [
        voice(),
        voice() * 0.02,  # -40 dBFS: a distant microphone
        voice() + 0.2,  # a constant below speech
        np.concatenate([np.zeros(RATE_HZ), voice(0.3), np.zeros(RATE_HZ)]),
        np.clip(voice() * 1.5, -1, 1),
        np.clip(voice() * 3, -1, 1.5),  # float beyond full scale
        np.stack([voice(), 0.3 * voice()], axis=1),
        np.stack([voice(), np.zeros(RATE_HZ)], axis=1),
        np.random.default_rng(0).uniform(-0.5, 0.5, (RATE_HZ, 2)),  # channels that have nothing in common
        np.round(voice() * 127) / 128,  # 8 bit
    ],
)
def test_speech_passes(samples):
    assert content_flaw(np.atleast_2d(samples.T).T, RATE_HZ) is None


def flaws_of(path):
    with pytest.raises(BadAudioError) as error:
        read_audio(path, None, "u1")
    return error.value.reason, str(error.value)


@pytest.mark.parametrize(
    ("rate_hz", "fits"), [(1, False), (7_999, False), (8_000, True), (44_101, True), (192_001, False)]
)
def test_rates_are_bounded_in_the_header_already(tmp_path, rate_hz, fits):
    path = write(tmp_path / "a.wav", np.tile(voice(), 13)[: max(10, rate_hz)], rate_hz)
    if fits:
        assert read_header(path, None, "u1").sample_rate_hz == rate_hz
    else:
        with pytest.raises(BadAudioError) as error:
            read_header(path, None, "u1")
        assert error.value.reason == "audio_odd_rate"


def wav(samples, **sizes):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, format="WAV", subtype="PCM_16")
    data = bytearray(file.getvalue())
    for place, value in ((4, sizes.get("riff")), (40, sizes.get("data"))):
        if value is not None:
            data[place : place + 4] = struct.pack("<I", value)
    return bytes(data) + sizes.get("tail", b"")


@pytest.mark.parametrize("stated_s", [0.3, 0.5, 2.9])
def test_a_wav_that_holds_more_than_it_states_is_refused(tmp_path, stated_s):
    (tmp_path / "a.wav").write_bytes(wav(voice(3.0), data=int(stated_s * RATE_HZ) * 2))
    reason, message = flaws_of(tmp_path / "a.wav")
    assert reason == "audio_other_length"
    assert "after the length that its header states" in message


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"data": 0xFFFFFFFF, "riff": 0xFFFFFFFF},  # a stream
        {"data": 96_000 + 4_000},  # cut off at the end, as libsndfile takes it
        {"tail": b"LIST" + struct.pack("<I", 5000) + bytes(range(250)) * 20},
        {"tail": b"\0" * 4096},  # padded to a block
    ],
)
def test_other_odd_sizes_are_read_whole(tmp_path, sizes):
    (tmp_path / "a.wav").write_bytes(wav(voice(3.0), **sizes))
    wave, _ = read_audio(tmp_path / "a.wav", None, "u1")
    assert len(wave) == 3 * RATE_HZ


@pytest.mark.parametrize(
    ("stated", "reason"), [(RATE_HZ, "other_length"), (9 * RATE_HZ, "unreadable"), (2**36 - 1, "too_long")]
)
def test_a_flac_that_lies_about_its_length_is_refused(tmp_path, stated, reason):
    path = tmp_path / "a.flac"
    soundfile.write(path, voice(3.0), RATE_HZ)
    data = bytearray(path.read_bytes())
    packed = int.from_bytes(data[18:26], "big")
    data[18:26] = ((packed >> 36 << 36) | stated).to_bytes(8, "big")
    path.write_bytes(data)
    assert flaws_of(path)[0] == f"audio_{reason}"


def test_44101_hz_becomes_16000_with_the_right_pitch_in_little_memory():
    tone = torch.from_numpy(np.sin(2 * math.pi * 440 * np.arange(44_101) / 44_101).astype(np.float32))
    out = resample(tone, 44_101, RATE_HZ)
    assert out.dtype == torch.float32
    assert out.shape == (RATE_HZ,)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(RATE_HZ) / RATE_HZ)
    assert float((out - expected)[800:-800].abs().max()) < 1e-3


def test_judges_hear_odd_rates_by_the_same_resampler():
    tone = np.sin(2 * math.pi * 440 * np.arange(44_101) / 44_101).astype(np.float32)
    (heard,) = to_16_khz([tone], 44_101)
    assert np.array_equal(heard, resample(torch.from_numpy(tone), 44_101, RATE_HZ).numpy())
