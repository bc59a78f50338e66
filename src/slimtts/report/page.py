"""Writes the listening page: a folder for any static host or none, or one file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
import soundfile

from slimtts.data.sound_files import read_sound
from slimtts.errors import InvalidInputError
from slimtts.report.content import Cell, Content, as_json
from slimtts.report.figures import draw_plots, plots_section
from slimtts.report.layer_figure import describe_layers, imitated_layers, layer_figure
from slimtts.report.sound_pictures import outline, write_spectrogram
from slimtts.report.summary import summary, votes_section
from slimtts.report.votes import Tally, default_pairs, run_key
from slimtts.storage import atomic_path

SCRIPTS = ("player.js", "table.js", "keys.js", "blind.js")
STYLE = "style.css"
AUDIO_PATHS = "audio_paths.json"
# Nothing may be loaded but what lies in the folder, and nothing may be sent anywhere.
FOLDER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Sound:
    """A recording as the page shows it; both addresses are relative, or hold the data themselves."""

    audio: str
    picture: str
    seconds: float
    outline: list[int]


def write_folder(content: Content, out: Path, votes: Tally | None = None) -> Path:
    """index.html, scripts, style, audio/, pictures/ and audio_paths.json in `out`, which is replaced; gives the page.

    Raises:
        InvalidInputError: `out` holds other things than a page, or a recording is no audio file.
    """
    _refuse_foreign(out)
    with atomic_path(out) as folder:
        (folder / "audio").mkdir(parents=True)

        def place(sound: str) -> Sound:
            audio, picture = folder / "audio" / sound, folder / "pictures" / f"{sound[:-4]}.png"
            for path in (audio, picture):
                path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(content.audio / sound, audio)
            samples, rate_hz = _read(audio)
            write_spectrogram(picture, samples, rate_hz)
            audio_address, picture_address = (quote(str(path.relative_to(folder))) for path in (audio, picture))
            return Sound(audio_address, picture_address, round(len(samples) / rate_hz, 3), outline(samples))

        sounds = _sounds(content, place)
        plots = {path.name: f"plots/{path.name}" for path in draw_plots(content.workspace, folder / "plots")}
        for name in (*SCRIPTS, STYLE):
            (folder / name).write_text(_static(name), encoding="utf-8")
        head = f'<link rel="stylesheet" href="{STYLE}">'
        scripts = "".join(f'<script src="{name}"></script>' for name in SCRIPTS)
        page = _page(content, sounds, plots_section(plots), votes, FOLDER_POLICY, head, scripts)
        (folder / "index.html").write_text(page, encoding="utf-8")
        paths = {
            sentence.id: {name: sounds[cell.sound].audio for name, cell in _sounding(sentence.cells)}
            for sentence in content.sentences
        }
        (folder / AUDIO_PATHS).write_text(json.dumps(paths, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return out / "index.html"


def write_single_file(content: Content, out: Path, votes: Tally | None = None) -> Path:
    """The same page in one file, audio as MP3: for mail, and for viewers that show a file without its neighbours.

    Raises:
        InvalidInputError: a recording is no audio file.
    """

    def embed(sound: str) -> Sound:
        samples, rate_hz = _read(content.audio / sound)
        audio, picture = io.BytesIO(), io.BytesIO()
        soundfile.write(audio, samples, rate_hz, format="MP3")
        write_spectrogram(picture, samples, rate_hz)
        addresses = _data("audio/mpeg", audio.getvalue()), _data("image/png", picture.getvalue())
        return Sound(*addresses, round(len(samples) / rate_hz, 3), outline(samples))

    style, script = _static(STYLE), "\n".join(map(_static, SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; img-src data:; "
        "media-src data:; base-uri 'none'; form-action 'none'"
    )
    with tempfile.TemporaryDirectory() as scratch:
        drawn = draw_plots(content.workspace, Path(scratch))
        plots = {path.name: _data("image/png", path.read_bytes()) for path in drawn}
    head, scripts = f"<style>{style}</style>", f"<script>{script}</script>"
    page = _page(content, _sounds(content, embed), plots_section(plots), votes, policy, head, scripts)
    with atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def _sounds(content: Content, place: Callable[[str], Sound]) -> dict[str, Sound]:
    """Every recording of the page by its path below audio/."""
    named = {cell.sound for sentence in content.sentences for cell in sentence.cells.values() if cell.sound}
    named |= {sentence.prompt for sentence in content.sentences if sentence.prompt}
    return {sound: place(sound) for sound in sorted(named)}


def _sounding(cells: dict[str, Cell]) -> list[tuple[str, Any]]:
    return [(name, cell) for name, cell in cells.items() if cell.sound]


def _page(
    content: Content,
    sounds: dict[str, Sound],
    plots: str,
    votes: Tally | None,
    policy: str,
    head: str,
    scripts: str,
) -> str:
    plan = content.facts.plan
    imitated = imitated_layers(plan, content.facts.params.distill_student)
    return Template(_static("index.html")).substitute(
        title=escape(content.facts.name),
        policy=escape(policy, quote=True),
        head=head,
        scripts=scripts,
        summary=summary(content),
        plots=plots,
        votes=votes_section(votes) if votes else "",
        layers=layer_figure(plan, imitated),
        layers_in_words=escape(describe_layers(plan, imitated)),
        content=as_json(_data_block(content, sounds)),
    )


def _data_block(content: Content, sounds: dict[str, Sound]) -> dict[str, Any]:
    """What the scripts draw."""

    def sound(path: str | None) -> dict[str, Any] | None:
        return asdict(sounds[path]) if path else None

    report = content.facts.evaluation
    pairs = default_pairs(content) if report.weights_sha256 else []
    return {
        "run": content.facts.name,
        "utterances": report.utterances,
        "metric": report.metric,
        "columns": [asdict(column) for column in content.columns],
        "sentences": [
            asdict(sentence)
            | {"prompt": sound(sentence.prompt)}
            | {"cells": {name: asdict(cell) | {"sound": sound(cell.sound)} for name, cell in sentence.cells.items()}}
            for sentence in content.sentences
        ],
        "blind": {
            "key": run_key(report),
            "test_set_sha256": report.test_set_sha256,
            "weights_sha256": report.weights_sha256,
            "pairs": [{"pair": pair, "ids": content.blind_ids(pair)} for pair in pairs],
        },
    }


def _static(name: str) -> str:
    return (files("slimtts.report") / "static" / name).read_text(encoding="utf-8")


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(path: Path) -> tuple[np.ndarray, int]:
    """float32 [N] and its rate.

    Raises:
        InvalidInputError: no audio file, or an endless one.
    """
    return read_sound(path, f"audio {path}")


def _refuse_foreign(out: Path) -> None:
    """What is replaced must be empty or a former page: never somebody's folder."""
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / AUDIO_PATHS).is_file()):
        raise InvalidInputError("--out", f"{out}, which holds other things", "a new folder", "choose another")
