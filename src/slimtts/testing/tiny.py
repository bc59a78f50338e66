"""A tiny teacher of the bundled family: real Llama, real tokenizer layout, a codec of 16 codes that beeps."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from slimtts.data.manifest import Utterance
from slimtts.nano.tokenizer_training import build_tokenizer
from slimtts.teachers.base import SpeechTokenLayout, Teacher
from slimtts.teachers.nano import NanoFamily

NUM_CODES = 16


class BeepCodec:
    """Code c becomes 40 ms of a tone of (c + 2) * 100 Hz; encoding finds the tone again."""

    sample_rate_hz = 16_000
    frame_rate_hz = 25.0
    num_codes = NUM_CODES

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """int64 [B, F] -> float [B, 640 F]."""
        time_s = torch.arange(640) / self.sample_rate_hz
        tones = torch.sin(2 * torch.pi * 100 * (codes.unsqueeze(-1) + 2) * time_s)
        return 0.3 * tones.flatten(1)

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """float [B, N] -> int64 [B, F]."""
        frames = waveform[:, : waveform.shape[1] // 640 * 640].unflatten(1, (-1, 640))
        strength = torch.fft.rfft(frames).abs()[..., 8 : 8 + 4 * NUM_CODES : 4]
        return strength.argmax(-1)


class TinyFamily(NanoFamily):
    """The bundled family without its corpus, trained on an hour, unless told otherwise."""

    def __init__(self, corpus_folder: Path | None = None, training_hours: float = 1.0) -> None:
        self._corpus_folder, self._training_hours = corpus_folder, training_hours

    @property
    def corpus_folder(self) -> Path | None:
        """As told."""
        return self._corpus_folder

    @property
    def training_hours(self) -> float:
        """As told."""
        return self._training_hours


def tiny_config(kind: str, num_layers: int, vocab_size: int, tied: bool, width: int = 32) -> LlamaConfig | Qwen2Config:
    """A Llama or Qwen2 of `width` channels."""
    config_class = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind]
    return config_class(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=width * 3 // 2,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


def tiny_model(  # type: ignore[no-untyped-def]  # noqa: ANN201
    kind: str = "llama", num_layers: int = 4, vocab_size: int = 64, tied: bool = True, seed: int = 0, width: int = 32
):
    """A random model whose layers really change their input."""
    torch.manual_seed(seed)
    model_class = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM}[kind]
    model = model_class(tiny_config(kind, num_layers, vocab_size, tied, width))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return model.eval()


def tiny_teacher(folder: Path, num_layers: int = 4, seed: int = 0) -> Teacher:
    """A teacher whose checkpoint and tokenizer lie in `folder`."""
    tokenizer: PreTrainedTokenizerFast = build_tokenizer(folder, NUM_CODES, seed)
    codec = BeepCodec()
    layout: SpeechTokenLayout = NanoFamily().layout(tokenizer, codec)
    # A tied random model only repeats its last token: untied, it says something.
    model = tiny_model(num_layers=num_layers, vocab_size=len(tokenizer), tied=False, seed=seed)
    model.save_pretrained(folder)
    return Teacher(TinyFamily(), model, tokenizer, layout, codec, folder, "0" * 64)


def tiny_utterances(count: int, seed: int = 0) -> list[Utterance]:
    """Random codes with texts of the language, two voices."""
    generator = torch.Generator().manual_seed(seed)
    words = ["green", "tiger", "apple", "seven", "castle", "anna"]
    rows = []
    for index in range(count):
        length = int(torch.randint(4, 12, (), generator=generator))
        codes = torch.randint(0, NUM_CODES, (length,), generator=generator).tolist()
        text = f"{words[index % 6]} {words[(index * 5 + 1) % 6]}."
        rows.append(
            Utterance(id=f"u{index}", text=text, voice="ab"[index % 2], codes=tuple(codes), duration_s=length / 25)
        )
    return rows
