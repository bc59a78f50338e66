"""The stack from the command line.

python -m infra.stack up        PostgreSQL, S3, MLflow, Prefect, worker, until Ctrl-C (--detach: in the background)
eval "$(python -m infra.stack env)"
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from infra.stack.layout import Layout, Ports
from slimtts.errors import InvalidInputError, SlimttsError

FOLDER = Path(__file__).resolve().parents[2] / "runs" / "stack"


def up(options: argparse.Namespace) -> int:
    """Runs the stack here, or in the background."""
    from infra.stack.session import start_stack
    from infra.stack.supervisor import supervise

    ports = Ports(**{field.name: getattr(options, f"{field.name}_port") for field in fields(Ports)})
    layout = Layout(options.folder.resolve(), ports)
    if options.detach:
        start_stack(layout)
        return status(options)
    supervise(layout)
    return 0


def down(options: argparse.Namespace) -> int:
    """Stops the stack."""
    from infra.stack.session import find_stack

    find_stack(options.folder.resolve()).stop()
    return 0


def status(options: argparse.Namespace) -> int:
    """One line a service, asked now; 0 when all are healthy."""
    from infra.stack.services import all_services
    from infra.stack.session import find_stack

    stack = find_stack(options.folder.resolve())
    answering = True
    for service in all_services(stack.layout, stack.credentials, logging.getLogger("infra.stack")):
        facts = stack.facts(service.name)
        healthy = facts["state"] == "healthy" and service.healthy()
        answering = answering and healthy
        address = stack.layout.url(service.name) if service.name in stack.layout.ports.by_service() else "-"
        state = "healthy" if healthy else facts["state"] if facts["state"] != "healthy" else "no answer"
        print(f"{service.name:<14}{state:<11}{address:<30}pid {facts['pid'] or '-'}, {facts['restarts']} restarts")
    return 0 if answering else 1


def env(options: argparse.Namespace) -> int:
    """Prints `export` lines for clients. They hold passwords, so a terminal is refused."""
    from infra.stack.session import find_stack

    stack = find_stack(options.folder.resolve())
    if sys.stdout.isatty():
        raise InvalidInputError(
            "env", "a terminal, which would show passwords", "a shell that reads them",
            'eval "$(python -m infra.stack env)"',
        )  # fmt: skip
    for name, value in stack.environment.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def hold(options: argparse.Namespace) -> int:
    """Stops one service until `release`."""
    from infra.stack.session import find_stack

    find_stack(options.folder.resolve()).hold(options.service)
    return 0


def release(options: argparse.Namespace) -> int:
    """Starts a held service and waits for its health."""
    from infra.stack.session import find_stack

    find_stack(options.folder.resolve()).release(options.service)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 something is not healthy, 2 something that only you can mend."""
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    actions: tuple[Callable[[argparse.Namespace], int], ...] = (up, down, status, env, hold, release)
    for action in actions:
        command = commands.add_parser(action.__name__, help=(action.__doc__ or "").splitlines()[0])
        command.set_defaults(action=action)
        command.add_argument("--folder", type=Path, default=FOLDER, help="state, logs, secrets (runs/stack)")
        if action in (hold, release):
            command.add_argument("service")
        if action is up:
            command.add_argument("--detach", action="store_true", help="return once all is healthy")
            for field in fields(Ports):
                command.add_argument(f"--{field.name}-port", type=int, default=field.default)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("infra.stack").setLevel(logging.INFO)
    try:
        return options.action(options)
    except SlimttsError as error:
        print(f"slimtts: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidInputError) else 1


if __name__ == "__main__":
    sys.exit(main())
