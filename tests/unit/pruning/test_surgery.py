"""Removing layers: nothing else may change, and what is written must load."""

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DynamicCache

from slimtts.decoding.generation import skipping_layers
from slimtts.errors import InvalidInputError
from slimtts.pruning.plan import check_retained, plan_retained
from slimtts.pruning.surgery import remove_layers
from slimtts.results import LayerScores
from slimtts.teachers.checkpoint import load_language_model
from slimtts.testing.tiny import tiny_model

MODELS = [("llama", True), ("llama", False), ("qwen2", True), ("qwen2", False)]
IDS = torch.tensor([[1, 5, 9, 2, 40, 7], [3, 3, 8, 60, 11, 0]])


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_keeping_all_layers_is_bit_identical_and_shares_nothing(kind, tied):
    teacher = tiny_model(kind, tied=tied)
    student = remove_layers(teacher, range(4))
    assert torch.equal(student(IDS).logits, teacher(IDS).logits)
    ours = {p.data_ptr() for p in student.parameters()}
    assert ours.isdisjoint(p.data_ptr() for p in teacher.parameters())


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_pruned_forward_equals_teacher_with_layers_skipped(kind, tied):
    teacher = tiny_model(kind, tied=tied)
    student = remove_layers(teacher, [3, 0])
    skip = torch.tensor([[False, True, True, False]] * 2)
    with skipping_layers(teacher, skip):
        expected = teacher(IDS, use_cache=False).logits
    assert torch.equal(student(IDS, use_cache=False).logits, expected)


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_layer_indices_cache_and_per_layer_lists_follow(kind, tied):
    student = remove_layers(tiny_model(kind, tied=tied), [0, 2, 3])
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]
    assert student.config.num_hidden_layers == 3
    if getattr(student.config, "layer_types", None) is not None:
        assert len(student.config.layer_types) == 3
    cache = DynamicCache(config=student.config)
    student(IDS, past_key_values=cache)
    assert len(cache.layers) == 3
    assert cache.get_seq_length() == IDS.shape[1]


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_saved_student_loads_strictly_with_the_same_logits(kind, tied, tmp_path):
    student = remove_layers(tiny_model(kind, tied=tied), [1, 2])
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()
    assert torch.equal(again(IDS).logits, student(IDS).logits)
    head, embedding = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == tied


def test_half_precision_is_kept():
    student = remove_layers(tiny_model().half(), [0])
    assert student.dtype == torch.float16


def test_removing_leaves_the_random_state_alone():
    model = tiny_model()
    before = torch.get_rng_state()
    remove_layers(model, [0, 1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("retained", [[], [0, 0], [4], [-1], [0, 9]])
def test_impossible_lists_are_refused(retained):
    with pytest.raises(InvalidInputError, match=r"retained layers: observed .*; allowed: distinct layers in 0..3"):
        check_retained(retained, 4)


def scores(drop_order, best_sets=None):
    return LayerScores(
        method="search", num_layers=4, utterances=1, reference_wer=None, layers=[], drop_order=drop_order,
        best_sets=best_sets or {}, data_sha256="d", teacher_sha256="t",
    )  # fmt: skip


@pytest.mark.parametrize("keep", [0, 5, -2])
def test_impossible_budgets_are_refused(keep):
    with pytest.raises(InvalidInputError, match=r"prune_layers.keep_layers: observed .*; allowed: 1\.\.4"):
        plan_retained(scores([0, 1, 2, 3]), keep)


def test_plan_drops_in_order_and_keeps_the_rest_sorted():
    assert plan_retained(scores([2, 0, 3, 1]), 2) == [1, 3]
    assert plan_retained(scores([2, 0, 3]), 4) == [0, 1, 2, 3]


def test_the_best_set_of_that_size_goes_before_the_order():
    judged_together = scores([0, 1, 2, 3], {3: [0, 2, 3], 2: [0, 3]})
    assert plan_retained(judged_together, 2) == [0, 3]
    assert plan_retained(judged_together, 1) == [3]
    with pytest.raises(InvalidInputError, match=r"retained layers"):
        plan_retained(scores([0, 1, 2, 3], {2: [0, 4]}), 2)


def test_too_short_order_is_refused():
    with pytest.raises(InvalidInputError, match=r"drop order: observed 1 layers; allowed: at least 2"):
        plan_retained(scores([0]), 2)


def test_truncated_checkpoint_is_one_line(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(InvalidInputError, match=r"checkpoint .*: observed .*next: copy or train") as caught:
        load_language_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_checkpoint_with_a_missing_layer_is_refused(tmp_path):
    model = tiny_model()
    state = {k: v for k, v in model.state_dict().items() if ".layers.2." not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(InvalidInputError, match=r"tensors missing or unexpected"):
        load_language_model(tmp_path)


def test_pickled_checkpoint_is_refused(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidInputError, match=r"no \*.safetensors file"):
        load_language_model(tmp_path)


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_a_tied_head_is_stored_once(kind, tied, tmp_path):
    remove_layers(tiny_model(kind, tied=tied), [0, 1]).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        assert ("lm_head.weight" in stored.keys()) != tied  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("length", [1, 3, 6])
def test_greedy_generation_is_the_same_with_every_cache(kind, length):
    student = remove_layers(tiny_model(kind, tied=False), [0, 3])
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0, "eos_token_id": 63}
    ids = IDS[:, :length]
    expected = student.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    for cache in ("dynamic", "static"):
        made = student.generate(ids, attention_mask=torch.ones_like(ids), cache_implementation=cache, **options)
        assert torch.equal(made, expected)
    padded = torch.nn.functional.pad(ids, (4, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (4, 0))
    made = student.generate(padded, attention_mask=mask, **options)
    assert torch.equal(made[:, 4:], expected)
