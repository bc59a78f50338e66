"""Nano's healing on a device by the stages' own functions: its first steps beside the CPU's, then a whole one.

python -m benchmarks.gpu.heal --device cuda --steps 1500 --tokens 4096 --out build/gpu
python -m benchmarks.gpu.heal --device cpu --steps 3 --tokens 512 --compare 2 --out build/gpu

heal.json has the losses; student.tgz is the student, to be judged where a recogniser is: put it below a run's folder
and start evaluate_student there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit import ROOT, write_whole
from slimtts.params import Params, load_params
from slimtts.stages.distill_student import distill_student
from slimtts.stages.prune_layers import prune_layers
from slimtts.stages.subset_data import subset_data
from slimtts.workspace import Workspace

RETAINED = [0, 2, 4, 6, 7, 9]  # what the demonstration's search chooses
COMPARED_TOKENS = 2048


def prepared(folder: Path) -> tuple[Params, Workspace]:
    """Data and pruned model of the demonstration, with its layers given."""
    params, workspace = load_params(ROOT / "params.yaml"), Workspace(folder)
    data = params.subset_data.model_copy(
        update={"speech": "corpus", "extra_texts": 0, "selection_utterances": 64, "test_utterances": 200}
    )
    pruning = params.prune_layers.model_copy(update={"retained": RETAINED})
    params = params.model_copy(update={"subset_data": data, "prune_layers": pruning})
    subset_data(params, workspace)
    prune_layers(params, workspace)
    return params, workspace


def heal(name: str, params: Params, source: Workspace, **changes: Any) -> tuple[Workspace, list[float], float]:
    """The student's folder, its losses, and seconds."""
    workspace = Workspace(source.root.parent / name)
    for part in (source.data, source.pruned):
        shutil.copytree(part, workspace.root / part.relative_to(source.root))
    knobs = params.distill_student.model_copy(update={"control": False} | changes)
    started = time.monotonic()
    report = distill_student(params.model_copy(update={"distill_student": knobs}), workspace)
    seconds = time.monotonic() - started
    rows = [json.loads(line) for line in (workspace.student / "student.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    speed = report.student.tokens / max(report.student.wall_s, 1e-9)
    print(f"{name}: {seconds:.1f} s, {speed:,.0f} targets/s, loss {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)
    return workspace, losses, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--packed-row-tokens", type=int, default=0)
    parser.add_argument("--compare", type=int, default=10, help="steps that a CPU takes too; 0 for none")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        params, prepared_in = prepared(Path(folder) / "prepared")
        if options.compare:
            small = {"steps": options.compare, "tokens_per_step": COMPARED_TOKENS}
            forms = {"cpu": ("cpu", "off"), "device": (options.device, "off"), "compiled": (options.device, "auto")}
            curves = {
                name: heal(name, params, prepared_in, device=device, compile=form, **small)[1]
                for name, (device, form) in forms.items()
            }
            furthest = {
                name: max(abs(a - b) / abs(b) for a, b in zip(curve, curves["cpu"], strict=True))
                for name, curve in curves.items()
            }
            print(f"largest relative difference to the CPU: {furthest}", flush=True)
            results |= {"curves": curves, "furthest": furthest}
            write_whole(options.out / "heal.json", json.dumps(results, indent=1))
        changes = {"steps": options.steps, "tokens_per_step": options.tokens, "checkpoint_every_steps": 500}
        changes |= {"packed_row_tokens": options.packed_row_tokens, "device": options.device}
        workspace, losses, seconds = heal("whole", params, prepared_in, **changes)
        shown = losses[:: max(1, options.steps // 200)]
        results["whole"] = {"steps": options.steps, "tokens": options.tokens, "seconds": seconds, "losses": shown}
        write_whole(options.out / "heal.json", json.dumps(results, indent=1))
        unfinished = options.out / "student.tgz.part"
        with tarfile.open(unfinished, "w:gz") as archive:
            archive.add(workspace.student, "student")
        unfinished.rename(options.out / "student.tgz")


if __name__ == "__main__":
    main()
