"""The command line: one command a stage, and `say`. Heavy imports wait until a command is known."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from slimtts import __version__
from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.workspace import STAGES, Workspace

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
STORY = {
    "subset_data": "choose less than 5 %% of the teacher's hours, and sentences to select and test on",
    "score_layers": "measure how much each decoder layer matters",
    "prune_layers": "remove the layers that matter least",
    "distill_student": "heal the pruned model against its teacher (resumable)",
    "evaluate_student": "compare teacher, pruned, student and control on unseen sentences",
    "register_model": "judge the student and assemble what the registry needs",
}


def build_parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(
        prog="slimtts",
        description="Make an LLM text-to-speech model half as deep and prove that it still speaks.",
        epilog="The stages run in this order inside a workspace; `make demo` runs them all.",
    )
    parser.add_argument("--version", action="version", version=f"slimtts {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage in STAGES:
        command = commands.add_parser(stage, help=STORY[stage])
        command.add_argument("--workspace", type=Path, default=Path(), help="folder of the run (default: here)")
        command.add_argument("--params", type=Path, help="default: params.yaml of the workspace")
        command.add_argument("--threads", type=int, help="processor threads (default: all)")
    say = commands.add_parser("say", help="speak a sentence into a WAV file")
    say.add_argument("text")
    say.add_argument("--voice", help="slt, rms or awb for the bundled teacher")
    say.add_argument("--model", type=Path, help="folder of a teacher or student (default: the bundled teacher)")
    say.add_argument("--out", type=Path, default=Path("speech.wav"))
    return parser


def run_stage(stage: str, workspace: Workspace, params_file: Path | None, threads: int | None) -> None:
    """One stage, alone in its workspace, not outliving the process that asked for it."""
    from slimtts.params import load_params
    from slimtts.process_guard import die_with_parent, sole_writer

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("slimtts").setLevel(logging.INFO)
    die_with_parent()
    params = load_params(params_file or workspace.params)
    with sole_writer(workspace.root, stage):
        if threads:
            import torch

            torch.set_num_threads(threads)
        step = getattr(importlib.import_module(f"slimtts.stages.{stage}"), stage)
        step(params, workspace)


def say(text: str, voice: str | None, model: Path | None, out: Path) -> None:
    """Writes a 16-bit WAV; words that the bundled teacher has never heard are named."""
    import soundfile

    from slimtts.nano.grammar import unknown_words
    from slimtts.speech import Speaker
    from slimtts.storage import atomic_path

    strange = unknown_words(text)
    if strange:
        print(f"slimtts: the nano teacher never heard: {', '.join(strange)}; expect mumbling", file=sys.stderr)
    speaker = Speaker.load(model)
    samples = speaker.speak(text, voice)
    with atomic_path(out) as tmp:
        soundfile.write(tmp, samples, speaker.sample_rate_hz, subtype="PCM_16", format="WAV")
    print(f"{out}: {len(samples) / speaker.sample_rate_hz:.2f} s")


def disk_is_full(error: Exception) -> bool:
    """True for ENOSPC; safetensors writes in Rust and gives the code of the system only as text."""
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or f"(os error {errno.ENOSPC})" in str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; every expected error is one line on stderr and exit code 2."""
    options = build_parser().parse_args(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # ours tell more than "Loading weights"
    try:
        if options.command == "say":
            say(options.text, options.voice, options.model, options.out)
        else:
            run_stage(options.command, Workspace(options.workspace), options.params, options.threads)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Exception as error:
        if not disk_is_full(error):
            raise
        problem = InvalidInputError(
            str(getattr(error, "filename", None) or options.command),
            "no space left on the disk",
            "room for one checkpoint",
            "free space and run the same command again; what was finished is kept",
        )
        print(f"slimtts: {problem}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("slimtts: interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
