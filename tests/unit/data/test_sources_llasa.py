"""The published layout, pinned: int32 rows, a shape file of two numbers, markers, END, padding by another id."""

from pathlib import Path

import numpy as np
import pytest

from slimtts.data.llasa_memmap import TokenRows, llasa_memmap_source
from slimtts.data.speech_source import SpeechSource
from slimtts.errors import InvalidInputError

# Ids as in Llama 3.2 with LLaSA's additions: 8 markers from 128256 on, then <|s_0|> ... <|s_65535|>.
TEXT_START, TEXT_END, SPEECH_START, SPEECH_END, FIRST_CODE, PAD = 128258, 128259, 128260, 128261, 128264, 128009
MARKERS = {
    TEXT_START: "<|TEXT_UNDERSTANDING_START|>",
    TEXT_END: "<|TEXT_UNDERSTANDING_END|>",
    SPEECH_START: "<|SPEECH_GENERATION_START|>",
}
WIDTH = 64


def decode(ids: list[int]) -> str:
    return "".join(MARKERS.get(token) or chr(token) for token in ids)


TOKENS = TokenRows(decode, FIRST_CODE, 65536, SPEECH_END)


def row(text: str, codes: list[int], end: bool = True) -> list[int]:
    ids = [TEXT_START, *map(ord, text), TEXT_END, SPEECH_START, *(FIRST_CODE + code for code in codes)]
    ids = [*ids, *[SPEECH_END] * end][:WIDTH]
    return ids + [PAD] * (WIDTH - len(ids))


def write(folder: Path, **files: list[list[int]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        ids = np.array(rows, dtype=np.int32)
        ids.tofile(folder / f"{name}_input_ids.memmap")
        np.save(folder / f"{name}_input_ids_shape.npy", ids.shape)
    return folder


def opened(folder: Path) -> SpeechSource:
    return llasa_memmap_source(folder, TOKENS, 50.0)


def refused(folder: Path, one_line) -> str:
    with pytest.raises(InvalidInputError) as error:
        opened(folder)
    return one_line(error.value)


def test_rows_become_text_and_codes(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "rows", train=[row("the golden island", [0, 65535, 7]), row("a river", [1] * 20)]))
    first, second = source.candidates
    assert (first.id, first.text, first.duration_s) == ("train-00000000", "the golden island", 3 / 50)
    assert (second.id, second.voice, second.split) == ("train-00000001", "unnamed", None)
    assert source.codes_of(first.id) == (0, 65535, 7) and source.codes_of(second.id) == (1,) * 20
    assert not source.recordings and not source.dropped


def test_it_equals_the_manifest_in_json_lines(tmp_path: Path, facts, open_source) -> None:
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, facts.num_codes, 12).tolist() for _ in range(1500)]  # more than one block of rows
    rows = [row(f"sentence {i}", codes[i]) for i in range(1500)]
    source = llasa_memmap_source(write(tmp_path / "rows", train=rows), TOKENS, facts.frame_rate_hz)
    lines = "".join(
        f'{{"id": "train-{i:08d}", "text": "sentence {i}", "voice": "unnamed", "codes": {codes[i]}}}\n'
        for i in range(1500)
    )
    (tmp_path / "manifest.jsonl").write_text(lines)
    manifest = open_source(tmp_path / "manifest.jsonl")
    assert source.candidates == manifest.candidates
    assert all(source.codes_of(r.id) == manifest.codes_of(r.id) for r in source.candidates)


def test_val_rows_select_and_judge_when_there_are_some(tmp_path: Path) -> None:
    folder = write(tmp_path / "rows", train=[row("one", [1])] * 2, val=[row("two", [2])] * 8)
    source = opened(folder)
    assert [r.split for r in source.candidates] == ["train"] * 2 + (["selection"] + ["test"] * 3) * 2
    assert source.codes_of("val-00000007") == (2,)


def test_unusable_rows_are_counted_by_reason(tmp_path: Path) -> None:
    foreign = row("text", [1, 2, 3])
    foreign[foreign.index(FIRST_CODE + 2)] = ord("x")
    unmarked = row("text", [1])
    unmarked[0] = ord("x")
    rows = [
        row("good", [1]),
        row("no speech", []),
        [PAD] * WIDTH,
        row("cut off", [5] * WIDTH),
        row("no end", [5], end=False),
        foreign,
        unmarked,
        row("...", [1]),
        row("<|x|> text", [1]),
    ]
    source = opened(write(tmp_path / "rows", train=rows))
    assert [r.text for r in source.candidates] == ["good"]
    assert source.dropped == {
        "row_without_speech": 2,
        "row_cut_off": 2,
        "row_with_foreign_tokens": 1,
        "row_without_markers": 1,
        "row_without_words": 1,
        "row_with_unspeakable_text": 1,
    }


def test_nothing_usable_is_one_line_with_the_reasons(tmp_path: Path, one_line) -> None:
    message = refused(write(tmp_path / "rows", train=[row("no speech", [])] * 3), one_line)
    assert "'row_without_speech': 3" in message


@pytest.mark.parametrize("damage", ["truncated", "no shape", "other shape", "pickled shape"])
def test_damaged_files_are_one_line(tmp_path: Path, one_line, damage: str) -> None:
    folder = write(tmp_path / "rows", train=[row("one", [1])] * 4)
    ids, shape = folder / "train_input_ids.memmap", folder / "train_input_ids_shape.npy"
    if damage == "truncated":
        ids.write_bytes(ids.read_bytes()[:-4])
    elif damage == "no shape":
        shape.unlink()
    elif damage == "other shape":
        np.save(shape, np.array([4, WIDTH, 1]))
    else:
        np.save(shape, np.array([{}], dtype=object), allow_pickle=True)
    assert "train_input_ids" in refused(folder, one_line)
