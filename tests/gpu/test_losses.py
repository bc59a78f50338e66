"""Kernels of a training step: values and gradients against dense fp64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from slimtts.distill.acceleration import compiled_chunk_gradient
from slimtts.distill.head_loss import HeadTerms, chunk_gradient, head_loss
from slimtts.distill.muon import BatchedMuon
from slimtts.distill.packing import sequence_bounds, varlen_attention

pytestmark = pytest.mark.gpu
TERMS = HeadTerms(cross_entropy=0.25, skew_kl=1.0, skew=0.1, temperature=1.0)


def test_packed_attention_is_masked_attention(device, on_cuda, assert_close):
    if not on_cuda:
        pytest.skip("the kernel is CUDA's alone")
    generator = torch.Generator(device=device).manual_seed(0)
    positions = torch.cat([torch.arange(n) for n in (37, 64, 1, 154, 46, 210)]).view(2, 256).to(device)
    q, k, v = (torch.randn(2, h, 256, 64, device=device, generator=generator, requires_grad=True) for h in (8, 2, 2))
    bounds = sequence_bounds(positions)
    with torch.autocast("cuda", torch.bfloat16):
        out, _ = varlen_attention(None, q, k, v, None, scaling=0.125, cu_seq_lens_q=bounds, max_length_q=256)
    out.float().square().sum().backward()
    actual = [out.float(), q.grad.clone(), k.grad.clone(), v.grad.clone()]
    q.grad = k.grad = v.grad = None
    sequence = (positions.flatten() == 0).cumsum(0).view(2, 256)
    mask = (sequence[:, :, None] == sequence[:, None]) & torch.ones(256, 256, device=device, dtype=torch.bool).tril()
    wide = (part.double().repeat_interleave(4, 1) for part in (k, v))
    full = F.scaled_dot_product_attention(q.double(), *wide, mask[:, None]).transpose(1, 2)
    full.square().sum().backward()
    for name, a, b in zip(("out", "dq", "dk", "dv"), actual, (full, q.grad, k.grad, v.grad), strict=True):
        assert_close(a, b, 2e-2, name)


@pytest.mark.parametrize("form", ["plain", "compiled"])
@pytest.mark.parametrize(("positions", "vocabulary"), [(70, 4097), (1, 37)])
def test_head_loss_is_the_dense_loss(device, on_cuda, assert_close, form, positions, vocabulary):
    if form == "compiled" and not on_cuda:
        pytest.skip("compiling for a CPU takes minutes and is nobody's default")
    generator = torch.Generator(device=device).manual_seed(0)
    sizes = ((positions, 64), (vocabulary, 64))
    hidden, head = (torch.randn(*size, device=device, generator=generator) / 4 for size in sizes)
    teacher_logits = torch.randn(positions, vocabulary, device=device, generator=generator)
    targets = torch.randint(0, vocabulary, (positions,), device=device, generator=generator)
    h, w = (part.double().requires_grad_() for part in (hidden, head))
    dense, p = h @ w.T, teacher_logits.double().softmax(-1)
    kl = (p * (p.log() - (0.1 * p + 0.9 * dense.softmax(-1)).log())).sum(-1).mean()
    expected = 0.25 * F.cross_entropy(dense, targets) + kl
    expected.backward()
    of_chunk = compiled_chunk_gradient() if form == "compiled" else chunk_gradient
    for autocast, limit in ((False, 1e-3), (True, 2e-2)):
        a, b = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            total, *_ = head_loss(a, b, targets, lambda rows: teacher_logits[rows], TERMS, 32, of_chunk=of_chunk)
        total.backward()
        assert_close(total, expected, 1e-2 if autocast else 1e-4, "value")
        assert_close(a.grad, h.grad, limit, "d hidden")
        assert_close(b.grad, w.grad, limit, "d head")


@pytest.mark.parametrize("seed", [0, 1])
def test_batched_muon_is_torchs_muon(device, seed):
    torch.manual_seed(seed)
    shapes = [(64, 64), (64, 64), (128, 64), (64, 128), (32, 64)]
    ours = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    start = [p.detach().clone() for p in ours]
    optimizers = (BatchedMuon(ours), torch.optim.Muon(theirs, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1e-2
            optimizer.step()
    for p, q, s in zip(ours, theirs, start, strict=True):
        assert float(((p - s) - (q - s)).norm().detach() / (q - s).norm().detach()) < 3e-2
