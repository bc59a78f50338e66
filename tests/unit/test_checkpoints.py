import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from slimtts import checkpoints
from slimtts.checkpoints import load_latest, restore, resume, save_checkpoint
from slimtts.errors import InvalidInputError


class Training:
    """A tiny loop with random inputs, AdamW for a vector and Muon for matrices, and a tied weight."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.LayerNorm(6), nn.Linear(6, 4, bias=False))
        self.second = nn.Linear(4, 6, bias=False)
        self.second.weight = self.model[0].weight
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        self.optimizers = {
            "muon": torch.optim.Muon(matrices, lr=0.01), "adamw": torch.optim.AdamW(vectors, lr=0.02, betas=(0.8, 0.9))
        }  # fmt: skip
        self.models = {"student": self.model, "second": self.second}

    def step(self) -> float:
        loss = nn.functional.dropout(self.model(torch.randn(8, 4)), 0.5).square().mean()
        loss.backward()
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def save(self, folder: Path, step: int, fingerprint: str = "one", keep: int = 2) -> Path:
        return save_checkpoint(folder, step, fingerprint, self.models, self.optimizers, {"losses": [0.5]}, keep)


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = Training(seed=0)
    for _ in range(3):
        whole.step()
    whole.save(tmp_path, 3)
    expected = [whole.step() for _ in range(4)]

    resumed = Training(seed=99)
    checkpoint = load_latest(tmp_path, "one")
    assert checkpoint is not None and checkpoint.step == 3
    assert restore(checkpoint, resumed.models, resumed.optimizers) == {"losses": [0.5]}
    assert [resumed.step() for _ in range(4)] == expected
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])
    for name, optimizer in whole.optimizers.items():
        former, again = optimizer.state_dict(), resumed.optimizers[name].state_dict()
        assert json.dumps(former["param_groups"]) == json.dumps(again["param_groups"])
        assert former["state"].keys() == again["state"].keys()
        for index, slots in former["state"].items():
            assert all(torch.equal(slots[key], again["state"][index][key]) for key in slots)


def test_a_checkpoint_before_the_first_step_empties_the_optimizers(tmp_path: Path) -> None:
    fresh, other = Training(seed=0), Training(seed=1)
    fresh.save(tmp_path, 0)
    expected = [fresh.step() for _ in range(2)]
    other.step()
    checkpoint = load_latest(tmp_path, "one")
    assert checkpoint is not None
    restore(checkpoint, other.models, other.optimizers)
    assert [other.step() for _ in range(2)] == expected
    assert other.second.weight is other.model[0].weight


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "nothing", "one") is None
    assert load_latest(tmp_path, "one") is None


def test_a_folder_without_done_is_passed_over(tmp_path: Path) -> None:
    training = Training(seed=0)
    training.save(tmp_path, 1)
    (training.save(tmp_path, 2) / checkpoints.DONE).unlink()
    checkpoint = load_latest(tmp_path, "one")
    assert checkpoint is not None and checkpoint.step == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tensors.safetensors", None), ("tensors.safetensors", b""), ("tensors.safetensors", b"half"),
        ("state.json", None), ("state.json", b'{"step": 2, "finger'), ("state.json", b"\xff\xfe"),
        ("state.json", b"{}"), ("state.json", b"[]"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, file: str, content: bytes | None) -> None:
    training = Training(seed=0)
    training.save(tmp_path, 1)
    newest = training.save(tmp_path, 2)
    if content is None:
        (newest / file).unlink()
    elif content == b"half":
        os.truncate(newest / file, (newest / file).stat().st_size // 2)
    else:
        (newest / file).write_bytes(content)
    checkpoint = load_latest(tmp_path, "one")
    assert checkpoint is not None and checkpoint.step == 1


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    Training(seed=0).save(tmp_path, 1, fingerprint="former")
    with pytest.raises(InvalidInputError) as error:
        load_latest(tmp_path, "changed")
    message = str(error.value)
    assert "former" in message and "allowed: changed" in message and "step-00000001" in message


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    training = Training(seed=0)
    for step in (5, 50, 500, 1000):
        training.save(tmp_path, step, keep=keep)
    expected = ["step-00000005", "step-00000050", "step-00000500", "step-00001000"][-keep:]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def test_a_failing_save_keeps_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(seed=0)
    training.save(tmp_path, 1)

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", disk_full)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space"):
            training.save(tmp_path, step)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert load_latest(tmp_path, "one") is not None


def test_a_kill_while_saving_keeps_the_former_and_its_remains_go_with_the_next(tmp_path: Path) -> None:
    training = Training(seed=0)
    training.save(tmp_path, 1)
    script = """
import os, signal, sys
from pathlib import Path
import torch
from slimtts import checkpoints

def killed(tensors, path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

checkpoints.save_file = killed
checkpoints.save_checkpoint(Path(sys.argv[1]), 2, "one", {"m": torch.nn.Linear(2, 2)}, {}, {})
"""
    source = str(Path(checkpoints.__file__).parents[1])
    child = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": source}, check=False
    )
    assert child.returncode == -signal.SIGKILL
    checkpoint = load_latest(tmp_path, "one")
    assert checkpoint is not None and checkpoint.step == 1
    assert any(path.name.startswith(".step-") for path in tmp_path.iterdir())
    training.save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def newest_two(tmp_path: Path) -> tuple[Training, Path]:
    training = Training(seed=0)
    training.step()
    training.save(tmp_path, 1)
    training.step()
    return training, training.save(tmp_path, 2)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", checkpoints.DONE])
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_one_flipped_bit_anywhere_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, place: float
) -> None:
    _, newest = newest_two(tmp_path)
    content = bytearray((newest / file).read_bytes())
    content[int(place * len(content))] ^= 1
    (newest / file).write_bytes(content)
    resumed = Training(seed=9)
    found = resume(tmp_path, "one", resumed.models, resumed.optimizers)
    assert found is not None and found.step == 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(newest) in line and "is passed over" in line


def of_earlier_version(path: Path) -> None:
    """Without hashes, as 0.1 wrote them."""
    (path / checkpoints.DONE).write_text("")
    state = json.loads((path / "state.json").read_text())
    del state[checkpoints.HASHED]
    (path / "state.json").write_text(json.dumps(state))


def without(tensor: str, path: Path) -> None:
    tensors = load_file(path / "tensors.safetensors")
    save_file({name: value for name, value in tensors.items() if name != tensor}, path / "tensors.safetensors")


LOST = [
    "model/student/0.weight", "model/second/weight", "optimizer/muon/0/momentum_buffer", "optimizer/adamw/1/exp_avg",
    "rng/torch",
]  # fmt: skip


# Without hashes a momentum that is gone looks like one of a parameter that had no gradient yet.
CASES = [(tensor, is_hashed) for tensor in LOST for is_hashed in (True, False) if is_hashed or "momentum" not in tensor]


@pytest.mark.parametrize(("tensor", "is_hashed"), CASES)
def test_a_checkpoint_that_lacks_a_tensor_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tensor: str, is_hashed: bool
) -> None:
    training, newest = newest_two(tmp_path)
    without(tensor, newest)
    if not is_hashed:
        of_earlier_version(newest)
    resumed = Training(seed=9)
    found = resume(tmp_path, "one", resumed.models, resumed.optimizers)
    assert found is not None and found.step == 1
    assert f"{newest} is passed over" in caplog.text
    again = training.save(tmp_path / "again", 2)
    assert resume(again.parent, "one", resumed.models, resumed.optimizers) is not None, "nothing else is amiss"


def test_a_tensor_of_another_shape_or_a_strange_one_is_passed_over(tmp_path: Path) -> None:
    for name, strange in (("a", {"model/student/0.weight": torch.zeros(2, 2)}), ("b", {"model/other": torch.zeros(1)})):
        _, newest = newest_two(tmp_path / name)
        save_file(load_file(newest / "tensors.safetensors") | strange, newest / "tensors.safetensors")
        of_earlier_version(newest)
        resumed = Training(seed=9)
        found = resume(tmp_path / name, "one", resumed.models, resumed.optimizers)
        assert found is not None and found.step == 1


def test_where_no_checkpoint_is_left_the_training_starts_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (newest_two(tmp_path)[1], tmp_path / "step-00000001"):
        os.truncate(path / "tensors.safetensors", 100)
    fresh, untouched = Training(seed=9), Training(seed=9)
    assert resume(tmp_path, "one", fresh.models, fresh.optimizers) is None
    assert caplog.text.count("is passed over") == 2
    assert f"no checkpoint in {tmp_path} can be used: this training starts anew" in caplog.text
    for name, tensor in untouched.model.state_dict().items():
        assert torch.equal(tensor, fresh.model.state_dict()[name])


def test_a_checkpoint_of_an_earlier_version_goes_on_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training, newest = newest_two(tmp_path)
    of_earlier_version(newest)
    resumed = Training(seed=9)
    found = resume(tmp_path, "one", resumed.models, resumed.optimizers)
    assert found is not None and found.step == 2
    assert "holds no hashes: its content is not verified" in caplog.text
    for name, tensor in training.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_hashes_that_were_emptied_do_not_make_it_one_of_an_earlier_version(tmp_path: Path) -> None:
    _, newest = newest_two(tmp_path)
    (newest / checkpoints.DONE).write_text("")
    found = load_latest(tmp_path, "one")
    assert found is not None and found.step == 1


def test_a_loop_state_without_what_the_loop_needs_is_passed_over(tmp_path: Path) -> None:
    _, newest = newest_two(tmp_path)
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({**state, "loop": {}}))
    of_earlier_version(newest)
    resumed = Training(seed=9)
    found = resume(tmp_path, "one", resumed.models, resumed.optimizers, ("losses",))
    assert found is not None and found.step == 1


def test_those_that_were_passed_over_go_with_the_next_save(tmp_path: Path) -> None:
    training, _ = newest_two(tmp_path)
    for step in (4, 6):
        os.truncate(training.save(tmp_path, step, keep=9) / "tensors.safetensors", 10)
    found = load_latest(tmp_path, "one")
    assert found is not None and found.step == 2
    training.save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    found = load_latest(tmp_path, "one")
    assert found is not None and found.step == 4
