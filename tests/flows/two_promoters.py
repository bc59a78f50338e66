"""Promotes a version again and again: `python two_promoters.py plain|flow VERSION RUNS_ROOT TURNS TRACKING_URI`.

Says "ready" and waits for a line before it starts. Writes are slow here, so that whoever is not kept out gets between.
"""

import sys
import time
from pathlib import Path

from mlflow import MlflowClient

from flows.promote_model import promote_model
from tasks.evidence import Evidence
from tasks.promotion import Promotions, Request
from tasks.tracking import mlflow_client
from tasks.workspace import compose_params

way, version, runs_root, turns, uri = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
gate = compose_params("full", []).register_model
client = mlflow_client(uri)
evidence = Evidence.of_version(client, gate.model_name, version)
write = MlflowClient.set_registered_model_tag


def write_slowly(*arguments):
    time.sleep(0.2 if way == "plain" else 2.0)  # a flow takes seconds around its writes
    write(*arguments)


MlflowClient.set_registered_model_tag = write_slowly
print("ready", flush=True)
sys.stdin.readline()
for turn in range(turns):
    reason = f"{version} {turn}"
    if way == "plain":
        Promotions(client, runs_root, gate.model_name).decide(version, evidence, gate, Request("ann", reason))
    else:
        promote_model(version, reason, runs_root=runs_root)
