"""Trains the bundled recogniser: a Whisper-shaped model that faster-whisper loads like any other.

Audio is heard as it is and after the codec, one or two utterances a 4-second window, with a phone loss on the
encoder (flite printed the phones) that makes it converge in minutes.
Legend: B windows, N samples, S encoder positions (50 a second), T text tokens.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from faster_whisper.feature_extractor import FeatureExtractor
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperForConditionalGeneration

from slimtts.checkpoints import resume, save_checkpoint
from slimtts.codec.nano_codec import NanoCodec
from slimtts.data.token_corpus import load_token_corpus
from slimtts.nano.speech_synthesis import SAMPLE_RATE_HZ, SpokenUtterance, read_corpus
from slimtts.nano.tokenizer_training import train_byte_pairs
from slimtts.storage import atomic_path

WINDOW_S = 4
NUM_MELS = 80
IGNORED = -100
TIMESTAMPS = tuple(f"<|{0.02 * i:.2f}|>" for i in range(1501))
SPECIALS = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


@dataclass(frozen=True)
class AsrRecipe:
    """Everything that decides the weights."""

    steps: int
    seed: int
    batch_windows: int = 24
    peak_learning_rate: float = 2e-3
    codec_share: float = 0.4
    phone_weight: float = 0.3


class WhisperFeatures(nn.Module):
    """The log-mel of Whisper, equal to faster-whisper's own, in torch: [B, N] -> [B, 80, 100 a second]."""

    def __init__(self) -> None:
        super().__init__()
        reference = FeatureExtractor(feature_size=NUM_MELS, chunk_length=WINDOW_S)
        self.register_buffer("filters", torch.from_numpy(np.asarray(reference.mel_filters, dtype=np.float32)))
        self.register_buffer("window", torch.hann_window(reference.n_fft))
        self.n_fft, self.hop = reference.n_fft, reference.hop_length

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """[B, N] -> [B, 80, N / 160]."""
        spectrum = torch.stft(waveform, self.n_fft, self.hop, window=self.window, return_complex=True)
        mel = self.filters @ spectrum[..., :-1].abs().square()
        log = mel.clamp_min(1e-10).log10()
        return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


class WindowSampler:
    """Windows of one or two training utterances; the batch of a step depends on the seed and the step alone."""

    def __init__(self, corpus: Path, token_corpus: Path, codec: NanoCodec, recipe: AsrRecipe) -> None:
        self.recipe, self.codec = recipe, codec
        tokens = load_token_corpus(token_corpus)
        pairs = [(u, a, i) for i, (u, a) in enumerate(read_corpus(corpus)) if u.split == "train"]
        self.utterances = [u for u, _, _ in pairs]
        self.audio = [a for _, a, _ in pairs]
        self.codes = [tokens.codes_of(i) for _, _, i in pairs]
        self.phone_ids = {p: k for k, p in enumerate(sorted({p for u in self.utterances for p, _ in u.phones}))}

    def _members(self, rng: np.random.Generator) -> list[int]:
        members = [int(rng.integers(len(self.audio)))]
        other = int(rng.integers(len(self.audio)))
        if len(self.audio[members[0]]) + len(self.audio[other]) <= WINDOW_S * SAMPLE_RATE_HZ and rng.random() < 0.6:
            members.append(other)
        return members

    def _labels(self, utterance: SpokenUtterance, positions: int) -> np.ndarray:
        ends = np.array([end for _, end in utterance.phones])
        ids = np.array([self.phone_ids[p] for p, _ in utterance.phones])
        centres_s = (np.arange(positions) + 0.5) * 0.02
        return ids[np.minimum(np.searchsorted(ends, centres_s), len(ids) - 1)]

    def batch(self, step: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """float [B, N], B texts, phone labels [B, S] (ignored where there is only padding)."""
        rng = np.random.default_rng((self.recipe.seed, step))
        count = self.recipe.batch_windows
        waves = torch.zeros(count, WINDOW_S * SAMPLE_RATE_HZ)
        phones = torch.full((count, WINDOW_S * 50), IGNORED)
        texts = []
        for row in range(count):
            members, start = self._members(rng), 0
            through_codec = rng.random() < self.recipe.codec_share
            for member in members:
                if through_codec:
                    wave = self.codec.decode(torch.from_numpy(self.codes[member])[None])[0]
                else:
                    wave = torch.from_numpy(self.audio[member].astype(np.float32) / 32768)
                waves[row, start : start + len(wave)] = wave
                positions = slice(start // 320, (start + len(wave)) // 320)
                phones[row, positions] = torch.from_numpy(
                    self._labels(self.utterances[member], positions.stop - positions.start)
                )
                start += len(wave)
            waves[row] *= float(10 ** rng.uniform(-0.4, 0.1))
            texts.append(" " + " ".join(self.utterances[m].text for m in members))
        noise = torch.from_numpy(rng.standard_normal(waves.shape, dtype=np.float32))
        return waves + noise * 1e-3 * float(rng.random()), texts, phones


def build_asr_tokenizer(seed: int) -> Tokenizer:
    """Byte pairs over the language, Whisper's special tokens, 1,501 timestamps."""
    return train_byte_pairs([*SPECIALS, *TIMESTAMPS], seed)


def asr_config(tokenizer: Tokenizer) -> WhisperConfig:
    """4 + 2 layers, 192 channels: about 3.5 M parameters."""
    end, start = tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|startoftranscript|>")
    return WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        num_mel_bins=NUM_MELS,
        d_model=192,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        max_source_positions=WINDOW_S * 50,
        max_target_positions=64,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )


def decoder_rows(tokenizer: Tokenizer, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Decoder input [B, T] (start, no timestamps, text) and labels [B, T] (text, end)."""
    start, plain, end = (
        tokenizer.token_to_id(t) for t in ("<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>")
    )
    encoded = [tokenizer.encode(text).ids for text in texts]
    longest = max(map(len, encoded)) + 2
    inputs = torch.full((len(texts), longest), end)
    labels = torch.full((len(texts), longest), IGNORED)
    for row, ids in enumerate(encoded):
        inputs[row, : len(ids) + 2] = torch.tensor([start, plain, *ids])
        labels[row, 1 : len(ids) + 2] = torch.tensor([*ids, end])
    return inputs, labels


def learning_rate(step: int, recipe: AsrRecipe) -> float:
    """Warm-up over 150 steps, then a cosine to zero."""
    if step < 150:
        return recipe.peak_learning_rate * (step + 1) / 150
    return recipe.peak_learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 150) / max(1, recipe.steps - 150)))


def train_recogniser(corpus: Path, token_corpus: Path, codec: NanoCodec, out: Path, recipe: AsrRecipe) -> None:
    """Trains, resuming from `out/checkpoints`, and writes the CTranslate2 folder `out/asr`."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_asr_tokenizer(recipe.seed)
    features = WhisperFeatures()
    model = WhisperForConditionalGeneration(asr_config(tokenizer))
    # On a CPU the backward pass of the fused attention is several times slower at these lengths.
    model.set_attn_implementation("eager")
    sampler = WindowSampler(corpus, token_corpus, codec, recipe)
    phone_head = nn.Linear(model.config.d_model, len(sampler.phone_ids))
    models = {"asr": model, "phones": phone_head}
    optimizer = torch.optim.AdamW(
        [p for m in models.values() for p in m.parameters()], lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    fingerprint = str(recipe)
    resumed = resume(out / "checkpoints", fingerprint, models, {"adamw": optimizer})
    first = resumed.step if resumed else 0
    started = time.monotonic()
    for step in range(first, recipe.steps):
        waves, texts, phones = sampler.batch(step)
        inputs, labels = decoder_rows(tokenizer, texts)
        optimizer.param_groups[0]["lr"] = learning_rate(step, recipe)
        with torch.autocast("cpu", torch.bfloat16):
            encoded = model.model.encoder(features(waves)).last_hidden_state
            hidden = model.model.decoder(input_ids=inputs, encoder_hidden_states=encoded).last_hidden_state
            kept = labels != IGNORED
            logits, sounds = model.proj_out(hidden[kept]), phone_head(encoded)
        text_loss = F.cross_entropy(logits.float(), labels[kept])
        phone_loss = F.cross_entropy(sounds.float().flatten(0, 1), phones.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        (text_loss + recipe.phone_weight * phone_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0:
            rate = (step - first + 1) / (time.monotonic() - started)
            print(f"step {step} text {text_loss:.3f} phones {phone_loss:.3f} {rate:.2f} steps/s", flush=True)
        if (step + 1) % 200 == 0:
            save_checkpoint(out / "checkpoints", step + 1, fingerprint, models, {"adamw": optimizer}, {})
    export_recogniser(model.eval(), tokenizer, out / "asr")


def export_recogniser(model: WhisperForConditionalGeneration, tokenizer: Tokenizer, out: Path) -> None:
    """Converts to CTranslate2 in int8, with the tokenizer and the 4-second preprocessor beside the weights."""
    import tempfile

    from ctranslate2.converters import TransformersConverter
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as holder, atomic_path(out) as tmp:
        source = Path(holder)
        model.save_pretrained(source)
        wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
        wrapped.save_pretrained(source)
        TransformersConverter(str(source)).convert(str(tmp), quantization="int8")
        tokenizer.save(str(tmp / "tokenizer.json"))
        (tmp / "preprocessor_config.json").write_text(
            json.dumps(
                {
                    "feature_size": NUM_MELS,
                    "sampling_rate": SAMPLE_RATE_HZ,
                    "hop_length": 160,
                    "n_fft": 400,
                    "chunk_length": WINDOW_S,
                }
            )
        )
