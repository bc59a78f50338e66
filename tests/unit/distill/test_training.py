"""Training: resumable to the bit, batches independent of history, teacher untouched."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from slimtts.decoding.teacher_forcing import NO_TARGET, collate, forced_sequence
from slimtts.distill import losses
from slimtts.distill.batches import PairSampler
from slimtts.distill.healing import PRESETS, HealingLoss, signals
from slimtts.distill.training import TrainingJob, hash_parameters, learning_rate, train
from slimtts.errors import InvalidInputError
from slimtts.params import DistillStudentParams, LossParams
from slimtts.pruning.surgery import remove_layers
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import tiny_utterances

KNOBS = DistillStudentParams(
    preset="default", loss=LossParams(), guidance_text=0.0, guidance_voice=0.0, steps=9,
    tokens_per_step=96, optimizer="muon", learning_rate=3e-3, control_learning_rate=1e-3,
    warmup_share=0.2, checkpoint_every_steps=4, control=False, device="cpu", seed=3,
)  # fmt: skip
RETAINED = (0, 3)


def job(teacher, folder, preset="default"):
    student = remove_layers(teacher.model, RETAINED)
    if PRESETS[preset].needs_attention:
        student.set_attn_implementation("eager")
    loss = HealingLoss(PRESETS[preset], teacher.layout, teacher.model, RETAINED)
    sampler = PairSampler(teacher, tiny_utterances(20), KNOBS.tokens_per_step, KNOBS.seed)
    return TrainingJob("student", student, loss, sampler.from_step, folder, "mark", KNOBS.learning_rate)


class Stop(RuntimeError):
    pass


def stop_after(steps):
    count = iter(range(steps))

    def after_step(_):
        if next(count, None) is None:
            raise Stop

    return after_step


def curves(folder):
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_interrupted_and_resumed_equals_uninterrupted(teacher, tmp_path):
    whole = train(job(teacher, tmp_path / "a"), KNOBS, torch.device("cpu"), lambda _: None)
    for steps in (2, 5, 3):
        with pytest.raises(Stop):
            train(job(teacher, tmp_path / "b"), KNOBS, torch.device("cpu"), stop_after(steps))
    resumed = train(job(teacher, tmp_path / "b"), KNOBS, torch.device("cpu"), lambda _: None)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.tokens == whole.tokens
    assert curves(tmp_path / "a") == curves(tmp_path / "b")
    assert [row["step"] for row in curves(tmp_path / "b")] == list(range(KNOBS.steps))


def interrupted(teacher, folder):
    """After 9 steps a checkpoint at 4 and one at 8."""
    with pytest.raises(Stop):
        train(job(teacher, folder), KNOBS, torch.device("cpu"), stop_after(8))
    return folder / "step-00000008"


def flip(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 4  # in a weight or a momentum
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit in the weights": lambda newest: flip(newest / "tensors.safetensors"),
    "a truncated file": lambda newest: os.truncate(newest / "tensors.safetensors", 1000),
    "a damaged line of the curve": lambda newest: (newest.parent / "curves.jsonl").write_text("{nonsense}\n{}\n"),
    "bytes in the curve": lambda newest: (newest.parent / "curves.jsonl").write_bytes(b"\xff\x00\n"),
    "no curve": lambda newest: (newest.parent / "curves.jsonl").unlink(),
    "a stray file": lambda newest: (newest.parent / "step-notes").write_text("mine"),
    "every checkpoint": lambda newest: [flip(file) for file in newest.parent.glob("step-*/tensors.safetensors")],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_between_two_starts_changes_no_weight(teacher, tmp_path, damage):
    whole = train(job(teacher, tmp_path / "a"), KNOBS, torch.device("cpu"), lambda _: None)
    damage(interrupted(teacher, tmp_path / "b"))
    resumed = train(job(teacher, tmp_path / "b"), KNOBS, torch.device("cpu"), lambda _: None)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.tokens == whole.tokens
    rows = curves(tmp_path / "b")
    assert rows[-1] == curves(tmp_path / "a")[-1]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows}), "no step twice"


def test_a_finished_training_does_nothing_when_run_again(teacher, tmp_path):
    first = train(job(teacher, tmp_path), KNOBS, torch.device("cpu"), lambda _: None)
    again = train(job(teacher, tmp_path), KNOBS, torch.device("cpu"), stop_after(1))
    assert again.weights_sha256 == first.weights_sha256
    assert again.final_loss == first.final_loss


def test_kill_minus_nine_and_run_again_gives_the_uninterrupted_weights(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        sys.path.insert(0, sys.argv[2])
        from test_training import KNOBS, job
        from slimtts.distill.training import train
        from slimtts.testing.tiny import tiny_teacher
        folder = Path(sys.argv[1])
        teacher = tiny_teacher(folder.parent / f"teacher-{folder.name}")
        def ready(_):
            print("step", flush=True)
        print(train(job(teacher, folder), KNOBS, torch.device("cpu"), ready).weights_sha256, flush=True)
        """
    )

    def start(name):
        command = [sys.executable, "-c", script, str(tmp_path / name), os.path.dirname(__file__)]  # noqa: PTH120
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    expected = start("whole").communicate()[0].split()[-1]
    killed = start("killed")
    for _ in range(7):
        killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert start("killed").communicate()[0].split()[-1] == expected


def test_a_changed_configuration_is_refused(teacher, tmp_path):
    train(job(teacher, tmp_path), KNOBS, torch.device("cpu"), lambda _: None)
    other = TrainingJob(**{**vars(job(teacher, tmp_path)), "fingerprint": "other"})
    with pytest.raises(InvalidInputError, match=r"checkpoint .*: observed configuration mark; allowed: other"):
        train(other, KNOBS, torch.device("cpu"), lambda _: None)


def test_a_loss_that_is_not_finite_stops_with_one_line(teacher, tmp_path):
    class Broken:
        def parts(self, batches, _count, _add_up):
            return [lambda model: (model.model.norm.weight.sum() * float("nan"), {}) for _ in batches]

    bad = TrainingJob(**{**vars(job(teacher, tmp_path)), "loss": Broken()})
    with pytest.raises(InvalidInputError, match=r"training student, step 0: observed loss nan"):
        train(bad, KNOBS, torch.device("cpu"), lambda _: None)


@pytest.mark.parametrize("preset", ["default", "spade"])
def test_training_lowers_the_loss_and_leaves_the_teacher_alone(teacher, tmp_path, preset):
    if preset == "spade":
        teacher.model.set_attn_implementation("eager")
    before = hash_parameters(teacher.model)
    knobs = KNOBS.model_copy(update={"steps": 40, "learning_rate": 1e-2})
    train(job(teacher, tmp_path, preset), knobs, torch.device("cpu"), lambda _: None)
    teacher.model.set_attn_implementation("sdpa")
    rows = curves(tmp_path)
    assert sum(r["loss"] for r in rows[-5:]) < 0.95 * sum(r["loss"] for r in rows[:5])
    assert hash_parameters(teacher.model) == before
    assert not teacher.model.training
    expected = {"cross_entropy", "skew_kl", "latent"} | ({"attention", "embedding"} if preset == "spade" else set())
    assert expected <= set(rows[0])


@pytest.mark.parametrize("preset", ["default", "spade"])
def test_every_teacher_term_is_zero_for_the_teacher_itself(teacher, preset):
    teacher.model.set_attn_implementation("eager" if preset == "spade" else "sdpa")
    loss = HealingLoss(PRESETS[preset], teacher.layout, teacher.model, tuple(range(teacher.num_layers)))
    batch = next(PairSampler(teacher, tiny_utterances(8), 96, 0).from_step(0))
    _, terms = loss(remove_layers(teacher.model, range(teacher.num_layers)), batch)
    teacher.model.set_attn_implementation("sdpa")
    assert all(abs(value) < 1e-6 for name, value in terms.items() if name != "cross_entropy")


def test_changes_to_a_preset_keep_the_rest():
    changed = PRESETS["spade"].changed(LossParams(attention=0.0, matching="static"))
    assert (changed.attention, changed.matching) == (0.0, "static")
    assert (changed.cross_entropy, changed.latent) == (PRESETS["spade"].cross_entropy, PRESETS["spade"].latent)
    assert not changed.needs_attention
    assert PRESETS["spade"].changed(LossParams()) == PRESETS["spade"]


def test_static_matching_compares_each_layer_with_its_origin(teacher):
    batch = next(PairSampler(teacher, tiny_utterances(8), 96, 0).from_step(0))
    student = remove_layers(teacher.model, (0, 1))
    only_latent = PRESETS["default"].changed(LossParams(cross_entropy=0, skew_kl=0, matching="static"))
    total, _ = HealingLoss(only_latent, teacher.layout, teacher.model, (0, 1))(student, batch)
    assert total.item() == 0
    dynamic = PRESETS["default"].changed(LossParams(cross_entropy=0, skew_kl=0))
    assert HealingLoss(dynamic, teacher.layout, teacher.model, (0, 1))(student, batch)[0].item() > 0


def test_padding_changes_no_term(teacher):
    student = remove_layers(teacher.model, RETAINED)
    loss = HealingLoss(PRESETS["default"], teacher.layout, teacher.model, RETAINED)
    sequences = [forced_sequence(teacher, u, Prompt("anna.", (1, 2, 3)), True) for u in tiny_utterances(3)]
    batch = collate(sequences, teacher.layout.pad_id)
    wider = type(batch)(
        torch.nn.functional.pad(batch.ids, (0, 9), value=5),
        torch.nn.functional.pad(batch.targets, (0, 9), value=NO_TARGET),
    )
    for value, other in zip(loss(student, batch)[1].values(), loss(student, wider)[1].values(), strict=True):
        assert value == pytest.approx(other, rel=1e-5)


def test_targets_are_the_next_codes_and_end(teacher):
    utterance, prompt = tiny_utterances(1)[0], Prompt("anna.", (7, 8))
    first, codes = teacher.layout.first_code_id, list(utterance.codes)
    batch = collate([forced_sequence(teacher, utterance, prompt)], teacher.layout.pad_id)
    where = batch.is_target[0].nonzero().flatten().tolist()
    assert batch.targets[0, where].tolist() == [*codes, teacher.layout.num_codes]
    assert batch.ids[0, where].tolist() == [first + 8, *(first + c for c in codes)]
    family = collate([forced_sequence(teacher, utterance, prompt, prompt_is_target=True)], teacher.layout.pad_id)
    assert family.targets[0][family.is_target[0]].tolist() == [7, 8, *codes, teacher.layout.num_codes]


def test_hidden_states_of_the_last_layer_are_taken_before_the_final_norm(teacher):
    batch = next(PairSampler(teacher, tiny_utterances(8), 96, 0).from_step(0))
    got = signals(teacher.model, teacher.layout, batch, with_attention=False)
    assert len(got.layers) == teacher.num_layers
    normed = teacher.model.model(input_ids=batch.ids).last_hidden_state
    torch.testing.assert_close(teacher.model.model.norm(got.layers[-1]), normed)


def test_batches_of_a_step_do_not_depend_on_where_one_started(teacher):
    sampler = PairSampler(teacher, tiny_utterances(20), 96, seed=5)
    from_zero = sampler.from_step(0)
    batches = [next(from_zero) for _ in range(20)]
    later = sampler.from_step(13)
    for expected in batches[13:]:
        assert torch.equal(next(later).ids, expected.ids)
    assert all(b.ids.numel() <= 96 or b.ids.shape[0] == 1 for b in batches)


def test_pairs_share_a_voice(teacher):
    utterances = tiny_utterances(20)
    voice_of = {u.codes: u.voice for u in utterances}
    sampler = PairSampler(teacher, utterances, 96, seed=5)
    batch = next(sampler.from_step(0))
    for row in range(len(batch.ids)):
        said = tuple(batch.targets[row][batch.is_target[row]].tolist()[:-1])
        splits = [(said[:k], said[k:]) for k in range(1, len(said))]
        voices = [(voice_of[a], voice_of[b]) for a, b in splits if a in voice_of and b in voice_of]
        assert any(a == b for a, b in voices)


def test_learning_rate_warms_up_and_ends_near_zero():
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_sliced_head_gives_the_full_loss_when_text_is_impossible(teacher):
    batch = next(PairSampler(teacher, tiny_utterances(8), 96, 0).from_step(0))
    layout, mask = teacher.layout, batch.is_target
    sliced = signals(teacher.model, layout, batch, with_attention=False).logits()
    full = teacher.model(batch.ids).logits[mask]
    spoken = [*range(layout.first_code_id, layout.first_code_id + layout.num_codes), layout.end_id]
    masked = torch.full_like(full, -torch.inf)
    masked[:, spoken] = full[:, spoken]
    targets = torch.tensor(spoken)[batch.targets[mask]]
    torch.testing.assert_close(
        losses.cross_entropy(sliced, batch.targets[mask]), torch.nn.functional.cross_entropy(masked, targets)
    )
