"""Orpheus' order of SNAC's codes, pinned literally, and the codec on a stand-in for the optional package."""

import json
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from snac import SNAC

from slimtts.codec.snac import SnacCodec, flatten_levels, split_levels
from slimtts.errors import InvalidInputError

LEVELS = [
    torch.tensor([[1, 2]]),
    torch.tensor([[11, 12, 13, 14]]),
    torch.tensor([[101, 102, 103, 104, 105, 106, 107, 108]]),
]
# codes[0][i], codes[1][2i], codes[2][4i], codes[2][4i+1], codes[1][2i+1], codes[2][4i+2], codes[2][4i+3],
# each plus its position times 4,096: the encoder of the published fine-tuning notebook.
FLAT = [
    1, 11 + 4096, 101 + 8192, 102 + 12288, 12 + 16384, 103 + 20480, 104 + 24576,
    2, 13 + 4096, 105 + 8192, 106 + 12288, 14 + 16384, 107 + 20480, 108 + 24576,
]  # fmt: skip
CONFIG = {"sampling_rate": 24_000, "vq_strides": [4, 2, 1], "codebook_size": 4096}


class StandIn(torch.nn.Module):
    """The interface of snac.SNAC 1.2: a frame's audio is its coarsest value, and the decoder adds noise."""

    def __init__(self, sampling_rate, vq_strides, codebook_size):
        super().__init__()
        self.sampling_rate, self.hop_length = sampling_rate, 512
        self.gain = torch.nn.Parameter(torch.ones(1))

    def encode(self, audio):
        frames = -(-audio.shape[-1] // 2048)
        return [torch.arange(audio.shape[0] * frames * n, dtype=torch.int32).view(-1, frames * n) for n in (1, 2, 4)]

    def decode(self, levels):
        assert [level.shape[1] for level in levels] == [n * levels[0].shape[1] for n in (1, 2, 4)]
        assert all(0 <= int(level.min()) <= int(level.max()) < 4096 for level in levels)
        audio = (levels[0] * self.gain / 1000).repeat_interleave(2048, dim=1)
        return (audio + 1e-3 * torch.randn_like(audio)).unsqueeze(1)


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("snac")
    module.SNAC = StandIn
    monkeypatch.setitem(sys.modules, "snac", module)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    torch.save({"gain": torch.tensor([0.5])}, tmp_path / "pytorch_model.bin")
    return tmp_path


def test_published_order_there_and_back():
    assert flatten_levels(LEVELS).tolist() == [FLAT]
    assert [level.tolist() for level in split_levels(torch.tensor([FLAT]))] == [level.tolist() for level in LEVELS]


def test_random_codes_survive_the_round_trip():
    levels = [torch.randint(4096, (3, 5 * count), generator=torch.Generator().manual_seed(1)) for count in (1, 2, 4)]
    flat = flatten_levels(levels)
    assert torch.equal(flat // 4096, torch.arange(7).repeat(5).expand(3, -1))
    assert all(torch.equal(a, b) for a, b in zip(split_levels(flat), levels, strict=True))


def test_an_incomplete_frame_is_dropped():
    for extra in range(1, 7):
        assert [level.shape[1] for level in split_levels(torch.tensor([FLAT + FLAT[:extra]]))] == [2, 4, 8]
    assert [level.shape for level in split_levels(torch.tensor([FLAT[:6]]))] == [(1, 0), (1, 0), (1, 0)]


def test_an_ill_placed_code_counts_for_the_position_where_it_stands():
    codes = torch.tensor([[6 * 4096 + 9, 8, 7, 6, 5, 4, 3]])
    assert [level.tolist() for level in split_levels(codes)] == [[[9]], [[8, 5]], [[7, 6, 4, 3]]]


def test_the_codec_speaks_the_same_twice_and_leaves_random_numbers_alone(package, folder):
    codec = SnacCodec.load(folder)
    assert (codec.sample_rate_hz, codec.samples_per_frame, codec.num_codes) == (24_000, 2048, 28_672)
    assert codec.frame_rate_hz == 82.03125
    codes = codec.encode(torch.zeros(2, 2049))
    assert (codes.shape, codes.dtype) == ((2, 14), torch.int64)
    state = torch.get_rng_state()
    audio = codec.decode(codes)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(codec.decode(codes), audio)
    assert audio.shape == (2, 2 * 2048)
    assert audio[1, -1] == pytest.approx(3 * 0.5 / 1000, abs=5e-3)
    assert codec.decode(codes[:, :6]).shape == (2, 0)


def test_safetensors_come_first(package, folder):
    save_file({"gain": torch.tensor([0.25])}, folder / "model.safetensors")
    assert float(SnacCodec.load(folder).model.gain) == 0.25


class Evil:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_nothing_but_tensors_is_unpickled(package, folder, tmp_path):
    mark = tmp_path / "written"
    torch.save({"gain": Evil(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(InvalidInputError, match="allowed: a complete checkpoint of SNAC at 24 kHz"):
        SnacCodec.load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("change", [{"vq_strides": [8, 4, 2, 1]}, {"codebook_size": 1024}, {"unknown": 1}])
def test_another_snac_is_refused(package, folder, change):
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(InvalidInputError, match="allowed: a complete checkpoint of SNAC at 24 kHz"):
        SnacCodec.load(folder)


def test_incomplete_folders_are_refused(package, folder):
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InvalidInputError, match="allowed: a complete checkpoint"):
        SnacCodec.load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InvalidInputError, match=r"none of model\.safetensors, pytorch_model\.bin"):
        SnacCodec.load(folder)


def test_a_missing_package_is_told_in_one_line(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "snac", None)
    with pytest.raises(InvalidInputError, match=r"snac is not installed; .*next: install slimtts\[orpheus\]"):
        SnacCodec.load(folder)


def test_the_real_package_has_this_interface(folder):
    sizes = {"encoder_dim": 4, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 32, "decoder_rates": [8, 8, 4, 2]}
    config = CONFIG | sizes | {"attn_window_size": None, "codebook_dim": 8, "noise": True, "depthwise": True}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    torch.save(SNAC(**config).state_dict(), folder / "pytorch_model.bin")
    codec = SnacCodec.load(folder)
    codes = codec.encode(0.1 * torch.randn(2, 5000))
    assert codes.shape == (2, 3 * 7)
    assert codec.decode(codes).shape == (2, 3 * 2048)
