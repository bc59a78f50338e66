"""Muon on many matrices at once does what torch's does on each."""

import pytest
import torch

from slimtts.distill import muon
from slimtts.distill.muon import BatchedMuon

SHAPES = [(6, 6), (4, 6), (6, 4), (6, 6), (12, 6), (4, 6), (3, 1)]


def parameters():
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer, params, count, without=()):
    generator = torch.Generator().manual_seed(4)
    for _ in range(count):
        for index, p in enumerate(params):
            gradient = torch.randn(p.shape, generator=generator)
            p.grad = None if index in without else gradient
        optimizer.step()


def torchs(params):
    return torch.optim.Muon(params, lr=0.1, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")


def ours(params):
    optimizer = BatchedMuon(params)
    optimizer.param_groups[0]["lr"] = 0.1
    return optimizer


@pytest.mark.parametrize("together", [muon.MOST_ELEMENTS, 72, 1])
def test_it_is_torchs_muon(monkeypatch, together):
    monkeypatch.setattr(muon, "MOST_ELEMENTS", together)
    expected, found = parameters(), parameters()
    steps(torchs(expected), expected, 5)
    steps(ours(found), found, 5)
    for start, theirs, mine in zip(parameters(), expected, found, strict=True):
        # Products in bf16 may round differently by the shape of the call: 2^-8 of the update's size.
        assert (mine - theirs).abs().max() <= 2**-7 * (theirs - start).abs().max()
        assert not torch.equal(mine, start)


def test_a_parameter_without_gradient_stays():
    params = parameters()
    steps(ours(params), params, 2, without=(1, 3))
    for index, (start, p) in enumerate(zip(parameters(), params, strict=True)):
        assert torch.equal(start, p) == (index in (1, 3))


def test_its_state_is_that_of_torchs_class():
    """Checkpoints of either go on with the other."""
    expected, found = parameters(), parameters()
    theirs, mine = torchs(expected), ours(found)
    steps(theirs, expected, 2)
    steps(mine, found, 2)
    mine.load_state_dict(theirs.state_dict())
    for p, q in zip(expected, found, strict=True):
        assert torch.equal(theirs.state[p]["momentum_buffer"], mine.state[q]["momentum_buffer"])
    assert mine.param_groups[0]["lr"] == 0.1


def test_a_closure_is_called_once_with_gradients_on():
    params = [torch.nn.Parameter(torch.eye(3))]
    optimizer = ours(params)

    def closure():
        loss = params[0].square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    assert not torch.equal(params[0], torch.eye(3))
