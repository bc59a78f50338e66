"""Every command in the order in which people need them, and the parser that knows them."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from types import ModuleType

from slimtts import __version__


@dataclass(frozen=True)
class Command:
    """A command's name, what it does in a line, and the module of `slimtts.commands` that does it."""

    name: str
    help: str
    module: str = ""

    def load(self) -> ModuleType:
        """The module, imported when its command is meant, so that `slimtts --help` answers at once."""
        return importlib.import_module(f"slimtts.commands.{self.module or self.name}")


CHAPTERS = {
    "Make a student": [
        Command("compress", "all six steps, for any teacher: a student with its proof"),
        Command("plan", "what a run will do, how long, with how much memory and disk"),
        Command("subset_data", "1. choose < 5 % of the teacher's hours, and sentences to select and test on", "stage"),
        Command("score_layers", "2. measure how much each decoder layer matters", "stage"),
        Command("prune_layers", "3. remove the layers that matter least", "stage"),
        Command("distill_student", "4. heal the pruned model against its teacher (resumable)", "stage"),
        Command("evaluate_student", "5. compare teacher, pruned, student and control on unseen sentences", "stage"),
        Command("register_model", "6. judge the student and assemble what the registry needs", "stage"),
    ],
    "See and hear it": [
        Command("report", "a page to listen to, with numbers, plots and a blind test"),
        Command("compare", "runs side by side, with paired tests on the same sentences"),
        Command("say", "speak a sentence into a WAV file"),
        Command("serve", "speech over HTTP, as OpenAI's /v1/audio/speech"),
        Command("quantize", "a student with lighter weights: int8, fp8, 2:4 sparse"),
        Command("export", "a student of CosyVoice 2 as a folder that CosyVoice opens"),
    ],
    "Put it into production": [
        Command("promote", "judge a registered version and put it into production"),
        Command("rollback", "bring the former version back into production"),
        Command("history", "who moved production when, why, from which version to which"),
        Command("lineage", "where a registered version comes from"),
        Command("restore", "make the workspace of a registered version again"),
    ],
    "Around it": [
        Command("doctor", "what is installed, cached, reachable, and on which device"),
        Command("completion", "a script that lets your shell complete all of this"),
    ],
}
COMMANDS = {command.name: command for chapter in CHAPTERS.values() for command in chapter}


def story() -> str:
    """All commands, in the order in which people need them."""
    width = max(map(len, COMMANDS)) + 2
    return "\n\n".join(
        "\n".join([f"{title}:", *(f"  {command.name:<{width}}{command.help}" for command in chapter)])
        for title, chapter in CHAPTERS.items()
    )


class StoryFormatter(argparse.RawDescriptionHelpFormatter):
    """Leaves the list of commands to the story."""

    def add_argument(self, action: argparse.Action) -> None:
        """Every other option, as usual."""
        if action.dest != "command":
            super().add_argument(action)


def build_parser(meant: str | None = None) -> argparse.ArgumentParser:
    """The options of one command, or of all; the names of all in any case."""
    parser = argparse.ArgumentParser(
        prog="slimtts",
        description="Make an LLM text-to-speech model half as deep and prove that it still speaks.",
        usage="slimtts [-h] [--version] COMMAND ...",
        epilog=f"{story()}\n\nslimtts COMMAND --help tells the options of one.",
        formatter_class=StoryFormatter,
    )
    parser.add_argument("--version", action="version", version=f"slimtts {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="slimtts")
    for command in COMMANDS.values():
        about = command.help.lstrip("123456. ")
        described = f"{about[0].upper()}{about[1:]}."
        added = commands.add_parser(command.name, help=about.replace("%", "%%"), description=described)
        if meant in (None, command.name):
            command.load().add_arguments(added)
    return parser
