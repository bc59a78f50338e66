"""Which family a folder belongs to: what slimtts.json says, CosyVoice's llm.pt, or tokens that only one family has."""

from __future__ import annotations

import json
from pathlib import Path

from slimtts.errors import InvalidInputError
from slimtts.teachers.model_folder import ORIGIN, read_origin

COSYVOICE_WEIGHTS = "llm.pt"
SPEAKING_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "config.json")
# All that detection reads, for a source that has to be fetched.
CONFIGS = ("config.json", "CosyVoice-BlankEN/config.json")
FILES = (ORIGIN, COSYVOICE_WEIGHTS, *SPEAKING_FILES, CONFIGS[1])
# Of which one says all: a converted CosyVoice's type of model, or a family's first code. The tokens of nano are
# LLaSA's, but exactly 4,096.
MARKERS = {
    "slimtts_cosyvoice2": "cosyvoice2",
    "<|s_0|>": "llasa",
    "<|speech_0|>": "neutts",
    "<custom_token_10>": "orpheus",
}
NANO_LAST, NANO_BEYOND = "<|s_4095|>", "<|s_4096|>"


def detect_family(folder: Path) -> str:
    """The family's name.

    Raises:
        InvalidInputError: nothing in the folder tells, or its slimtts.json is damaged.
    """
    origin = read_origin(folder)
    if origin is not None:
        return origin.family
    if (folder / COSYVOICE_WEIGHTS).is_file():
        return "cosyvoice2"
    files = [folder / name for name in SPEAKING_FILES if (folder / name).is_file()]
    text = "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)
    names = {name for name in (*MARKERS, NANO_LAST, NANO_BEYOND) if f'"{name}"' in text}
    found = {family for marker, family in MARKERS.items() if marker in names}
    if found == {"llasa"} and NANO_LAST in names and NANO_BEYOND not in names:
        return "nano"
    if len(found) != 1:
        raise InvalidInputError(
            f"model {folder}",
            f"tokens of {' and '.join(sorted(found)) or 'no known family'}",
            f"a folder with {ORIGIN}, {COSYVOICE_WEIGHTS}, or one of {', '.join(MARKERS)} in its tokenizer or config",
            "correct the path, or name the family",
        )
    return found.pop()


def stated_layers(folder: Path) -> int | None:
    """Decoder layers as the configuration states them; None when it states none."""
    for path in (folder / name for name in CONFIGS):
        try:
            layers = json.loads(path.read_text(encoding="utf-8")).get("num_hidden_layers")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(layers, int):
            return layers
    return None
