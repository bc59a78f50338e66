"""How the bundled teacher is made, step by step: speech, codec, codes, recogniser, language model, bundle, card.

`python -m slimtts.nano.recipe STEP --work FOLDER` runs one step; `flows/pretrain_nano.py` runs all of them. Each step
goes on where it was interrupted, and does nothing when it is finished. `--device cuda` trains codec and language model
on a GPU; `--codec-start FOLDER` trains the codec on from another one's weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimtts.errors import InvalidInputError
from slimtts.nano.layout import CORPUS_SEED, SEED, NanoFolders, RecipeSizes, Training


def speak(folders: NanoFolders, sizes: RecipeSizes, _: Training) -> None:
    """flite speaks the sentences."""
    from slimtts.nano.speech_synthesis import make_corpus

    make_corpus(folders.corpus, sizes.utterances, CORPUS_SEED)


def codec(folders: NanoFolders, sizes: RecipeSizes, training: Training) -> None:
    """Trains the codec."""
    from slimtts.codec.nano_codec import NanoCodec
    from slimtts.nano.codec_training import CodecRecipe, train_codec

    recipe = CodecRecipe(sizes.codec_steps, SEED, sizes.frame_stride)
    start = NanoCodec.load(training.codec_start) if training.codec_start else None
    train_codec(folders.corpus, folders.codec.parent, recipe, start, training.device)


def encode(folders: NanoFolders, sizes: RecipeSizes, training: Training) -> None:
    """Turns speech into codes, and builds the tokenizer."""
    from slimtts.codec.nano_codec import NanoCodec
    from slimtts.nano.corpus_encoding import encode_corpus
    from slimtts.nano.tokenizer_training import build_tokenizer

    if not folders.tokens.exists():
        encode_corpus(folders.corpus, NanoCodec.load(folders.codec).to(training.device), folders.tokens)
    build_tokenizer(folders.tokenizer, NanoCodec.load(folders.codec).num_codes, SEED, sizes.text_unit)


def asr(folders: NanoFolders, sizes: RecipeSizes, _: Training) -> None:
    """Trains the recogniser."""
    from slimtts.codec.nano_codec import NanoCodec
    from slimtts.nano.asr_training import AsrRecipe, train_recogniser

    trained = NanoCodec.load(folders.codec)
    train_recogniser(folders.corpus, folders.tokens, trained, folders.asr.parent, AsrRecipe(sizes.asr_steps, SEED))


def lm(folders: NanoFolders, sizes: RecipeSizes, training: Training) -> None:
    """Trains the language model."""
    from slimtts.nano.lm_training import LmRecipe, train_language_model

    recipe = LmRecipe(sizes.lm_steps, SEED, attention_layers=tuple(sizes.attention_layers))
    train_language_model(folders.tokens, folders.tokenizer, folders.teacher.parent, recipe, device=training.device)


def bundle(folders: NanoFolders, _: RecipeSizes, __: Training) -> None:
    """Copies what ships into the package."""
    from slimtts.nano.bundling import assemble_bundle

    assemble_bundle(folders)


def card(folders: NanoFolders, _: RecipeSizes, __: Training) -> None:
    """Measures the bundle on held-out sentences and writes its card."""
    from slimtts.nano.card import write_card

    write_card(folders)


STEPS: dict[str, Callable[[NanoFolders, RecipeSizes, Training], None]] = {
    step.__name__: step for step in (speak, codec, encode, asr, lm, bundle, card)
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one step.

    Raises:
        InvalidInputError: cuda was asked for and is not there.
    """
    parser = argparse.ArgumentParser(prog="slimtts.nano.recipe", description=__doc__)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--work", type=Path, default=Path("build/nano"))
    for name, value in vars(RecipeSizes()).items():
        kinds: dict[type, dict[str, Any]] = {
            int: {"type": int},
            str: {"choices": ["words", "phones"]},
            tuple: {"type": int, "nargs": "*"},
        }
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **kinds[type(value)])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--codec-start", type=Path)
    options = vars(parser.parse_args(arguments))
    step, folders = options.pop("step"), NanoFolders(options.pop("work"))
    training = Training(options.pop("device"), options.pop("codec_start"))
    if training.device == "cuda" and not _has_cuda():
        raise InvalidInputError("--device", "cuda", "a visible CUDA device", "use --device cpu")
    STEPS[step](folders, RecipeSizes(**options), training)
    return 0


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
