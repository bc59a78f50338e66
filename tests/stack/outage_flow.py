"""`outage_flow.py FILE URL MARKER`: a flow that needs every server at each of its steps; prints its MLflow run's id."""

import sys
import time
from pathlib import Path

import flows  # noqa: F401 - its settings must stand before Prefect is imported

from prefect import flow, task  # isort: skip
from prefect.cache_policies import NO_CACHE

STEPS = 6


@task(cache_policy=NO_CACHE)
def note(run_id, step, marker):
    from tasks.tracking import mlflow_client, tracking_uri

    mlflow_client(tracking_uri(Path())).log_metric(run_id, "loss", 1.0 / (step + 1), step=step)
    marker.write_text(str(step))
    time.sleep(0.5)


@task(cache_policy=NO_CACHE)
def keep(run_id, path, url):
    from tasks.bucket import s3_client
    from tasks.tracking import mlflow_client, tracking_uri
    from tasks.transfer import upload_file

    upload_file(s3_client(""), path, url)
    mlflow_client(tracking_uri(Path())).log_artifact(run_id, str(path))


@flow(name="outage")
def outage(path, url, marker):
    from tasks.tracking import mlflow_client, tracking_uri

    client = mlflow_client(tracking_uri(Path()))
    run_id = client.create_run("0").info.run_id
    for step in range(STEPS):
        note(run_id, step, marker)
        keep(run_id, path, f"{url}-{step}")
    return run_id


if __name__ == "__main__":
    print(outage(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
