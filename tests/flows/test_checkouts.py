"""A run that is pinned to a commit executes that commit, whatever happens to the checkout."""

import logging
import shutil
import subprocess
import sys

import pytest

from slimtts.errors import InvalidInputError
from tasks.checkouts import code_revision, git_revision
from tasks.stage_runner import run_stage, stage_environment, stale_stages
from tasks.workspace import prepare_workspace

logger = logging.getLogger("test")
IMPORT = [sys.executable, "-c", "import probe; print(probe.VALUE)"]


@pytest.fixture
def repository(toy_checkout, tmp_path):
    """The toy checkout under git, with a module that says which commit it is of; yields a function that commits."""
    root = tmp_path / "repository"
    shutil.copytree(toy_checkout, root)

    def git(*arguments):
        identity = ["-c", "user.name=toy", "-c", "user.email=toy@localhost", "-c", "core.hooksPath=/dev/null"]
        subprocess.run(["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True)

    def commit(value):
        (root / "src" / "probe.py").write_text(f"VALUE = {value!r}\n")
        git("add", ".")
        git("commit", "-m", value)
        return git_revision(root)

    git("init", "--initial-branch", "main")
    return root, commit


def _executed(workspace):
    environment = stage_environment(workspace)
    return subprocess.run(IMPORT, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_edits_and_commits_do_not_reach_a_pinned_run(repository, tmp_path, started):
    root, commit = repository
    first = commit("first")
    workspace = prepare_workspace("night", "demo", [], tmp_path / "runs", root, "HEAD")
    (root / "src" / "probe.py").write_text("VALUE = 'an edit'\n")
    assert (_executed(workspace), code_revision(workspace)) == ("first", first)
    assert stage_environment(workspace)["SLIMTTS_GIT_SHA"] == first
    commit("second")
    assert prepare_workspace("night", "demo", [], tmp_path / "runs", root, "HEAD") == workspace, "as after a crash"
    assert (_executed(workspace), code_revision(workspace)) == ("first", first)
    later = prepare_workspace("next", "demo", [], tmp_path / "runs", root, "HEAD")
    assert _executed(later) == "second"
    assert run_stage("subset_data", workspace, 60, logger)
    assert "subset_data" not in stale_stages(workspace), "the dvc.yaml of the copy is not a second pipeline"


def test_interactive_run_executes_the_checkout_with_its_edits(repository, tmp_path):
    root, commit = repository
    revision = commit("first")
    workspace = prepare_workspace("day", "demo", [], tmp_path / "runs", root)
    (root / "src" / "probe.py").write_text("VALUE = 'an edit'\n")
    assert (_executed(workspace), code_revision(workspace)) == ("an edit", f"{revision}-dirty")


def test_a_run_keeps_the_commit_with_which_it_began(repository, tmp_path):
    root, commit = repository
    first = commit("first")
    second = commit("second")
    prepare_workspace("night", "demo", [], tmp_path / "runs", root, first)
    prepare_workspace("night", "demo", [], tmp_path / "runs", root, first[:12])
    with pytest.raises(InvalidInputError, match=f"{first}, with which it began; next: take another name"):
        prepare_workspace("night", "demo", [], tmp_path / "runs", root, second)


@pytest.mark.parametrize("revision", ["nowhere", "--help", "HEAD:src"])
def test_what_is_no_commit_is_refused(repository, tmp_path, revision):
    root, commit = repository
    commit("first")
    with pytest.raises(InvalidInputError, match="a commit, branch or tag"):
        prepare_workspace("night", "demo", [], tmp_path / "runs", root, revision)
    assert not (tmp_path / "runs" / "night" / "checkout").exists()


def test_without_git_the_newest_commit_is_the_installed_code(toy_checkout, tmp_path):
    workspace = prepare_workspace("night", "demo", [], tmp_path / "runs", toy_checkout, "HEAD")
    assert (workspace / "src").readlink() == toy_checkout / "src"
    with pytest.raises(InvalidInputError, match="a commit, branch or tag"):
        prepare_workspace("night", "demo", [], tmp_path / "runs", toy_checkout, "1.0")
