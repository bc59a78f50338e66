"""Settings of the machine that numbers and speed depend on."""

from __future__ import annotations

import torch


def prepare_cuda(device: torch.device) -> None:
    """Called wherever a model goes to a device; nothing to do on a CPU.

    cuDNN's attention, which torch prefers in bf16 on Hopper, builds a plan for every new shape, half a second each.
    Sentences have a new length nearly every step, so it is taken out of the choice; flash and memory-efficient
    attention stay.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
