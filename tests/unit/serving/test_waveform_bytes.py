"""Bytes that every reader of WAV understands, equal to what libsndfile writes."""

import io
import wave

import numpy as np
import soundfile

from slimtts.serving.waveform_bytes import pcm16, wav_header

EDGES = [0.0, 0.5, -0.5, 1.0, -1.0, 1e-5, -1e-5, 3.1e-5, 2.0, -2.0]
SAMPLES = np.append(EDGES, np.random.default_rng(0).uniform(-1, 1, 1000)).astype(np.float32)


def test_pcm_is_what_libsndfile_writes():
    file = io.BytesIO()
    soundfile.write(file, SAMPLES.clip(-1, 1), 16_000, format="WAV", subtype="PCM_16")
    assert pcm16(SAMPLES) == file.getvalue()[44:]


def test_a_header_of_unknown_length_is_read_to_the_end():
    content = wav_header(24_000) + pcm16(SAMPLES)
    samples, rate_hz = soundfile.read(io.BytesIO(content), dtype="int16")
    assert (rate_hz, samples.tobytes()) == (24_000, pcm16(SAMPLES))
    with wave.open(io.BytesIO(content)) as reader:
        assert (reader.getframerate(), reader.getsampwidth(), reader.getnchannels()) == (24_000, 2, 1)
        assert reader.readframes(len(SAMPLES)) == pcm16(SAMPLES)
