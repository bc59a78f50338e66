import json
from pathlib import Path

import pytest

from slimtts.data.sources import source_kind
from slimtts.errors import InvalidInputError


def made(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    return root


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["metadata.csv", "wavs/"], "ljspeech"),
        (["19/198/19_198_000000_000000.normalized.txt"], "libritts"),
        (["state.json", "dataset_info.json"], "hf_dataset"),
        (["dataset_dict.json", "train/state.json"], "hf_dataset"),
        (["train_input_ids.memmap", "train_input_ids_shape.npy"], "llasa_memmap"),
    ],
)
def test_a_folder_is_known_by_what_it_holds(tmp_path: Path, names: list[str], kind: str) -> None:
    assert source_kind(made(tmp_path, *names)) == kind


def test_a_file_is_known_by_name_and_first_row(tmp_path: Path) -> None:
    for row, kind in (({"id": "a", "text": "b"}, "manifest"), ({"id": "a", "type": "MultiCut"}, "lhotse")):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
        assert source_kind(tmp_path / "rows.jsonl") == kind
    (tmp_path / "rows.jsonl").write_text("{broken")
    assert source_kind(tmp_path / "rows.jsonl") == "manifest"
    assert source_kind(tmp_path / "absent.jsonl") == "manifest"
    assert source_kind(tmp_path / "absent.jsonl.gz") == "lhotse"
    assert source_kind(tmp_path / "absent.parquet") == "parquet"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["some/"], "a folder with some/"),
        ([], "a folder with nothing"),
        ([f"{i}.txt" for i in range(12)], "and 4 more"),
        (["metadata.csv", "wavs/", "state.json"], "hf_dataset and ljspeech"),
    ],
)
def test_a_folder_of_no_kind_is_refused_with_what_is_in_it(tmp_path: Path, one_line, names, found: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        source_kind(made(tmp_path, *names))
    message = one_line(error.value)
    assert found in message and "manifest.jsonl" in message and "LibriTTS" in message


def test_a_file_of_no_kind_is_refused(tmp_path: Path, one_line) -> None:
    (tmp_path / "rows.csv").touch()
    for name, found in (("rows.csv", "a file 'rows.csv'"), ("nothing", "no such file or folder")):
        with pytest.raises(InvalidInputError) as error:
            source_kind(tmp_path / name)
        assert found in one_line(error.value)
