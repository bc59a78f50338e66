"""A bundled teacher that guidance can be used with, and how well guidance speaks.

python -m benchmarks.guided_teacher train --steps 150
python -m benchmarks.guided_teacher evaluate build/guided_teacher/model --utterances 128

Guidance compares the full prompt with poorer ones, which a teacher must have met. `train` trains the bundled teacher on
over its training split with dropped conditions and plain cross-entropy, to the checkpoint folder OUT/model;
`teacher.source` of params.yaml takes that folder. A killed training goes on where it was.
`evaluate` speaks sentences of the selection split with each pair of scales at each temperature, and adds a JSON line
with the errors of every utterance to benchmarks/results/guided_teacher.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slimtts.data.manifest import Utterance
from slimtts.data.token_corpus import load_token_corpus
from slimtts.decoding.guidance import Guidance, after_other_prompt, generate_guided, prompt_passes
from slimtts.decoding.teacher_forcing import ForcedSequence, forced_sequence
from slimtts.distill.batches import PairSampler
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.training import TrainingJob, pick_device, train
from slimtts.evaluation.statistics import bootstrap_corpus_wer
from slimtts.evaluation.systems import as_arrays
from slimtts.evaluation.word_meter import WordMeter, open_recognizer
from slimtts.params import Params, load_params
from slimtts.stages.distill_student import save_model
from slimtts.stages.evaluate_student import open_voice_encoder
from slimtts.stages.subset_data import subset_data
from slimtts.stages.voices import speaking_tasks
from slimtts.storage import atomic_path
from slimtts.teachers.base import Prompt, Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.nano import bundle_folder
from slimtts.workspace import Workspace

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "guided_teacher.jsonl"
NO_TEXT_SHARE, NO_VOICE_SHARE, NEITHER_SHARE = 0.1, 0.1, 0.05  # of the sequences; the rest keep both
SAMPLES = 2000


class DroppingSampler(PairSampler):
    """Pairs of one voice of which some lose their text, their voice prompt, or both."""

    def sequence(self, target: Utterance, prompt: Prompt, rng: np.random.Generator) -> ForcedSequence:
        chance = float(rng.random())
        no_voice = NO_TEXT_SHARE <= chance < NO_TEXT_SHARE + NO_VOICE_SHARE + NEITHER_SHARE
        no_text = chance < NO_TEXT_SHARE or (no_voice and chance >= NO_TEXT_SHARE + NO_VOICE_SHARE)
        whole = forced_sequence(self.teacher, target, Prompt() if no_voice else prompt, prompt_is_target=True)
        # The prompt's codes are targets, thus part of what follows the other prompt.
        return after_other_prompt(whole, self.teacher.textless_prompt_ids(Prompt())) if no_text else whole


def params_for(source: str) -> Params:
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(update={"teacher": params.teacher.model_copy(update={"source": source})})


def training_split(teacher: Teacher) -> list[Utterance]:
    corpus = load_token_corpus(bundle_folder() / "corpus")
    utterances = []
    for index, row in enumerate(corpus.rows):
        if row["split"] == "train":
            codes = tuple(corpus.codes_of(index).tolist())
            duration_s = len(codes) / teacher.codec.frame_rate_hz
            utterances.append(Utterance(row["id"], row["text"], row["voice"], codes, duration_s))
    return utterances


def train_on(steps: int, tokens: int, rate: float, seed: int, out: Path) -> None:
    params = params_for("bundled")
    teacher = load_teacher(params.teacher)
    knobs = params.distill_student.model_copy(
        update={"steps": steps, "tokens_per_step": tokens, "optimizer": "muon", "seed": seed}
    )
    device = pick_device(knobs.device)
    if device.type == "cpu":
        teacher.model.set_attn_implementation("eager")  # its backward pass is the faster one at these lengths
    sampler = DroppingSampler(teacher, training_split(teacher), tokens, seed)
    loss = HealingLoss(PRESETS["cross_entropy"], teacher.layout)
    shares = (NO_TEXT_SHARE, NO_VOICE_SHARE, NEITHER_SHARE)
    parts = (teacher.weights_sha256, steps, tokens, rate, knobs.warmup_share, seed, shares)
    mark = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    with tqdm(total=steps, unit="step") as bar:
        job = TrainingJob("guided teacher", teacher.model, loss, sampler.from_step, out / "progress", mark, rate)
        report = train(job, knobs, device, lambda step: bar.update(step - bar.n))
    with atomic_path(out / "model") as folder:
        save_model(teacher.model, teacher, folder)
    again = load_teacher(params_for(str(out / "model")).teacher, with_model=False)
    print(f"{again.folder}: {report.tokens} targets in {report.wall_s:.0f} s, last loss {report.final_loss:.3f}")


def evaluate(source: str, utterances: int, scales: list[Guidance], temperatures: list[float], results: Path) -> None:
    params = params_for(source)
    data = params.subset_data.model_copy(
        update={"selection_utterances": utterances, "speech": "corpus", "extra_texts": 0}
    )
    params = params.model_copy(update={"subset_data": data})
    teacher = load_teacher(params.teacher)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        subset_data(params, workspace)
        tasks = speaking_tasks(workspace, "selection", utterances)
    passes = [prompt_passes(teacher, task.utterance.text, task.prompt) for task in tasks]
    words = WordMeter(params, open_recognizer(params.recogniser))
    similarity = open_voice_encoder(params.evaluate_student.similarity)
    rate_hz = teacher.codec.sample_rate_hz
    voices = similarity.embed(as_arrays([teacher.audio(task.prompt.codes) for task in tasks]), rate_hz)
    results.parent.mkdir(exist_ok=True)
    print("| temperature | text scale | voice scale | WER % [95 %] | similarity | no END % | s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for temperature, guidance in product(temperatures, scales):
        decoding = params.decoding.model_copy(update={"temperature": temperature})
        started = time.monotonic()
        spoken = generate_guided(teacher.model, teacher.layout, passes, decoding, guidance)
        seconds = time.monotonic() - started
        waves = as_arrays([teacher.audio(s.codes) for s in spoken])
        errors = [
            words.count(task.utterance.text, heard)
            for task, heard in zip(tasks, words.transcribe(waves, rate_hz), strict=True)
        ]
        likeness = (similarity.embed(waves, rate_hz) * voices).sum(1)
        no_end = sum(not s.ended for s in spoken)
        row = {
            "date": str(date.today()),
            "weights": teacher.weights_sha256[:12],
            "temperature": temperature,
            "text_scale": guidance.text_scale,
            "voice_scale": guidance.voice_scale,
            "counts": [(e.hits, e.substitutions, e.deletions, e.insertions) for e in errors],
            "similarity": likeness.round(4).tolist(),
            "no_end": no_end,
            "generation_s": round(seconds, 1),
        }
        with results.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        wer = bootstrap_corpus_wer(errors, SAMPLES, 1)
        print(
            f"| {temperature} | {guidance.text_scale} | {guidance.voice_scale} "
            f"| {100 * wer.value:.1f} [{100 * wer.low:.1f}, {100 * wer.high:.1f}] "
            f"| {likeness.mean():.3f} | {100 * no_end / len(spoken):.1f} | {seconds:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--steps", type=int, default=150)
    training.add_argument("--tokens", type=int, default=4096, help="padded tokens a step")
    training.add_argument("--rate", type=float, default=3e-4, help="peak learning rate")
    training.add_argument("--seed", type=int, default=1)
    training.add_argument("--out", type=Path, default=ROOT / "build" / "guided_teacher")
    judging = commands.add_parser("evaluate")
    judging.add_argument("source", help='a checkpoint folder, or "bundled"')
    judging.add_argument("--utterances", type=int, default=128)
    judging.add_argument("--text", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0])
    judging.add_argument("--voice", type=float, nargs="+", default=[0.0, 1.0])
    judging.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    judging.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.command == "train":
        train_on(options.steps, options.tokens, options.rate, options.seed, options.out.absolute())
    else:
        scales = [Guidance(text, voice) for voice, text in product(options.voice, options.text)]
        evaluate(options.source, options.utterances, scales, options.temperature, options.results)


if __name__ == "__main__":
    main()
