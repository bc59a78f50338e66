"""Kills the first making of MLflow's database with -9 at moments from its first statement to its rename.

`python database_kills.py FOLDER MOMENTS`: one line of JSON for each kill. MLflow is imported once; each attempt is a
forked process that opens the store itself. Moments are counted in SQL statements, so that all phases are met.
"""

import json
import os
import signal
import sqlite3
import sys
from pathlib import Path

import mlflow.store.db.utils
import sqlalchemy
from mlflow import MlflowClient  # noqa: F401 - imported before the forks
from promotion_kills import in_a_process

from tasks.tracking import mlflow_client


def killed_at(moment):
    """From here on, this process dies before statement `moment`, or before (-2) and after (-1) the rename."""
    done = 0

    def count(*_):
        nonlocal done
        done += 1
        if done == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", count)
    rename = Path.replace

    def replace(self, target):
        if moment == -2:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(self, target)
        if moment == -1:
            os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = replace
    return lambda: done


def start(folder):
    """What a flow does first: opens the store and writes into it."""
    client = mlflow_client(f"sqlite:///{folder}/mlflow.db")
    client.create_run(client.create_experiment("slimtts"), run_name="first")


def tell(folder):
    """What later starts find."""
    client = mlflow_client(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("slimtts").experiment_id])
    (folder / "told.json").write_text(json.dumps([run.info.run_name for run in runs]))


def count_statements(folder):
    statements = killed_at(0)
    mlflow_client(f"sqlite:///{folder}/mlflow.db")
    (folder / "count").write_text(str(statements()))


def main(root, moments):
    mlflow.store.db.utils._get_latest_schema_revision()  # reads the migrations' modules before the forks
    (root / "whole").mkdir()
    in_a_process(lambda: count_statements(root / "whole"))
    statements = int((root / "whole" / "count").read_text())
    for number in range(moments):
        moment = number - 2 if number < 2 else 1 + (number - 2) * (statements - 1) // (moments - 3)
        folder = root / f"at-{moment}"
        folder.mkdir()
        ended = in_a_process(lambda folder=folder, moment=moment: (killed_at(moment), start(folder)))
        again = in_a_process(lambda folder=folder: (start(folder), tell(folder)))
        told = json.loads((folder / "told.json").read_text()) if again == 0 else []
        left = sorted(path.name for path in folder.iterdir() if path.is_dir())
        whole = sqlite3.connect(folder / "mlflow.db").execute("PRAGMA integrity_check").fetchone()[0]
        line = {"moment": moment, "killed": ended, "again": again, "runs": told, "left": left, "check": whole}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
