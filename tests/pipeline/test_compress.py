"""The whole pipeline on the bundled teacher, small: work, no work, the right work, and a model that speaks."""

import base64
import io
import json

import pytest
import soundfile

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(1800)]

SMALL = [
    "score_layers.utterances=8",
    "subset_data.selection_utterances=16",
    "subset_data.test_utterances=24",
    "distill_student.steps=20",
    "distill_student.tokens_per_step=2048",
    "evaluate_student.utterances=24",
    "evaluate_student.mos_utterances=2",
    "evaluate_student.speed_utterances=2",
]


def test_the_pipeline(tmp_path):
    import mlflow
    import pandas
    from prefect.testing.utilities import prefect_test_harness

    from flows.compress_model import compress_model
    from slimtts.results import EvaluationReport, Release
    from tasks.stage_runner import stale_stages
    from tasks.tracking import tracking_uri

    runs = tmp_path / "runs"
    with prefect_test_harness(server_startup_timeout=120):
        workspace = compress_model("small", "demo", SMALL, runs)
        report = EvaluationReport.read(workspace / "evaluation" / "evaluation.json")
        assert list(report.systems) == ["teacher", "pruned", "student", "control"]
        assert report.systems["student"].num_layers == 6
        assert report.systems["pruned"].wer_corpus.value > report.systems["student"].wer_corpus.value
        assert Release.read(workspace / "release" / "release.json").verdict.decision == "INCOMPLETE"
        assert stale_stages(workspace) == {}

        lock = (workspace / "dvc.lock").read_text()
        compress_model("small", "demo", SMALL, runs)
        assert (workspace / "dvc.lock").read_text() == lock

        scored = (workspace / "scores" / "scores.json").stat().st_mtime_ns
        compress_model("small", "demo", [*SMALL, "prune_layers.keep_layers=8"], runs)
        assert (workspace / "scores" / "scores.json").stat().st_mtime_ns == scored
        assert json.loads((workspace / "pruned" / "plan.json").read_text())["retained"].__len__() == 8

        mlflow.set_tracking_uri(tracking_uri(runs))
        model = mlflow.pyfunc.load_model("models:/slimtts-nano@candidate")
        answer = model.predict(pandas.DataFrame({"text": ["the green tiger"]}))
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(answer["audio_base64"][0])))
        assert rate_hz == 16_000
        assert len(samples) > 0.2 * rate_hz
