"""How the bundled teacher is made, step by step: speech, codec, codes, recogniser, language model, bundle, card.

`python -m slimtts.nano.recipe STEP --work FOLDER` runs one step; `flows/pretrain_nano.py` runs all of them. Each step
goes on where it was interrupted, and does nothing when it is finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from slimtts.nano.layout import CORPUS_SEED, SEED, NanoFolders, RecipeSizes


def speak(folders: NanoFolders, sizes: RecipeSizes) -> None:
    """flite speaks the sentences."""
    from slimtts.nano.speech_synthesis import make_corpus

    make_corpus(folders.corpus, sizes.utterances, CORPUS_SEED)


def codec(folders: NanoFolders, sizes: RecipeSizes) -> None:
    """Trains the codec."""
    from slimtts.nano.codec_training import train_codec

    train_codec(folders.corpus, folders.codec.parent, sizes.codec_steps, SEED)


def encode(folders: NanoFolders, sizes: RecipeSizes) -> None:
    """Turns speech into codes, and builds the tokenizer."""
    from slimtts.codec.nano_codec import NanoCodec
    from slimtts.nano.corpus_encoding import encode_corpus
    from slimtts.nano.tokenizer_training import build_tokenizer

    if not folders.tokens.exists():
        encode_corpus(folders.corpus, NanoCodec.load(folders.codec), folders.tokens)
    build_tokenizer(folders.tokenizer, NanoCodec.load(folders.codec).num_codes, SEED)


def asr(folders: NanoFolders, sizes: RecipeSizes) -> None:
    """Trains the recogniser."""
    from slimtts.codec.nano_codec import NanoCodec
    from slimtts.nano.asr_training import AsrRecipe, train_recogniser

    trained = NanoCodec.load(folders.codec)
    train_recogniser(folders.corpus, folders.tokens, trained, folders.asr.parent, AsrRecipe(sizes.asr_steps, SEED))


def lm(folders: NanoFolders, sizes: RecipeSizes) -> None:
    """Trains the language model."""
    from slimtts.nano.lm_training import LmRecipe, train_language_model

    train_language_model(folders.tokens, folders.tokenizer, folders.teacher.parent, LmRecipe(sizes.lm_steps, SEED))


def bundle(folders: NanoFolders, sizes: RecipeSizes) -> None:
    """Copies what ships into the package."""
    from slimtts.nano.bundling import assemble_bundle

    assemble_bundle(folders)


def card(folders: NanoFolders, sizes: RecipeSizes) -> None:
    """Measures the bundle on held-out sentences and writes its card."""
    from slimtts.nano.card import write_card

    write_card(folders)


STEPS: dict[str, Callable[[NanoFolders, RecipeSizes], None]] = {
    step.__name__: step for step in (speak, codec, encode, asr, lm, bundle, card)
}


def main(arguments: list[str] | None = None) -> int:
    """Runs one step."""
    parser = argparse.ArgumentParser(prog="slimtts.nano.recipe", description=__doc__)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--work", type=Path, default=Path("build/nano"))
    for name, value in vars(RecipeSizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = vars(parser.parse_args(arguments))
    step, work = options.pop("step"), options.pop("work")
    STEPS[step](NanoFolders(work), RecipeSizes(**options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
