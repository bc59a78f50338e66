"""Which family a folder belongs to: what slimtts.json says, CosyVoice's llm.pt, or tokens that only one family has."""

from __future__ import annotations

import json
from pathlib import Path

from slimtts.errors import InvalidInputError
from slimtts.model_files import LARGEST_TEXT_BYTES, check_inside, refuse_adapter
from slimtts.teachers.model_folder import FAMILY_NAMES, ORIGIN, read_origin

COSYVOICE_WEIGHTS, COSYVOICE_QWEN = "llm.pt", "CosyVoice-BlankEN"
# Of CosyVoice 2 and of its relatives, which hold an llm.pt too.
COSYVOICE_RECIPES = {"cosyvoice2.yaml": "", "cosyvoice3.yaml": "CosyVoice 3", "cosyvoice.yaml": "CosyVoice 1"}
SPEAKING_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "config.json")
# All that detection reads, for a source that has to be fetched.
CONFIGS = ("config.json", f"{COSYVOICE_QWEN}/config.json")
FILES = (ORIGIN, COSYVOICE_WEIGHTS, *COSYVOICE_RECIPES, *SPEAKING_FILES, CONFIGS[1])
# Of which one says all: a converted CosyVoice's type of model, or a family's first code. The tokens of nano are
# LLaSA's, but exactly 4,096.
MARKERS = {
    "slimtts_cosyvoice2": "cosyvoice2",
    "<|s_0|>": "llasa",
    "<|speech_0|>": "neutts",
    "<custom_token_10>": "orpheus",
}
NANO_LAST, NANO_BEYOND = "<|s_4095|>", "<|s_4096|>"
# Relatives of a family with its tokens but another layout of prompts, by the type of their body.
RELATIVES = {("neutts", "llama"): "NeuTTS Nano", ("neutts", "qwen3"): "NeuTTS 2E"}


def detect_family(folder: Path) -> str:
    """The family's name.

    Raises:
        InvalidInputError: nothing in the folder tells, it is of a relative that is not supported, it is only an
            adapter, or its slimtts.json is damaged.
    """
    families = shown_families(folder)
    if len(families) != 1:
        raise InvalidInputError(
            f"model {folder}",
            f"tokens of {' and '.join(sorted(families)) or 'no known family'}",
            f"a folder with {ORIGIN}, {COSYVOICE_WEIGHTS}, or one of {', '.join(MARKERS)} in its tokenizer or config",
            "correct the path, or name the family",
        )
    return families.pop()


def check_family(folder: Path, family: str) -> None:
    """Refuses a folder that shows another family than the one that it is opened as. LLaSA's tokens may be nano's.

    Raises:
        InvalidInputError: names the right one.
    """
    shown = shown_families(folder)
    alike = {"nano", "llasa"}
    if shown and family not in shown and not (family in alike and shown <= alike and read_origin(folder) is None):
        name = " and ".join(sorted(shown))
        raise InvalidInputError(
            f"model {folder}", f"a model of family {name}", f"family {family}", f"name family {name}"
        )


def shown_families(folder: Path) -> set[str]:
    """Every family that the folder has a sign of; nothing is opened as one.

    Raises:
        InvalidInputError: as `detect_family`, but for none or several.
    """
    origin = read_origin(folder)
    if origin is not None:
        return {origin.family}
    if (folder / COSYVOICE_WEIGHTS).is_file():
        _refuse_other_cosyvoice(folder)
        return {"cosyvoice2"}
    refuse_adapter(folder)
    files = [check_inside(folder, folder / name) for name in SPEAKING_FILES if (folder / name).exists()]
    for file in files:
        if file.stat().st_size > LARGEST_TEXT_BYTES:
            observed, allowed = f"{file.stat().st_size} bytes", f"at most {LARGEST_TEXT_BYTES}"
            raise InvalidInputError(f"model {file}", observed, allowed, "copy it again")
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    names = {name for name in (*MARKERS, NANO_LAST, NANO_BEYOND) if f'"{name}"' in text}
    shown = {family for marker, family in MARKERS.items() if marker in names}
    if shown == {"llasa"} and NANO_LAST in names and NANO_BEYOND not in names:
        return {"nano"}
    kind = _configured(folder / CONFIGS[0], "model_type")
    for family in shown:
        if (family, kind) in RELATIVES:
            _refuse_relative(folder, RELATIVES[family, str(kind)])
    return shown


def _refuse_other_cosyvoice(folder: Path) -> None:
    recipe = next((name for name in COSYVOICE_RECIPES if (folder / name).is_file()), "cosyvoice2.yaml")
    # The first copies of CosyVoice 2 called their recipe as CosyVoice 1 does, which has no Qwen.
    if COSYVOICE_RECIPES[recipe] and not (recipe == "cosyvoice.yaml" and (folder / COSYVOICE_QWEN).is_dir()):
        _refuse_relative(folder, COSYVOICE_RECIPES[recipe])


def _refuse_relative(folder: Path, name: str) -> None:
    raise InvalidInputError(
        f"model {folder}",
        f"{name}, which is not supported",
        f"a model of {', '.join(FAMILY_NAMES)}",
        "name another model",
    )


def _configured(path: Path, key: str) -> object:
    """An entry of a configuration; None when it cannot be read or has none."""
    try:
        if path.stat().st_size <= LARGEST_TEXT_BYTES:
            return json.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    return None


def stated_layers(folder: Path) -> int | None:
    """Decoder layers as the configuration states them; None when it states none."""
    for path in (folder / name for name in CONFIGS):
        layers = _configured(path, "num_hidden_layers")
        if type(layers) is int and layers > 0:
            return layers
    return None
