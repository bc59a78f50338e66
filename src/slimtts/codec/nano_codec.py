"""The bundled codec: log-mel -> conv encoder -> FSQ, 4,096 codes at 25/s -> conv decoder -> inverse STFT.

Quantiser: finite scalar quantisation (arXiv 2309.15505); waveform head: Vocos (arXiv 2306.00814).
Legend: B utterances, F codec frames (25 Hz), S spectrum frames (100 Hz, S = 4 F), N samples (N = 640 F), C channels.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchaudio
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from slimtts.errors import InvalidInputError
from slimtts.storage import atomic_path


@dataclass(frozen=True)
class NanoCodecConfig:
    """Sizes; every field is written beside the weights."""

    sample_rate_hz: int = 16_000
    hop_samples: int = 160
    fft_samples: int = 640
    num_mels: int = 80
    frame_stride: int = 4
    levels: tuple[int, ...] = (4, 4, 4, 4, 4, 4)
    encoder_channels: int = 256
    decoder_channels: int = 320
    spectrum_channels: int = 256
    encoder_blocks: int = 3
    decoder_blocks: int = 3
    spectrum_blocks: int = 6


class FiniteScalarQuantizer(nn.Module):
    """Rounds each latent dimension to one of `levels[d]` values; gradients pass straight through.

    Source: arXiv 2309.15505, with the half-step offset for even numbers of levels.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        counts = torch.tensor(levels)
        self.register_buffer("levels", counts, persistent=False)
        self.register_buffer("strides", torch.cumprod(torch.tensor([1, *levels[:-1]]), 0), persistent=False)
        self.num_codes = math.prod(levels)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, F, D] -> quantised [B, F, D] with values in -1..1."""
        steps = self.levels - 1
        bounded = torch.sigmoid(latent) * steps
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / steps * 2 - 1

    def to_codes(self, quantized: torch.Tensor) -> torch.Tensor:
        """[B, F, D] in -1..1 -> int64 [B, F]."""
        digits = ((quantized + 1) / 2 * (self.levels - 1)).round().long()
        return (digits * self.strides).sum(-1)

    def digits(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [...] -> digits [..., D], digit d in 0..levels[d]-1."""
        return codes.unsqueeze(-1) // self.strides % self.levels

    def from_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, F] -> [B, F, D] in -1..1."""
        return self.digits(codes) / (self.levels - 1) * 2 - 1


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a pointwise MLP; residual. [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, 3 * channels)
        self.down = nn.Linear(3 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C, T]."""
        h = self.norm(self.depthwise(x).transpose(1, 2))
        h = self.down(nn.functional.gelu(self.up(h)))
        return x + (self.scale * h).transpose(1, 2)


class NanoCodec(nn.Module):
    """The bundled codec; satisfies `SpeechCodec`."""

    def __init__(self, config: NanoCodecConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or NanoCodecConfig()
        self.sample_rate_hz = c.sample_rate_hz
        self.samples_per_frame = c.hop_samples * c.frame_stride
        self.frame_rate_hz = c.sample_rate_hz / self.samples_per_frame
        # How far a code is heard: inverse STFT and spectrum blocks at the spectrum's rate, then the blocks at 25 Hz.
        spectrum_frames = c.fft_samples // (2 * c.hop_samples) + 3 * c.spectrum_blocks
        self.context_frames = -(-spectrum_frames // c.frame_stride) + 3 * c.decoder_blocks + 1
        self.quantizer = FiniteScalarQuantizer(c.levels)
        self.num_codes = self.quantizer.num_codes
        self.mel = torchaudio.transforms.MelSpectrogram(
            c.sample_rate_hz, c.fft_samples, hop_length=c.hop_samples, n_mels=c.num_mels, power=1.0
        )
        for buffer_owner in (self.mel.spectrogram, self.mel.mel_scale):
            buffer_owner._non_persistent_buffers_set.update(buffer_owner._buffers)
        self.register_buffer("window", torch.hann_window(c.fft_samples), persistent=False)
        self.encoder = nn.Sequential(
            nn.Conv1d(c.num_mels, c.encoder_channels, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(c.encoder_channels, c.encoder_channels, c.frame_stride, stride=c.frame_stride),
            *(ConvNeXtBlock(c.encoder_channels) for _ in range(c.encoder_blocks)),
        )
        self.to_latent = nn.Linear(c.encoder_channels, len(c.levels))
        self.from_latent = nn.Conv1d(len(c.levels), c.decoder_channels, 3, padding=1)
        self.decoder = nn.Sequential(*(ConvNeXtBlock(c.decoder_channels) for _ in range(c.decoder_blocks)))
        self.upsample = nn.ConvTranspose1d(c.decoder_channels, c.spectrum_channels, c.frame_stride, c.frame_stride)
        self.spectrum = nn.Sequential(*(ConvNeXtBlock(c.spectrum_channels) for _ in range(c.spectrum_blocks)))
        self.spectrum_norm = nn.LayerNorm(c.spectrum_channels)
        self.to_spectrum = nn.Linear(c.spectrum_channels, 2 * (c.fft_samples // 2 + 1))

    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """[B, N] -> [B, num_mels, S]; always in fp32, also under autocast."""
        with torch.autocast(waveform.device.type, enabled=False):
            return torch.log(self.mel(waveform.float()).clamp_min(1e-5))[..., :-1]

    def quantize(self, waveform: torch.Tensor) -> torch.Tensor:
        """[B, N] with N a multiple of 640 -> [B, F, D] in -1..1, differentiable."""
        hidden = self.encoder(self.log_mel(waveform)).transpose(1, 2)
        return self.quantizer(self.to_latent(hidden).float())

    def decode_hidden(self, quantized: torch.Tensor) -> torch.Tensor:
        """[B, F, D] -> hidden [B, C, F] at the code rate."""
        return self.decoder(self.from_latent(quantized.transpose(1, 2)))

    def synthesize(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden [B, C, F] -> waveform [B, N]."""
        h = self.spectrum(self.upsample(hidden))
        h = self.to_spectrum(self.spectrum_norm(h.transpose(1, 2))).transpose(1, 2).float()
        log_magnitude, phase = h.chunk(2, dim=1)
        magnitude = torch.exp(log_magnitude.clamp(max=6.0))
        spectrum = torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))
        spectrum = torch.cat([spectrum, spectrum[..., -1:]], dim=-1)
        c = self.config
        return torch.istft(spectrum, c.fft_samples, c.hop_samples, window=self.window)

    @torch.inference_mode()
    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """float [B, N] at 16 kHz -> int64 codes [B, F]; the end is padded with silence to whole frames."""
        padding = -waveform.shape[-1] % self.samples_per_frame
        return self.quantizer.to_codes(self.quantize(nn.functional.pad(waveform, (0, padding))))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 codes [B, F] -> float [B, 640 F] in -1..1."""
        return self.synthesize(self.decode_hidden(self.quantizer.from_codes(codes))).clamp(-1, 1)

    def save(self, folder: Path) -> None:
        """Writes `config.json` and fp16 `model.safetensors`."""
        with atomic_path(folder) as tmp:
            tmp.mkdir()
            (tmp / "config.json").write_text(json.dumps(asdict(self.config), indent=1))
            save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, tmp / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> NanoCodec:
        """Reads what `save` wrote; strict, fp32, eval mode.

        Raises:
            InvalidInputError: no such folder, or files in it that are damaged or of another codec.
        """
        try:
            config = json.loads((folder / "config.json").read_text())
            codec = cls(NanoCodecConfig(**{**config, "levels": tuple(config["levels"])}))
            codec.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InvalidInputError(
                f"teacher.codec {folder}", reason, "a folder with config.json and model.safetensors of nano's codec",
                "correct the path, or set teacher.codec to the empty text",
            ) from None  # fmt: skip
        return codec.eval()
