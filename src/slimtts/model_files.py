"""The files of a model's folder: which they are, that they lie in it, and what they hash to. No model is opened here.

A folder may come from anybody. Hidden files (macOS writes `._model.safetensors`) are not part of it. A link must end in
the folder, or, in a snapshot of the hub's cache, in the `blobs` of the same repository.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimtts.errors import InvalidInputError
from slimtts.storage import files_sha256

LICENSE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*")
# Configuration, weights, tokenizer and licence; never pickled weights, never code.
SAFE_FILES = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.model", *LICENSE_FILES)
WEIGHTS, WHOLE, INDEX = "*.safetensors", "model.safetensors", "model.safetensors.index.json"
MORE_TEMPLATES = "additional_chat_templates"  # a folder of them, which transformers opens too
ADAPTER = "adapter_config.json"
LARGEST_JSON_BYTES = 4 << 20  # of a configuration or an index
LARGEST_TEXT_BYTES = 64 << 20  # of a tokenizer; LLaSA's is 30 MB
LARGEST_HEADER_BYTES = 16 << 20  # of a safetensors file: some 100,000 tensors
BYTES_OF = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a safetensors file says of one tensor."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many it holds."""
        total = 1
        for size in self.shape:
            total *= size
        return total


def _refused(path: Path, observed: object, allowed: object, next_step: str) -> InvalidInputError:
    return InvalidInputError(f"checkpoint {path}", observed, allowed, next_step)


def _roots(folder: Path) -> list[Path]:
    """Where the links of a folder may end: in it; for a snapshot of the hub's cache in its repository's blobs too."""
    real = folder.resolve()
    for place in (real, *real.parents):
        blobs = place.parent.parent / "blobs"
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith(("models--", "datasets--")):
            return [real, blobs] if blobs.is_dir() and not blobs.is_symlink() else [real]
    return [real]


def check_inside(folder: Path, path: Path) -> Path:
    """The same path: a plain file whose links end in the folder.

    Raises:
        InvalidInputError: a link out of the folder or to nothing, or a pipe, device or folder.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise _refused(path, "a link that leads nowhere", "a file", "copy the folder again") from None
    if not any(real.is_relative_to(root) for root in _roots(folder)):
        raise _refused(
            path, f"a link out of the folder, to {real}", "files that lie in the folder",
            "put a copy of the file there, if you know what it is",
        )  # fmt: skip
    if not real.is_file():
        raise _refused(path, "no plain file", "a file", "copy the folder again")
    return path


def model_files(folder: Path, patterns: Sequence[str] = SAFE_FILES) -> list[Path]:
    """The files of a folder that a model may consist of, in the order of their names; folders are passed over.

    Raises:
        InvalidInputError: as `check_inside`.
    """
    paths = {path for pattern in patterns for path in folder.glob(pattern) if not path.name.startswith(".")}
    real = folder.resolve()
    return [
        check_inside(folder, path)
        for path in sorted(paths)
        if not (path.is_dir() and path.resolve().is_relative_to(real))
    ]


def check_tree(folder: Path) -> None:
    """Refuses a folder in which any link, however deep, leads out of it.

    Raises:
        InvalidInputError: names the link.
    """
    roots = _roots(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
            raise _refused(
                path, f"a link out of the folder, to {path.resolve()}", "files that lie in the folder",
                "put a copy of the file there, if you know what it is",
            )  # fmt: skip


def check_archive(path: Path) -> None:
    """Refuses a file of torch.save whose parts are packed: they could be a thousand times as large as it is.

    Raises:
        InvalidInputError: it states more bytes than it has. Whether it is an archive at all shows when it is opened.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            stated = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _refused(path, str(error), "a file of torch.save", "fetch it again") from None
    if stated > path.stat().st_size:
        raise _refused(path, f"{path.stat().st_size} bytes for {stated}", "a file of torch.save", "fetch it again")


def copy_files(source: Path, out: Path, patterns: Sequence[str], but: Iterable[str] = ()) -> None:
    """Copies the files of a model's folder that match, but for those of the patterns `but`.

    Raises:
        InvalidInputError: as `check_inside`.
    """
    left_out = {path.name for pattern in but for path in source.glob(pattern)}
    for path in model_files(source, patterns):
        if path.name not in left_out:
            (out / path.name).write_bytes(path.read_bytes())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names.

    Raises:
        InvalidInputError: there is none, or as `check_inside`.
    """
    files = model_files(folder, (WEIGHTS,))
    if files:
        return files
    refuse_adapter(folder)
    raise _refused(
        folder, "no *.safetensors file", "a folder written by save_pretrained",
        "convert the weights to safetensors or correct the path",
    )  # fmt: skip


def hash_weights(folder: Path) -> str:
    """SHA-256 over the safetensors files of a checkpoint, in name order.

    Raises:
        InvalidInputError: the folder holds no safetensors, or a link leads out of it.
    """
    return files_sha256(weight_files(folder))


def hash_model(folder: Path) -> str:
    """SHA-256 over the name and content of every file that is opened: weights, index, configurations, tokenizer,
    chat templates, slimtts.json, voices.json; licences and notes in *.txt too.

    Raises:
        InvalidInputError: as `hash_weights`.
    """
    weight_files(folder)
    digest = hashlib.sha256()
    for path in _all_files(folder):
        digest.update(f"{path.relative_to(folder)}\0{files_sha256([path])}\n".encode())
    return digest.hexdigest()


def refuse_adapter(folder: Path) -> None:
    """Refuses a folder with an adapter, alone or beside a model: transformers would load both, or fetch its base.

    Raises:
        InvalidInputError: names the base.
    """
    if not (folder / ADAPTER).is_file():
        return
    try:
        base = json.loads((folder / ADAPTER).read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = None
    raise _refused(
        folder, f"an adapter of {str(base)[:80] if base else 'another model'}, which is no model by itself",
        "a whole model, without adapter_config.json",
        "merge it into its base (merge_and_unload of peft) and save that",
    )  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file of a checkpoint.

    Raises:
        InvalidInputError: missing, too large, no JSON, or another value.
    """
    try:
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise _refused(path, f"{path.stat().st_size} bytes", f"at most {LARGEST_JSON_BYTES}", "copy it again")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise _refused(path, reason, "a JSON object", "copy the checkpoint again") from None
    if not isinstance(values, dict):
        raise _refused(path, f"a {type(values).__name__}", "a JSON object", "copy the checkpoint again")
    return values


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name, as the headers of its files say; nothing else is read.

    The files are exactly those that transformers opens: model.safetensors alone, or the parts that the index names.

    Raises:
        InvalidInputError: a damaged header, a tensor in two files, weights that nobody would open, an index that names
            anything but the *.safetensors files here, or says another thing of their tensors than they do.
    """
    files = weight_files(folder)
    refuse_adapter(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in _header(path).items():
            if name in tensors:
                raise _refused(
                    path, f"tensor {name[:80]}, which {tensors[name].file.name} holds too", "each tensor once",
                    "leave one of the files out",
                )  # fmt: skip
            tensors[name] = tensor
    names = {path.name for path in files}
    if (folder / INDEX).is_file():
        _check_index(folder, {name: tensor.file.name for name, tensor in tensors.items()}, names)
    elif names != {WHOLE}:
        raise _refused(
            folder, f"{', '.join(sorted(names - {WHOLE}))[:120]} without {INDEX}",
            f"{WHOLE} alone, or parts with an index", "copy the checkpoint again, and other weights elsewhere",
        )  # fmt: skip
    return tensors


def _check_index(folder: Path, held: dict[str, str], files: set[str]) -> None:
    index = check_inside(folder, folder / INDEX)
    entries = read_object(index).get("weight_map")
    next_step = "copy the checkpoint again, from its makers"
    if not isinstance(entries, dict):
        raise _refused(index, "no weight_map", "a name of a file for each tensor", next_step)
    strange = sorted({str(file) for file in entries.values() if not isinstance(file, str) or file not in files})
    if strange:
        allowed = f"the files {', '.join(sorted(files))[:200]}"
        raise _refused(index, f"weights in {strange[0][:120]!r}", allowed, next_step)
    if entries != held:
        wrong = sorted(name for name in held.keys() | entries.keys() if entries.get(name) != held.get(name))[0]
        raise _refused(
            index, f"tensor {wrong[:80]} in {entries.get(wrong, 'no file')}", held.get(wrong, "no file"), next_step
        )
    if WHOLE in files and len(files) > 1:
        raise _refused(folder, f"{WHOLE} and {len(files) - 1} parts", "one or the other", "leave one of them out")


def _header(path: Path) -> dict[str, StoredTensor]:
    """Name, type and shape of each tensor of a safetensors file; as many bytes as they say lie behind the header."""

    def damaged(observed: object) -> InvalidInputError:
        return _refused(path, observed, "a complete safetensors file", "copy or train the checkpoint again")

    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(LARGEST_HEADER_BYTES, size - 8):
            raise damaged(f"{size} bytes with a header of {length}")
        raw = stream.read(length)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        tensors, spans = {}, []
        for name, entry in entries.items():
            shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
            tensor = StoredTensor(path, entry["dtype"], shape)
            if any(type(value) is not int or value < 0 for value in (*shape, begin, end)):
                raise ValueError(f"tensor {name[:80]}: sizes {shape}, {begin}, {end}")
            if end - begin != tensor.numbers * BYTES_OF[tensor.dtype]:
                raise ValueError(f"tensor {name[:80]}: {end - begin} bytes for {tensor.dtype} {list(shape)}")
            tensors[name] = tensor
            spans.append((begin, end))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(f"a header that cannot be read: {str(error)[:160]}") from None
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise damaged(f"tensors with a gap or an overlap at byte {reached}")
        reached = end
    if reached != size - 8 - length:
        raise damaged(f"{size - 8 - length} bytes of tensors, {reached} by the header")
    return tensors


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Around everything that reads a checkpoint: what was checked and hashed in it is what was opened in it.

    Raises:
        InvalidInputError: at the end, when a file came, went or was written meanwhile; or as `check_inside`.
    """
    before = _state(folder)
    yield
    if _state(folder) != before:
        raise _refused(folder, "files that changed while they were read", "a folder at rest", "try again later")


def _all_files(folder: Path) -> list[Path]:
    more = folder / MORE_TEMPLATES
    return [*model_files(folder), *(model_files(more) if more.is_dir() else ())]


def _state(folder: Path) -> list[tuple[object, ...]]:
    """What changes whenever a file is written, replaced or exchanged with another, or a link in its way is."""
    place = folder.stat()
    entries: list[tuple[object, ...]] = [(folder.resolve(), place.st_dev, place.st_ino)]
    for path in _all_files(folder):
        for info in (path.lstat(), path.stat()):
            entries.append((path, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns))
    return entries
