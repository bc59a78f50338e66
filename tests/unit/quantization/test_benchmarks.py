"""The memory table counts what models really have; both benchmarks run in their smallest form."""

import pytest
import torch

from benchmarks import memory_table, quantized_speed
from benchmarks.memory_table import SUBJECTS, computed, kept_for_backward, measured, table, training_bytes
from slimtts.distill.training import make_optimizers
from slimtts.quantization.memory import weight_sizes
from slimtts.testing.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "layers", "parameters_m", "cache_kb"),
    [("llasa-1b", 16, 1370.05, 1600), ("llasa-1b", 8, 883.48, 800), ("cosyvoice2", 12, 326.86, 150)],
)
def test_published_sizes_are_counted(name, layers, parameters_m, cache_kb):
    rows = {form: computed(name, SUBJECTS[name](), layers, form) for form in ("16 bit", "int8")}
    assert rows["16 bit"].parameters_m == pytest.approx(parameters_m, abs=0.01)
    assert rows["16 bit"].weights_mb == pytest.approx(2 * parameters_m * 1e6 / 2**20, rel=1e-4)
    assert rows["16 bit"].cache_kb_per_s == rows["int8"].cache_kb_per_s == cache_kb
    assert 0.49 < rows["int8"].layers_mb / rows["16 bit"].layers_mb < 0.51
    assert rows["int8"].embeddings_mb == rows["16 bit"].embeddings_mb


def test_training_state_is_what_a_step_leaves():
    model = tiny_model()
    optimizers = make_optimizers(model, "muon")
    model(input_ids=torch.arange(8)[None]).logits.sum().backward()
    for optimizer in optimizers.values():
        optimizer.step()
    moments = sum(
        value.nbytes
        for optimizer in optimizers.values()
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.ndim
    )
    gradients = sum(p.grad.nbytes for p in model.parameters())
    assert training_bytes(model) == sum(p.nbytes for p in model.parameters()) + gradients + moments


def test_kept_activations_grow_with_tokens_and_layers():
    with torch.device("meta"):
        sizes = {n: memory_table.AutoModelForCausalLM.from_config(tiny_model(num_layers=n).config) for n in (1, 2, 4)}
    kept = {n: kept_for_backward(model, 32) for n, model in sizes.items()}
    each = kept[2] - kept[1]
    assert each > 0 and kept[4] - kept[2] == 2 * each
    assert kept_for_backward(sizes[2], 64) > 1.9 * kept[2]


def test_measured_weights_are_the_counted_ones_and_the_table_shows_both(monkeypatch):
    subject = SUBJECTS["nano"]()
    row = computed("nano", subject, 6, "int8")
    found = measured("nano", 6, "int8", "cpu", 4, False)
    plain = sum(part.bytes for part in weight_sizes(memory_table.built(subject.size, 6, CPU, torch.float32)).values())
    assert found["measured_weights_mb"] < 0.5 * plain / 2**20
    assert found["measured_weights_mb"] > row.weights_mb  # on a CPU all but the layers is 32 bit
    line = table([memory_table.Row(**memory_table.asdict(row) | found)], "cpu").splitlines()[-1]
    assert line.startswith("| nano | 6 | int8 | 4.8 |") and f"{found['measured_weights_mb']:.1f}" in line


def test_every_form_of_the_linear_layers_is_timed(monkeypatch):
    monkeypatch.setattr(quantized_speed, "LEAST_S", 1e-4)
    lines = quantized_speed.measured("nano", 1, 1, CPU, False, 1)
    assert [line.split(" | ")[2] for line in lines] == [
        "float32", "bfloat16", "int8", "fp8", "sparse24", "int8, kernel",
    ]  # fmt: skip
    sizes = [float(line.split(" | ")[-1].rstrip(" |")) for line in lines]
    assert sizes[2] < 0.6 * sizes[1] < 0.6 * sizes[0]


def test_the_kernel_computes_what_torchao_does():
    model = quantized_speed.place(tiny_model(width=64), CPU, torch.float32)
    quantized_speed.apply_variant(model, quantized_speed.VARIANTS["int8"])
    linear = model.model.layers[0].mlp.up_proj
    rows = torch.randn(3, 64)
    told = quantized_speed.KernelLinear(linear)(rows.bfloat16()).float()
    assert (told - linear(rows)).norm() < 0.02 * linear(rows).norm()
