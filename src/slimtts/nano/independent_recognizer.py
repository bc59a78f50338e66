"""A second opinion on what was spoken: pocketsphinx with a bigram model of the grammar.

It shares nothing with the bundled recogniser, neither weights nor training speech, so it can tell whether a low word
error rate is real. Needs the package pocketsphinx (a development dependency).
"""

from __future__ import annotations

import math
import random
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

from slimtts.nano.grammar import sample_sentence

SMOOTHING = 0.1


def bigram_model(seed: int, sentences: int = 20_000) -> str:
    """An ARPA bigram model with smoothing over sampled sentences."""
    rng = random.Random(seed)
    unigrams: Counter[str] = Counter()
    bigrams: Counter[tuple[str, str]] = Counter()
    for _ in range(sentences):
        words = ["<s>", *sample_sentence(rng).split(), "</s>"]
        unigrams.update(words)
        bigrams.update(pairwise(words))
    total = sum(unigrams.values())
    vocabulary = sorted(unigrams)
    lines = ["\\data\\", f"ngram 1={len(vocabulary)}", f"ngram 2={len(bigrams)}", "", "\\1-grams:"]
    for word in vocabulary:
        lines.append(f"{math.log10(unigrams[word] / total):.4f}\t{word}\t-1.0")
    lines += ["", "\\2-grams:"]
    for (first, second), count in sorted(bigrams.items()):
        probability = (count + SMOOTHING) / (unigrams[first] + SMOOTHING * len(vocabulary))
        lines.append(f"{math.log10(probability):.4f}\t{first} {second}")
    return "\n".join([*lines, "", "\\end\\", ""])


class IndependentRecognizer:
    """Transcribes 16 kHz speech of the nano language."""

    def __init__(self, seed: int = 0) -> None:
        from pocketsphinx import Config, Decoder

        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "grammar.arpa"
            model.write_text(bigram_model(seed))
            self.decoder = Decoder(Config(lm=str(model), loglevel="FATAL"))

    def transcribe(self, waveform: np.ndarray) -> str:
        """float samples [N] in -1..1 at 16 kHz -> words."""
        quiet = np.zeros(4000, dtype=np.float32)
        padded = np.concatenate([quiet, waveform.astype(np.float32), quiet])
        self.decoder.start_utt()
        self.decoder.process_raw((padded * 32000).clip(-32768, 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return found.hypstr if found else ""
