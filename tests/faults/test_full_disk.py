"""A real file system that is full while a checkpoint is written: one line, nothing lost, the same command goes on."""

import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """
    import errno, sys
    from pathlib import Path
    import torch
    import slimtts.cli
    import slimtts.commands.stage
    from slimtts.distill.training import train
    from slimtts.testing.tiny import tiny_teacher
    sys.path.insert(0, sys.argv[3])
    from test_training import KNOBS, job

    torch.set_num_threads(1)
    disk, teacher = Path(sys.argv[1]), tiny_teacher(Path(sys.argv[2]))
    filler = disk / "filler"

    def fill():
        with filler.open("wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(4096))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def distill(fill_after):
        report = train(job(teacher, disk / "run"), KNOBS, torch.device("cpu"),
                       lambda step: fill() if step == fill_after else None)
        print("weights", report.weights_sha256)

    def start(fill_after):
        slimtts.commands.stage.run_stage = lambda *_: distill(fill_after)
        print("exit", slimtts.cli.main(["distill_student"]))

    if sys.argv[4] == "full":
        start(fill_after=6)
        print("kept", *sorted(path.name for path in (disk / "run").glob("step-*")))
        filler.unlink()
    start(fill_after=None)
"""


def run(folder, teacher, how, *, on_small_disk):
    folder.mkdir()
    script = textwrap.dedent(SCRIPT)
    trainer = str(Path(__file__).parents[1] / "unit" / "distill")
    python = [sys.executable, "-c", script, str(folder), str(teacher), trainer, how]
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c",
               'mount -t tmpfs -o size=24m none "$1" && shift && exec "$@"', "sh", str(folder)]  # fmt: skip
    return subprocess.run([*(mounted if on_small_disk else []), *python], capture_output=True, text=True, timeout=120)


def test_disk_full_during_a_checkpoint_loses_nothing(tmp_path):
    undisturbed = run(tmp_path / "a", tmp_path / "teacher-a", "calm", on_small_disk=False)
    disturbed = run(tmp_path / "b", tmp_path / "teacher-b", "full", on_small_disk=True)
    weights = undisturbed.stdout.splitlines()[0]
    assert weights.startswith("weights "), undisturbed.stderr
    assert disturbed.stdout.splitlines() == ["exit 2", "kept step-00000004", weights, "exit 0"], disturbed.stderr
    told = [line for line in disturbed.stderr.splitlines() if line.startswith("slimtts:")]
    assert len(told) == 1
    assert "no space left on the disk" in told[0]
    assert "run the same command again" in told[0]
