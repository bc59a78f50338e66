"""Printing into a pipe that is closed, and into terminals that cannot show everything."""

import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slimtts.comparison.table import as_table
from slimtts.console import EXIT_CUT_OFF, exit_code_of
from slimtts.teachers.nano import bundle_folder

BODY = "import sys\nfrom slimtts.console import exit_code_of\ndef run():\n{}\n    return 0\nsys.exit(exit_code_of(run))"
LONG = "    for n in range(100_000): print('line', n)"
TOLD = {
    "short": "    print('one line')",
    "long": LONG,
    "help": "    import argparse; argparse.ArgumentParser('x').parse_args(['--help'])",
}
TO_BOTH = LONG + "\n    print('never reached', file=sys.stderr)"
STDERR = "    for n in range(100_000): print('line', n, file=sys.stderr)"
ANOTHER_PIPE = """    import os
    print('some output')
    ours, theirs = os.pipe()
    os.close(ours)
    os.write(theirs, b'x')"""


def ended(body, closed=("stdout",), **environment):
    """Exit code and what stderr got of a command whose outputs' readers have left."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {name: writer if name in closed else subprocess.PIPE for name in ("stdout", "stderr")}
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", BODY.format(body)],
            **streams,
            env=os.environ | {"PYTHONUNBUFFERED": ""} | environment,
            text=True,
        )
        out, err = process.communicate(timeout=60)
    finally:
        os.close(writer)
    return process.returncode, out, err


@pytest.mark.parametrize("case", TOLD)
def test_a_reader_that_has_enough_is_no_error(case):
    code, _, err = ended(TOLD[case])
    assert (code, err) == (0, "")


@pytest.mark.parametrize("end", ["return 3", "sys.exit(3)", "raise ValueError('its own')"])
def test_an_error_stays_one_when_the_reader_has_left(end):
    code, _, err = ended(f"    print('one line')\n    {end}")
    assert code in ((1, 120) if "raise" in end else (3,))  # 120: Python could not write its last output
    assert ("its own" in err) == ("raise" in end)


@pytest.mark.parametrize("body", [TO_BOTH, STDERR], ids=["both", "only errors"])
def test_work_that_nobody_can_be_told_of_has_the_exit_code_of_a_broken_pipe(body):
    closed = ("stdout", "stderr") if body == TO_BOTH else ("stderr",)
    assert ended(body, closed)[0] == EXIT_CUT_OFF


def test_another_broken_pipe_is_an_error():
    code, out, err = ended(ANOTHER_PIPE, ())
    assert (code, out) == (1, "some output\n")
    assert err.rstrip().endswith("BrokenPipeError: [Errno 32] Broken pipe")


def test_a_terminal_without_the_characters_gets_escapes():
    body = "    print('caf\\u00e9 \\u4f60')"
    assert ended(body, (), PYTHONIOENCODING="ascii", PYTHONUTF8="0")[:2] == (0, "caf\\xe9 \\u4f60\n")


def test_the_exit_code_is_the_commands_own(capsys):
    assert exit_code_of(lambda: 7) == 7
    with pytest.raises(SystemExit, match="3"):
        exit_code_of(lambda: sys.exit(3))
    with pytest.raises(SystemExit, match="words"):
        exit_code_of(lambda: sys.exit("words"))


@pytest.mark.parametrize(
    "command",
    [["slimtts.cli", "--help"], ["slimtts.cli", "completion", "bash"], ["slimtts.cli", "doctor"],
     ["tasks.versions", "--help"], ["tasks.comparison", "--help"], ["flows.compress_model", "--help"],
     ["flows.promote_model", "--help"], ["flows.roll_back_model", "--help"], ["flows.sweep_depths", "--help"],
     ["flows.watch_teachers", "--help"], ["tasks.fetch_model", "--help"]],
    ids=lambda command: " ".join(command),
)  # fmt: skip
def test_every_command_ends_well_when_its_reader_has_left(command):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    finally:
        os.close(writer)
    assert "BrokenPipe" not in done.stderr
    assert done.returncode in (0, 1 if "doctor" in command else 0)


def test_what_a_library_logs_forges_no_line_and_steers_no_terminal(caplog):
    def run():
        logging.getLogger("transformers.x").warning("\x1b[1mREPORT\x1b[0m\n%s\n", "evil\x1b[2J\nslimtts: all is well\r")
        return 0

    assert exit_code_of(run) == 0
    assert caplog.messages == ["REPORT\n  evil\\x1b[2J\n  slimtts: all is well\\r\n  "]
    logging.getLogger("x").warning("as\never")
    assert caplog.messages[-1] == "as\never"


def test_the_name_of_a_tensor_reaches_the_terminal_escaped(tmp_path):
    """transformers lists tensors that it does not expect."""
    folder = tmp_path / "model"
    shutil.copytree(bundle_folder() / "teacher", folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.evil\x1b[2J\nslimtts: all is well"] = np.zeros(3, np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, "-m", "slimtts.cli", "say", "the green tiger", "--model", str(folder)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if line.startswith("slimtts: ")]
    assert len(lines) == 1
    assert "model.evil\\x1b[2J slimtts: all is well" in lines[0]
    assert all(line.isprintable() for line in done.stderr.expandtabs().splitlines())


def test_a_name_in_a_table_stays_in_its_cell():
    table = as_table(("student", "knob\x1b[2J"), [("run\n| best | 0.0 |", "\u202ex")])
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] == [
        ["student", "knob\\x1b[2J"],
        ["-" * 18, "-" * 11],
        ["run / best / 0.0 /", "\\u202ex"],
    ]
