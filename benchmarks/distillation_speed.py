"""A distillation step: the plain form, public engines, and ours, in turn in one process; tokens/s, memory, MFU.

python -m benchmarks.distillation_speed                                       # nano on the CPU
python -m benchmarks.distillation_speed --model llasa-1b --device cuda        # random weights at true size
python -m benchmarks.distillation_speed --quick                               # a smoke test

Plain: padded batches in the order drawn, both models' logits of the whole vocabulary, the dense losses of
`slimtts.distill.losses`. TRL's and Liger's losses stand beside it when they can be imported (pip install --no-deps
trl==1.16.0 liger-kernel==0.8.5 accelerate==1.15.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 xxhash==4.1.0),
with our models, batches and optimiser; they learn the divergence (and Liger the cross-entropy), no hidden states.
All count tokens without padding. On a CPU the ratios are of the processor's seconds, which other programs disturb
less. MFU is the arithmetic that ours needs (weights, attention, spoken rows of the head; nothing twice) by seconds,
over what this device reaches multiplying square bf16 matrices. Memory on a CPU is the peak of a process of its own
above what it held before its first step; on CUDA all that torch allocated.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from math import nan
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch

from benchmarks.distillation_steps import STEPS, Nano, TrueSize
from benchmarks.true_sizes import SIZES
from slimtts.data.batching import token_budget_batches
from slimtts.decoding.teacher_forcing import collate
from slimtts.distill.batches import STEPS_A_POOL
from slimtts.distill.packing import collate_packed, pack
from slimtts.distill.training import multiplies_bf16
from slimtts.machine import prepare_cuda
from slimtts.stages.evaluate_student import describe_machine

SEED = 1
OURS, BASELINES = "ours", ("plain, fp32", "plain, bf16", "TRL GKD loss", "Liger fused JSD")


@dataclass(frozen=True)
class Batches:
    """The steps of one kind of batches, and the lengths of the sequences in each."""

    steps: list
    lengths: list

    @property
    def padding(self):
        """Share of the tokens that are none."""
        return 1 - sum(map(sum, self.lengths)) / sum(batch.ids.numel() for batch in self.steps)


def make_batches(model, tokens, steps, row_tokens):
    """The same drawn sequences in the order drawn, sorted by length, and packed."""
    rng = np.random.default_rng(SEED)
    sequences = model.sequences(rng, 1.1 * STEPS_A_POOL * tokens)
    lengths, pad = [len(s.ids) for s in sequences], model.layout.pad_id
    drawn, longest = [[]], 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if drawn[-1] and (len(drawn[-1]) + 1) * longest > tokens:
            drawn.append([])
            longest = length
        drawn[-1].append(index)
    groups = token_budget_batches(lengths, tokens)
    groups = [groups[int(i)] for i in rng.permutation(len(groups))]
    rows = pack(lengths, row_tokens)
    rows = [rows[int(i)] for i in rng.permutation(len(rows))]
    a_step = tokens // row_tokens
    shared = [rows[i : i + a_step] for i in range(0, len(rows) - a_step + 1, a_step)]

    def padded(chosen):
        of_steps = [collate([sequences[i] for i in group], pad) for group in chosen]
        return Batches(of_steps, [[lengths[i] for i in group] for group in chosen])

    packed = [collate_packed([[sequences[i] for i in row] for row in step], row_tokens, pad) for step in shared[:steps]]
    of_packed = [[lengths[i] for row in step for i in row] for step in shared[:steps]]
    return {
        "drawn": padded(drawn[:steps]),
        "sorted": padded(groups[:steps]),
        "packed": Batches(packed, of_packed),
    }


def needed_flops(step, lengths, targets):
    """Multiplications and additions of one step: teacher forward, student forward and backward, nothing twice."""
    config, tokens = step.teacher.config, sum(lengths)
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    head = (step.layout.num_codes + 1) * config.hidden_size * targets
    total = 0.0
    for model, times in ((step.teacher, 2), (step.student, 6)):
        weights = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
        width = model.config.num_attention_heads * model.model.layers[0].self_attn.head_dim
        attention = 2 * pairs * width * model.config.num_hidden_layers
        total += times * (weights * tokens + attention + head)
    return total


def matmul_peak(device):
    """Flop/s of square matrices in the type that trains; on a CPU by its own seconds, as everything."""
    size, rounds = (8192, 20) if device.type == "cuda" else (1536, 12)
    dtype = torch.bfloat16 if multiplies_bf16(device) else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    seconds = [timed(lambda: a @ a, device)[device.type == "cpu"] for _ in range(rounds)]
    return 2 * size**3 / min(seconds)


def timed(work: Callable[[], object], device):
    """(seconds, seconds of the processor) until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, computed = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - computed


def made(name, model, batches, device, cache):
    """That way to step, on fresh models."""
    kind = STEPS[name]
    return kind(model, device, batches[kind.batching].steps, cache)


def measured(name, model, batches, device):
    """Per timed step (tokens, seconds, processor seconds, needed flops), and the peak of CUDA's memory."""
    with tempfile.TemporaryDirectory() as cache:
        step = made(name, model, batches, device, cache)
        chosen = batches[step.batching]
        for batch in chosen.steps if step.is_compiled else chosen.steps[:1]:
            step(batch)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rows = []
        for batch, lengths in zip(chosen.steps, chosen.lengths, strict=True):
            seconds = timed(partial(step, batch), device)
            rows.append((sum(lengths), *seconds, needed_flops(step, lengths, int(batch.is_target.sum()))))
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else nan
        step.stack.close()
    del step
    gc.collect()
    return rows, peak


def memory_of_own_process(name, options):
    """GiB that steps add to a process that takes no other."""
    command = [sys.executable, "-m", "benchmarks.distillation_speed", "--memory-of", name]
    for knob in ("model", "tokens", "row_tokens", "threads"):
        command += [f"--{knob.replace('_', '-')}", str(getattr(options, knob))]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def print_memory(name, model, batches, device):
    """As JSON: GiB above what was held before the first of two steps."""
    with tempfile.TemporaryDirectory() as cache:
        step = made(name, model, batches, device, cache)
        gc.collect()
        before = psutil.Process().memory_info().rss / 2**30
        for batch in batches[step.batching].steps[:2]:
            step(batch)
        step.stack.close()
    # Not ru_maxrss, which a new program inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps(int(status["VmHWM"].split()[0]) / 2**20 - before))


def is_there(kind):
    """Whether the package that it needs can be found."""
    return not kind.needs or importlib.util.find_spec(kind.needs.split(".")[0]) is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["nano", *SIZES], default="nano")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tokens", type=int, default=0, help="padded, of a step; 2,048 for nano, else 8,192")
    parser.add_argument("--row-tokens", type=int, default=0, help="of packed rows; 1,024 for nano, else 2,048")
    parser.add_argument("--steps", type=int, default=4, help="timed in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--quick", action="store_true", help="one step of 512 tokens in one round, three ways only")
    parser.add_argument("--memory-of", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.steps, options.rounds = options.tokens or 512, 1, 1
        options.only = ["plain, fp32", "plain, bf16", OURS]
    options.tokens = options.tokens or (2048 if options.model == "nano" else 8192)
    options.row_tokens = options.row_tokens or min(options.tokens, 1024 if options.model == "nano" else 2048)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    prepare_cuda(device)
    model = Nano() if options.model == "nano" else TrueSize(options.model)
    batches = make_batches(model, options.tokens, max(2, options.steps), options.row_tokens)
    if options.memory_of:
        print_memory(options.memory_of, model, batches, device)
        return
    if device.type == "cuda" and "ours, compile" in options.only:
        options.only.remove("ours, compile")  # there it is the default
    names = [name for name in options.only if is_there(STEPS[name])]
    missing = [name for name in options.only if name not in names]
    peak = matmul_peak(device)
    on = torch.cuda.get_device_name() if device.type == "cuda" else describe_machine(options.threads)
    print(f"{date.today()}, {options.model}, {on}, torch {torch.__version__}, {' '.join(sys.argv[1:])}")
    padding = ", ".join(f"{kind} {part.padding:.1%}" for kind, part in batches.items())
    dtype = "bf16" if multiplies_bf16(device) else "fp32"
    print(f"{options.tokens} tokens a step; padding: {padding}; matmul peak {peak / 1e12:.3g} TFLOP/s in {dtype}")
    if missing:
        print(f"not installed: {', '.join(missing)}")
    rows, peaks = {name: [] for name in names}, {}
    for _ in range(options.rounds):
        for name in list(rows):
            try:
                found, peaks[name] = measured(name, model, batches, device)
                rows[name].append(found)
                tokens, seconds = sum(r[0] for r in found), sum(r[1] for r in found)
                print(f"{name}: {tokens / seconds:,.0f} tokens/s, {peaks[name]:.2f} GiB", flush=True)
            except torch.cuda.OutOfMemoryError:
                print(f"{name}: more memory than the {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB of this device")
                del rows[name]
            except Exception as error:  # one way must not take the others' figures with it
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                traceback.print_exc()
                del rows[name]
            gc.collect()
            torch.cuda.empty_cache()
    rows = {name: found for name, found in rows.items() if found}
    if device.type == "cpu" and not options.quick:
        peaks = {name: memory_of_own_process(name, options) for name in rows}
    print_table(rows, peaks, peak, device)


def print_table(rows, peaks, peak, device):
    """Markdown; medians over rounds, ratios to every baseline."""
    cpu = device.type == "cpu"

    def rate(name, column):
        return median(sum(r[0] for r in found) / sum(r[column] for r in found) for found in rows[name])

    bases = [name for name in BASELINES[:2] if name in rows]
    print(f"| step | tokens/s |{' tokens/s of the processor |' if cpu else ''} MFU | memory, GiB |", end="")
    print("".join(f" x {name} | memory / |" for name in bases))
    print("|---" * (4 + cpu + 2 * len(bases)) + "|")
    for name, found in rows.items():
        mfu = median(sum(r[3] for r in one) / sum(r[1 + cpu] for r in one) / peak for one in found)
        cells = [name, f"{rate(name, 1):,.0f}", *([f"{rate(name, 2):,.0f}"] if cpu else [])]
        cells += [f"{mfu:.1%}", f"{peaks[name]:.2f}"]
        for base in bases:
            cells += [f"{rate(name, 2 if cpu else 1) / rate(base, 2 if cpu else 1):.2f}"]
            cells += [f"{peaks[name] / peaks[base]:.2f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
