"""The pipeline's steps on models of the published sizes, with random weights: do they fit, are they right, how long?

python -m benchmarks.true_sizes llasa-1b
python -m benchmarks.true_sizes cosyvoice2

Builds the model in bf16, compares its number of parameters with the expected one before and after half of the layers
are cut, saves and opens the student (same logits to the bit), heals it for one step and speaks some codes. Prints
seconds and peak memory of each part, and fails on a wrong number or above the stated memory. On CUDA the student is
healed with fp32 weights, as the pipeline does; on a CPU in bf16, to save memory.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from slimtts.decoding.generation import generate_batch
from slimtts.decoding.teacher_forcing import ForcedSequence, collate
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.training import CLIP_NORM, make_optimizers, mixed_precision, pick_device
from slimtts.params import DecodingParams
from slimtts.pruning.surgery import remove_layers
from slimtts.quantization.placement import place
from slimtts.stages.evaluate_student import describe_machine
from slimtts.teachers.base import SpeechTokenLayout
from slimtts.teachers.checkpoint import load_language_model
from slimtts.teachers.cosyvoice2_model import CODES, PROMPT_ROWS, ROWS_AFTER_CODES, CosyVoice2Config

PROMPT_TOKENS, TRAINED_CODES, SPOKEN_CODES = 32, 96, 20
RATE = 1e-3


@dataclass(frozen=True)
class Size:
    """A published shape: `parameters` expected of the whole model and of its half, `memory_gib` allowed on a CPU."""

    config: PretrainedConfig
    layout: SpeechTokenLayout
    parameters: tuple[int, int]
    memory_gib: float


def llasa_1b() -> Size:
    """Llama-3.2-1B with 8 markers and 65,536 codes more, tied: 193,800 rows."""
    config = LlamaConfig(
        vocab_size=193_800,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return Size(config, SpeechTokenLayout(128_264, 65_536, 128_261, 128_001), (1_370_048_512, 883_476_480), 12.0)


def cosyvoice2() -> Size:
    """Qwen2.5-0.5B's body and text rows, sos and task_id, and 6,564 speech rows with a head of their own."""
    text_rows = 151_936
    first = text_rows + PROMPT_ROWS
    config = CosyVoice2Config(
        vocab_size=first + CODES + ROWS_AFTER_CODES,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=False,
    )
    layout = SpeechTokenLayout(first, CODES, first + CODES, 151_643, first, labels_after_end=ROWS_AFTER_CODES - 1)
    return Size(config, layout, (505_803_812, 326_855_204), 6.0)


SIZES = {"llasa-1b": llasa_1b, "cosyvoice2": cosyvoice2}


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """New models have weights of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class Ledger:
    """Seconds, those of the processor, and memory of every part; the process's peak only grows."""

    device: torch.device
    rows: list[tuple[str, float, float, float, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what is inside."""
        started, computed = time.perf_counter(), time.process_time()
        yield
        on_device = 0.0
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            on_device = torch.cuda.max_memory_allocated() / 2**30
        seconds = (time.perf_counter() - started, time.process_time() - computed)
        self.rows.append((name, *seconds, peak_gib(), on_device))

    def expect(self, what: str, observed: object, wanted: object) -> None:
        """Prints both; a difference fails the run in the end."""
        same = observed == wanted
        print(f"{what}: {observed}, expected {wanted}{'' if same else ': DIFFERENT'}", flush=True)
        if not same:
            self.problems.append(what)


def peak_gib() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def healing_step(student: Any, teacher: Any, size: Size, retained: list[int], device: torch.device) -> float:
    """One step of the default preset with the pipeline's optimisers on one random utterance; the loss."""
    layout = size.layout
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(0, layout.first_code_id - PROMPT_ROWS, (PROMPT_TOKENS,), generator=generator).tolist()
    codes = torch.randint(0, layout.num_codes, (TRAINED_CODES,), generator=generator).tolist()
    sequence = ForcedSequence((*text, *layout.to_ids(codes)), PROMPT_TOKENS - 1, (*codes, layout.num_codes))
    batch = collate([sequence], layout.pad_id).to(device)
    loss_of = HealingLoss(PRESETS["default"], layout, teacher.requires_grad_(False), tuple(retained))
    student.train()
    optimizers = make_optimizers(student, "muon")
    with mixed_precision(device):
        loss, _ = loss_of(student, batch)
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["lr"] = RATE
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    student.eval()
    return float(loss.item())


def go_through(size: Size, device: torch.device) -> Ledger:
    """All parts, one after the other."""
    ledger = Ledger(device)
    depth = size.config.num_hidden_layers
    retained = [*range(0, depth, 2)][: depth // 2]
    prompt = torch.arange(100, 100 + PROMPT_TOKENS, device=device).unsqueeze(0) % size.layout.first_code_id
    torch.manual_seed(0)
    with ledger.part(f"build, {depth} layers"), made_in(torch.bfloat16), device:
        teacher = AutoModelForCausalLM.from_config(size.config, dtype=torch.bfloat16).eval()
    ledger.expect(f"parameters, {depth} layers", teacher.num_parameters(), size.parameters[0])
    with ledger.part(f"cut to {len(retained)} layers"), made_in(torch.bfloat16):
        student = remove_layers(teacher, retained)
    ledger.expect(f"parameters, {len(retained)} layers", student.num_parameters(), size.parameters[1])
    with tempfile.TemporaryDirectory() as folder:
        with ledger.part("save"):
            student.save_pretrained(folder)
        with ledger.part("open strictly, logits of both"), torch.inference_mode():
            again = place(load_language_model(Path(folder)), device, torch.bfloat16)
            same = torch.equal(again(input_ids=prompt).logits, student(input_ids=prompt).logits)
            del again
    ledger.expect("logits after saving are the same bits", same, True)
    if device.type == "cuda":
        student.float()
    before = student.model.layers[0].mlp.up_proj.weight.detach().clone()
    with ledger.part("healing step"):
        loss = healing_step(student, teacher, size, retained, device)
    changed = not torch.equal(before, student.model.layers[0].mlp.up_proj.weight)
    ledger.expect(
        f"loss {loss:.4f} is finite and its step changed the weights", (loss < float("inf"), changed), (True, True)
    )
    decoding = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=SPOKEN_CODES, batch_rows=1, seed=1)
    with ledger.part(f"speak {SPOKEN_CODES} codes"):
        (spoken,) = generate_batch(student, size.layout, [prompt[0].tolist()], decoding)
    length = len(spoken.codes)
    ledger.expect(f"spoke {length} codes, ended {spoken.ended}", length == SPOKEN_CODES or spoken.ended, True)
    if device.type == "cpu":
        ledger.expect(f"peak memory at most {size.memory_gib} GiB", peak_gib() <= size.memory_gib, True)
    return ledger


def table(name: str, ledger: Ledger) -> str:
    """Markdown."""
    lines = [
        f"{name}, {date.today()}, {describe_machine(torch.get_num_threads())}, torch {torch.__version__}",
        "",
        "| part | seconds | of the processor, s | peak memory so far, GiB | of the GPU, GiB |",
        "|---|---|---|---|---|",
    ]
    for part, seconds, computed, memory, on_device in ledger.rows:
        of_gpu = f"{on_device:.1f}" if on_device else ""
        lines.append(f"| {part} | {seconds:.1f} | {computed:.1f} | {memory:.1f} | {of_gpu} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    name = parser.parse_args().size
    ledger = go_through(SIZES[name](), pick_device("auto"))
    print(table(name, ledger))
    if ledger.problems:
        sys.exit(f"not as expected: {'; '.join(ledger.problems)}")


if __name__ == "__main__":
    main()
