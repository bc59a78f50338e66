"""Speculative decoding against plain decoding of the target: how much faster, how much of it is taken, what is heard.

python -m benchmarks.speculative_speed --draft STUDENT                       # the bundled teacher and its student
python -m benchmarks.speculative_speed --model llasa-1b --device cuda        # true size, random weights
python -m benchmarks.speculative_speed --quick                               # a smoke run: an unhealed draft

Every sentence is spoken by the plain decoder and by every rule and draft length in turn, in one process, so that load
on the machine strikes all alike; the speed-up is the ratio of the sums, by the clock and by the processor's own time.
At true size the weights are random: there the layers that the draft lacks are turned down by `--agreements`, which sets
how often both models agree, and the speed is measured at the acceptance that follows from it. Rows go to
benchmarks/results and, with `--mlflow`, to a server.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speculative_rows import Way, add_foreseen, as_dict, log_to_mlflow, measured_row, table
from slimtts.data.token_corpus import load_token_corpus
from slimtts.decoding.cuda_graphs import StepGraphs
from slimtts.decoding.generation import Generated, generate_batch
from slimtts.decoding.speculative import SpeculativeDecoder
from slimtts.decoding.speculative_lanes import Lane, LeanLane, Place, make_lane
from slimtts.decoding.speculative_round import WIDTH_STEP
from slimtts.decoding.speculative_rules import make_rule
from slimtts.evaluation.similarity import SpeakerSimilarity
from slimtts.evaluation.statistics import bootstrap_corpus_wer, bootstrap_mean, paired_bootstrap_wer_points
from slimtts.evaluation.systems import as_arrays
from slimtts.evaluation.word_errors import WordErrors, count_word_errors
from slimtts.evaluation.word_meter import open_recognizer
from slimtts.machine import prepare_cuda
from slimtts.nano.card import held_out_rows
from slimtts.params import DecodingParams, RecogniserParams, TeacherParams
from slimtts.pruning.surgery import remove_layers
from slimtts.speech import bundled_voices
from slimtts.stages.evaluate_student import describe_machine
from slimtts.teachers.base import SpeechTokenLayout, Teacher
from slimtts.teachers.loading import load_beside, load_teacher
from slimtts.teachers.nano import bundle_folder

ROOT = Path(__file__).parent.parent
KEPT_OF_NANO = (0, 2, 4, 6, 7, 9)  # of an unhealed draft, where no student is given
PLAIN, DRAFT_ALONE = "plain", "draft alone"
BOOTSTRAP_SAMPLES = 1000
ENDLESS_CODES = 256  # spoken at true size, where random weights say END once in 65,537 codes
FRAME_RATE_HZ = {"cosyvoice2": 25.0}  # of the codecs at true size, where it is not LLaSA's 50
BLOCKS = (1, 2, 3, 4, 6, 9)  # tokens of a pass whose cost is measured
BLOCK_REPEATS = 30


def synchronized_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def speak_all(ways: Sequence[Way], sentences: int, device: torch.device) -> None:
    """Sentence by sentence, every way in turn, each sentence beginning with another; the first one warms up."""
    for way in ways:
        way.speak(0)
        if way.decoder is not None:
            way.decoder.counts = type(way.decoder.counts)()
    for index in range(sentences):
        turn = index % len(ways)
        for way in (*ways[turn:], *ways[:turn]):
            started, computed = synchronized_s(device), time.process_time()
            said = way.speak(index)
            way.seconds.append(synchronized_s(device) - started)
            way.processor_seconds.append(time.process_time() - computed)
            way.spoken.append(said)


@torch.inference_mode()
def pass_cost_ms(lane: Lane, blocks: Sequence[int]) -> dict[int, float]:
    """Median milliseconds of one pass over so many tokens behind 128 others: on CUDA recorded, as it is in a round."""
    lane.reserve(WIDTH_STEP)
    lane.begin([lane.layout.first_code_id] * (128 + max(blocks)))
    places: dict[int, Place] = {block: slice(128, 128 + block) for block in blocks}
    passes: dict[int, Callable[[], Any]] = {b: partial(lane.logits, place, 0) for b, place in places.items()}
    if lane.device.type == "cuda" and isinstance(lane, LeanLane):
        places = {block: torch.arange(128, 128 + block, device=lane.device) for block in blocks}
        graphs = {b: StepGraphs(partial(lane.logits, place), [lane.ids]) for b, place in places.items()}
        passes = {block: partial(graph.run, WIDTH_STEP) for block, graph in graphs.items()}
    taken: dict[int, list[float]] = {block: [] for block in blocks}
    for turn in range(BLOCK_REPEATS + 3):
        for block in blocks:
            started = synchronized_s(lane.device)
            passes[block]()
            if turn >= 3:
                taken[block].append(1000 * (synchronized_s(lane.device) - started))
    return {block: float(np.median(ms)) for block, ms in taken.items()}


@dataclass
class Listener:
    """Words and voice of what was spoken on nano."""

    teacher: Teacher
    texts: list[str]
    prompts: list[Any]
    similar: int  # so many sentences are compared with their prompt's voice

    def __post_init__(self) -> None:
        self.recognizer = open_recognizer(RecogniserParams(model="bundled", normalizer="basic", beam_size=1))
        self.similarity = SpeakerSimilarity()
        self.rate_hz = self.teacher.codec.sample_rate_hz
        self.voices: dict[str, np.ndarray] = {}

    def voice_of(self, prompt: Any) -> np.ndarray:
        if prompt.voice not in self.voices:
            wave = as_arrays([self.teacher.audio(prompt.codes)])
            self.voices[prompt.voice] = self.similarity.embed(wave, self.rate_hz)[0]
        return self.voices[prompt.voice]

    def hear(self, spoken: Sequence[Generated]) -> tuple[list[WordErrors], list[float]]:
        waves = as_arrays([self.teacher.audio(said.codes) for said in spoken])
        transcripts = self.recognizer.transcribe(waves, self.rate_hz)
        errors = [count_word_errors(t, heard, "basic") for t, heard in zip(self.texts, transcripts, strict=True)]
        ours = self.similarity.embed(waves[: self.similar], self.rate_hz)
        voices = [self.voice_of(prompt) for prompt in self.prompts[: self.similar]]
        return errors, [float(a @ b) for a, b in zip(ours, voices, strict=True)]

    def add_to(self, rows: Sequence[dict[str, Any]], ways: Sequence[Way], plain: Way) -> None:
        """WER, its gap to plain decoding on the same sentences, similarity."""
        base = self.hear(plain.spoken)
        for row, way in zip(rows, ways, strict=True):
            errors, similar = base if way.spoken == plain.spoken else self.hear(way.spoken)
            row["wer"] = as_dict(bootstrap_corpus_wer(errors, BOOTSTRAP_SAMPLES, 1))
            row["wer_points_over_plain"] = as_dict(paired_bootstrap_wer_points(errors, base[0], BOOTSTRAP_SAMPLES, 1))
            row["similarity"] = bootstrap_mean(similar, BOOTSTRAP_SAMPLES, 1).value


def make_ways(
    target: tuple[Any, SpeechTokenLayout],
    draft: tuple[Any, SpeechTokenLayout],
    prompts: Sequence[Sequence[int]],
    draft_prompts: Sequence[Sequence[int]],
    decoding: DecodingParams,
    settings: Sequence[tuple[str, int]],
) -> list[Way]:
    """Plain decoding, the draft alone, then every rule and draft length."""

    def alone(pair: tuple[Any, SpeechTokenLayout], ids: Sequence[Sequence[int]]) -> Callable[[int], Generated]:
        return lambda index: generate_batch(*pair, [ids[index]], decoding, row_seeds=[index])[0]

    def together(decoder: SpeculativeDecoder) -> Callable[[int], Generated]:
        return lambda index: decoder.generate(prompts[index], decoding, index, draft_prompts[index])

    ways = [
        Way(PLAIN, 0, decoding.temperature, alone(target, prompts)),
        Way(DRAFT_ALONE, 0, decoding.temperature, alone(draft, draft_prompts)),
    ]
    for rule, length in settings:
        decoder = SpeculativeDecoder(make_lane(*target), make_lane(*draft), make_rule(rule, *target), length)
        ways.append(Way(rule, length, decoding.temperature, together(decoder), decoder))
    return ways


def settings_of(options: argparse.Namespace) -> list[tuple[str, int]]:
    """The exact rule at all lengths, the others at those of `--tolerant-lengths`."""
    return [
        (rule, length)
        for rule in options.rules
        for length in (options.lengths if rule == "exact" else options.tolerant_lengths)
    ]


def on_nano(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    teacher = load_teacher(TeacherParams(family="nano", source="bundled"))
    teacher.model.to(device)
    if options.draft:
        student = load_beside(teacher, options.draft)
        draft = (student.model.to(device), student.layout)
    else:
        student = teacher
        draft = (remove_layers(teacher.model, KEPT_OF_NANO), teacher.layout)
    target = (teacher.model, teacher.layout)
    corpus, voices = load_token_corpus(bundle_folder() / "corpus"), bundled_voices()
    said = [corpus.rows[i] for i in held_out_rows(corpus, options.sentences)]
    prompts = [voices[row["voice"]] for row in said]
    ids = [teacher.prompt_ids(row["text"], prompt) for row, prompt in zip(said, prompts, strict=True)]
    draft_ids = [student.prompt_ids(row["text"], prompt) for row, prompt in zip(said, prompts, strict=True)]
    found, spoken = costs(target, draft), []
    for temperature in options.temperatures:
        decoding = DecodingParams(temperature=temperature, top_p=0.95, max_new_tokens=112, batch_rows=1, seed=1)
        spoken.append(make_ways(target, draft, ids, draft_ids, decoding, settings_of(options)))
        speak_all(spoken[-1], len(said), device)
    # Afterwards, because the recogniser sets the threads of the whole process.
    listener = Listener(teacher, [row["text"] for row in said], prompts, options.similarity_sentences)
    rows: list[dict[str, Any]] = []
    for ways in spoken:
        new = [measured_row(way, ways[0], teacher.codec.frame_rate_hz) for way in ways]
        listener.add_to(new, ways, ways[0])
        rows += new
    what = f"healed student, {draft[0].config.num_hidden_layers} layers" if options.draft else "unhealed, 6 layers"
    return {"draft": what, "costs": found, "rows": rows}


def costs(target: tuple[Any, SpeechTokenLayout], draft: tuple[Any, SpeechTokenLayout]) -> dict[str, Any]:
    of_target, of_draft = pass_cost_ms(make_lane(*target), BLOCKS), pass_cost_ms(make_lane(*draft), (1,))
    return {
        "target_pass_ms": {str(tokens): ms for tokens, ms in of_target.items()},
        "draft_pass_ms": of_draft[1],
        "draft_share": of_draft[1] / of_target[1],
    }


@torch.no_grad()
def turned_down(model: Any, kept: Sequence[int], share: float) -> Any:
    """The same model, whose other layers change their input by only this share of what they did."""
    for index, layer in enumerate(model.model.layers):
        if index not in kept:
            layer.self_attn.o_proj.weight.mul_(share)
            layer.mlp.down_proj.weight.mul_(share)
    return model


def at_true_size(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    from benchmarks.true_sizes import SIZES, made_in

    size = SIZES[options.model]()
    layers = size.config.num_hidden_layers
    keep = options.keep_layers or layers // 2
    kept = [index * layers // keep for index in range(keep)]
    generator = torch.Generator().manual_seed(1)
    ids = [
        torch.randint(0, size.layout.num_codes, (options.prompt_tokens,), generator=generator).tolist()
        for _ in range(options.sentences)
    ]
    prompts = [size.layout.to_ids(codes) for codes in ids]
    decoding = DecodingParams(temperature=0.8, top_p=0.95, max_new_tokens=options.codes, batch_rows=1, seed=1)
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for agreement in sorted(options.agreements, reverse=True):
        torch.manual_seed(0)
        with made_in(torch.bfloat16), device:
            model = AutoModelForCausalLM.from_config(size.config, dtype=torch.bfloat16).eval()
        turned_down(model, kept, agreement)
        target, draft = (model, size.layout), (remove_layers(model, kept), size.layout)
        ways = make_ways(target, draft, prompts, prompts, decoding, settings_of(options))
        for way in ways:
            way.agreement = agreement
        speak_all(ways, options.sentences, device)
        rows += [measured_row(way, ways[0], FRAME_RATE_HZ.get(options.model, 50.0)) for way in ways]
        found = found or costs(target, draft)
        del ways, target, draft, model
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {"draft": f"random weights, {len(kept)} of {layers} layers", "costs": found, "rows": rows}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano", help="nano, or a size of benchmarks/true_sizes.py")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--draft", type=Path, help="a healed student's folder; else an unhealed draft (nano)")
    parser.add_argument("--sentences", type=int, help="default 100; at true size 3")
    parser.add_argument("--similarity-sentences", type=int, default=40)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--rules", nargs="+", default=["exact", "ssd:0.2", "ssd:0.4", "pcg:0.4", "top-k:10"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--tolerant-lengths", type=int, nargs="+", default=[3])
    parser.add_argument("--agreements", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0], help="at true size")
    parser.add_argument("--keep-layers", type=int, help="of the draft at true size; default half")
    parser.add_argument("--codes", type=int, default=ENDLESS_CODES, help="a sentence, at true size")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="at true size")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves them")
    parser.add_argument("--out", type=Path, help="JSON; default benchmarks/results/speculative-MODEL-DEVICE.json")
    parser.add_argument("--mlflow", metavar="URI", help="log every row there")
    parser.add_argument("--quick", action="store_true", help="few sentences, one temperature, few rows; writes no file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.temperatures, options.rules, options.lengths = [0.8], ["exact", "pcg:0.4"], [2]
        options.tolerant_lengths, options.similarity_sentences = [2], 3
        options.agreements, options.codes, options.prompt_tokens = [0.1], 12, 16
    options.sentences = options.sentences or ((3 if options.quick else 100) if options.model == "nano" else 3)
    return options


def recorded_command(arguments: Sequence[str]) -> str:
    """What another machine can repeat: no folder of this one, and no address of a server."""
    kept: list[str] = []
    for before, one in zip(["", *arguments], arguments, strict=False):
        if before == "--draft":
            kept.append(Path(one).name)
        elif not {before, one} & {"--out", "--mlflow"}:
            kept.append(one)
    return shlex.join(["python", "-m", "benchmarks.speculative_speed", *kept])


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device(options.device)
    prepare_cuda(device)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = describe_machine(torch.get_num_threads())
    measured = on_nano(options, device) if options.model == "nano" else at_true_size(options, device)
    result = {
        "model": options.model,
        "device": options.device,
        "machine": machine,
        "date": str(date.today()),
        "command": recorded_command(sys.argv[1:] if arguments is None else arguments),
        **measured,
    }
    add_foreseen(result)
    markdown = table(result)
    print(f"{result['date']}, {result['machine']}, draft: {result['draft']}\n{result['command']}\n\n{markdown}\n")
    shown = {tokens: round(ms, 2) for tokens, ms in result["costs"]["target_pass_ms"].items()}
    print(f"a pass of the target over so many tokens, ms: {shown}")
    print(f"a pass of the draft: {result['costs']['draft_share']:.2f} of the target's")
    out = options.out or (
        None if options.quick else ROOT / f"benchmarks/results/speculative-{options.model}-{options.device}.json"
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")
    if options.mlflow:
        log_to_mlflow(options.mlflow, result, markdown)


if __name__ == "__main__":
    main()
