"""Two processes, shards and parts of a batch give the training of one process; a killed process ends all."""

import json
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from slimtts.checkpoints import load_latest
from slimtts.decoding.guidance import UNGUIDED, Guidance
from slimtts.decoding.teacher_forcing import NO_TARGET, forced_sequence
from slimtts.distill import training
from slimtts.distill.batches import PairSampler, part_of
from slimtts.distill.distributed import ALONE, World, check_parallel, joined
from slimtts.distill.healing import PRESETS, HealingLoss
from slimtts.distill.ranks import RankError, current_rank, lock_name, run_ranks
from slimtts.errors import InvalidInputError
from slimtts.params import LossParams
from slimtts.pruning.surgery import remove_layers
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import tiny_utterances

from .rank_training import CASES, KNOBS, RETAINED, Stop, knobs_of, start, stop_after, train_case

MUON = 2e-3  # its matrices are orthogonalised in bf16, where a last bit grows
GUIDED = Guidance(1.0, 0.5)
LOSSES = {
    "default": (PRESETS["default"], UNGUIDED),
    "spade": (PRESETS["spade"], UNGUIDED),
    "squared": (PRESETS["default"].changed(LossParams(latent_kind="squared")), UNGUIDED),
    "guided": (PRESETS["default"], GUIDED),
}


@pytest.fixture(autouse=True)
def in_fp32(monkeypatch):
    monkeypatch.setattr(training, "mixed_precision", lambda _: nullcontext())


def curve(folder, case, key):
    rows = [json.loads(line) for line in (folder / case / "curves.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows))), "every step once"
    return np.array([row[key] for row in rows])


def step_batch(teacher, guidance=UNGUIDED):
    """Eight rows of unequal lengths."""
    sampler = PairSampler(teacher, tiny_utterances(20), 400, 3, guidance)
    asked = [(u, Prompt("anna.", (1, 2, 3)[: 1 + i % 3])) for i, u in enumerate(tiny_utterances(8))]
    sequences = [forced_sequence(teacher, utterance, prompt, not guidance.companions) for utterance, prompt in asked]
    return sampler.collated(sequences, [(utterance.text, prompt) for utterance, prompt in asked])


def gradients(teacher, loss, batch, micro_batches):
    student = remove_layers(teacher.model, RETAINED)
    student.set_attn_implementation("eager")
    count, total, terms = int(batch.is_target.sum()), 0.0, {}
    for part in loss.parts(ALONE.share(batch, micro_batches), count, ALONE.add_up):
        value, named = part(student)
        value.backward()
        total += value.item()
        terms = {name: terms.get(name, 0.0) + one.item() for name, one in named.items()}
    return total, terms, {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize("name", LOSSES)
def test_one_pass_of_eight_rows_two_of_four_and_eight_of_one_have_one_gradient(teacher, name):
    preset, guidance = LOSSES[name]
    teacher.model.set_attn_implementation("eager")
    loss = HealingLoss(preset, teacher.layout, teacher.model, RETAINED, guidance)
    batch = step_batch(teacher, guidance)
    total, terms, expected = gradients(teacher, loss, batch, 1)
    for micro_batches in (2, 8):
        again, terms_again, found = gradients(teacher, loss, batch, micro_batches)
        assert again == pytest.approx(total, rel=1e-5)
        assert terms_again == pytest.approx(terms, rel=1e-5)
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()) + 1e-8)
    teacher.model.set_attn_implementation("sdpa")


def test_parts_hold_every_row_once_and_where_none_is_left_a_row_without_targets(teacher):
    batch = step_batch(teacher, GUIDED)
    parts = [part_of(batch, part, 3) for part in range(3)]
    for of in (lambda b: b, lambda b: b.without_text, lambda b: b.without_voice):
        rows = sorted(row.tolist() for part in parts for row in of(part).ids)
        assert rows == sorted(row.tolist() for row in of(batch).ids)
    assert sum(int(part.is_target.sum()) for part in parts) == int(batch.is_target.sum())
    spare = part_of(batch, 9, 10)
    assert len(spare.ids) == len(spare.without_text.ids) == 1
    assert bool((spare.targets == NO_TARGET).all() and (spare.without_voice.targets == NO_TARGET).all())


def test_every_process_runs_as_many_passes(teacher):
    batch = step_batch(teacher)
    for size, micro_batches, expected in ((2, 4, 4), (3, 8, 3), (16, 2, 1)):
        shares = [World(rank, size).share(batch, micro_batches) for rank in range(size)]
        assert {len(share) for share in shares} == {expected}
        assert sum(int(p.is_target.sum()) for share in shares for p in share) == int(batch.is_target.sum())


def test_two_processes_train_as_one(teacher, tmp_path):
    train_case("one", teacher, tmp_path, ALONE)
    train_case("adamw", teacher, tmp_path, ALONE)
    start(tmp_path, "ddp", "ddp-parts", "bypassed", "fsdp", "fsdp-parts")
    for case in ("ddp", "ddp-parts", "fsdp", "fsdp-parts"):
        alone = CASES[case].get("optimizer", "one")
        for key in ("loss", "latent", "gradient_norm"):
            found, expected = curve(tmp_path, case, key), curve(tmp_path, alone, key)
            np.testing.assert_allclose(found, expected, rtol=1e-5 if alone == "adamw" else MUON, err_msg=case)
        hashes = {(tmp_path / case / f"weights-{rank}").read_text() for rank in (0, 1)}
        assert len(hashes) == 1, "both processes hold the same student"
    # The known pain: a loss that goes round the wrapper's forward. Every check above would tell.
    assert (tmp_path / "bypassed" / "weights-0").read_text() != (tmp_path / "bypassed" / "weights-1").read_text()
    off = np.abs(curve(tmp_path, "bypassed", "gradient_norm") / curve(tmp_path, "one", "gradient_norm") - 1)
    assert off[0] > 0.01


def test_one_process_begins_two_go_on_a_killed_one_ends_both_and_one_finishes(teacher, tmp_path, monkeypatch):
    train_case("adamw", teacher, tmp_path, ALONE)
    with pytest.raises(Stop):
        train_case("killed", teacher, tmp_path, ALONE, stop_after(3))
    assert load_latest(tmp_path / "killed", "mark").step == 2
    monkeypatch.setenv("KILL_AT", "5")
    began = time.monotonic()
    with pytest.raises(RankError, match=r"killed by signal 9|process 0 of 2 ended") as caught:
        start(tmp_path, "killed")
    assert (caught.value.exit_code, time.monotonic() - began < 120) == (1, True)
    assert load_latest(tmp_path / "killed", "mark").step in (2, 4)  # 4 may still have been in writing
    train_case("killed", teacher, tmp_path, ALONE)
    for key in ("loss", "gradient_norm"):
        np.testing.assert_allclose(curve(tmp_path, "killed", key), curve(tmp_path, "adamw", key), rtol=1e-5)


def test_bad_input_of_a_process_is_the_error_of_all(tmp_path, capfd):
    refusing = "import sys; print('slimtts: a: observed b; allowed: c; next: d', file=sys.stderr); sys.exit(2)"
    with pytest.raises(RankError, match=r"^a: observed b; allowed: c; next: d$") as caught:
        run_ranks(["-c", refusing], 2)
    assert caught.value.exit_code == 2
    assert "slimtts: a: observed b" in capfd.readouterr().err


def test_processes_that_are_not_as_many_as_asked_for_are_refused(monkeypatch):
    with (
        pytest.raises(InvalidInputError, match=r"distill_student.processes: observed 2; allowed: 1, as many"),
        joined(KNOBS.model_copy(update={"processes": 2}), torch.device("cpu")),
    ):
        pass
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInputError, match=r"observed 1; allowed: 4"), joined(KNOBS, torch.device("cpu")):
        pass


def test_shards_with_muon_are_refused_in_one_line():
    with pytest.raises(InvalidInputError, match=r"distill_student.parallel: observed fsdp with optimizer muon"):
        check_parallel(KNOBS.model_copy(update={"processes": 2, "parallel": "fsdp"}))
    check_parallel(KNOBS.model_copy(update={"parallel": "fsdp"}))
    check_parallel(knobs_of("fsdp", processes=2))


def test_a_machine_that_the_cluster_numbers_is_not_yet_a_process(monkeypatch):
    assert current_rank({"RANK": "1", "WORLD_SIZE": "2"}) is None
    assert lock_name("distill_student") == "distill_student"
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert lock_name("distill_student") == "distill_student", "torchrun's first process holds the stage's lock"
    monkeypatch.setenv("SLIMTTS_SUPERVISED", "1")
    assert lock_name("distill_student") == "distill_student.rank-0", "its parent holds it"


@pytest.mark.parametrize(
    "left_over",
    [{"LOCAL_RANK": "0"}, {"LOCAL_RANK": "0", "RANK": "0"}, {"LOCAL_RANK": "", "RANK": "", "WORLD_SIZE": ""}],
)
def test_variables_left_over_in_a_shell_make_no_process_of_several(monkeypatch, left_over):
    assert current_rank(left_over) is None
    for name, value in left_over.items():
        monkeypatch.setenv(name, value)
    assert lock_name("distill_student") == "distill_student"
    with joined(KNOBS, torch.device("cpu")) as world:
        assert world == ALONE


@pytest.mark.parametrize(
    "numbers", [("x", "0", "2"), ("2", "0", "2"), ("0", "1", "2"), ("-1", "0", "2"), ("0", "0", "0")]
)
def test_a_place_that_cannot_be_is_refused_in_one_line(numbers):
    with pytest.raises(InvalidInputError, match=r"RANK, LOCAL_RANK, WORLD_SIZE: observed .*next: unset LOCAL_RANK"):
        current_rank(dict(zip(("RANK", "LOCAL_RANK", "WORLD_SIZE"), numbers, strict=True)))


def test_processes_on_machines_that_cannot_share_them_out_are_refused(monkeypatch):
    monkeypatch.setenv("SLIMTTS_NODES", "many")
    with pytest.raises(InvalidInputError, match=r"SLIMTTS_NODES: observed 'many'; allowed: a number of machines"):
        run_ranks(["-c", ""], 4)
    monkeypatch.setenv("SLIMTTS_NODES", "2")
    with pytest.raises(InvalidInputError, match=r"SLIMTTS_NODE0: observed nothing"):
        run_ranks(["-c", ""], 4)
    monkeypatch.setenv("SLIMTTS_NODE0", "10.0.0.1:29500")
    with pytest.raises(InvalidInputError, match=r"observed 3 on SLIMTTS_NODES=2 machines; allowed: a multiple of 2"):
        run_ranks(["-c", ""], 3)


def test_a_training_is_named_alike_however_many_processes_run_it():
    from slimtts.stages.distill_student import fingerprint

    several = KNOBS.model_copy(update={"processes": 2, "parallel": "fsdp", "micro_batches": 4})
    assert fingerprint(several, "data") == fingerprint(KNOBS, "data")
    assert fingerprint(KNOBS.model_copy(update={"seed": 4}), "data") != fingerprint(KNOBS, "data")


def test_the_world_of_one_changes_nothing(teacher):
    batch = step_batch(teacher)
    (share,) = ALONE.share(batch, 1)
    assert torch.equal(share.ids, batch.ids) and torch.equal(share.targets, batch.targets)
    assert ALONE.leads and ALONE.add_up(torch.ones(2)).tolist() == [1, 1]
    ALONE.check_same_step("student", 3)
