"""docs/REFERENCE.md from the code itself: every command, every knob.

python -m infra.reference            writes it
python -m infra.reference --check    exit code 1 when it is not what the code says
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from slimtts.commands.catalogue import CHAPTERS, build_parser
from slimtts.params import MOST, Params
from slimtts.storage import atomic_path
from tasks.workspace import CHECKOUT

PAGE = CHECKOUT / "docs" / "REFERENCE.md"
WIDTH = 100


def reference(params_text: str) -> str:
    """The page."""
    head = "# Reference\n\nMade from the code by `python -m infra.reference`; a test compares them.\n"
    return "\n".join([head, "## Commands", *command_lines(), "", "## Knobs", *knob_lines(params_text)]) + "\n"


def command_lines() -> Iterator[str]:
    """Each command as its own `--help` tells it."""
    for title, chapter in CHAPTERS.items():
        yield f"\n### {title}"
        for command in chapter:
            about = help_of(command.name).rstrip()
            yield f"\n#### `slimtts {command.name}`\n```text\n{about}\n```"


def help_of(command: str) -> str:
    """What `slimtts COMMAND --help` prints at a width of 100."""
    parser = build_parser(command)
    (commands,) = (action for action in parser._actions if action.dest == "command")
    choices: dict[str, argparse.ArgumentParser] = dict(commands.choices or {})  # type: ignore[arg-type]
    about = choices[command]
    about.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=WIDTH)  # type: ignore[assignment]
    return about.format_help()


def knob_lines(params_text: str) -> Iterator[str]:
    """A table a section of params.yaml: default, what is allowed, meaning."""
    values, remarks, schema = yaml.safe_load(params_text), remarks_of(params_text), Params.model_json_schema()
    for section, reference_ in schema["properties"].items():
        about = schema["$defs"][reference_["$ref"].rpartition("/")[2]]
        yield f"\n### {section}\n{about.get('description', '').splitlines()[0]}\n"
        yield "| knob | default | allowed | meaning |\n|---|---|---|---|"
        for knob, value in values[section].items():
            allowed = allowed_of(about["properties"][knob])
            yield f"| `{knob}` | `{json.dumps(value)}` | {allowed} | {remarks.get((section, knob), '')} |"


def remarks_of(params_text: str) -> dict[tuple[str, str], str]:
    """(section, knob) -> the comment behind it."""
    found, section = {}, ""
    for line in params_text.splitlines():
        if title := re.match(r"(\w+):", line):
            section = title[1]
        elif knob := re.match(r"  (\w+): .*?\s# (.*)", line):
            found[section, knob[1]] = knob[2].replace("|", "\\|")
    return found


def allowed_of(about: dict[str, Any]) -> str:
    """`1..`, `0.0..1.0`, `a, b`, or the type."""
    if "enum" in about:
        return ", ".join(f"`{choice}`" for choice in about["enum"])
    if "anyOf" in about:
        return " or ".join(allowed_of(choice) for choice in about["anyOf"])
    low, high = about.get("minimum", about.get("exclusiveMinimum")), about.get("maximum", about.get("exclusiveMaximum"))
    if high is not None and high >= MOST:  # stops slips only, and would bury what matters
        about, high = {key: value for key, value in about.items() if "aximum" not in key}, None
    kind = str(about.get("type", "mapping"))
    if low is None and high is None:
        return kind
    above, below = "above " * ("exclusiveMinimum" in about), "below " * ("exclusiveMaximum" in about)
    bounds = [f"{above}{low:g}" if low is not None else "", f"{below}{high:g}" if high is not None else ""]
    return f"{kind} {' to '.join(filter(None, bounds))}" + (" or more" if high is None and not above else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1: the page is not what the code says."""
    parser = argparse.ArgumentParser(prog="python -m infra.reference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    text = reference((CHECKOUT / "params.yaml").read_text())
    if options.check:
        is_current = PAGE.is_file() and PAGE.read_text() == text
        print(f"{PAGE}: {'current' if is_current else 'stale; run python -m infra.reference'}")
        return 0 if is_current else 1
    with atomic_path(Path(PAGE)) as out:
        out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
