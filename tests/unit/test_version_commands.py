"""`slimtts promote` and its like become modules of the checkout, with full paths and every word as it was given."""

import sys
from pathlib import Path

import pytest

import slimtts.commands.checkout
from slimtts.cli import main
from slimtts.commands.catalogue import CHAPTERS, COMMANDS, build_parser
from slimtts.commands.checkout import become, command_of
from slimtts.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[2]


def becomes(*arguments):
    """What the command would become."""
    options = build_parser(arguments[0]).parse_args(arguments)
    return command_of(COMMANDS[options.command].load().MODULE, options)


def test_what_was_typed_arrives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert becomes("promote", "3", "--accept-new-basis", "new texts", "--reason=--loud") == [
        "flows.promote_model", "--reason=--loud", "--accept-new-basis=new texts", "--", "3",
    ]  # fmt: skip
    assert becomes("promote", "3", "--reason=it's \"loud\"", "--set", "register_model.min_speedup=2") == [
        "flows.promote_model", "--reason=it's \"loud\"", "--set=register_model.min_speedup=2", "--", "3",
    ]  # fmt: skip
    assert becomes("rollback", "--reason", "clicks") == ["flows.roll_back_model", "--reason=clicks"]
    assert becomes("rollback", "--to", "2", "--reason", "x", "--model", "m") == [
        "flows.roll_back_model", "--to=2", "--reason=x", "--model=m",
    ]  # fmt: skip
    assert becomes("rollback", "--to", "none", "--reason", "x") == ["flows.roll_back_model", "--to=none", "--reason=x"]
    assert becomes("restore", "3", "--into", "there", "--set", "storage.dvc_remote=s3://b/x") == [
        "tasks.versions", "restore", f"--into={tmp_path / 'there'}", "--set=storage.dvc_remote=s3://b/x", "--", "3",
    ]  # fmt: skip
    assert becomes("history", "--json") == ["tasks.versions", "history", "--json"]
    assert becomes("restore", "3", "--into", "there", "--runs", "runs") == [
        "tasks.versions", "restore", f"--into={tmp_path / 'there'}", f"--runs={tmp_path / 'runs'}", "--", "3",
    ]  # fmt: skip


def test_the_modules_understand_what_they_get():
    """Their own parsers, not their work: an unknown option would end with code 2 and a usage line."""
    from flows import promote_model, roll_back_model
    from tasks import versions

    mains = {"flows.promote_model": promote_model, "flows.roll_back_model": roll_back_model, "tasks.versions": versions}
    for command in CHAPTERS["Put it into production"]:
        module, *first = command.load().MODULE
        known = mains[module]
        with pytest.raises(SystemExit) as ended:
            known.main([*first, "--help"])
        assert ended.value.code == 0


def test_it_becomes_a_process_in_the_checkout(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    executed = []
    become(["tasks.versions", "history"], lambda program, command: executed.append((program, command, Path.cwd())))
    assert executed == [(sys.executable, [sys.executable, "-m", "tasks.versions", "history"], ROOT)]


def test_without_a_checkout_it_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(slimtts.commands.checkout, "CHECKOUT", tmp_path)
    with pytest.raises(InvalidInputError, match="a checkout of the project"):
        become(["tasks.versions"])
    assert main(["history"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_rollback_needs_a_reason(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["rollback"])
    assert ended.value.code == 2
    assert "--reason" in capsys.readouterr().err
