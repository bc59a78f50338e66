"""`toy_supervisor.py FOLDER [broken]`: the real supervisor over services that only note their start and sleep.

A service is healthy once FOLDER/<name>.ready exists. `first` has a child that detaches itself.
"""

import logging
import os
import sys
from pathlib import Path

from infra.stack.layout import Layout
from infra.stack.services import Service
from infra.stack.supervisor import Supervisor, stop_signals
from slimtts.errors import SlimttsError

NOTE = "import subprocess, sys, time; open(sys.argv[2], 'a').write(sys.argv[1] + chr(10)); "
DETACH = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); "
SLEEP = "time.sleep(600)"


def service(folder, name, wave, body):
    command = (sys.executable, "-c", NOTE + body, name, str(folder / "starts"))
    ready = folder / f"{name}.ready"
    return Service(name, wave, command, dict(os.environ), healthy=ready.exists, grace_s=1.0)


def main(folder, *more):
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    for name in ("logs", "hold"):
        (folder / name).mkdir()
    services = [service(folder, "second", 1, SLEEP), service(folder, "first", 0, DETACH + SLEEP)]
    if more:
        services.append(service(folder, "broken", 0, "sys.exit('no such setting')"))
    try:
        with stop_signals() as stopped:
            Supervisor(Layout(folder), services).run(stopped)
    except SlimttsError as error:
        print("slimtts:", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
