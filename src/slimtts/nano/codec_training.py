"""Trains the bundled codec on spectral losses and on the phones that the synthesiser gives.

The phone loss reads the decoder's hidden state, so that the codes carry words before they carry timbre.
Legend: B clips, N samples, F codec frames, P phone labels of 20 ms (P = 2 F at 25 codes a second).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from slimtts.checkpoints import resume, save_checkpoint
from slimtts.codec.nano_codec import NanoCodec, NanoCodecConfig
from slimtts.data.prefetching import prefetched
from slimtts.errors import InvalidInputError
from slimtts.nano.speech_synthesis import FRAME_SAMPLES, SAMPLE_RATE_HZ, read_corpus

CLIP_FRAMES = 32  # of 40 ms, whatever the codec's own frames are
LABEL_SAMPLES = FRAME_SAMPLES // 2
STFT_SIZES = (256, 512, 1024)
PHONE_WEIGHT = 0.2
CHECKPOINT_STEPS = 200


@dataclass(frozen=True)
class CodecRecipe:
    """Everything that decides the weights, beside the speech and the codec it starts from."""

    steps: int
    seed: int
    frame_stride: int = 4  # 4: 25 codes a second; 2: 50
    batch_clips: int = 24
    peak_learning_rate: float = 1e-3


class ClipSampler:
    """Random clips of the training split; the batch of a step depends on the seed and the step alone."""

    def __init__(self, corpus: Path, seed: int, batch_clips: int = 24) -> None:
        self.seed, self.batch_clips = seed, batch_clips
        rows = [(u, a) for u, a in read_corpus(corpus) if u.split == "train" and len(a) >= CLIP_FRAMES * FRAME_SAMPLES]
        self.audio = [audio for _, audio in rows]
        symbols = sorted({p for u, _ in rows[:500] for p, _ in u.phones})
        self.phone_ids = {p: i for i, p in enumerate(symbols)}
        self.labels = [self._labels(u.phones, len(a) // LABEL_SAMPLES) for u, a in rows]

    def _labels(self, phones: list[tuple[str, float]], count: int) -> np.ndarray:
        ends = np.array([end for _, end in phones])
        ids = np.array([self.phone_ids.get(p, 0) for p, _ in phones])
        centres_s = (np.arange(count) + 0.5) * LABEL_SAMPLES / SAMPLE_RATE_HZ
        return ids[np.minimum(np.searchsorted(ends, centres_s), len(ids) - 1)]

    def batch(self, step: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """float [B, N], int64 [B, P]. Clips start on any 20 ms."""
        rng = np.random.default_rng((self.seed, step))
        waves, labels = [], []
        for i in rng.integers(len(self.audio), size=self.batch_clips):
            start = int(rng.integers(0, len(self.labels[i]) - 2 * CLIP_FRAMES + 1))
            waves.append(self.audio[i][start * LABEL_SAMPLES : (start + 2 * CLIP_FRAMES) * LABEL_SAMPLES])
            labels.append(self.labels[i][start : start + 2 * CLIP_FRAMES])
        wave, phones = torch.from_numpy(np.stack(waves)), torch.from_numpy(np.stack(labels))
        if torch.device(device).type == "cuda":
            wave, phones = wave.pin_memory(), phones.pin_memory()
        return wave.to(device, non_blocking=True).float() / 32768, phones.to(device, non_blocking=True)

    def batches(self, first: int, device: torch.device | str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Endless batches from step `first` on."""
        while True:
            yield self.batch(first, device)
            first += 1


class PhoneHead(nn.Module):
    """Names the phone of every 20 ms from the decoder's hidden state: [B, C, F] -> logits [B, phones, P]."""

    def __init__(self, config: NanoCodecConfig, num_phones: int) -> None:
        super().__init__()
        frame_samples = config.hop_samples * config.frame_stride
        if frame_samples % LABEL_SAMPLES:
            raise InvalidInputError(
                "frame_stride", f"{config.frame_stride}", "2 or a multiple of it", "set --frame-stride 2 or 4"
            )
        self.labels_per_frame = frame_samples // LABEL_SAMPLES
        self.conv = nn.Conv1d(config.decoder_channels, self.labels_per_frame * num_phones, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, C, F] -> fp32 [B, phones, P]."""
        logits = self.conv(hidden).float()
        return logits.unflatten(1, (-1, self.labels_per_frame)).permute(0, 1, 3, 2).flatten(2)


def codec_with_stride(start: NanoCodec | None, frame_stride: int) -> NanoCodec:
    """A codec to train: new, or the weights of `start`, whose two kernels that span a frame are fitted to the stride.

    Raises:
        InvalidInputError: the stride of `start` is no multiple of `frame_stride`.
    """
    if start is None:
        return NanoCodec(NanoCodecConfig(frame_stride=frame_stride))
    former = start.config.frame_stride
    if former % frame_stride:
        raise InvalidInputError(
            "frame_stride", f"{frame_stride}", f"a divisor of {former}, the stride of the codec to start from", "set it"
        )
    codec = NanoCodec(replace(start.config, frame_stride=frame_stride))
    weights, taps = dict(start.state_dict()), (frame_stride, former // frame_stride)
    # Fewer taps see as much as the former ones did of a steady sound: sums going in, means coming out.
    weights["encoder.2.weight"] = weights["encoder.2.weight"].unflatten(2, taps).sum(3)
    weights["upsample.weight"] = weights["upsample.weight"].unflatten(2, taps).mean(3)
    codec.load_state_dict(weights)
    return codec


def _digest(codec: NanoCodec) -> str:
    content = b"".join(v.cpu().numpy().tobytes() for v in codec.state_dict().values())
    return hashlib.sha256(content).hexdigest()[:16]


def spectral_loss(codec: NanoCodec, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """2 x L1 of log-mels + multi-resolution STFT loss (log-magnitude L1 and spectral convergence)."""
    loss = 2 * F.l1_loss(codec.log_mel(predicted), codec.log_mel(target))
    for size in STFT_SIZES:
        window = torch.hann_window(size, device=target.device)
        p, t = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs().clamp_min(1e-4)
            for x in (predicted, target)
        )
        loss = loss + (F.l1_loss(p.log(), t.log()) + (p - t).norm() / t.norm()) / len(STFT_SIZES)
    return loss


def learning_rate(step: int, recipe: CodecRecipe) -> float:
    """Warm-up over 50 steps, then a cosine to 2 % of the peak."""
    if step < 50:
        return recipe.peak_learning_rate * (step + 1) / 50
    cosine = math.cos(math.pi * (step - 50) / max(1, recipe.steps - 50))
    return recipe.peak_learning_rate * (0.02 + 0.49 * (1 + cosine))


def codec_losses(
    codec: NanoCodec, phone_head: PhoneHead, wave: torch.Tensor, phones: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectral loss and phone cross-entropy of float [B, N] and int64 [B, P]."""
    with torch.autocast(wave.device.type, torch.bfloat16):
        hidden = codec.decode_hidden(codec.quantize(wave))
        phone_logits = phone_head(hidden)
        predicted = codec.synthesize(hidden)
    return spectral_loss(codec, predicted, wave), F.cross_entropy(phone_logits, phones)


def train_codec(
    corpus: Path,
    out: Path,
    recipe: CodecRecipe,
    start: NanoCodec | None = None,
    device: torch.device | str = "cpu",
) -> NanoCodec:
    """Trains, resuming from `out/checkpoints`, and writes the codec to `out/codec`.

    Raises:
        InvalidInputError: the stride does not fit, or the checkpoints belong to another recipe.
    """
    torch.manual_seed(recipe.seed)
    codec = codec_with_stride(start, recipe.frame_stride)
    sampler = ClipSampler(corpus, recipe.seed, recipe.batch_clips)
    phone_head = PhoneHead(codec.config, len(sampler.phone_ids))
    models: dict[str, nn.Module] = {"codec": codec.to(device).train(), "phones": phone_head.to(device)}
    optimizer = torch.optim.AdamW(
        [p for m in models.values() for p in m.parameters()],
        lr=recipe.peak_learning_rate,
        betas=(0.8, 0.95),
        fused=True,
    )
    fingerprint = f"{recipe} from {_digest(start)}" if start else f"{recipe}"
    resumed = resume(out / "checkpoints", fingerprint, models, {"adamw": optimizer})
    first = resumed.step if resumed else 0
    started = time.monotonic()
    for step, (wave, phones) in enumerate(prefetched(sampler.batches(first, device)), start=first):
        if step >= recipe.steps:
            break
        optimizer.param_groups[0]["lr"] = learning_rate(step, recipe)
        audio_loss, phone_loss = codec_losses(codec, phone_head, wave, phones)
        optimizer.zero_grad()
        (audio_loss + PHONE_WEIGHT * phone_loss).backward()
        nn.utils.clip_grad_norm_(codec.parameters(), 5.0)
        optimizer.step()
        if step % 25 == 0:
            rate = (step - first + 1) / (time.monotonic() - started)
            print(f"step {step} audio {audio_loss:.3f} phones {phone_loss:.3f} {rate:.2f} steps/s", flush=True)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            save_checkpoint(out / "checkpoints", step + 1, fingerprint, models, {"adamw": optimizer}, {})
    codec.cpu().save(out / "codec")
    return NanoCodec.load(out / "codec")
