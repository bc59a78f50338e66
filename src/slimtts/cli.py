"""The command line: `compress` for all stages, one command a stage, `say`, `serve`, `export`; heavy imports wait."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

from slimtts import __version__
from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.serving.limits import ServingLimits
from slimtts.version_commands import MODULES as VERSION_COMMANDS
from slimtts.version_commands import add_version_commands, become, version_command
from slimtts.workspace import STAGES, Workspace

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
SHARED_STAGES = ("score_layers", "evaluate_student")  # have work for several processes
# What published work heals large teachers with at half depth; the rates of params.yaml were measured on nano.
LARGE_TEACHERS: dict[str, str | float | None] = {
    "distill_student.optimizer": "adamw",
    "distill_student.learning_rate": 1e-4,
    "distill_student.control_learning_rate": 1e-5,
}
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
        epilog="The stages run in this order inside a workspace; `slimtts compress` runs them all.",
    )
    parser.add_argument("--version", action="version", version=f"slimtts {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage in STAGES:
        command = commands.add_parser(stage, help=STORY[stage])
        command.add_argument("--workspace", type=Path, default=Path(), help="folder of the run (default: here)")
        command.add_argument("--params", type=Path, help="default: params.yaml of the workspace")
        command.add_argument("--threads", type=int, help="processor threads (default: all)")
        if stage in SHARED_STAGES:
            command.add_argument(
                "--help-out", action="store_true", help="work beside others that do; the stage itself uses what is done"
            )
    compress = commands.add_parser("compress", help="all stages, for any teacher: a student with its proof")
    compress.add_argument("--teacher", required=True, help='a folder, a hub id "owner/name", or "bundled"')
    compress.add_argument("--family", help="default: what the teacher's files show")
    compress.add_argument("--revision", default="", help="full commit of a hub id")
    compress.add_argument("--codec", default="", help="a folder, or owner/name@commit (default: the family's own)")
    compress.add_argument("--data", default="", help="recordings or codes to heal with (default: as in the profile)")
    compress.add_argument(
        "--keep-layers", type=int, metavar="N", help="at most (default: half; bundled: as in the profile)"
    )
    compress.add_argument("--name", help="folder below runs/; a second start continues there (default: the teacher's)")
    compress.add_argument("--profile", default="demo", help="file in flows/profiles: demo or full")
    compress.add_argument("--show", action="store_true", help="print the flow's command instead of running it")
    compress.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    export = commands.add_parser("export", help="a student of CosyVoice 2 as a folder that CosyVoice opens")
    export.add_argument("--model", type=Path, required=True, help="folder of the student")
    export.add_argument("--teacher", type=Path, required=True, help="folder of CosyVoice 2 that it was cut from")
    export.add_argument("--out", type=Path, required=True, help="folder to make")
    say = commands.add_parser("say", help="speak a sentence into a WAV file")
    say.add_argument("text")
    say.add_argument("--voice", help="as in the model's voices.json; slt, rms or awb for the bundled teacher")
    say.add_argument("--model", type=Path, help="folder of a teacher or student (default: the bundled teacher)")
    say.add_argument("--out", type=Path, default=Path("speech.wav"))
    add_version_commands(commands)
    serve = commands.add_parser("serve", help="speech over HTTP, as OpenAI's /v1/audio/speech (docs/SERVING.md)")
    serve.add_argument("--model", default="bundled", help='"bundled", a folder, or models:/NAME@ALIAS of the registry')
    serve.add_argument("--host", default="127.0.0.1", help="another than this machine needs SLIMTTS_API_KEY")
    serve.add_argument("--port", type=int, default=8080)
    serve.add_argument("--threads", type=int, help="processor threads of a call (default: all)")
    serve.add_argument("--follow-seconds", type=float, default=0, help="look for a newer version (default: never)")
    for limit in fields(ServingLimits):
        option, default = f"--{limit.name.replace('_', '-')}", limit.default
        serve.add_argument(option, type=type(default), default=default, help=f"{limit.metadata['help']} ({default})")
    return parser


def run_stage(
    stage: str, workspace: Workspace, params_file: Path | None, threads: int | None, helps_out: bool = False
) -> None:
    """One stage, alone in its workspace, not outliving the process that asked for it.

    One that helps out takes no lock: it fills the stage's progress folder, and writes no result.
    """
    from slimtts.distill.ranks import lock_name
    from slimtts.params import load_params
    from slimtts.process_guard import die_with_parent, sole_writer

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("slimtts").setLevel(logging.INFO)
    die_with_parent()
    params = load_params(params_file or workspace.params)
    with nullcontext() if helps_out else sole_writer(workspace.root, lock_name(stage)):
        if threads:
            import torch

            torch.set_num_threads(threads)
        step = importlib.import_module(f"slimtts.stages.{stage}")
        getattr(step, "fill_progress" if helps_out else stage)(params, workspace)


def say(text: str, voice: str | None, model: Path | None, out: Path) -> None:
    """Writes a 16-bit WAV; words that the bundled teacher has never heard are named."""
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
    print(f"{out}: {len(samples) / speaker.sample_rate_hz:.2f} s")


def flow_command(options: argparse.Namespace) -> list[str]:
    """The flow's command for a teacher, decoded as its makers do; `--set` of the user comes last and wins.

    Paths are made full: a run has a folder of its own. A registry entry is one family's.

    Raises:
        InvalidInputError: no such teacher or data, or a family that nothing shows.
    """
    from slimtts.teachers.detection import COSYVOICE_WEIGHTS, FILES, detect_family, stated_layers
    from slimtts.teachers.loading import FAMILIES
    from slimtts.teachers.model_folder import full_path, read_origin
    from slimtts.teachers.sources import resolve_checkpoint

    source, family, codec, layers = full_path(options.teacher), options.family, full_path(options.codec), None
    if source == "bundled":
        family = family or "nano"
    else:
        folder = resolve_checkpoint(source, options.revision, "--teacher", FILES)
        family, origin, layers = family or detect_family(folder), read_origin(folder), stated_layers(folder)
        is_cosyvoice = Path(source).is_dir() and (folder / COSYVOICE_WEIGHTS).is_file()
        codec = codec or (origin.codec if origin else source if is_cosyvoice else "")
    if options.data and not Path(options.data).exists():
        raise InvalidInputError("--data", f"nothing at {options.data}", "a file or folder", "correct the path")
    half = max(1, layers // 2) if layers else None
    settings: dict[str, str | float | None] = {
        "teacher.family": family,
        "teacher.source": source,
        "teacher.revision": options.revision,
        "teacher.codec": codec,
        "subset_data.source": full_path(options.data),
        "prune_layers.keep_layers": half if options.keep_layers is None else options.keep_layers,
        "register_model.model_name": "" if family == "nano" else f"slimtts-{family}",
    }
    if family not in FAMILIES:
        raise InvalidInputError("--family", family, ", ".join(FAMILIES), "correct it or leave it out")
    settings |= {f"decoding.{knob}": value for knob, value in FAMILIES[family].decoding.items()}
    if family != "nano":
        settings |= LARGE_TEACHERS
    given = [f"{key}={_as_yaml(value)}" for key, value in settings.items() if value not in ("", None)]
    name = options.name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).name).lstrip("._-") or family
    command = [sys.executable, "-m", "flows.compress_model", "--name", name, "--profile", options.profile]
    for setting in [*given, *options.overrides]:
        command += ["--set", setting]
    return command


def _as_yaml(value: str | float | None) -> str:
    """As `--set` reads it back: quoted where YAML would see more than a text."""
    import yaml

    if not isinstance(value, str):
        return str(yaml.safe_dump(value)).splitlines()[0]
    try:
        is_plain = yaml.safe_load(value) == value
    except yaml.YAMLError:
        is_plain = False
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def compress(options: argparse.Namespace, execute: Callable[[str, list[str]], object] = os.execv) -> None:
    """Becomes the flow, which lies beside the package in a checkout."""
    command = flow_command(options)
    is_heard = any(setting.startswith("recogniser.model=") for setting in options.overrides)
    if "teacher.family=nano" not in command and not is_heard:
        hint = "name another with --set recogniser.model=small.en"
        print(f"slimtts: the bundled recogniser knows only the words of nano; {hint}", file=sys.stderr)
    if options.show:
        print(shlex.join(command))
        return
    become(command[2:], execute)


def serve(options: argparse.Namespace) -> None:
    """Serves until it is stopped."""
    from slimtts.serving.model_source import source_of

    fetch = source_of(options.model)
    limits = ServingLimits(**{limit.name: getattr(options, limit.name) for limit in fields(ServingLimits)})
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    from slimtts.serving.server import serve as serve_model

    serve_model(fetch, options.host, options.port, limits, options.follow_seconds)


def export(model: Path, teacher: Path, out: Path) -> None:
    """Writes a folder that CosyVoice opens, from a student of CosyVoice 2.

    Raises:
        InvalidInputError: a student of another family, which needs no export, or `out` is there already.
    """
    from slimtts.teachers.detection import detect_family

    family = detect_family(model)
    if family != "cosyvoice2":
        raise InvalidInputError(
            f"model {model}", f"family {family}, a standard checkpoint already", "family cosyvoice2", "use it as it is"
        )
    if out.exists():
        raise InvalidInputError("--out", f"{out}, which exists", "a folder to be made", "choose another")
    from slimtts.teachers.cosyvoice2_checkpoint import export_llm_pt

    print(f"{export_llm_pt(model, teacher, out)}: open it with CosyVoice")


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
        elif options.command == "compress":
            compress(options)
        elif options.command == "export":
            export(options.model, options.teacher, options.out)
        elif options.command == "serve":
            serve(options)
        elif options.command in VERSION_COMMANDS:
            become(version_command(options))
        else:
            helps_out = getattr(options, "help_out", False)
            run_stage(options.command, Workspace(options.workspace), options.params, options.threads, helps_out)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_BAD_INPUT)
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
