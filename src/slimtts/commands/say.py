"""`slimtts say`: a sentence into a WAV file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to say, and how."""
    parser.add_argument("text")
    parser.add_argument("--voice", help="as in the model's voices.json; slt, rms or awb for the bundled teacher")
    parser.add_argument("--model", type=Path, help="folder of a teacher or student (default: the bundled teacher)")
    parser.add_argument("--out", type=Path, default=Path("speech.wav"))
    parser.add_argument("--json", action="store_true", help="print file and seconds as JSON")


def run(options: argparse.Namespace) -> None:
    """Speaks."""
    seconds = say(options.text, options.voice, options.model, options.out)
    row = {"path": str(options.out), "seconds": round(seconds, 3)}
    print(json.dumps(row) if options.json else f"{options.out}: {seconds:.2f} s")


def say(text: str, voice: str | None, model: Path | None, out: Path) -> float:
    """Writes a 16-bit WAV and returns its seconds; words that the bundled teacher has never heard are named."""
    import soundfile

    from slimtts.nano.grammar import unknown_words
    from slimtts.speech import Speaker
    from slimtts.storage import atomic_path

    speaker = Speaker.load(model)
    strange = unknown_words(text) if speaker.model.family.name == "nano" else []
    if strange:
        print(f"slimtts: the nano teacher never heard: {', '.join(strange)}; expect mumbling", file=sys.stderr)
    samples = speaker.speak(text, voice)
    with atomic_path(out) as tmp:
        soundfile.write(tmp, samples, speaker.sample_rate_hz, subtype="PCM_16", format="WAV")
    return len(samples) / speaker.sample_rate_hz
