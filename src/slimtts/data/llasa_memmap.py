"""LLaSA's published token rows: text and speech codes as one row of int32 token ids, mapped from disk.

A folder holds `train_input_ids.memmap` and, maybe, `val_input_ids.memmap`, each with an `_input_ids_shape.npy` of two
numbers: rows, tokens a row (2048). A row is `<|TEXT_UNDERSTANDING_START|>` text `<|TEXT_UNDERSTANDING_END|>`
`<|SPEECH_GENERATION_START|>` codes `<|SPEECH_GENERATION_END|>` padding; a longer one was cut off and has no END.
Source: `get_memmap_from_token.py` and `train_tts.py` of github.com/zhenye234/LLaSA_training, and the file list of
HKUSTAudio/Llasa_opensource_speech_data_160k_hours_tokenized (8.19 MB for 1,000 rows of val).
Legend: R rows, T tokens a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimtts.data.speech_source import SpeechSource
from slimtts.data.splits import Candidate
from slimtts.data.spoken_text import has_words, text_fault
from slimtts.errors import InvalidInputError
from slimtts.outside_files import check_regular

TEXT_START, TEXT_END = "<|TEXT_UNDERSTANDING_START|>", "<|TEXT_UNDERSTANDING_END|>"
SPEECH_START = "<|SPEECH_GENERATION_START|>"
ANYBODY = "unnamed"  # rows do not say who speaks
TOKENS_AT_ONCE = 1 << 21  # looked at together
MAX_ROW_TOKENS = 1 << 20
MAX_SHAPE_BYTES = 4096
SELECTION_EVERY = 4  # of the val rows, one in so many chooses layers, the others judge
NEXT = "download the folder again, or name the tokenizer that wrote it"


@dataclass(frozen=True)
class TokenRows:
    """How to read token ids: `decode` keeps markers as text; code i is id `first_code_id + i`."""

    decode: Callable[[list[int]], str]
    first_code_id: int
    num_codes: int
    end_id: int


def is_llasa_memmap(folder: Path) -> bool:
    """Are there token rows to train on?"""
    return (folder / "train_input_ids.memmap").is_file()


def llasa_memmap_source(folder: Path, tokens: TokenRows, frame_rate_hz: float) -> SpeechSource:
    """All usable rows; unusable ones are counted by reason. With val rows, those alone select and judge.

    Raises:
        InvalidInputError: a file is missing or has another size than its shape says, or no row is usable.
    """
    names = [name for name in ("train", "val") if (folder / f"{name}_input_ids.memmap").is_file()]
    files = {name: _mapped(folder, name) for name in names}
    dropped: Counter[str] = Counter()
    candidates = []
    for name, rows in files.items():
        for number, text, count in _usable(rows, tokens, dropped):
            split = None
            if "val" in files:
                split = "train" if name == "train" else "test" if number % SELECTION_EVERY else "selection"
            candidates.append(Candidate(f"{name}-{number:08d}", text, ANYBODY, count / frame_rate_hz, split))
    if not candidates:
        raise InvalidInputError(
            str(folder), f"no usable row ({dict(dropped)})", "rows with text and speech of this teacher", NEXT
        )

    def codes_of(utterance_id: str) -> tuple[int, ...]:
        name, number = utterance_id.split("-")
        row = files[name][int(number)]
        first, end = _speech_span(row[None], tokens)
        return tuple((row[first[0] : end[0]] - tokens.first_code_id).tolist())

    return SpeechSource(tuple(candidates), codes_of, dropped=dropped)


def _mapped(folder: Path, name: str) -> np.ndarray:
    """int32 [R, T], not loaded."""
    path, shape_path = folder / f"{name}_input_ids.memmap", folder / f"{name}_input_ids_shape.npy"
    size = check_regular(path, str(path), "token rows", NEXT)
    shape = _shape(shape_path)
    if min(shape) < 1 or size != 4 * shape[0] * shape[1]:
        raise InvalidInputError(
            str(path), f"{size} bytes, shape {shape}", "4 bytes for each of rows x tokens", "download both files again"
        )
    if shape[1] > MAX_ROW_TOKENS:
        raise InvalidInputError(str(path), f"{shape[1]} tokens a row", f"at most {MAX_ROW_TOKENS}", NEXT)
    return np.memmap(path, dtype="<i4", mode="r", shape=shape)


def _shape(path: Path) -> tuple[int, int]:
    """Two whole numbers; nothing is read, or room made for it, before the header says that they are two."""
    allowed = "two whole numbers, the shape of the memmap beside it"
    if check_regular(path, str(path), allowed, NEXT) > MAX_SHAPE_BYTES:
        raise InvalidInputError(str(path), "a large file", allowed, NEXT)
    try:
        numbers = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise InvalidInputError(str(path), str(error)[:200], allowed, NEXT) from None
    if numbers.shape != (2,) or numbers.dtype.kind not in "iu":
        raise InvalidInputError(str(path), f"{numbers.dtype} {list(numbers.shape)}", allowed, NEXT)
    return int(numbers[0]), int(numbers[1])


def _speech_span(rows: np.ndarray, tokens: TokenRows) -> tuple[np.ndarray, np.ndarray]:
    """int [R, T] -> position of each row's first code and of the END after it; T where there is none."""
    width = rows.shape[1]
    is_code = (rows >= tokens.first_code_id) & (rows < tokens.first_code_id + tokens.num_codes)
    first = np.where(is_code.any(1), is_code.argmax(1), width)
    is_end = (rows == tokens.end_id) & (np.arange(width) > first[:, None])
    return first, np.where(is_end.any(1), is_end.argmax(1), width)


def _usable(rows: np.ndarray, tokens: TokenRows, dropped: Counter[str]) -> Iterator[tuple[int, str, int]]:
    """Row number, text and number of codes of every usable row."""
    at_once = max(1, TOKENS_AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), at_once):
        block = np.asarray(rows[start : start + at_once])
        spans = zip(*_speech_span(block, tokens), strict=True)
        for number, (row, (first, end)) in enumerate(zip(block, spans, strict=True), start):
            codes = row[first:end] - tokens.first_code_id
            if not len(codes):
                dropped["row_without_speech"] += 1
            elif end == len(row):
                dropped["row_cut_off"] += 1
            elif codes.min() < 0 or codes.max() >= tokens.num_codes:
                dropped["row_with_foreign_tokens"] += 1
            else:
                text = _text_between_markers(tokens.decode(row[:first].tolist()))
                if text is None:
                    dropped["row_without_markers"] += 1
                elif text_fault(text):
                    dropped["row_without_words" if not has_words(text) else "row_with_unspeakable_text"] += 1
                else:
                    yield number, text, len(codes)


def _text_between_markers(decoded: str) -> str | None:
    decoded = decoded.strip()
    tail = decoded.removesuffix(SPEECH_START).rstrip()
    if not decoded.endswith(SPEECH_START) or not tail.startswith(TEXT_START) or not tail.endswith(TEXT_END):
        return None
    return tail.removeprefix(TEXT_START).removesuffix(TEXT_END).strip()
