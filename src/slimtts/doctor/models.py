"""Models that are here already: the bundled one, and those in the hub's cache with their full commits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from slimtts.doctor.finding import Finding

TOPIC = "Models"
BUNDLE = Path(__file__).parents[1] / "nano" / "bundle"
# File -> least bytes: a pointer of git-lfs, or half a copy, is smaller.
BUNDLED = {
    "teacher/model.safetensors": 1 << 20,
    "teacher/tokenizer.json": 1 << 10,
    "codec/model.safetensors": 1 << 20,
    "asr/model.bin": 1 << 20,
    "corpus/codes.npz": 1 << 20,
    "corpus/manifest.jsonl.gz": 1 << 10,
}


def model_findings(environment: Mapping[str, str] = os.environ, bundle: Path = BUNDLE) -> list[Finding]:
    """The bundle first."""
    broken = [name for name, least in BUNDLED.items() if not _is_whole(bundle / name, least)]
    found = [
        Finding(TOPIC, "bundled teacher", "missing", f"{', '.join(broken)} not whole", "check the project out again",
                is_needed=True)
        if broken
        else Finding(TOPIC, "bundled teacher", "ok", "teacher, codec, recogniser, corpus", is_needed=True)
    ]  # fmt: skip
    cache = hub_cache(environment)
    folders = sorted(cache.glob("models--*")) if cache.is_dir() else []
    if not folders:
        found.append(Finding(TOPIC, "hub cache", "off", f"empty: {cache}"))
    for folder in folders:
        commits = sorted(path.name for path in (folder / "snapshots").glob("*"))
        whole = not list((folder / "blobs").glob("*.incomplete"))
        size_mb = sum(file.stat().st_size for file in (folder / "blobs").glob("*")) / 2**20
        name = folder.name.removeprefix("models--").replace("--", "/")
        detail = f"{size_mb:.0f} MB, {' '.join(commits) or 'no commit'}{'' if whole else ', a download was cut off'}"
        found.append(Finding(TOPIC, name, "ok" if commits and whole else "missing", detail))
    return found


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps models, by its own rules."""
    if named := environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    general = Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(environment.get("HF_HOME") or general).expanduser() / "hub"


def _is_whole(file: Path, least: int) -> bool:
    return file.is_file() and file.stat().st_size >= least
