"""What lies in a student's folder beside the checkpoint: slimtts.json, voices.json, and the teacher's licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from slimtts.errors import InvalidInputError
from slimtts.model_files import LICENSE_FILES, check_inside, copy_files
from slimtts.params import FamilyName, TeacherParams
from slimtts.results import ModelOrigin

if TYPE_CHECKING:
    from slimtts.teachers.base import Teacher

ORIGIN, VOICES = "slimtts.json", "voices.json"
FAMILY_NAMES: tuple[str, ...] = get_args(FamilyName)


def origin_of(teacher: Teacher, retained: Sequence[int] | None) -> ModelOrigin:
    """What a student or control of this teacher says of itself.

    A folder is noted with its full path, not copied: the student can move anywhere on this machine, its codec stays
    where it is.
    """
    return ModelOrigin(
        family=teacher.family.name,
        codec=full_path(teacher.codec_source),
        teacher_source=full_path(teacher.source or str(teacher.folder)),
        teacher_revision=teacher.revision,
        teacher_sha256=teacher.weights_sha256,
        license=teacher.family.license,
        language=teacher.language,
        retained=None if retained is None else list(retained),
    )


def full_path(source: str) -> str:
    """A source as it is understood in every folder: the full path of what is there, else as it was given."""
    return str(Path(source).resolve()) if source not in ("", "bundled") and Path(source).exists() else source


def copy_license(source: Path, out: Path) -> None:
    """Copies the files in which a model's makers state its licence, where there are some."""
    copy_files(source, out, LICENSE_FILES)


def read_origin(folder: Path) -> ModelOrigin | None:
    """What the folder says of itself; None when it says nothing.

    Raises:
        InvalidInputError: slimtts.json is damaged, or names a family that is not known.
    """
    path = folder / ORIGIN
    if not path.exists() and not path.is_symlink():
        return None
    origin = ModelOrigin.read(check_inside(folder, path))
    if origin.family not in FAMILY_NAMES:
        raise InvalidInputError(
            str(path), f"family '{origin.family}'", ", ".join(FAMILY_NAMES), "use the slimtts that wrote this folder"
        )
    return origin


def params_of(folder: Path) -> TeacherParams:
    """How to open a model's folder: as it says of itself, else as its files show.

    Raises:
        InvalidInputError: as `read_origin`, nothing shows its family, or its codec is not there.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"model {folder}", "no such folder", "the folder of a model", "correct the path")
    origin = read_origin(folder)
    if origin is None:
        from slimtts.teachers.detection import detect_family  # which reads slimtts.json by this file

        family = detect_family(folder)
        codec = str(folder) if family == "cosyvoice2" and (folder / "llm.pt").is_file() else ""
        return TeacherParams.model_validate({"family": family, "source": str(folder), "codec": codec})
    if Path(origin.codec).is_absolute() and not Path(origin.codec).is_dir():
        raise InvalidInputError(
            str(folder / ORIGIN),
            f"codec {origin.codec}, where nothing is",
            "the folder of the codec",
            f"put the codec back, or correct 'codec' in {ORIGIN}",
        )
    return TeacherParams.model_validate(
        {"family": origin.family, "source": str(folder), "codec": origin.codec, "language": origin.language}
    )
