"""The command line: instant help, one-line errors, one writer at a time."""

import subprocess
import sys
import time

import pytest

from slimtts.cli import main
from slimtts.workspace import STAGES


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "slimtts.cli", *arguments], capture_output=True, text=True, timeout=120, **options
    )


def test_help_names_every_stage_and_loads_nothing_heavy():
    code = (
        "import sys; from slimtts.cli import build_parser; print(build_parser().format_help());"
        "print([m for m in ('torch', 'transformers', 'mlflow', 'numpy', 'pydantic') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(stage in shown for stage in (*STAGES, "say"))
    assert shown.strip().endswith("[]")


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_workspace_is_one_line(stage, tmp_path, capsys):
    assert main([stage, "--params", str(tmp_path / "params.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("slimtts: ")
    assert "observed no such file" in error
    assert error.count("\n") == 1


def test_a_typo_in_params_names_the_key(tmp_path):
    (tmp_path / "params.yaml").write_text("teacher: {famly: nano}\n")
    done = run("prune_layers", "--workspace", str(tmp_path))
    assert done.returncode == 2
    assert "teacher.famly is not a known key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys, time; from pathlib import Path; from slimtts.process_guard import sole_writer\n"
         "with sole_writer(Path(sys.argv[1]), 'prune_layers'): print('held', flush=True); time.sleep(60)",
         str(tmp_path)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        from slimtts.process_guard import WorkspaceBusyError, sole_writer

        with pytest.raises(WorkspaceBusyError, match="observed another process writing it"):
            sole_writer(tmp_path, "prune_layers").__enter__()
        holder.kill()
        holder.wait()
        with sole_writer(tmp_path, "prune_layers"):
            pass
    finally:
        holder.kill()


def test_a_stage_dies_with_its_parent(tmp_path):
    child = (
        "import os, time; from slimtts.process_guard import die_with_parent; die_with_parent();"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c",
         f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    from pathlib import Path

    def alive():
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().split()[2] not in "ZX"

    while alive():
        assert time.monotonic() < deadline, "the stage outlived its parent"
        time.sleep(0.1)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    import errno

    import slimtts.cli

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr(slimtts.cli, "run_stage", full)
    assert main(["prune_layers"]) == 2
    assert "observed no space left on the disk" in capsys.readouterr().err


def test_a_full_disk_is_known_by_the_text_of_safetensors_too():
    from slimtts.cli import disk_is_full

    assert disk_is_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not disk_is_full(RuntimeError("os error"))
    assert not disk_is_full(FileNotFoundError(2, "No such file"))


def test_an_interruption_says_how_to_go_on(monkeypatch, capsys):
    import slimtts.cli

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(slimtts.cli, "run_stage", interrupted)
    assert main(["distill_student"]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
