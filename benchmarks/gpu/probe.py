"""What single parts cost on this card, so that estimates become numbers: one JSON, rewritten after every part.

python -m benchmarks.gpu.probe --device cuda --out build/gpu/probe.json
python -m benchmarks.gpu.probe --device cpu --tiny --out build/gpu/probe.json     # only proves that it runs

Sizes are LLaSA-1B's. Every figure is a median; "us" are microseconds of one call among many recorded ones, as in a
decode step, so that starting it costs nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from slimtts.distill import muon

BACKENDS = {
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


attend = F.scaled_dot_product_attention


@dataclass(frozen=True)
class Probe:
    """Where, and sizes divided by `shrink`."""

    device: torch.device
    shrink: int

    hidden, ffn, spoken, kv_heads, heads, head_dim = 2048, 8192, 65537, 8, 32, 64

    def __post_init__(self) -> None:
        for name in ("hidden", "ffn", "spoken"):
            object.__setattr__(self, name, getattr(type(self), name) // self.shrink)

    def random(self, *size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*size, device=self.device, dtype=dtype) / 8

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def first_s(self, work: Callable[[], object]) -> float:
        """Seconds of one call, the first of its kind."""
        self.synchronize()
        started = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - started

    def ms(self, work: Callable[[], object], repeats: int = 20) -> float:
        """Milliseconds of a call after three that warm up."""
        times = []
        for turn in range(repeats + 3):
            if self.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                work()
                end.record()
                end.synchronize()
                spent = start.elapsed_time(end)
            else:
                spent = 1e3 * self.first_s(work)
            if turn >= 3:
                times.append(spent)
        return statistics.median(times)

    def recorded_us(self, works: Sequence[Callable[[], object]], repeats: int = 20) -> float:
        """Microseconds a call of `works`, recorded one after the other."""
        if self.device.type != "cuda":
            return 1e3 * self.ms(lambda: [work() for work in works], 1) / len(works)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for work in works:
                work()
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for work in works:
                work()
        return 1e3 * self.ms(graph.replay, repeats) / len(works)


def card(probe: Probe) -> dict[str, Any]:
    """Bandwidth of a copy and the rate of square products: the two floors."""
    figures: dict[str, Any] = {"torch": torch.__version__}
    if probe.device.type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        figures |= {"name": properties.name, "memory_gib": properties.total_memory / 2**30}
        figures |= {"cudnn": torch.backends.cudnn.version(), "l2_mb": properties.L2_cache_size / 2**20}
    count = 2**30 // probe.shrink**2
    source = torch.ones(count, dtype=torch.int8, device=probe.device)
    target = torch.empty_like(source)
    figures["copy_tb_s"] = 2 * count / (probe.ms(lambda: target.copy_(source)) * 1e-3) / 1e12
    size = 8192 // probe.shrink
    a, b = probe.random(size, size), probe.random(size, size)
    figures["matmul_tflops"] = 2 * size**3 / (probe.ms(lambda: a @ b) * 1e-3) / 1e12
    return figures


def attention_of_a_step(probe: Probe) -> dict[str, Any]:
    """One layer's attention in a decode step, by kernel, and what the first call of a shape costs."""
    figures: dict[str, Any] = {}
    for rows in (1, 16, 64):
        for width in (256, 264, 1024, 2048):
            q = probe.random(rows, probe.kv_heads, 4, probe.head_dim)
            keys, values = ([probe.random(rows, probe.kv_heads, width, probe.head_dim) for _ in range(4)] for _ in "kv")
            mask = torch.zeros(rows, 1, 1, width, device=probe.device, dtype=q.dtype)
            for name, backend in BACKENDS.items():
                case = f"{name}, rows {rows}, width {width}"
                try:
                    with sdpa_kernel(backend):
                        figures[f"{case}, first_s"] = probe.first_s(
                            lambda q=q, k=keys[0], v=values[0], m=mask: attend(q, k, v, m)
                        )
                        calls = [
                            lambda q=q, k=k, v=v, m=mask: attend(q, k, v, m) for k, v in zip(keys, values, strict=True)
                        ]
                        figures[f"{case}, us"] = probe.recorded_us(calls)
                except RuntimeError as error:  # a kernel that does not take this shape
                    figures[case] = str(error)[:120]
    return figures


def plans_in_training(probe: Probe) -> dict[str, Any]:
    """Seconds of the first forward and backward at a new shape, with cuDNN's attention and without."""
    figures: dict[str, Any] = {}
    was_on = torch.backends.cuda.cudnn_sdp_enabled()
    for on in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(on)
        for tokens in (500, 517, 531):
            with torch.enable_grad():
                q, k, v = (
                    probe.random(2, heads, tokens, probe.head_dim).requires_grad_()
                    for heads in (probe.heads, probe.kv_heads, probe.kv_heads)
                )
                figures[f"cudnn {'on' if on else 'off'}, {tokens} tokens, first_s"] = probe.first_s(
                    lambda q=q, k=k, v=v: (
                        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()
                    )
                )
    torch.backends.cuda.enable_cudnn_sdp(was_on)
    return figures


def products_of_a_step(probe: Probe) -> dict[str, Any]:
    """Every product of a decode step, and how fast it reads its weights; weights change, so that no cache helps."""
    d, padded = probe.hidden, -(-probe.spoken // 64) * 64
    shapes = {
        "qkv": (d + 2 * probe.kv_heads * probe.head_dim // probe.shrink, d),
        "out": (d, d),
        "gate_up": (2 * probe.ffn, d),
        "down": (d, probe.ffn),
        "head": (probe.spoken, d),
        "head padded": (padded, d),
    }
    figures: dict[str, Any] = {}
    for rows in (1, 16, 64):
        for name, (n, k) in shapes.items():
            weights = [probe.random(n, k) for _ in range(max(2, min(16, 2**28 // (2 * n * k))))]
            x = probe.random(rows, k)
            us = probe.recorded_us([lambda x=x, w=w: torch.mm(x, w.t()) for w in weights])
            figures[f"{name}, rows {rows}"] = {"us": us, "tb_s": 2 * n * k / max(us, 1e-9) / 1e6}
    x, w, h = probe.random(1, d), probe.random(d, d), probe.random(1, d)
    figures["addmm, us"] = probe.recorded_us([lambda: torch.addmm(h, x, w.t())] * 16)
    figures["addmm_, us"] = probe.recorded_us([lambda: h.addmm_(x, w.t())] * 16)
    figures["a small kernel, us"] = probe.recorded_us([lambda: h.mul_(1.0)] * 64)
    return figures


def choice_of_a_code(probe: Probe) -> dict[str, Any]:
    """Sort, top-k and what needs neither, over a spoken vocabulary."""
    figures: dict[str, Any] = {}
    for rows in (1, 4, 16, 64, 128):
        logits = probe.random(rows, probe.spoken, dtype=torch.float32)
        ways: dict[str, Callable[[], object]] = {
            "sort": lambda x=logits: x.sort(-1, descending=True),
            "top-k of 1,024": lambda x=logits: x.topk(min(1024, x.shape[-1]), -1),
            "argmax": lambda x=logits: x.argmax(-1),
            "softmax and cumsum": lambda x=logits: x.softmax(-1).cumsum(-1),
        }
        figures |= {f"{name}, rows {rows}, us": probe.recorded_us([way] * 4) for name, way in ways.items()}
    return figures


def products_of_the_head(probe: Probe) -> dict[str, Any]:
    """Training: hidden times head and both gradients, with 65,537 rows and padded ones; TFLOP/s."""
    figures: dict[str, Any] = {}
    for name, v in {"65,537": probe.spoken, "padded": -(-probe.spoken // 128) * 128}.items():
        for chunk in (1024, 4096):
            positions = chunk // probe.shrink
            h, w, g = probe.random(positions, probe.hidden), probe.random(v, probe.hidden), probe.random(positions, v)
            products: dict[str, Callable[[], object]] = {
                "logits": lambda h=h, w=w: h @ w.t(),
                "to hidden": lambda g=g, w=w: g @ w,
                "to head": lambda g=g, h=h: g.t() @ h,
            }
            for product, work in products.items():
                flops = 2 * positions * v * probe.hidden
                figures[f"{product}, {name} rows, {chunk} positions"] = flops / (probe.ms(work, 8) * 1e-3) / 1e12
    return figures


def muon_step(probe: Probe) -> dict[str, Any]:
    """Milliseconds of an update of eight layers, by how many elements are worked on at once."""
    figures: dict[str, Any] = {}
    d, f = probe.hidden, probe.ffn
    shapes = [(d, d), (d // 4, d), (d // 4, d), (d, d), (f, d), (f, d), (d, f)] * (2 if probe.shrink > 1 else 8)
    before = muon.MOST_ELEMENTS
    for most in (before, 2**26, 2**28):
        muon.MOST_ELEMENTS = most
        params = [torch.nn.Parameter(probe.random(*shape, dtype=torch.float32)) for shape in shapes]
        optimizer = muon.BatchedMuon(params)
        for p in params:
            p.grad = probe.random(*p.shape, dtype=torch.float32)
        figures[f"{most} elements at once, ms"] = probe.ms(optimizer.step, 5)
        del params, optimizer
    muon.MOST_ELEMENTS = before
    return figures


PARTS = (
    card,
    plans_in_training,
    products_of_a_step,
    attention_of_a_step,
    choice_of_a_code,
    products_of_the_head,
    muon_step,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="a hundredth of the size")
    parser.add_argument("--only", nargs="+", choices=[part.__name__ for part in PARTS])
    options = parser.parse_args()
    torch.manual_seed(0)
    probe, figures = Probe(torch.device(options.device), 64 if options.tiny else 1), {}
    for part in PARTS:
        if options.only and part.__name__ not in options.only:
            continue
        started = time.monotonic()
        try:
            with torch.no_grad():
                figures[part.__name__] = part(probe)
        except Exception:  # one part must not take the others' figures with it
            figures[part.__name__] = {"failed": traceback.format_exc()[-1500:]}
        figures[part.__name__]["seconds"] = round(time.monotonic() - started, 1)
        options.out.write_text(json.dumps(figures, indent=1))
        print(part.__name__, json.dumps(figures[part.__name__]), flush=True)
        if options.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
