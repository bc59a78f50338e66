"""Trains the bundled codec on spectral losses and on the phones that flite printed.

The phone loss reads the decoder's hidden state, so that the codes carry words before they carry timbre.
Legend: B clips, N samples, F codec frames; two phone labels a frame.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from slimtts.checkpoints import resume, save_checkpoint
from slimtts.codec.nano_codec import NanoCodec
from slimtts.nano.speech_synthesis import FRAME_SAMPLES, SAMPLE_RATE_HZ, read_corpus

CLIP_FRAMES = 32
BATCH_CLIPS = 24
PEAK_LEARNING_RATE = 1e-3
STFT_SIZES = (256, 512, 1024)


class ClipSampler:
    """Random clips of the training split; the batch of a step depends on the seed and the step alone."""

    def __init__(self, corpus: Path, seed: int) -> None:
        self.seed = seed
        rows = [(u, a) for u, a in read_corpus(corpus) if u.split == "train" and len(a) >= CLIP_FRAMES * FRAME_SAMPLES]
        self.audio = [audio for _, audio in rows]
        symbols = sorted({p for u, _ in rows[:500] for p, _ in u.phones})
        self.phone_ids = {p: i for i, p in enumerate(symbols)}
        self.labels = [self._labels(u.phones, len(a) // FRAME_SAMPLES * 2) for u, a in rows]

    def _labels(self, phones: list[tuple[str, float]], count: int) -> np.ndarray:
        ends = np.array([end for _, end in phones])
        ids = np.array([self.phone_ids.get(p, 0) for p, _ in phones])
        centres_s = (np.arange(count) + 0.5) * FRAME_SAMPLES / 2 / SAMPLE_RATE_HZ
        return ids[np.minimum(np.searchsorted(ends, centres_s), len(ids) - 1)]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """float [B, N], int64 [B, 2 F]. Clips start on any sample pair of 20 ms; gain varies by 6 dB."""
        rng = np.random.default_rng((self.seed, step))
        waves, labels = [], []
        half = FRAME_SAMPLES // 2
        for i in rng.integers(len(self.audio), size=BATCH_CLIPS):
            start = int(rng.integers(0, len(self.audio[i]) // half - 2 * CLIP_FRAMES + 1))
            clip = self.audio[i][start * half : (start + 2 * CLIP_FRAMES) * half]
            waves.append(torch.from_numpy(clip.astype(np.float32) / 32768))
            labels.append(torch.from_numpy(self.labels[i][start : start + 2 * CLIP_FRAMES]))
        return torch.stack(waves), torch.stack(labels)


def spectral_loss(codec: NanoCodec, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """2 x L1 of log-mels + multi-resolution STFT loss (log-magnitude L1 and spectral convergence)."""
    loss = 2 * F.l1_loss(codec.log_mel(predicted), codec.log_mel(target))
    for size in STFT_SIZES:
        window = torch.hann_window(size)
        p, t = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp_min(1e-4)
            for x in (predicted, target)
        )
        loss = loss + (F.l1_loss(p.log(), t.log()) + (p - t).norm() / t.norm()) / len(STFT_SIZES)
    return loss


def learning_rate(step: int, steps: int) -> float:
    """Warm-up over 50 steps, then a cosine to 2 % of the peak."""
    if step < 50:
        return PEAK_LEARNING_RATE * (step + 1) / 50
    return PEAK_LEARNING_RATE * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - 50) / max(1, steps - 50))))


def train_codec(corpus: Path, out: Path, steps: int, seed: int) -> NanoCodec:
    """Trains, resuming from `out/checkpoints`, and writes the codec to `out/codec`."""
    torch.manual_seed(seed)
    codec = NanoCodec()
    sampler = ClipSampler(corpus, seed)
    phone_head = nn.Conv1d(codec.config.decoder_channels, 2 * len(sampler.phone_ids), 3, padding=1)
    models = {"codec": codec, "phones": phone_head}
    optimizer = torch.optim.AdamW(
        [p for m in models.values() for p in m.parameters()], lr=PEAK_LEARNING_RATE, betas=(0.8, 0.95), fused=True
    )
    fingerprint = f"codec-{steps}-{seed}"
    found = resume(out / "checkpoints", fingerprint, models, {"adamw": optimizer})
    first = found.step if found else 0
    started = time.monotonic()
    for step in range(first, steps):
        wave, phones = sampler.batch(step)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = codec.decode_hidden(codec.quantize(wave))
            phone_logits = phone_head(hidden)
            predicted = codec.synthesize(hidden)
        phone_logits = phone_logits.float().unflatten(1, (-1, 2)).permute(0, 1, 3, 2).flatten(2)
        phone_loss = F.cross_entropy(phone_logits, phones)
        audio_loss = spectral_loss(codec, predicted, wave)
        optimizer.zero_grad()
        (audio_loss + 0.2 * phone_loss).backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 5.0)
        optimizer.step()
        if step % 25 == 0:
            rate = (step - first + 1) / (time.monotonic() - started)
            print(f"step {step} audio {audio_loss:.3f} phones {phone_loss:.3f} {rate:.2f} steps/s", flush=True)
        if (step + 1) % 200 == 0:
            save_checkpoint(out / "checkpoints", step + 1, fingerprint, models, {"adamw": optimizer}, {})
    codec.save(out / "codec")
    return NanoCodec.load(out / "codec")
