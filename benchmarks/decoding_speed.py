"""Speech codes by our decoder against `transformers.generate`, in one process, turn by turn; and the floor of reading.

python -m benchmarks.decoding_speed --quick                           # a smoke run
python -m benchmarks.decoding_speed                                   # nano on this CPU
python -m benchmarks.decoding_speed --device cuda --model llasa-1b    # true size, random weights, LM only

The baseline may say the same ids (a logits processor adds one mask) and is greedy, as ours; equal codes are counted.
Floor: the bytes of weights that a step must read, by the bandwidth of a copy of as many bytes, measured here. LM-RTF is
seconds of the language model a second of audio that all rows say together; "CPU" the same of processor time, which
other work on the machine disturbs less. Of nano also: end-to-end RTF, latency, and the first audio of a stream.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from benchmarks.true_sizes import SIZES, made_in
from slimtts.decoding.generation import generate_batch
from slimtts.decoding.lean_pool import lean_pool
from slimtts.decoding.streaming import stream_audio, stream_codes
from slimtts.machine import prepare_cuda
from slimtts.nano.grammar import sample_sentence
from slimtts.params import DecodingParams, TeacherParams
from slimtts.pruning.surgery import remove_layers
from slimtts.speech import bundled_voices
from slimtts.stages.evaluate_student import describe_machine
from slimtts.teachers.loading import load_beside, load_teacher

SECONDS_A_CODE = {"nano": 1 / 25, "llasa-1b": 1 / 50, "cosyvoice2": 1 / 25}
NANO_CODES = 112  # an utterance at most, as params.yaml has it
MOST_BANDWIDTH_BYTES = 2**30


@dataclass
class Row:
    """One way of decoding: medians over rounds."""

    model: str
    layers: int
    batch: int
    way: str
    ms_a_step: float
    tokens_per_s: float
    lm_rtf: float
    cpu_rtf: float
    ratio: float
    cpu_ratio: float
    times_floor: float
    same_codes: str


class OnlySpoken(LogitsProcessor):
    """Everything but codes and END is impossible."""

    def __init__(self, layout, vocabulary, device):
        first = layout.first_code_id - layout.first_head_id
        self.mask = torch.full((vocabulary,), -torch.inf, device=device)
        self.mask[first : first + layout.num_codes] = 0
        self.mask[layout.end_id - layout.first_head_id] = 0

    def __call__(self, input_ids, scores):
        return scores + self.mask


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run, device):
    synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    made = run()
    synchronize(device)
    return made, time.perf_counter() - wall, time.process_time() - cpu


def bandwidth(amount, device):
    """Bytes a second that a copy of so many bytes reads and writes together."""
    source = torch.ones(min(amount, MOST_BANDWIDTH_BYTES) // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(12):
        seconds.append(timed(lambda: target.copy_(source), device)[1])
    return 2 * 4 * source.numel() / statistics.median(seconds[2:])


def baseline(model, layout, prompts, codes):
    """`transformers.generate`, left-padded, eager, its default cache."""
    device, longest = model.device, max(map(len, prompts))
    ids = torch.full((len(prompts), longest), layout.pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    allowed = LogitsProcessorList([OnlySpoken(layout, model.get_output_embeddings().weight.shape[0], device)])
    out = model.generate(
        ids.to(device), attention_mask=mask.to(device), do_sample=False, max_new_tokens=codes,
        logits_processor=allowed, eos_token_id=layout.end_id, pad_token_id=layout.end_id,
    )  # fmt: skip
    return [tuple(layout.to_codes(row)) for row in out[:, longest:].tolist()]


def ours(model, layout, prompts, codes):
    """With nothing left from an earlier call."""
    decoding = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=codes, batch_rows=len(prompts), seed=0)
    lean_pool(model, layout).forget_prompts()
    return [row.codes for row in generate_batch(model, layout, prompts, decoding)]


def tokens_of(said, codes):
    """Codes and END."""
    return len(said) + (len(said) < codes)


def compare(name, model, layout, calls, codes, rounds, seconds_a_code, label="ours"):
    """Baseline and ours on the same `calls` (lists of as many prompts), turn by turn; the first turn warms up."""
    device, bytes_a_token = model.device, lean_pool(model, layout).lean.bytes_a_token
    ways = {"transformers.generate": baseline, label: ours}
    wall, cpu, made = {way: [] for way in ways}, {way: [] for way in ways}, {}
    for turn in range(rounds + 1):
        for way, speak in ways.items():
            asked = calls if turn else calls[:1]
            results = [timed(lambda call=call, say=speak: say(model, layout, call, codes), device) for call in asked]
            if turn:
                made[way] = [[*call] for call, _, _ in results]
                wall[way].append(sum(seconds for _, seconds, _ in results))
                cpu[way].append(sum(seconds for _, _, seconds in results))
    floor_s = bytes_a_token / bandwidth(bytes_a_token, device)
    rows, first = [], "transformers.generate"
    for way, called in made.items():
        steps = sum(max(tokens_of(said, codes) for said in call) for call in called)
        said = [one for call in called for one in call]
        median, processor = statistics.median(wall[way]), statistics.median(cpu[way])
        audio_s = seconds_a_code * sum(map(len, said))
        expected = [one for call in made[first] for one in call]
        rows.append(
            Row(
                model=name,
                layers=model.config.num_hidden_layers,
                batch=len(calls[0]),
                way=way,
                ms_a_step=1e3 * median / steps,
                tokens_per_s=sum(tokens_of(one, codes) for one in said) / median,
                lm_rtf=median / audio_s,
                cpu_rtf=processor / audio_s,
                ratio=statistics.median(wall[first]) / median,
                cpu_ratio=statistics.median(cpu[first]) / processor,
                times_floor=median / steps / floor_s,
                same_codes=f"{sum(a == b for a, b in zip(said, expected, strict=True))}/{len(said)}",
            )
        )
    return rows


def hearing_rows(name, teacher, model, prompts):
    """Seconds until the first and the last sample of each prompt, batch 1: streamed by ours, whole by the baseline."""
    layout, codec, device = teacher.layout, teacher.codec, model.device
    decoding = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=NANO_CODES, batch_rows=1, seed=0)
    seen = {"transformers.generate, whole": [], "ours, streamed": []}
    for prompt in prompts:
        started = time.perf_counter()
        codes = baseline(model, layout, [prompt], NANO_CODES)[0]
        samples = teacher.audio(codes)
        whole_s, audio_s = time.perf_counter() - started, max(len(samples) / codec.sample_rate_hz, 1e-9)
        seen["transformers.generate, whole"].append((whole_s, whole_s, audio_s))
        lean_pool(model, layout).forget_prompts()
        started, first_s = time.perf_counter(), None
        for _ in stream_audio(stream_codes(model, layout, prompt, decoding), codec):
            first_s = first_s or time.perf_counter() - started
        last_s = time.perf_counter() - started
        seen["ours, streamed"].append((first_s or last_s, last_s, audio_s))
    synchronize(device)
    lines = []
    for way, values in seen.items():
        first, last, audio = np.array(values).T
        p50, p95 = np.percentile(first, (50, 95))
        all50, all95 = np.percentile(last, (50, 95))
        lines.append(
            f"| {name}, {model.config.num_hidden_layers} layers | {way} | {p50:.3f} / {p95:.3f} "
            f"| {all50:.3f} / {all95:.3f} | {last.sum() / audio.sum():.3f} |"
        )
    return lines


def nano_models(options):
    """The bundled teacher, and half of its layers: a healed student where one is given."""
    teacher = load_teacher(TeacherParams(family="nano", source="bundled"))
    if options.student:
        student = load_beside(teacher, options.student).model
    else:
        student = remove_layers(teacher.model, range(0, teacher.num_layers, 2))
    rng, voices = random.Random(1), bundled_voices()
    names = sorted(voices)
    prompts = [teacher.prompt_ids(sample_sentence(rng), voices[names[i % len(names)]]) for i in range(64)]
    return teacher, [("teacher", teacher.model), ("student", student)], prompts


def sized_models(options, device):
    """Random weights of a published size, and half of its layers."""
    size = SIZES[options.model]()
    torch.manual_seed(0)
    with made_in(torch.bfloat16), device:
        model = AutoModelForCausalLM.from_config(size.config, dtype=torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(1000, 100_000, (64, options.prompt_tokens), generator=generator).tolist()
    depth = model.config.num_hidden_layers
    return size.layout, [("teacher", model), ("student", remove_layers(model, range(0, depth, 2)))], text


def table(rows):
    names = "model layers batch way ms/step tokens/s LM-RTF CPU faster by_CPU floors same_codes".split()
    lines = [f"| {' | '.join(names)} |".replace("_", " "), "|---" * len(names) + "|"]
    for r in rows:
        cells = [r.model, r.layers, r.batch, r.way, f"{r.ms_a_step:.2f}", f"{r.tokens_per_s:.0f}", f"{r.lm_rtf:.4f}"]
        cells += [f"{r.cpu_rtf:.4f}", f"{r.ratio:.2f}x", f"{r.cpu_ratio:.2f}x", f"{r.times_floor:.1f}", r.same_codes]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("nano", *SIZES), default="nano")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", help="default 1 4 16 64, on a CPU at true size 1")
    parser.add_argument("--sentences", type=int, default=8, help="of batch 1, and of the stream (nano)")
    parser.add_argument("--codes", type=int, default=96, help="an utterance (true size; nano ends by itself)")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="at true size")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--student", type=Path, help="a healed student of nano; else every other layer, unhealed")
    parser.add_argument("--no-compile", action="store_true", help="on CUDA: only recorded steps, not compiled ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON of all rows")
    parser.add_argument("--quick", action="store_true", help="two sentences, one round, batches 1 and 4")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    prepare_cuda(device)
    if options.quick:
        options.sentences, options.rounds, options.batches = 2, 1, options.batches or [1, 4]
        options.codes = min(options.codes, 12)
    teacher = None
    if options.model == "nano":
        teacher, models, prompts = nano_models(options)
        layout, codes, alone = teacher.layout, NANO_CODES, options.sentences
    else:
        layout, models, prompts = sized_models(options, device)
        codes, alone = options.codes, 1
    default = [1] if device.type == "cpu" and teacher is None else [1, 4, 16, 64]
    where = torch.cuda.get_device_name() if device.type == "cuda" else describe_machine(options.threads)
    print(f"{date.today()}, {where}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, {models[0][1].dtype}")
    print(f"python -m benchmarks.decoding_speed {shlex.join(sys.argv[1:])}\n", flush=True)
    rows, heard = [], []
    for name, model in models:
        model.to(device)
        reads = lean_pool(model, layout).lean.bytes_a_token
        speed = bandwidth(reads, device)
        floor_ms = 1e3 * reads / speed
        print(f"{name}: {reads / 2**20:.0f} MiB a step, copied at {speed / 1e9:.1f} GB/s, floor {floor_ms:.3f} ms")
        for batch in options.batches or default:
            calls = [[one] for one in prompts[:alone]] if batch == 1 else [prompts[:batch]]
            rows += compare(name, model, layout, calls, codes, options.rounds, SECONDS_A_CODE[options.model])
            print("\n".join(table(rows[-2:]).splitlines()[-2:]), flush=True)
        if device.type == "cuda" and not options.no_compile:
            lean_pool(model, layout, compiled=True)
            calls = [[one] for one in prompts[:alone]]
            seconds = SECONDS_A_CODE[options.model]
            rows += compare(name, model, layout, calls, codes, options.rounds, seconds, "ours, compiled")[1:]
            lean_pool(model, layout, compiled=False)
        if teacher is not None and device.type == "cpu":
            heard += hearing_rows(name, teacher, model, prompts[: options.sentences])
    print(f"\n{table(rows)}")
    if heard:
        print("\n| model | way | first audio, s: p50 / p95 | all audio, s: p50 / p95 | RTF |\n|---|---|---|---|---|")
        print("\n".join(heard))
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
