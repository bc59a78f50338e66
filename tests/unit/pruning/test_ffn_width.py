"""Narrower feed-forward networks: the same function as zeroed channels, and the least important go first."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from slimtts.pruning.ffn_width import channel_importance, keep_channels, kept_width, narrow_ffn
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.tiny import tiny_config, tiny_model

MODELS = [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)]
IDS = torch.tensor([[1, 5, 9, 2, 40, 7], [3, 3, 8, 60, 11, 0]])


def biased_model():
    """A Llama whose feed-forward projections have biases."""
    config = LlamaConfig(**{**tiny_config("llama", 2, 64, True).to_dict(), "mlp_bias": True})
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("width", "share", "expected"),
    [(48, 1.0, 48), (48, 0.5, 24), (48, 0.8, 40), (48, 0.7, 32), (48, 0.01, 8), (50, 1.0, 50), (12, 0.999, 8),
     (4, 0.5, 4), (8192, 0.625, 5120)],
)  # fmt: skip
def test_widths_are_multiples_of_eight(width, share, expected):
    assert kept_width(width, share) == expected


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_all_channels_are_bit_identical_and_share_nothing(kind, tied, batches):
    model = tiny_model(kind, tied=tied)
    made = narrow_ffn(model, batches, 1.0)
    assert torch.equal(made(IDS).logits, model(IDS).logits)
    assert {p.data_ptr() for p in made.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def test_importance_is_mean_activation_times_column_norm(batches):
    model = tiny_model()
    mlp, seen = model.model.layers[2].mlp, []
    hook = mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(batch.ids, use_cache=False)
    hook.remove()
    spoken = torch.cat([a[b.is_target] for a, b in zip(seen, batches, strict=True)])
    expected = spoken.abs().mean(0) * mlp.down_proj.weight.norm(dim=0)
    torch.testing.assert_close(channel_importance(model, batches)[2].float(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
def test_dead_channels_go_first(part, batches):
    model = tiny_model()
    dead = [0, 5, 11, 17, 23, 40, 46, 47]
    with torch.no_grad():
        for layer in model.model.layers:
            weight = getattr(layer.mlp, part).weight
            by_channel = weight.T if part == "down_proj" else weight
            by_channel[dead] = 0
    made = narrow_ffn(model, batches, 40 / 48)
    alive = [channel for channel in range(48) if channel not in dead]
    for before, after in zip(model.model.layers, made.model.layers, strict=True):
        assert torch.equal(after.mlp.gate_proj.weight, before.mlp.gate_proj.weight[alive])
        assert torch.equal(after.mlp.up_proj.weight, before.mlp.up_proj.weight[alive])
        assert torch.equal(after.mlp.down_proj.weight, before.mlp.down_proj.weight[:, alive])
    torch.testing.assert_close(made(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_the_result_is_the_model_with_the_cut_channels_silenced(kind, tied, batches):
    model = tiny_model(kind, tied=tied)
    made = narrow_ffn(model, batches, 0.5)
    ranked = [importance.argsort(descending=True, stable=True) for importance in channel_importance(model, batches)]
    with torch.no_grad():
        for layer, order in zip(model.model.layers, ranked, strict=True):
            layer.mlp.down_proj.weight[:, order[24:]] = 0
    torch.testing.assert_close(made(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_biases_follow_their_channels():
    model = biased_model()
    channels = [torch.arange(0, 48, 2), torch.arange(24)]
    made = keep_channels(model, channels)
    with torch.no_grad():
        for layer, kept in zip(model.model.layers, channels, strict=True):
            gone = [i for i in range(48) if i not in kept.tolist()]
            layer.mlp.down_proj.weight[:, gone] = 0
    torch.testing.assert_close(made(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_saved_and_loaded_strictly_with_the_same_logits(kind, tied, batches, tmp_path):
    made = narrow_ffn(tiny_model(kind, tied=tied), batches, 0.5)
    made.save_pretrained(tmp_path)
    again = load_language_model(tmp_path)
    assert again.config.intermediate_size == 24
    assert torch.equal(again(IDS).logits, made(IDS).logits)


def test_the_given_model_is_not_touched_and_the_dtype_is_kept(batches):
    model = tiny_model().half()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = narrow_ffn(model, batches, 0.5)
    assert made.dtype == torch.float16 and not made.training
    assert model.config.intermediate_size == 48
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(layer.mlp.down_proj._forward_pre_hooks for layer in model.model.layers)
