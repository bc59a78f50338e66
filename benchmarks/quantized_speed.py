"""What the decoder's linear layers cost a token in each form: the part of a student that 8 bit and 2:4 change.

python -m benchmarks.quantized_speed --quick                        # nano, a smoke run
python -m benchmarks.quantized_speed                                # nano and four layers of LLaSA-1B's size, CPU
python -m benchmarks.quantized_speed --device cuda --compile        # adds each form compiled into CUDA graphs

Random weights, one row (a token of one utterance) or more, all projections of all layers, no attention. Forms take
turns, the median of the rounds counts, and the ratio is to the plain form of the device: fp32 on a CPU, bf16 on CUDA.
With one thread on a CPU, seconds are the processor's: they change little while others use the machine too.
"kernel" is torch's own int8 product on a CPU, which takes bf16 activations. MB are what the weights take there.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from benchmarks.memory_table import SUBJECTS
from benchmarks.true_sizes import made_in
from slimtts.quantization.folders import apply_variant
from slimtts.quantization.memory import stored_bytes
from slimtts.quantization.placement import place
from slimtts.quantization.sparsity import decoder_linears
from slimtts.quantization.variants import VARIANTS
from slimtts.stages.evaluate_student import describe_machine

ROUNDS = 7
LEAST_S = 0.05  # of a round


class KernelLinear(nn.Module):
    """A linear layer by torch's int8 product: bf16 rows, int8 weights, a scale an output."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.scale = linear.weight.qdata, linear.weight.scale.flatten().bfloat16()

    def forward(self, rows):
        return torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scale)


def projections(layers, hidden):
    """Every product of the decoder for hidden [N, D]; all results are given back, so that none is optimised away."""
    seen = []
    for layer in layers:
        attention, ffn = layer.self_attn, layer.mlp
        hidden = F.rms_norm(hidden, hidden.shape[-1:])
        seen += [attention.k_proj(hidden), attention.v_proj(hidden)]
        hidden = F.rms_norm(hidden + attention.o_proj(attention.q_proj(hidden)), hidden.shape[-1:])
        hidden = hidden + ffn.down_proj(F.silu(ffn.gate_proj(hidden)) * ffn.up_proj(hidden))
    return hidden, seen


def forms_of(model, device, compiles) -> dict[str, tuple[object, torch.dtype]]:
    """Name -> layers and the type of their activations; the plain form first."""
    made = {}
    plain = torch.float32 if device.type == "cpu" else torch.bfloat16
    for dtype in dict.fromkeys((plain, torch.bfloat16)):
        made[str(dtype).removeprefix("torch.")] = (place(copy.deepcopy(model), device, dtype), dtype)
    for name in ("int8", "fp8", "sparse24"):
        variant = copy.deepcopy(model)
        apply_variant(variant, VARIANTS[name])
        made[name] = (place(variant, device, plain), plain)
    if device.type == "cpu":
        kernel = copy.deepcopy(model)
        apply_variant(kernel, VARIANTS["int8"])
        for name, linear in decoder_linears(kernel).items():
            if linear.bias is None:
                kernel.set_submodule(name, KernelLinear(linear))
        if not decoder_linears(kernel):  # else some have a bias, which the product does not add
            made["int8, kernel"] = (kernel.bfloat16(), torch.bfloat16)
    runs = {}
    for name, (form, dtype) in made.items():
        layers = form.model.layers
        runs[name] = (lambda rows, layers=layers: projections(layers, rows), layers, dtype)
        if compiles:
            run = torch.compile(lambda rows, layers=layers: projections(layers, rows), mode="max-autotune")
            runs[f"{name}, compiled"] = (run, layers, dtype)
    return runs


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, over as many as fill `LEAST_S`."""
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    count, started = 0, clock()
    while True:
        run()
        count += 1
        if count % 8 == 0 or device.type == "cpu":
            if device.type == "cuda":
                torch.cuda.synchronize()
            if (spent := clock() - started) >= LEAST_S:
                return spent / count


def measured(name: str, layers: int, rows: int, device: torch.device, compiles: bool, rounds: int) -> list[str]:
    """Lines of the table."""
    config = copy.deepcopy(SUBJECTS[name]().size.config)
    config.num_hidden_layers, config.vocab_size = min(layers, config.num_hidden_layers), 1024
    with made_in(torch.float32):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    forms = forms_of(model, device, compiles)
    runs = {}
    for form, (run, _, dtype) in forms.items():
        given = torch.randn(rows, config.hidden_size, device=device, dtype=dtype)
        runs[form] = lambda run=run, given=given: run(given)
    timed: dict[str, list[float]] = {form: [] for form in runs}
    with torch.inference_mode():  # only here: torchao's tensors cannot be moved in it
        for run in runs.values():
            seconds(run, device)
        for _ in range(rounds):
            for form, run in runs.items():
                timed[form].append(seconds(run, device))
    plain = statistics.median(timed[next(iter(timed))])
    lines = []
    for form, times in timed.items():
        middle = statistics.median(times)
        weights = [w for m in forms[form][1].modules() if (w := getattr(m, "weight", None)) is not None and w.ndim == 2]
        size_mb = sum(map(stored_bytes, weights)) / 2**20
        subject = f"{name}, {config.num_hidden_layers} layers"
        lines.append(f"| {subject} | {rows} | {form} | {1e3 * middle:.3f} | {plain / middle:.2f} | {size_mb:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=("nano", "llasa-1b"), default=["nano", "llasa-1b"])
    parser.add_argument("--layers", type=int, default=4, help="of the larger model; its cost is a line in them")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--compile", action="store_true", help="each form also by torch.compile, minutes on a CPU")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.model, options.rows = ["nano"], [1]
    torch.set_num_threads(options.threads)
    print(f"{date.today()}, {describe_machine(torch.get_num_threads())}, torch {torch.__version__}, {options.device}\n")
    print("| model | rows | form | ms a token | times the plain speed | MB |\n|---|---|---|---|---|---|")
    for name in options.model:
        for rows in options.rows:
            layers = 99 if name == "nano" else options.layers
            device, rounds = torch.device(options.device), 2 if options.quick else ROUNDS
            for line in measured(name, layers, rows, device, options.compile, rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
