"""Where memory goes: parameters by part, keys and values, activations; in 16 bit and with int8 weights.

python -m benchmarks.memory_table                                   # computed from the configurations, seconds
python -m benchmarks.memory_table --measure nano                    # and allocated for real, each in its own process
python -m benchmarks.memory_table --device cuda --measure nano llasa-1b cosyvoice2

Computed: the model is built without memory (torch's meta device) and its tensors are counted, also those that a
training step keeps for its backward pass. Measured: what a process takes above what it took before the model was made
(CUDA: the allocator's peak), in bf16 on CUDA and as the pipeline has it, fp32, on a CPU for nano (bf16 for the others).
Generation: batch 1, one utterance. Training: a healing step of the default preset, teacher beside the student.
MB are 2**20 bytes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Xcodec2Config, Xcodec2Model

from benchmarks.true_sizes import SIZES, Size, healing_step, made_in
from slimtts.codec.nano_codec import NanoCodec
from slimtts.decoding.generation import generate_batch
from slimtts.machine import prepare_cuda
from slimtts.params import DecodingParams, TeacherParams
from slimtts.pruning.surgery import remove_layers
from slimtts.quantization.folders import apply_variant
from slimtts.quantization.memory import weight_sizes
from slimtts.quantization.placement import place
from slimtts.quantization.sparsity import decoder_linears
from slimtts.quantization.variants import VARIANTS
from slimtts.stages.evaluate_student import describe_machine
from slimtts.teachers.loading import load_teacher
from slimtts.teachers.nano import bundle_folder

MB = 2**20
FORMS = ("16 bit", "int8")
TRAINED_TOKENS = 128  # of the sequence that true_sizes heals on
SCALE_BYTES = 4 + 1  # a row's scale and zero point


@dataclass(frozen=True)
class Subject:
    """A model's shape, its codes a second, and its codec's parameters, None where they are not known here."""

    size: Size
    codes_per_s: float
    codec_parameters: int | None


@dataclass(frozen=True)
class Row:
    """Parameters in millions, MB of weights by part, kB of keys and values for each second of audio."""

    model: str
    layers: int
    form: str
    parameters_m: float
    embeddings_mb: float
    layers_mb: float
    head_mb: float
    weights_mb: float
    codec_mb: float | None
    cache_kb_per_s: float
    training_state_mb: float | None
    activations_mb: float | None
    measured_weights_mb: float | None = None
    measured_generation_mb: float | None = None
    measured_training_mb: float | None = None


def nano() -> Subject:
    teacher = load_teacher(TeacherParams(family="nano", source="bundled"), with_model=False)
    config = LlamaConfig.from_pretrained(bundle_folder() / "teacher", local_files_only=True)
    codec = sum(p.numel() for p in NanoCodec.load(bundle_folder() / "codec").parameters())
    return Subject(Size(config, teacher.layout, (0, 0), 2.0), 25.0, codec)


def llasa() -> Subject:
    with torch.device("meta"):
        codec = sum(p.numel() for p in Xcodec2Model(Xcodec2Config()).parameters())
    return Subject(SIZES["llasa-1b"](), 50.0, codec)


SUBJECTS = {"nano": nano, "llasa-1b": llasa, "cosyvoice2": lambda: Subject(SIZES["cosyvoice2"](), 25.0, None)}


def built(size: Size, layers: int, device: torch.device, dtype: torch.dtype):
    """Random weights; half depth as every second layer of the whole."""
    depth = size.config.num_hidden_layers
    with made_in(dtype), device:
        model = AutoModelForCausalLM.from_config(size.config, dtype=dtype).eval()
        return model if layers == depth else remove_layers(model, [*range(0, depth, depth // layers)][:layers])


def kept_for_backward(model, tokens: int) -> int:
    """Bytes that the decoder's layers keep in a training step on so many tokens; on the meta device, in its dtype."""
    kept: dict[int, int] = {}
    own = {id(parameter.untyped_storage()) for parameter in model.parameters()}

    def see(tensor):
        storage = tensor.untyped_storage()
        if id(storage) not in own and not isinstance(tensor, torch.nn.Parameter):
            kept[storage._cdata] = storage.nbytes()
        held.append(tensor)  # else a storage's place is given to the next one
        return tensor

    held: list[torch.Tensor] = []
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        # A mask that is ready: transformers looks into others, and the meta device has no numbers to look at.
        mask = torch.zeros(1, 1, tokens, tokens, dtype=model.dtype, device="meta")
        model.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(kept.values())


def computed(name: str, subject: Subject, layers: int, form: str) -> Row:
    config = subject.size.config
    model = built(subject.size, layers, torch.device("meta"), torch.bfloat16)
    parts = {part: 2 * size.parameters for part, size in weight_sizes(model).items()}
    if form == "int8":
        linears = decoder_linears(model).values()
        parts["layers"] -= sum(x.weight.numel() - SCALE_BYTES * x.out_features for x in linears)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * layers * config.num_key_value_heads * head_dim * 2 * subject.codes_per_s
    count = model.num_parameters()
    return Row(
        name, layers, form, count / 1e6, parts["embeddings"] / MB, parts["layers"] / MB,
        (parts["head"] + parts["rest"]) / MB,
        sum(parts.values()) / MB,
        None if subject.codec_parameters is None else 4 * subject.codec_parameters / MB,
        cache / 1024,
        training_bytes(model) / MB if form == FORMS[0] else None,
        kept_for_backward(model, TRAINED_TOKENS) / MB if form == FORMS[0] else None,
    )  # fmt: skip


def training_bytes(model) -> int:
    """fp32 weights, gradients and one moment of the decoder's matrices (Muon), two of what AdamW trains."""
    matrices = sum(x.weight.numel() for x in decoder_linears(model).values())
    return 12 * matrices + 16 * (model.num_parameters() - matrices)


def reset_peak(device: torch.device) -> float:
    """MB in use now; from here on the peak is counted anew."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MB
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / MB if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measured(name: str, layers: int, form: str, device_name: str, codes: int, trains: bool) -> dict[str, float]:
    """MB above the process without the model."""
    torch.set_num_threads(1 if device_name == "cpu" else torch.get_num_threads())
    device, size = torch.device(device_name), SUBJECTS[name]().size
    prepare_cuda(device)
    dtype = torch.float32 if name == "nano" and device_name == "cpu" else torch.bfloat16
    torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)
    empty = reset_peak(device)
    model = built(size, layers, device, dtype)
    if form == "int8":
        apply_variant(model, VARIANTS["int8"])
        place(model, device, dtype)
    found = {"measured_weights_mb": sum(part.bytes for part in weight_sizes(model).values()) / MB}
    prompt = [size.layout.first_code_id + i for i in range(32)]
    decoding = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=codes, batch_rows=1, seed=1)
    reset_peak(device)
    generate_batch(model, size.layout, [prompt], decoding)
    found["measured_generation_mb"] = peak(device) - empty
    if trains:
        depth = size.config.num_hidden_layers
        teacher = built(size, depth, device, dtype)
        retained = [*range(0, depth, depth // layers)][:layers]
        if device_name == "cuda":
            model.float()
        reset_peak(device)
        healing_step(model, teacher, size, retained, device)
        found["measured_training_mb"] = peak(device) - empty
    return found


def in_own_process(*arguments) -> dict[str, float]:
    # glibc then takes each tensor from the kernel and gives it back at once, so that the process's size tells of them.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "16384"
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(partial(measured, *arguments)).result()


def table(rows: list[Row], device: str) -> str:
    """Markdown."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

    columns = (
        "model", "layers", "weights", "parameters, M", "embeddings, MB", "layers, MB", "head and norm, MB", "all, MB",
        "codec in 32 bit, MB", "cache, kB a second", "training state, MB",
        f"activations of {TRAINED_TOKENS} tokens, MB", "measured: weights, MB", "generation, MB", "training, MB",
    )  # fmt: skip
    machine = describe_machine(torch.get_num_threads())
    lines = [
        f"{date.today()}, {machine}, torch {torch.__version__}, measured on {device}",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for row in rows:
        model, layers, form, *numbers = asdict(row).values()
        lines.append(f"| {model} | {layers} | {form} | {' | '.join(map(shown, numbers))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure", nargs="*", choices=SUBJECTS, default=[], help="allocate these for real")
    parser.add_argument("--no-training", action="store_true", help="measure weights and generation only")
    parser.add_argument("--quick", action="store_true", help="nano only, few codes")
    parser.add_argument("--out", type=Path, help="folder for memory.json and memory.md")
    options = parser.parse_args()
    rows = []
    for name in ["nano"] if options.quick else options.model:
        subject = SUBJECTS[name]()
        depth = subject.size.config.num_hidden_layers
        for layers in (depth, depth // 2):
            for form in FORMS:
                row = computed(name, subject, layers, form)
                if name in options.measure:
                    codes = 8 if options.quick else round(10 * subject.codes_per_s)
                    trains = form == FORMS[0] and layers < depth and not options.no_training
                    found = in_own_process(name, layers, form, options.device, codes, trains)
                    row = Row(**asdict(row) | found)
                rows.append(row)
    text = table(rows, options.device)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "memory.md").write_text(text + "\n")
        (options.out / "memory.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
