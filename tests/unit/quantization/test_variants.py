"""Each variant computes what its stored numbers say, is smaller, and opens again to the same logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slimtts.decoding.generation import generate
from slimtts.decoding.teacher_forcing import ForcedSequence, collate, hidden_states
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams, VariantName
from slimtts.quantization import placement
from slimtts.quantization.folders import apply_variant, write_variant
from slimtts.quantization.memory import stored_bytes, weight_bytes, weight_sizes
from slimtts.quantization.placement import place, place_for_speech
from slimtts.quantization.sparsity import decoder_linears, input_norms, is_two_of_four, kept_weights, make_sparse
from slimtts.quantization.variants import NAMES, VARIANTS, variant_of
from slimtts.teachers.checkpoint import hash_weights, load_language_model
from slimtts.teachers.cosyvoice2_checkpoint import resolve_cosyvoice
from slimtts.testing.cosyvoice_folder import write_cosyvoice_folder
from slimtts.testing.tiny import tiny_model

IDS = torch.arange(10, 40).unsqueeze(0)
EIGHT_BIT = [name for name, variant in VARIANTS.items() if variant.kind]
GREEDY = DecodingParams(temperature=0, top_p=1, max_new_tokens=12, batch_rows=4, seed=1)


@pytest.fixture
def source(tmp_path):
    """A student as the pipeline stores it, in 16 bit, with what lies beside it."""
    folder = tmp_path / "student"
    tiny_model(tied=True).half().save_pretrained(folder)
    (folder / "voices.json").write_text('{"voices": {}}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("of the teacher")
    (folder / "README.md").write_text("numbers of the 16-bit student")
    return folder


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def test_every_variant_of_params_is_known_and_others_are_refused():
    assert set(VARIANTS) == set(NAMES) == set(VariantName.__args__)
    with pytest.raises(InvalidInputError, match=r"'int3'.*int8, fp8, sparse24, sparse24_int8"):
        variant_of("int3")


@pytest.mark.parametrize("name", EIGHT_BIT)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_eight_bits_compute_what_their_dequantised_weights_say(name, kind):
    model, reference = tiny_model(kind), tiny_model(kind)
    apply_variant(model, VARIANTS[name])
    for place_name, linear in decoder_linears(reference).items():
        weight = model.get_submodule(place_name).weight
        assert weight.qdata.element_size() == 1
        with torch.no_grad():
            linear.weight.copy_(weight.dequantize())
    torch.testing.assert_close(logits(model), logits(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "steps"), [("int8", 1 / 127), ("fp8", 1 / 16)])
def test_eight_bits_are_near_the_weights_and_nothing_else_changes(name, steps):
    model, before = tiny_model(), tiny_model()
    apply_variant(model, VARIANTS[name])
    for place_name, linear in decoder_linears(before).items():
        error = (model.get_submodule(place_name).weight.dequantize() - linear.weight).abs()
        assert (error <= steps * linear.weight.abs().amax(1, keepdim=True)).all()
    kept = [n for n, _ in before.named_parameters() if n.removesuffix(".weight") not in decoder_linears(before)]
    assert {"model.embed_tokens.weight", "model.norm.weight"} < set(kept)
    assert all(torch.equal(model.get_parameter(n), before.get_parameter(n)) for n in kept)


@pytest.mark.parametrize("name", NAMES)
def test_a_written_variant_opens_to_the_same_logits_with_all_that_lay_beside(name, source, tmp_path):
    model, out = load_language_model(source), tmp_path / name
    write_variant(source, name, out, model=model)
    told = logits(load_language_model(source))
    apply_variant(again := load_language_model(source), VARIANTS[name])
    opened = load_language_model(out)
    assert torch.equal(logits(opened), logits(again)) and not torch.equal(logits(opened), told)
    files = {path.name for path in out.iterdir()}
    assert {"voices.json", "chat_template.jinja", "LICENSE", "config.json", "model.safetensors"} <= files
    assert "README.md" not in files and all(not f.endswith((".bin", ".pt", ".pkl")) for f in files)
    assert hash_weights(out) != hash_weights(source)
    assert (weight_bytes(opened) < weight_bytes(load_language_model(source))) == bool(VARIANTS[name].kind)


def test_a_stored_student_has_a_byte_a_weight_and_two_for_all_else(source, tmp_path):
    write_variant(source, "int8", tmp_path / "int8")
    tensors = load_file(tmp_path / "int8" / "model.safetensors")
    model = load_language_model(source)
    weights = sum(linear.weight.numel() for linear in decoder_linears(model).values())
    rows = sum(linear.out_features for linear in decoder_linears(model).values())
    assert sum(t.numel() for t in tensors.values() if t.dtype == torch.int8) == weights + rows  # and the zero points
    assert sum(t.numel() for t in tensors.values() if t.dtype == torch.float32) == rows  # scales
    rest = sum(t.numel() for t in tensors.values() if t.dtype == torch.float16)
    assert rest == model.num_parameters() - weights
    sizes = weight_sizes(load_language_model(tmp_path / "int8"))
    assert sizes["head"].parameters == 0  # shares the embeddings' weights
    assert sizes["embeddings"].bytes == 4 * sizes["embeddings"].parameters  # 32 bit on a CPU
    norms = sizes["layers"].parameters - weights
    assert sizes["layers"].bytes == weights + 4 * norms + (4 + 1) * rows


def test_a_head_of_its_own_keeps_its_precision_and_its_bias(tmp_path):
    source = resolve_cosyvoice(str(write_cosyvoice_folder(tmp_path / "cosyvoice", 6561)), "")
    write_variant(source, "int8", tmp_path / "int8")
    before, opened = load_language_model(source), load_language_model(tmp_path / "int8")
    assert all(stored_bytes(x.weight) < 4 * x.weight.numel() for x in decoder_linears(opened).values())
    torch.testing.assert_close(opened.lm_head.weight, before.lm_head.weight, rtol=1e-3, atol=1e-4)  # 16 bit
    torch.testing.assert_close(opened.lm_head.bias, before.lm_head.bias, rtol=1e-3, atol=1e-4)


def test_a_variant_speaks_in_batches_as_alone(teacher, tmp_path):
    write_variant(teacher.folder, "int8", tmp_path / "int8")
    model, layout = load_language_model(tmp_path / "int8"), teacher.layout
    prompts = [[layout.first_code_id + i, layout.first_code_id + 2 * i + 1][: 1 + i % 2] for i in range(5)]
    together = generate(model, layout, prompts, GREEDY)
    alone = [generate(model, layout, [prompt], GREEDY)[0] for prompt in prompts]
    assert together == alone


def test_two_of_four_keeps_the_greater_and_of_equals_the_first():
    importance = torch.tensor([[1.0, 3.0, 2.0, 0.0, 5.0, 5.0, 5.0, 5.0]])
    assert kept_weights(importance).tolist() == [[False, True, True, False, True, True, False, False]]
    with pytest.raises(InvalidInputError, match="6 inputs"):
        kept_weights(torch.ones(2, 6))


def test_sparse_weights_are_half_zero_and_the_others_unchanged():
    model, before = tiny_model(), tiny_model()
    make_sparse(model)
    for name, linear in decoder_linears(before).items():
        weight = model.get_submodule(name).weight
        assert is_two_of_four(weight) and not is_two_of_four(linear.weight)
        kept = weight != 0
        assert kept.float().mean() == 0.5 and torch.equal(weight[kept], linear.weight[kept])
    assert torch.equal(model.lm_head.weight, before.lm_head.weight)


def test_wanda_keeps_what_large_inputs_meet_and_ignores_padding():
    model = tiny_model()
    short, long = ForcedSequence((5, 6, 7), 1, (1, 2)), ForcedSequence((5, 6, 7, 8, 9, 10), 1, (1, 2, 3, 4, 5))
    alone = input_norms(model, [collate([short], 0), collate([long], 0)])
    together = input_norms(model, [collate([short, long], 0)])
    for name, norms in alone.items():
        torch.testing.assert_close(together[name], norms, rtol=1e-5, atol=1e-6)
    assert not any(linear._forward_pre_hooks for linear in decoder_linears(model).values())
    name, linear = next(iter(decoder_linears(model).items()))
    with torch.no_grad():
        linear.weight.fill_(1.0)
    norms = {n: torch.ones(x.in_features, dtype=torch.float64) for n, x in decoder_linears(model).items()}
    norms[name][2::4] = 9.0
    make_sparse(model, norms)
    assert (linear.weight[:, 2::4] != 0).all() and (linear.weight[:, 0::4] != 0).all()
    assert (linear.weight[:, 1::4] == 0).all() and (linear.weight[:, 3::4] == 0).all()


def test_wanda_hurts_outputs_less_than_magnitude_where_inputs_differ():
    batch = collate([ForcedSequence(tuple(range(10, 50)), 1, tuple(range(39)))], 0)
    full, plain, by_inputs = tiny_model(), tiny_model(), tiny_model()
    for model in (full, plain, by_inputs):
        with torch.no_grad():  # some channels of the hidden states are loud
            model.model.layers[0].input_layernorm.weight[::4] *= 8
    make_sparse(plain)
    make_sparse(by_inputs, input_norms(full, [batch]))
    first = "model.layers.0.self_attn.v_proj"
    heard = {}
    for name, model in {"full": full, "plain": plain, "by_inputs": by_inputs}.items():
        hook = model.get_submodule(first).register_forward_hook(
            lambda _, __, out, name=name: heard.__setitem__(name, out)
        )
        with torch.inference_mode():
            hidden_states(model, batch)
        hook.remove()
    error = {name: (heard[name] - heard["full"]).norm() for name in ("plain", "by_inputs")}
    assert error["by_inputs"] < 0.7 * error["plain"]


@pytest.mark.parametrize("name", [None, *NAMES])
def test_a_placed_variant_multiplies_in_the_precision_of_its_activations(name, source, tmp_path):
    if name:
        write_variant(source, name, tmp_path / name)
    folder = tmp_path / name if name else source
    model = place(load_language_model(folder), torch.device("cpu"), torch.bfloat16)
    told = logits(model)
    assert told.dtype == torch.bfloat16
    reference = logits(load_language_model(folder))
    assert (told.float() - reference).norm() < 0.05 * reference.norm()


def test_quantised_folders_are_not_quantised_again(source, tmp_path):
    write_variant(source, "int8", tmp_path / "int8")
    with pytest.raises(InvalidInputError, match="8-bit weights already"):
        write_variant(tmp_path / "int8", "fp8", tmp_path / "twice")
    with pytest.raises(InvalidInputError, match=r"no config\.json"):
        write_variant(tmp_path / "nothing", "int8", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def stranger(tmp_path: Path, source: Path, quantization: object) -> Path:
    out = tmp_path / "strange"
    write_variant(source, "int8", out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return out


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}},
        {
            "quant_method": "torchao",
            "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {"granularity": {"_type": "run"}}}},
        },
        {"quant_method": "torchao", "quant_type": "int8_weight_only"},
        ["torchao"],
        "torchao",
    ],
)  # fmt: skip
def test_what_strangers_quantised_is_refused_before_it_is_opened(quantization, source, tmp_path):
    with pytest.raises(InvalidInputError, match=r"quantised by .*allowed: 16-bit weights, or int8 or fp8"):
        load_language_model(stranger(tmp_path, source, quantization))


def test_damaged_eight_bit_weights_are_an_error_of_one_line(source, tmp_path):
    out = tmp_path / "int8"
    write_variant(source, "int8", out)
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InvalidInputError, match="complete safetensors"):
        load_language_model(out)


@pytest.mark.parametrize("has_cuda", [False, True])
def test_speech_is_made_on_cuda_in_bf16_when_there_is_one(monkeypatch, has_cuda):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(placement, "place", lambda model, *where: asked.append(where) or model)
    model = object()
    assert place_for_speech(model) is model
    assert asked == ([(torch.device("cuda"), torch.bfloat16)] if has_cuda else [])
