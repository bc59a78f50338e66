"""Processor, memory, disk and GPU, as the operating system tells of them; no framework is loaded."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from slimtts.doctor.finding import Finding

TOPIC = "Machine"
# Of `make demo`: its stages took 1.7 GB at most, servers come beside them, and the run left 0.3 GB (2026-11-21).
NEEDED_MEMORY_GB, NEEDED_DISK_GB = 3.0, 1.0
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def machine_findings(runs: Path, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """`runs`: the folder whose disk is looked at."""
    return [_processor(environment), _memory(), _disk(runs), *_gpus(environment)]


def _processor(environment: Mapping[str, str]) -> Finding:
    lines = _lines(Path("/proc/cpuinfo"))
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    name = fields.get("model name") or platform.processor() or platform.machine()
    threads = environment.get("OMP_NUM_THREADS", "")
    detail = f"{name}, {usable} cores usable; {' '.join(f for f in FEATURES if f in flags) or 'no known extensions'}"
    return Finding(TOPIC, "processor", "ok", detail + (f"; OMP_NUM_THREADS={threads}" if threads else ""))


def _memory() -> Finding:
    told = {key: value for key, _, value in (line.partition(":") for line in _lines(Path("/proc/meminfo")))}
    if "MemTotal" not in told:
        return Finding(TOPIC, "memory", "off", "not told by this system")
    total, free = (int(told.get(name, told["MemTotal"]).split()[0]) / 2**20 for name in ("MemTotal", "MemAvailable"))
    limit = "".join(_lines(Path("/sys/fs/cgroup/memory.max")))
    if limit.isdigit():  # else "max"
        total = min(total, int(limit) / 2**30)
        free = min(free, total)
    enough = free >= NEEDED_MEMORY_GB
    return Finding(
        TOPIC, "memory", "ok" if enough else "missing", f"{free:.1f} of {total:.1f} GB free",
        "" if enough else f"free {NEEDED_MEMORY_GB:.0f} GB for the demo", is_needed=True,
    )  # fmt: skip


def _disk(runs: Path) -> Finding:
    folder = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free / 2**30
    enough = free >= NEEDED_DISK_GB and os.access(folder, os.W_OK)
    detail = f"{free:.1f} GB free for {runs}{'' if os.access(folder, os.W_OK) else ', where you may not write'}"
    return Finding(
        TOPIC, "disk", "ok" if enough else "missing", detail,
        "" if enough else f"make room: {NEEDED_DISK_GB:.0f} GB and a folder that you may write", is_needed=True,
    )  # fmt: skip


def _gpus(environment: Mapping[str, str]) -> list[Finding]:
    hidden = environment.get("CUDA_VISIBLE_DEVICES")
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=2, check=True)
    except FileNotFoundError:
        return [Finding(TOPIC, "GPU", "off", "none found: all stages run on the processor")]
    except (OSError, subprocess.SubprocessError) as error:
        detail = f"nvidia-smi failed: {type(error).__name__}"
        return [Finding(TOPIC, "GPU", "missing", detail, "look at the driver with nvidia-smi")]
    seen = "" if hidden is None else f"; CUDA_VISIBLE_DEVICES={hidden}"
    rows = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return [Finding(TOPIC, f"GPU {index}", "ok", f"{row}{seen}") for index, row in enumerate(rows)]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().split("\n\n")[0].splitlines()  # of /proc/cpuinfo the first core
    except OSError:
        return []
