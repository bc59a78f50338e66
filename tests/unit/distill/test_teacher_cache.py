"""The teacher's cached word is its live one; damage is repaired, another teacher is refused."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slimtts.distill.batches import PairSampler, rows_of
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.teacher_cache import TeacherCache, TeacherIdentity, row_keys
from slimtts.errors import InvalidInputError
from slimtts.params import load_params
from slimtts.pruning.surgery import remove_layers
from slimtts.stages.distill_student import open_teacher_cache
from slimtts.testing.tiny import tiny_utterances

RETAINED = (0, 3)
HALF = {"rel": 2e-3}  # fp16 keeps 11 bits


def identity(mark="a"):
    return TeacherIdentity(mark * 64, (2, 3), (10, 16, 5))


def batches(teacher, count=3, **knobs):
    steps = PairSampler(teacher, tiny_utterances(20), 160, 5, **knobs).from_step(0)
    return [next(steps) for _ in range(count)]


class Listener:
    """A healing loss with a cache, and how many rows its teacher really spoke about."""

    def __init__(self, teacher, folder, preset="default"):
        self.loss = HealingLoss(PRESETS[preset], teacher.layout, teacher.model.requires_grad_(False), RETAINED)
        self.loss.memory = self.cache = TeacherCache(folder, identity())
        self.rows_heard = 0
        hear = self.loss._hear

        def counted(batch):
            self.rows_heard += len(batch.ids)
            return hear(batch)

        self.loss._hear = counted


def result(loss, teacher, batch):
    student = remove_layers(teacher.model, RETAINED)
    total, terms = loss(student, batch)
    total.backward()
    return terms, {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize("packed_row_tokens", [0, 80])
def test_cached_is_live_in_every_term_and_gradient(teacher, tmp_path, packed_row_tokens):
    live = HealingLoss(PRESETS["default"], teacher.layout, teacher.model.requires_grad_(False), RETAINED)
    steps = batches(teacher, packed_row_tokens=packed_row_tokens)
    for _ in ("heard", "read by the same cache"):
        cached = Listener(teacher, tmp_path)
        for batch in steps:
            terms, gradients = result(live, teacher, batch)
            again, found = result(cached.loss, teacher, batch)
            assert again == pytest.approx(terms, **HALF)
            for name, gradient in gradients.items():
                assert float((found[name] - gradient).norm() / gradient.norm()) < 5e-3
    assert cached.rows_heard == 0 and cached.cache.misses == 0
    assert cached.cache.hits == sum(len(set(row_keys(b))) for b in steps)


def test_the_bias_of_an_output_head_is_no_part_of_what_is_kept(teacher, tmp_path):
    (batch,), model = batches(teacher, 1), copy.deepcopy(teacher.model)
    bias = torch.randn(model.config.vocab_size, generator=torch.Generator().manual_seed(0))
    model.lm_head.bias = torch.nn.Parameter(3 * bias)
    biased = replace(teacher, model=model)
    cached, live = Listener(biased, tmp_path / "cache"), Listener(biased, tmp_path / "live")
    live.loss.memory = None
    expected = result(live.loss, teacher, batch)[0]
    for _ in ("heard", "read"):
        assert result(cached.loss, teacher, batch)[0] == pytest.approx(expected, **HALF)


def test_other_order_and_padding_find_the_same_rows_and_new_ones_are_heard_alone(teacher, tmp_path):
    (batch, other), live = batches(teacher, 2), Listener(teacher, tmp_path / "live")
    cached = Listener(teacher, tmp_path / "cache")
    cached.loss(remove_layers(teacher.model, RETAINED), batch)
    turned = rows_of(batch, list(reversed(range(len(batch.ids)))))
    wide = type(batch)(
        torch.nn.functional.pad(turned.ids, (0, 7), value=teacher.layout.pad_id),
        torch.nn.functional.pad(turned.targets, (0, 7), value=-100),
    )
    heard = cached.rows_heard
    terms, expected = result(cached.loss, teacher, wide)[0], result(live.loss, teacher, wide)[0]
    assert terms == pytest.approx(expected, **HALF)
    assert cached.rows_heard == heard
    width = max(wide.ids.shape[1], other.ids.shape[1])

    def widened(x, value):
        return torch.nn.functional.pad(x, (0, width - x.shape[1]), value=value)

    mixed = type(batch)(
        torch.cat([widened(other.ids, teacher.layout.pad_id), widened(wide.ids, teacher.layout.pad_id)]),
        torch.cat([widened(other.targets, -100), widened(wide.targets, -100)]),
    )
    new = len(set(row_keys(other)) - set(row_keys(wide)))
    terms, expected = result(cached.loss, teacher, mixed)[0], result(live.loss, teacher, mixed)[0]
    assert terms == pytest.approx(expected, **HALF)
    assert cached.rows_heard == heard + new


def test_one_other_token_or_target_is_another_row(teacher):
    (batch,) = batches(teacher, 1)
    ids, targets = batch.ids.clone(), batch.targets.clone()
    ids[0, 0] += 1
    row, column = batch.is_target.nonzero()[-1].tolist()
    targets[row, column] = 0 if targets[row, column] else 1
    changed = row_keys(type(batch)(ids, targets))
    assert {i for i, (a, b) in enumerate(zip(row_keys(batch), changed, strict=True)) if a != b} == {0, row}


def flipped(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def other_teacher(content):
    """One letter of the teacher's hash in the header."""
    place = content.index(b"aaaa")
    return content[:place] + b"b" + content[place + 1 :]


DAMAGE = {
    "bit": flipped, "half": lambda c: c[: len(c) // 2], "empty": lambda c: b"", "header": other_teacher,
    "no name": lambda c: c.replace(b'"made_by"', b'"made_bx"'),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_noticed_and_made_again(teacher, tmp_path, damage, capsys):
    steps = batches(teacher, 2)
    first = Listener(teacher, tmp_path)
    expected = [result(first.loss, teacher, batch)[0] for batch in steps]
    shard = first.cache._shard_of[row_keys(steps[0])[0]]
    kept = {key: row.clone() for key, row in load_file(shard).items()}
    shard.write_bytes(damage(shard.read_bytes()))
    second = Listener(teacher, tmp_path)
    found = [result(second.loss, teacher, batch)[0] for batch in steps]
    assert found == [pytest.approx(terms, rel=1e-6) for terms in expected]
    assert 0 < second.rows_heard < sum(len(b.ids) for b in steps), "the other shard's rows were not made again"
    assert f"{shard.name} is damaged" in capsys.readouterr().err
    made_again = load_file(second.cache._shard_of[row_keys(steps[0])[0]])
    assert all(torch.equal(row, kept[key]) for key, row in made_again.items())
    assert Listener(teacher, tmp_path).cache._shard_of.keys() == first.cache._shard_of.keys()


def test_the_folder_of_another_teacher_is_refused_in_one_line(teacher, tmp_path):
    result(Listener(teacher, tmp_path).loss, teacher, batches(teacher, 1)[0])
    with pytest.raises(InvalidInputError, match=r"teacher_cache, .*safetensors: observed .*aaaa.*; allowed: .*bbbb"):
        TeacherCache(tmp_path, identity("b"))


def test_the_file_of_a_stranger_is_refused_and_stays(teacher, tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInputError, match="a file without a header of ours"):
        TeacherCache(tmp_path, identity())
    assert (tmp_path / "model.safetensors").is_file()


def test_states_beyond_fp16_are_refused(teacher, tmp_path):
    (batch,) = batches(teacher, 1)
    count = int(batch.is_target.sum())
    with pytest.raises(InvalidInputError, match=r"beyond the range of fp16"):
        TeacherCache(tmp_path, identity()).recall(batch, lambda _: (torch.full((count, 4), 1e5), []))
    assert not list(tmp_path.iterdir())


def test_a_loss_that_needs_more_than_is_kept_is_refused(teacher, tmp_path):
    loss = HealingLoss(PRESETS["spade"], teacher.layout, teacher.model, RETAINED)
    knobs = load_params(Path("params.yaml")).distill_student.model_copy(update={"teacher_cache": str(tmp_path)})
    with pytest.raises(InvalidInputError, match=r"observed a loss with attention, embedding; allowed: cross_entropy"):
        open_teacher_cache(knobs, teacher, loss)
