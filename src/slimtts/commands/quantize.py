"""`slimtts quantize`: a student's folder as a lighter one that says the same with less memory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from slimtts.errors import InvalidInputError
from slimtts.printable import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which student, in which form, to where."""
    parser.add_argument("--model", type=Path, required=True, help="folder of a student or teacher, in 16 or 32 bit")
    parser.add_argument(
        "--variant", required=True, help="int8 | fp8 | sparse24 (two of four weights zero) | sparse24_int8"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--run", type=Path, metavar="WORKSPACE",
        help="of the student's run: its training sentences show which weights sparse24 keeps (default: the largest)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print folder and sizes as JSON")


def run(options: argparse.Namespace) -> None:
    """Writes it, and says what it weighs."""
    sizes = quantize(options.model, options.variant, options.out, options.run)
    row = {"path": str(options.out), "variant": options.variant, **sizes}
    if options.json:
        print(json.dumps(row))
        return
    print(
        f"{printable(options.out)}: {sizes['stored_mb']:.1f} MB of weights, {sizes['stored_before_mb']:.1f} before; "
        f"{sizes['loaded_mb']:.1f} MB in memory on a CPU, {sizes['loaded_before_mb']:.1f} before"
    )


def quantize(model: Path, variant: str, out: Path, workspace: Path | None) -> dict[str, float]:
    """Writes `out`; MB (2**20 bytes) of the weights as stored and as loaded on a CPU, before and after.

    Raises:
        InvalidInputError: no such variant, model or run, or `out` is there already.
    """
    from slimtts.quantization.variants import variant_of

    chosen = variant_of(variant)
    if out.exists():
        raise InvalidInputError("--out", f"{out}, which exists", "a folder to be made", "choose another")
    if workspace and not chosen.is_sparse:
        raise InvalidInputError("--run", f"given for {variant}", "sparse24 or sparse24_int8 only", "leave it out")
    if workspace and not (workspace / "data" / "train.jsonl").is_file():
        raise InvalidInputError("--run", f"{workspace} without data/train.jsonl", "a run's folder", "correct the path")

    from slimtts.quantization.folders import check_source, write_variant
    from slimtts.quantization.memory import weight_bytes
    from slimtts.teachers.checkpoint import load_language_model
    from slimtts.teachers.loading import FAMILIES, load_teacher
    from slimtts.teachers.model_folder import params_of

    check_source(model)
    params, norms = params_of(model), None
    if workspace:
        from slimtts.stages.student_variants import calibrated_norms

        norms = calibrated_norms(load_teacher(params), workspace / "data")
    loaded = FAMILIES[params.family]().load_model(model)
    before = weight_bytes(loaded)
    write_variant(model, variant, out, norms, loaded)
    after = weight_bytes(load_language_model(out))
    return {
        "stored_mb": _stored_mb(out), "stored_before_mb": _stored_mb(model),
        "loaded_mb": after / 2**20, "loaded_before_mb": before / 2**20,
    }  # fmt: skip


def _stored_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20
