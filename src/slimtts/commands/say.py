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
    parser.add_argument("--draft", type=Path, help="folder of a student of that model, which drafts for it")
    parser.add_argument("--rule", default="exact", help="of the drafting: exact | ssd:B | pcg:T | top-k:K (exact)")
    parser.add_argument("--out", type=Path, default=Path("speech.wav"))
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def run(options: argparse.Namespace) -> None:
    """Writes a 16-bit WAV; words that the bundled teacher has never heard are named."""
    import soundfile

    from slimtts.data.spoken_text import check_text_to_speak
    from slimtts.nano.grammar import unknown_words
    from slimtts.printable import printable
    from slimtts.speech import Speaker
    from slimtts.storage import atomic_path

    check_text_to_speak(options.text)  # before a model is loaded for it
    speaker = Speaker.load(options.model)
    strange = unknown_words(options.text) if speaker.model.family.name == "nano" else []
    if strange:
        print(
            f"slimtts: the nano teacher never heard: {printable(', '.join(strange))}; expect mumbling", file=sys.stderr
        )
    drafting: dict[str, float] = {}
    if options.draft:
        samples, counts = speaker.speak_with_draft(options.text, options.draft, options.voice, options.rule)
        drafting = {
            "acceptance": round(counts.acceptance, 3),
            "codes_per_target_pass": round(counts.codes_per_target_pass, 3),
        }
    else:
        samples = speaker.speak(options.text, options.voice)
    with atomic_path(options.out) as tmp:
        soundfile.write(tmp, samples, speaker.sample_rate_hz, subtype="PCM_16", format="WAV")
    seconds = len(samples) / speaker.sample_rate_hz
    if options.json:
        print(json.dumps({"path": str(options.out), "seconds": round(seconds, 3), **drafting}))
        return
    drafted = f", {drafting['acceptance']:.0%} of the drafted codes taken" if drafting else ""
    print(f"{printable(options.out)}: {seconds:.2f} s{drafted}")
