"""Kills a registration or a rollback with -9 before its n-th write to MLflow, for every n; one line of JSON for each.

`python promotion_kills.py ACTION RUNS_ROOT WORKSPACE`: a copy of RUNS_ROOT is used for each kill. MLflow is imported
once; each attempt is a forked process that opens the store itself.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

# For speed, what an attempt would import is imported before the forks.
import prefect.client.orchestration
import prefect.context
import prefect.runtime  # noqa: F401
from mlflow import MlflowClient

from tasks.promotion import Promotions, Request
from tasks.registry import register_release
from tasks.tracking import open_run

MODEL = "slimtts-nano"
WRITES = (
    "create_registered_model", "create_model_version", "log_artifact", "log_artifacts", "set_model_version_tag",
    "set_registered_model_alias", "set_registered_model_tag",
)  # fmt: skip


def killed_before(count):
    """From here on, this process dies before write number `count`."""
    done = 0
    for name in WRITES:
        original = getattr(MlflowClient, name)

        def dying(self, *arguments, _original=original, **named):
            nonlocal done
            done += 1
            if done == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return _original(self, *arguments, **named)

        setattr(MlflowClient, name, dying)


def in_a_process(work):
    """Exit code of `work` in a fork, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def act(action, runs_root, workspace):
    run = open_run(runs_root / workspace, "demo")
    if action == "register":
        register_release(run, promote=True)
    else:
        Promotions(run.client, runs_root, MODEL).roll_back("", Request("ann"))


def tell(runs_root, workspace, file):
    """What the store holds afterwards."""
    run = open_run(runs_root / workspace, "demo")
    seen = Promotions(run.client, runs_root, MODEL).log.read()
    versions = run.client.search_model_versions(f"name = '{MODEL}'")
    last = seen.last_move
    state = {
        "production": seen.production, "actions": [event.action for event in seen.events], "versions": len(versions),
        "applied": last is None or seen.applied == last[0],
        "shown": "last_action" in run.client.get_model_version(MODEL, str(len(versions))).tags,
    }  # fmt: skip
    file.write_text(json.dumps(state))


def main(action, runs_root, workspace):
    # Every copy lies where the original lay: the database holds absolute paths of artifacts.
    original, told = runs_root.with_name("original"), runs_root.with_name("told.json")
    runs_root.rename(original)
    for count in range(1, 200):
        shutil.copytree(original, runs_root, symlinks=True)
        ended = in_a_process(lambda count=count: (killed_before(count), act(action, runs_root, workspace)))
        assert ended in (0, -signal.SIGKILL), ended
        again = in_a_process(lambda: (act(action, runs_root, workspace), tell(runs_root, workspace, told)))
        print(
            json.dumps({"write": count, "killed": ended != 0, "again": again, **json.loads(told.read_text())}),
            flush=True,
        )
        shutil.rmtree(runs_root)
        if ended == 0:
            break
    original.rename(runs_root)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
