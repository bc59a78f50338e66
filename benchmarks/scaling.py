"""What each stage costs against layers, sentences, tokens and workers: measured on nano, with a formula for each.

python -m benchmarks.scaling                                        # a few minutes of one core
python -m benchmarks.scaling --quick
python -m benchmarks.scaling --hours 500 --price 2                  # other assumptions for the large teacher

Every stage runs at three sizes of each thing that drives it, on one thread; seconds are the processor's on a CPU (what
an idle core would take, whatever else the machine does) and the clock's on CUDA. Where layers count, the bundled
teacher is cut to its first 4 or 8. A formula, linear in what drives the stage, is fitted by least squares; its error
is the root mean square of the residuals as a share of the mean. Workers are processes of one thread that share the
scoring, by the clock, with the seconds that each needs to start. Writes JSON and a PNG after every part, and what a
large teacher costs on paper; with `--only`, parts that the JSON has from earlier runs stay.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.fitted_lines import Series, draw, table
from benchmarks.paper_costs import add_arguments, chosen, costs, llasa_1b
from benchmarks.paper_costs import table as paper_table
from slimtts.decoding.generation import generate
from slimtts.decoding.teacher_forcing import ForcedBatch
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.training import make_optimizers, mixed_precision, pick_device
from slimtts.evaluation.naturalness import MosPredictor
from slimtts.evaluation.word_meter import WordMeter, open_recognizer
from slimtts.params import Params, parse_params
from slimtts.pruning.surgery import remove_layers
from slimtts.scoring.block_influence import block_influence
from slimtts.scoring.set_search import ScoredSet, search_sets
from slimtts.scoring.wli import speak_without_each_layer
from slimtts.stages.distill_student import set_attention
from slimtts.stages.evaluate_student import describe_machine, open_voice_encoder
from slimtts.stages.prune_layers import prune_layers
from slimtts.stages.score_layers import forced_batches
from slimtts.stages.subset_data import subset_data
from slimtts.stages.voices import SpeakingTask, speaking_tasks
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import Workspace

ROOT = Path(__file__).parent.parent
SENTENCES = 32  # held out in each split
DEPTHS = (4, 8, 12)


@dataclass(frozen=True)
class Bench:
    """The bundled teacher with data of its own, and the clock."""

    params: Params
    workspace: Workspace
    teacher: Teacher
    sizes: tuple[int, ...]

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of `work`, once."""
        on_gpu = next(self.teacher.model.parameters()).is_cuda
        clock = time.perf_counter if on_gpu else time.process_time
        if on_gpu:
            torch.cuda.synchronize()
        started = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - started

    def cut_to(self, depth: int) -> Teacher:
        """The teacher's first layers; it is the cost that counts, not what it says."""
        return replace(self.teacher, model=remove_layers(self.teacher.model, range(depth)))

    def tasks(self, split: str, count: int) -> list[SpeakingTask]:
        return speaking_tasks(self.workspace, split, count)

    def by_size_and_depth(self) -> Iterator[tuple[int, int]]:
        """Every size at every depth."""
        yield from ((size, depth) for depth in DEPTHS for size in self.sizes)


def changed(params: Params, **sections: dict[str, Any]) -> Params:
    """Other knobs."""
    made = {name: getattr(params, name).model_copy(update=knobs) for name, knobs in sections.items()}
    return params.model_copy(update=made)


def small_params() -> Params:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["subset_data"] |= {
        "selection_utterances": SENTENCES, "test_utterances": SENTENCES, "speech": "corpus", "extra_texts": 0,
        "max_share": 0.01,
    }  # fmt: skip
    values["decoding"] |= {"max_new_tokens": 64}
    return parse_params(values, "benchmarks.scaling")


def measure_subset(bench: Bench) -> list[Series]:
    """Choosing recordings, and the teacher's speech of further texts."""
    chosen_, spoken = Series("subset_data: choice", ("recordings",)), Series("subset_data: speech", ("texts",))
    with tempfile.TemporaryDirectory() as folder:
        for place, size in enumerate(bench.sizes):
            of_choice = {"max_share": 0.002 * size}
            of_speech = {"max_share": 0.002, "speech": "both", "extra_texts": 24 * size}
            for series, knobs in ((chosen_, of_choice), (spoken, of_speech)):
                workspace, reports = Workspace(Path(folder) / f"{series.drivers[0]}-{place}"), []
                params = changed(bench.params, subset_data=knobs)
                seconds = bench.seconds(lambda p=params, w=workspace, r=reports: r.append(subset_data(p, w)))
                report = reports[0]
                texts = report.splits["train"].utterances + knobs.get("extra_texts", 0)
                series.add(seconds, texts)
    return [chosen_, spoken]


def measure_scoring(bench: Bench) -> list[Series]:
    """All three methods; tokens are those that pass a layer."""
    words = Series("score_layers: wli", ("layers x row tokens", "audio s"))
    influence = Series("score_layers: block influence", ("layers x tokens",))
    sets = Series("score_layers: search", ("layers passed x tokens", "sets x targets"))
    meter = WordMeter(bench.params, open_recognizer(bench.params.recogniser))
    hear = meter.transcriber(bench.teacher.codec.sample_rate_hz)
    hear([bench.teacher.audio(bench.tasks("selection", 1)[0].prompt.codes)])  # starts up
    for size, depth in bench.by_size_and_depth():
        teacher, tasks = bench.cut_to(depth), bench.tasks("selection", size)
        utterances, prompts = [t.utterance for t in tasks], [t.prompt for t in tasks]
        waves: list[torch.Tensor] = []

        def transcribe(made: Any, waves: list[torch.Tensor] = waves) -> list[str]:
            waves.extend(made)
            return hear(made)

        seconds = bench.seconds(
            lambda u=utterances, p=prompts, t=teacher, h=transcribe: speak_without_each_layer(
                t, u, p, bench.params.decoding, h
            )
        )
        audio_s = audio_seconds(teacher, waves)
        before = sum(len(teacher.prompt_ids(t.utterance.text, t.prompt)) for t in tasks) * (depth + 1)
        words.add(seconds, depth * (before + audio_s * teacher.codec.frame_rate_hz), audio_s)
        batches = forced_batches(teacher, tasks)
        tokens = sum(batch.ids.numel() for batch in batches)
        influence.add(bench.seconds(lambda t=teacher, b=batches: block_influence(t.model, b)), depth * tokens)
        passed, visited, seconds = searched(bench, teacher, batches)
        sets.add(seconds, passed * tokens, visited * sum(int(batch.is_target.sum()) for batch in batches))
    return [words, sets, influence]


def audio_seconds(teacher: Teacher, waves: list[torch.Tensor]) -> float:
    return sum(map(len, waves)) / teacher.codec.sample_rate_hz


def searched(bench: Bench, teacher: Teacher, batches: list[ForcedBatch]) -> tuple[float, int, float]:
    """Layers that each batch passed in all sets together, how many sets, and seconds."""
    calls: list[None] = []
    handles = [layer.register_forward_hook(lambda *_: calls.append(None)) for layer in teacher.model.model.layers]
    width = bench.params.score_layers.beam_width
    visited: list[ScoredSet] = []

    def search() -> None:
        for level in search_sets(teacher.model, teacher.layout, batches, width):
            visited.extend(level)

    seconds = bench.seconds(search)
    for handle in handles:
        handle.remove()
    return len(calls) / len(batches), len(visited), seconds


def measure_pruning(bench: Bench) -> list[Series]:
    """Loading, cutting, saving, opening again."""
    series = Series("prune_layers", ("kept layers",))
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        workspace.data.symlink_to(bench.workspace.data)
        for kept in (3, 6, 9, 12):
            params = changed(bench.params, prune_layers={"retained": tuple(range(kept))})
            series.add(bench.seconds(lambda p=params: prune_layers(p, workspace)), kept)
    return [series]


def measure_distillation(bench: Bench) -> list[Series]:
    """A step of the default preset, the second of two: teacher forward, student forward and backward."""
    series = Series("distill_student: a step", ("(teacher's + 3 x student's layers) x tokens", "targets"))
    teacher, preset = copy.deepcopy(bench.teacher.model), PRESETS["default"]
    device = next(teacher.parameters()).device
    set_attention(teacher, is_trained=False, knobs=bench.params.distill_student, preset=preset)
    for size, kept in [(size, kept) for kept in (3, 6, 9) for size in bench.sizes]:
        batches = forced_batches(bench.teacher, bench.tasks("selection", 3 * size))
        student = remove_layers(teacher, range(kept)).train().requires_grad_(True)
        set_attention(student, is_trained=True, knobs=bench.params.distill_student, preset=preset)
        loss_of = HealingLoss(preset, bench.teacher.layout, teacher, tuple(range(kept)))
        optimizers = make_optimizers(student, bench.params.distill_student.optimizer)

        def step(
            student: Any = student, batches: Any = batches, loss_of: Any = loss_of, optimizers: Any = optimizers
        ) -> None:
            for batch in batches:
                with mixed_precision(device):
                    loss, _ = loss_of(student, batch)
                loss.backward()
            for optimizer in optimizers.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        step()
        tokens = sum(batch.ids.numel() for batch in batches)
        targets = sum(int(batch.is_target.sum()) for batch in batches)
        series.add(bench.seconds(step), (bench.teacher.num_layers + 3 * kept) * tokens, targets)
    return [series]


def measure_evaluation(bench: Bench) -> list[Series]:
    """One system: speaking, audio, hearing, voices; naturalness apart, as few sentences are rated."""
    whole = Series("evaluate_student: a system", ("layers x tokens", "audio s"))
    rated = Series("evaluate_student: naturalness", ("sentences",))
    rate_hz, mos = bench.teacher.codec.sample_rate_hz, MosPredictor()
    hear = WordMeter(bench.params, open_recognizer(bench.params.recogniser)).transcriber(rate_hz)
    voices = open_voice_encoder(bench.params.evaluate_student.similarity)
    waves: list[torch.Tensor] = []

    def evaluate(system: Teacher, tasks: list[SpeakingTask]) -> None:
        ids = [system.prompt_ids(t.utterance.text, t.prompt) for t in tasks]
        spoken = generate(system.model, system.layout, ids, bench.params.decoding)
        waves[:] = [system.audio(one.codes) for one in spoken]
        hear(waves)
        voices.embed([wave.numpy() for wave in waves], rate_hz)

    evaluate(bench.teacher, bench.tasks("test", 1))  # the judges start up
    for size, depth in bench.by_size_and_depth():
        tasks, system = bench.tasks("test", 4 * size), bench.cut_to(depth)
        seconds = bench.seconds(lambda s=system, t=tasks: evaluate(s, t))
        audio_s = audio_seconds(system, waves)
        before = sum(len(system.prompt_ids(t.utterance.text, t.prompt)) for t in tasks)
        whole.add(seconds, depth * (before + audio_s * system.codec.frame_rate_hz), audio_s)
        if depth == DEPTHS[-1]:
            heard = [wave.numpy() for wave in waves[:size]]
            rated.add(bench.seconds(lambda h=heard: mos.predict(h, rate_hz)), len(heard))
    return [whole, rated]


def measure_workers(bench: Bench) -> list[Series]:
    """The scoring by one process and by two, by the clock."""
    made = [Series(f"score_layers: search by {workers}, clock", ("sentences",)) for workers in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        for size in bench.sizes:
            params = changed(bench.params, score_layers={"utterances": 4 * size, "beam_width": 1})
            for series, workers in zip(made, (1, 2), strict=True):
                workspace = Workspace(Path(folder) / f"{workers}-{size}")
                workspace.root.mkdir()
                workspace.data.symlink_to(bench.workspace.data)
                workspace.params.write_text(yaml.safe_dump(params.model_dump(mode="json")))
                series.add(helped_out(workspace, workers), 4 * size)
    return made


def helped_out(workspace: Workspace, workers: int) -> float:
    """Seconds until so many processes have done the scoring."""
    command = [sys.executable, "-m", "slimtts.cli", "score_layers", "--help-out", "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    running = [
        subprocess.Popen(command, cwd=workspace.root, env=environment, stdout=subprocess.DEVNULL)
        for _ in range(workers)
    ]
    for process in running:
        if process.wait():
            raise SystemExit(f"score_layers --help-out ended with {process.returncode}")
    return time.perf_counter() - started


MEASURES = {
    "subset": measure_subset,
    "scoring": measure_scoring,
    "pruning": measure_pruning,
    "distillation": measure_distillation,
    "evaluation": measure_evaluation,
    "workers": measure_workers,
}


def series_of(written: Path) -> dict[str, Series]:
    """What an earlier run measured, by stage."""
    rows = json.loads(written.read_text())["series"] if written.is_file() else []
    return {row["stage"]: Series.of(row) for row in rows}


@contextmanager
def opened(device: torch.device, sizes: tuple[int, ...]) -> Iterator[Bench]:
    params = small_params()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        subset_data(params, workspace)
        teacher = load_teacher(params.teacher)
        teacher.model.to(device).requires_grad_(False)
        yield Bench(params, workspace, teacher, sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("nano",), default="nano", help="what is measured")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--sizes", type=int, nargs=3, default=(2, 4, 8), help="sentences of the smallest unit of work")
    parser.add_argument("--quick", action="store_true", help="a smoke run: sizes 1, 2, 3, nothing is written")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scaling.json")
    parser.add_argument("--image", type=Path, default=ROOT / "docs" / "images" / "scaling.png")
    add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, plan_and_machine = pick_device(options.device), chosen(options)
    title = f"nano, {device}, {date.today()}, {describe_machine(1)}"
    made = {} if options.quick else series_of(options.out)
    paper = costs(llasa_1b(), *plan_and_machine)
    assumed = {name: value for part in plan_and_machine for name, value in asdict(part).items()}
    with opened(device, (1, 2, 3) if options.quick else tuple(options.sizes)) as bench:
        for name in options.only:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            made |= {series.stage: series for series in MEASURES[name](bench)}
            if options.quick:
                continue
            fits = [asdict(s) | dict(zip(("coefficients", "error"), s.fit(), strict=True)) for s in made.values()]
            values = {"title": title, "series": fits, "assumed": assumed, "paper": [asdict(row) for row in paper]}
            options.out.write_text(json.dumps(values, indent=1) + "\n")
            draw(list(made.values()), title, options.image)
    print(f"{title}\n\n{table(list(made.values()))}\n\non paper: LLaSA-1B, {assumed}\n\n{paper_table(paper)}")


if __name__ == "__main__":
    main()
