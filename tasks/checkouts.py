"""Whose code a run executes: the checkout as it lies there, or a copy of one commit that nobody edits."""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from pathlib import Path

from slimtts.errors import InvalidInputError, SlimttsError
from slimtts.storage import atomic_path

CHECKOUT = Path(__file__).resolve().parents[1]
COPY = "checkout"  # folder below a run's workspace
STAMP = ".slimtts-revision"  # file in a copy: its commit
LATEST = "HEAD"


def run_checkout(workspace: Path, revision: str, checkout: Path = CHECKOUT) -> Path:
    """The folder whose code this run executes.

    For "" the checkout itself, edits included. For a commit a copy of it below the workspace; a copy that is there
    stays, so a run that goes on after a crash goes on with the code it began with, however `HEAD` has moved since.
    Outside git there is nothing to copy from, and installed code does not change: then `HEAD` is the checkout.

    Raises:
        InvalidInputError: no such commit, or the run began with another one.
    """
    if not revision or (revision == LATEST and not _in_git(checkout)):
        return checkout
    copy = workspace / COPY
    if not (copy / STAMP).is_file():
        _copy_commit(checkout, _commit(checkout, revision), copy)
    elif revision != LATEST and _commit(checkout, revision) != git_revision(copy):
        raise InvalidInputError(
            f"revision of run {workspace.name}", revision, f"{git_revision(copy)}, with which it began",
            "take another name",
        )  # fmt: skip
    return copy


def is_own_commit(checkout: Path, commit: str) -> bool:
    """Is it part of what is checked out, or of a local branch? Others' commits may have been fetched beside these."""
    command = ["git", "-C", str(checkout), "for-each-ref", "--count=1", "--contains", commit, "refs/heads"]
    branches = subprocess.run(command, capture_output=True, text=True) if _in_git(checkout) else None
    if branches is None or branches.returncode:
        return False
    command = ["git", "-C", str(checkout), "merge-base", "--is-ancestor", commit, LATEST]
    return bool(branches.stdout.strip()) or subprocess.run(command, capture_output=True).returncode == 0


def code_revision(workspace: Path) -> str:
    """The commit of the code that this workspace executes; see `git_revision`."""
    return git_revision((workspace / "src").resolve().parent)


def git_revision(checkout: Path = CHECKOUT) -> str:
    """Commit of the checkout, with `-dirty` for uncommitted changes; `unknown` outside git."""
    stamp = checkout / STAMP
    if stamp.is_file():
        return stamp.read_text().strip()
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "unknown"


def _in_git(checkout: Path) -> bool:
    return (checkout / ".git").exists()


def _commit(checkout: Path, revision: str) -> str:
    # --end-of-options: a revision is text from a form and must not be read as an option.
    command = ["git", "-C", str(checkout), "rev-parse", "--verify", "--quiet", "--end-of-options"]
    done = subprocess.run([*command, f"{revision}^{{commit}}"], capture_output=True, text=True)
    if done.returncode:
        raise InvalidInputError(
            "revision", repr(revision), f"a commit, branch or tag of {checkout}", "leave it empty for the code there"
        )
    return done.stdout.strip()


def _copy_commit(checkout: Path, commit: str, copy: Path) -> None:
    with atomic_path(copy) as temporary, tempfile.TemporaryFile() as archive:
        command = ["git", "-C", str(checkout), "archive", "--format=tar", commit]
        done = subprocess.run(command, stdout=archive, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SlimttsError(f"git archive {commit}: {done.stderr.strip()}; next: look at {checkout} with git fsck")
        archive.seek(0)
        with tarfile.open(fileobj=archive) as content:
            content.extractall(temporary, filter="data")
        (temporary / STAMP).write_text(f"{commit}\n")
