"""Every benchmark's protocol, run on the bundled teacher's students: small sets in the published file layouts.

python -m benchmarks.benchmark_sets runs/NAME                 a finished run on nano; 40 sentences a set
python -m benchmarks.benchmark_sets runs/NAME --quick         4 sentences
python -m benchmarks.benchmark_sets runs/NAME --sets FOLDER   keeps the sets, for runs by hand

The bundled teacher speaks the prompts and the originals, from sentences that no training split holds. The figures say
that the protocols run and what its students score in them; they are no scores of the published sets.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch

from slimtts.evaluation.table import evaluation_table
from slimtts.nano.grammar import Split, sample_sentence, split_of
from slimtts.params import Params, load_params
from slimtts.results import EvaluationReport
from slimtts.speech import Speaker
from slimtts.stages.evaluate_student import evaluate_student
from slimtts.testing.benchmark_layouts import LAYOUTS, SpokenSentence
from slimtts.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "benchmark_sets.json"
NORMALIZERS = {"seed-tts-eval": "seed_tts_eval", "librispeech-pc": "f5_tts", "manifest": "basic"}


def sentences_of(split: Split, count: int, seed: int) -> list[str]:
    """So many different sentences of a split of the bundled teacher's language."""
    rng, found = random.Random(seed), dict[str, None]()
    while len(found) < count:
        sentence = sample_sentence(rng)
        if split_of(sentence) == split:
            found[f"{sentence}."] = None
    return list(found)


def spoken_sentences(speaker: Speaker, count: int, seed: int) -> list[SpokenSentence]:
    """Sentences of the test split after prompts of the selection split, voices in turn."""
    voices = sorted(speaker.voices)
    texts, prompts = sentences_of("test", count, seed), sentences_of("selection", count, seed)
    return [
        SpokenSentence(
            text, prompt, speaker.speak(prompt, voices[i % len(voices)]), speaker.speak(text, voices[i % len(voices)]),
            i % len(voices),
        )
        for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True))
    ]  # fmt: skip


def evaluated(run: Workspace, params: Params, **knobs: Any) -> EvaluationReport:
    """The run's systems in a folder of their own, under other knobs."""
    normalizer = knobs.pop("normalizer", params.recogniser.normalizer)
    changed = params.model_copy(
        update={
            "evaluate_student": params.evaluate_student.model_copy(update=knobs),
            "recogniser": params.recogniser.model_copy(update={"normalizer": normalizer}),
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Workspace(Path(scratch))
        for folder in (run.data, run.pruned, run.student):
            (workspace.root / folder.name).symlink_to(folder.resolve())
        return evaluate_student(changed, workspace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="workspace of a finished run: data/, pruned/, student/, params.yaml")
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--sets", type=Path, help="where the sets are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="4 sentences a set, best of 2")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    count, takes = (4, 2) if options.quick else (options.sentences, 4)
    run, params = Workspace(options.run), load_params(options.run / "params.yaml")
    common = {"utterances": count, "mos_utterances": 4, "speed_utterances": 1, "agreement_utterances": 0}
    reports: dict[str, EvaluationReport] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sets = options.sets or Path(scratch)
        sentences = spoken_sentences(Speaker.load(), count, seed=1)
        for kind, write in LAYOUTS.items():
            shutil.rmtree(sets / kind, ignore_errors=True)
            source = write(sets / kind, sentences, 16_000)
            knobs = common | {"benchmark": kind, "benchmark_source": str(source.resolve())}
            reports[kind] = evaluated(run, params, normalizer=NORMALIZERS[kind], **knobs)
        reports["nano"] = evaluated(run, params, **common, hard_sentences=True, best_of=takes)
    for report in reports.values():
        print(f"## {report.benchmark}\n{evaluation_table(report)}")
    values = {kind: report.model_dump(mode="json") for kind, report in reports.items()}
    command = f"python -m benchmarks.benchmark_sets RUN --sentences {count} --threads {options.threads}"
    options.out.write_text(json.dumps({"command": command, "date": str(date.today()), "reports": values}, indent=1))


if __name__ == "__main__":
    main()
