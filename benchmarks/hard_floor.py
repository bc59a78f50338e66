"""Can the bundled recogniser judge hard sentences? What it makes of them when they are said correctly, by flite.

python -m benchmarks.hard_floor        needs flite; a minute of a core

WER of flite's own sound, of the same through the codec, and of the bundled teacher; beside ordinary sentences of the
test split as a control. A teacher near flite's figure cannot be told from a perfect one.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.benchmark_sets import sentences_of
from slimtts.data.hard_sentences import NANO
from slimtts.errors import InvalidInputError
from slimtts.evaluation.word_errors import corpus_wer, count_word_errors
from slimtts.evaluation.word_meter import open_recognizer
from slimtts.nano.speech_synthesis import SAMPLE_RATE_HZ, VOICES, speak_utterance
from slimtts.params import RecogniserParams
from slimtts.speech import Speaker


def said_by_flite(text: str, voice: str) -> np.ndarray:
    """float32 [N]."""
    made = speak_utterance("hard", text.rstrip("."), voice)
    if made is None:
        raise InvalidInputError(f"'{text}'", "phones that fit no words", "a sentence that flite aligns", "reword it")
    return made[1].astype(np.float32) / 32_768


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    speaker = Speaker.load()
    codec = speaker.model.codec
    recognizer = open_recognizer(RecogniserParams(model="bundled", normalizer="basic", beam_size=1))
    kinds = {f"hard/{kind}": list(texts) for kind, texts in NANO.items()}
    hard = [text for texts in kinds.values() for text in texts]
    groups = {"ordinary": sentences_of("test", 40, 1), "hard": hard, **kinds}
    print("| sentences | n | flite % | through the codec % | teacher % | flite s | teacher s |")
    print("|---|---|---|---|---|---|---|")
    for name, texts in groups.items():
        voices = [VOICES[i % len(VOICES)] for i in range(len(texts))]
        flite = [said_by_flite(*pair) for pair in zip(texts, voices, strict=True)]
        coded = [codec.decode(codec.encode(torch.from_numpy(wave)[None]))[0].numpy() for wave in flite]
        teacher = [speaker.speak(*pair) for pair in zip(texts, voices, strict=True)]
        rates = []
        for waves in (flite, coded, teacher):
            heard = recognizer.transcribe(waves, SAMPLE_RATE_HZ)
            errors = [count_word_errors(*pair, "basic") for pair in zip(texts, heard, strict=True)]
            rates.append(f"{100 * corpus_wer(errors):.1f}")
        seconds = [f"{np.mean([len(wave) for wave in waves]) / SAMPLE_RATE_HZ:.2f}" for waves in (flite, teacher)]
        print(f"| {name} | {len(texts)} | {' | '.join(rates + seconds)} |", flush=True)


if __name__ == "__main__":
    main()
