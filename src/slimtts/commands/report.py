"""`slimtts report`: a finished run as a page to listen to, and what blind listeners voted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from slimtts.printable import printable, printable_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run, where to, whose votes."""
    parser.add_argument("--run", type=Path, required=True, help="folder of the run, as runs/demo")
    parser.add_argument("--out", type=Path, help="folder to make or to renew (default: report in the run's folder)")
    parser.add_argument("--one-file", type=Path, metavar="FILE", help="also as one HTML file that holds its audio")
    parser.add_argument(
        "--votes", type=Path, nargs="+", default=[], metavar="FILE", help="ballots that the page's blind test exported"
    )
    parser.add_argument("--json", action="store_true", help="print the page's path and the votes as JSON")


def run(options: argparse.Namespace) -> None:
    """Writes the page."""
    from slimtts.report.content import read_content
    from slimtts.report.page import write_folder, write_single_file
    from slimtts.report.votes import read_ballots, tally

    content = read_content(options.run)
    knobs = content.facts.params.evaluate_student
    ballots = read_ballots(options.votes, content)
    votes = tally(ballots, knobs.bootstrap_samples, knobs.seed) if ballots else None
    pages = [write_folder(content, options.out or options.run / "report", votes)]
    if options.one_file:
        pages.append(write_single_file(content, options.one_file, votes))
    if options.json:
        print(json.dumps({"pages": [str(page) for page in pages], "votes": votes and votes.as_json()}))
        return
    if votes:
        print(printable_lines(votes.in_words()))
    for page in pages:
        print(f"{printable(page)}: {len(content.sentences)} sentences, {len(content.columns)} systems and recordings")
