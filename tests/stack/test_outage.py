import os
import subprocess
import sys
import time
from pathlib import Path

from tasks.tracking import mlflow_client
from tasks.transfer import download_file, object_at

CHECKOUT = Path(__file__).parents[2]
STEPS = 6
AWAY_S = 4.0
WITHIN_S = 120.0


def test_a_flow_goes_on_after_postgres_and_s3_were_away(stack, s3, tmp_path):
    path, marker, url = tmp_path / "file.bin", tmp_path / "marker", "s3://slimtts-dvc/outage"
    path.write_bytes(os.urandom(100_000))
    command = [sys.executable, str(CHECKOUT / "tests" / "stack" / "outage_flow.py"), str(path), url, str(marker)]
    environment = {**os.environ, **stack.environment, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + WITHIN_S
        while not marker.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for service in ("s3", "postgres"):
            stack.hold(service)
        step_before = marker.read_text()
        time.sleep(AWAY_S)
        assert process.poll() is None
        assert int(marker.read_text() or step_before) < STEPS - 1
        for service in ("postgres", "s3"):
            stack.release(service)
        output, _ = process.communicate(timeout=WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == 0
    run_id = output.split()[-1]
    history = mlflow_client(stack.environment["MLFLOW_TRACKING_URI"]).get_metric_history(run_id, "loss")
    assert {point.step for point in history} == set(range(STEPS))
    for step in range(STEPS):
        back = tmp_path / f"back-{step}"
        download_file(s3, f"{url}-{step}", back)
        assert back.read_bytes() == path.read_bytes()
    listed = s3.list_objects_v2(Bucket="slimtts-artifacts")["Contents"]
    (key,) = [entry["Key"] for entry in listed if entry["Key"].endswith(f"{run_id}/artifacts/file.bin")]
    assert s3.get_object(**object_at(f"s3://slimtts-artifacts/{key}"))["Body"].read() == path.read_bytes()
