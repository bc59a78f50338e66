"""`slimtts export`: a student as a folder that its family's own tools open."""

from __future__ import annotations

import argparse
from pathlib import Path

from slimtts.errors import InvalidInputError
from slimtts.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """From where to where."""
    parser.add_argument("--model", type=Path, required=True, help="folder of the student")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of CosyVoice 2 that it was cut from")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")


def run(options: argparse.Namespace) -> None:
    """Writes it."""
    export(options.model, options.teacher, options.out)


def export(model: Path, teacher: Path, out: Path) -> None:
    """Writes a folder that CosyVoice opens, from a student of CosyVoice 2.

    Raises:
        InvalidInputError: a student of another family, which needs no export, or `out` is there already.
    """
    from slimtts.teachers.detection import detect_family

    family = detect_family(model)
    if family != "cosyvoice2":
        raise InvalidInputError(
            f"model {model}", f"family {family}, a standard checkpoint already", "family cosyvoice2", "use it as it is"
        )
    if out.exists():
        raise InvalidInputError("--out", f"{out}, which exists", "a folder to be made", "choose another")
    from slimtts.teachers.cosyvoice2_checkpoint import export_llm_pt

    print(f"{printable(export_llm_pt(model, teacher, out))}: open it with CosyVoice")
