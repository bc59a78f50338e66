"""A folder of nano's codec states sizes that it has, before anything of these sizes is made."""

import json
import shutil

import pytest

from slimtts.errors import InvalidInputError
from slimtts.teachers.nano import NanoFamily, bundle_folder


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(bundle_folder() / "codec", tmp_path / "codec")


def test_a_copy_of_the_bundled_codec_opens(folder):
    assert NanoFamily().load_codec(str(folder)).num_codes == 4096


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder_channels", 10**9),
        ("spectrum_blocks", 10**9),
        ("fft_samples", 10**12),
        ("num_mels", -1),
        ("hop_samples", 0),
    ],
)
def test_absurd_sizes_are_refused_in_one_line(folder, key, value):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InvalidInputError, match=f"observed {key} = {value}; allowed: 1 to") as error:
        NanoFamily().load_codec(str(folder))
    assert "\n" not in str(error.value)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="a link out of the folder"):
        NanoFamily().load_codec(str(folder))
