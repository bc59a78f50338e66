"""Flows: when a pipeline runs, retried and observed. `python -m flows.compress_model --help`."""

import os
import sys

from tasks.checkouts import CHECKOUT
from tasks.environment import end_on_interrupt, prepare

# Prefect reads these while it is imported, so they are set before any flow imports it.
prepare(os.environ, CHECKOUT / "runs")
if sys.argv[0] == "-m":  # Python is about to run a module of this package as a command
    end_on_interrupt()
