"""CosyVoice's codec: lazy, one line when a package is missing, rates and shapes with stand-ins for the packages."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from slimtts.codec.cosyvoice_codec import CosyVoiceCodec
from slimtts.errors import InvalidInputError


def test_it_opens_without_any_package():
    codec = CosyVoiceCodec()
    assert (codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codes) == (24_000, 25.0, 6561)


def test_encoding_without_the_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3tokenizer", None)
    with pytest.raises(InvalidInputError, match=r'no package s3tokenizer.*pip install "slimtts\[cosyvoice\]"') as error:
        CosyVoiceCodec().encode(torch.zeros(1, 24_000))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("with_folder", [False, True])
def test_decoding_without_cosyvoice_says_what_to_install(monkeypatch, tmp_path, with_folder):
    monkeypatch.setitem(sys.modules, "cosyvoice", None)
    (tmp_path / "cosyvoice2.yaml").touch()
    with pytest.raises(InvalidInputError, match=r"install CosyVoice and name its folder in teacher.codec") as error:
        CosyVoiceCodec(tmp_path if with_folder else None).decode(torch.zeros(1, 3, dtype=torch.long))
    assert len(str(error.value).splitlines()) == 1


def test_audio_is_encoded_at_16_khz(monkeypatch, tmp_path):
    opened, heard = [], []

    class Encoder:
        def eval(self):
            return self

        def quantize(self, mels, lengths):
            return torch.ones(mels.shape[0], mels.shape[2] // 4, dtype=torch.int32), lengths // 4

    def load_model(name):
        opened.append(name)
        return Encoder()

    def log_mel_spectrogram(samples):
        heard.append(samples)
        return torch.zeros(128, len(samples) // 160)

    def padding(mels):
        return torch.stack(mels), torch.tensor([mel.shape[1] for mel in mels])

    package = ModuleType("s3tokenizer")
    package.load_model, package.log_mel_spectrogram, package.padding = load_model, log_mel_spectrogram, padding
    monkeypatch.setitem(sys.modules, "s3tokenizer", package)
    (tmp_path / "speech_tokenizer_v2.onnx").touch()
    codec = CosyVoiceCodec(tmp_path)
    codes = codec.encode(torch.zeros(2, 48_000))
    codec.encode(torch.zeros(2, 48_000))
    CosyVoiceCodec().encode(torch.zeros(1, 24_000))
    assert codes.shape == (2, 50) and codes.dtype == torch.long
    assert [len(samples) for samples in heard] == [32_000] * 4 + [16_000]
    assert opened == [str(tmp_path / "speech_tokenizer_v2.onnx"), "speech_tokenizer_v2_25hz"]


def test_codes_are_decoded_by_cosyvoice(monkeypatch, tmp_path):
    asked = []

    def tts(**given):
        asked.append(given)
        yield {"tts_speech": torch.full((1, 960 * given["source_speech_token"].shape[1]), 2.0)}

    package = ModuleType("cosyvoice.cli.cosyvoice")
    package.CosyVoice2 = lambda folder: SimpleNamespace(model=SimpleNamespace(tts=tts))
    monkeypatch.setitem(sys.modules, "cosyvoice", ModuleType("cosyvoice"))
    monkeypatch.setitem(sys.modules, "cosyvoice.cli", ModuleType("cosyvoice.cli"))
    monkeypatch.setitem(sys.modules, "cosyvoice.cli.cosyvoice", package)
    (tmp_path / "cosyvoice2.yaml").touch()
    audio = CosyVoiceCodec(tmp_path).decode(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert audio.shape == (2, 3 * 960) and audio.max() == 1
    assert [given["source_speech_token"].tolist() for given in asked] == [[[1, 2, 3]], [[4, 5, 6]]]
    assert asked[0]["flow_embedding"].shape == (1, 192) and not asked[0]["flow_embedding"].any()
