"""X-codec2 and NeuCodec of transformers at a tiny size, and how their folders are read."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    NeuCodecConfig,
    NeuCodecFeatureExtractor,
    NeuCodecModel,
    Wav2Vec2BertConfig,
    Xcodec2Config,
    Xcodec2FeatureExtractor,
    Xcodec2Model,
)

from slimtts.codec.neucodec import NeuCodec
from slimtts.codec.xcodec2 import Xcodec2Codec
from slimtts.errors import InvalidInputError

SEMANTIC = dict(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_depthwise_kernel_size=3
)
SIZES = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    head_dim=16, encoder_hidden_size=2, quantization_dim=64, quantization_levels=[4, 4],
)  # fmt: skip
KINDS = {
    "xcodec2": (Xcodec2Codec, Xcodec2Config, Xcodec2Model, Xcodec2FeatureExtractor),
    "neucodec": (NeuCodec, NeuCodecConfig, NeuCodecModel, NeuCodecFeatureExtractor),
}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    codec_class, config_class, model_class, extractor_class = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model_class(config_class(semantic_model_config=Wav2Vec2BertConfig(**SEMANTIC), **SIZES)).save_pretrained(folder)
    extractor_class().save_pretrained(folder)
    return codec_class, folder


def test_rates_and_shapes(saved):
    codec = saved[0].load(saved[1])
    rate = {Xcodec2Codec: 16_000, NeuCodec: 24_000}[saved[0]]
    assert (codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codes) == (rate, 50.0, 16)
    wave = 0.1 * torch.sin(torch.arange(2 * rate // 5) * 0.05).view(2, -1)  # two of 0.2 s
    codes = codec.encode(wave)
    # One frame for each 20 ms; X-codec2 adds the frame that begins where the audio ends.
    assert codes.shape == (2, 11 if saved[0] is Xcodec2Codec else 10)
    assert codes.dtype == torch.int64
    assert 0 <= int(codes.min()) <= int(codes.max()) < 16
    audio = codec.decode(codes)
    assert audio.shape == (2, codes.shape[1] * rate // 50)
    assert audio.abs().max() <= 1
    assert torch.equal(codec.decode(codes[:1]), codec.decode(codes[:1]))


def test_the_published_size_is_65536_codes():
    for config in (Xcodec2Config(), NeuCodecConfig()):
        assert config.quantization_levels and 4 ** len(config.quantization_levels) == 65_536


def test_a_missing_tensor_is_refused(saved, tmp_path):
    for file in saved[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state.pop("fc_encoder.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"1 tensors missing or of another shape, first fc_encoder\.weight"):
        saved[0].load(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "absent", "no extractor"])
def test_a_damaged_folder_is_refused_in_one_line(saved, tmp_path, damage):
    for file in saved[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "absent":
        weights.unlink()
        (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    else:
        (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidInputError) as refusal:
        saved[0].load(tmp_path)
    assert str(refusal.value).startswith(f"codec {tmp_path}: observed ")
    assert "\n" not in str(refusal.value)
