"""`slimtts serve`: speech over HTTP."""

from __future__ import annotations

import argparse
from dataclasses import fields

from slimtts.serving.limits import ServingLimits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to serve, where, and its limits."""
    parser.add_argument("--model", default="bundled", help='"bundled", a folder, or models:/NAME@ALIAS of the registry')
    parser.add_argument("--host", default="127.0.0.1", help="another than this machine needs SLIMTTS_API_KEY")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--threads", type=int, help="processor threads of a call (default: all)")
    parser.add_argument("--follow-seconds", type=float, default=0, help="look for a newer version (default: never)")
    for limit in fields(ServingLimits):
        option, default = f"--{limit.name.replace('_', '-')}", limit.default
        parser.add_argument(option, type=type(default), default=default, help=f"{limit.metadata['help']} ({default})")


def run(options: argparse.Namespace) -> None:
    """Serves until it is stopped."""
    from slimtts.serving.model_source import source_of

    fetch = source_of(options.model)
    limits = ServingLimits(**{limit.name: getattr(options, limit.name) for limit in fields(ServingLimits)})
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    from slimtts.serving.server import serve as serve_model

    serve_model(fetch, options.host, options.port, limits, options.follow_seconds)
