"""A run's student on MLflow's Models page: its size, recipe and numbers on the test set, one entry a student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from slimtts.params import load_params
from slimtts.results import EvaluationReport, PrunePlan
from slimtts.workspace import Workspace
from tasks.stage_numbers import STUDENT_HASH, student_sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_TYPE = "student"


def log_student(client: MlflowClient, run_id: str, workspace: Workspace) -> str:
    """Id of the entry for the run's student, made when it is missing. Repeated calls change nothing."""
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    sha256 = student_sha256(EvaluationReport.read(workspace.evaluation / "evaluation.json"))
    experiment, tags = run.info.experiment_id, {STUDENT_HASH: sha256} if sha256 else {}
    known = [
        model
        for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'")
        if model.tags.get(STUDENT_HASH, "") == sha256
    ]
    model = (
        known[0]
        if known
        else client.create_logged_model(
            experiment,
            run.info.run_name,
            run_id,
            tags,
            recipe(workspace),
            MODEL_TYPE,
        )
    )
    client.finalize_logged_model(model.model_id, "READY")
    if model.model_id not in {output.model_id for output in run.outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return str(model.model_id)


def recipe(workspace: Workspace) -> Mapping[str, str]:
    """What made the student, in a few words that can be compared."""
    params, plan = load_params(workspace.params), PrunePlan.read(workspace.pruned / "plan.json")
    healing = params.distill_student
    return {
        "layers": f"{len(plan.retained)} of {plan.num_layers}",
        "retained": str(plan.retained),
        "parameters": str(plan.student_parameters),
        "chosen by": "hand" if params.prune_layers.retained else params.score_layers.method,
        "preset": healing.preset,
        "steps": str(healing.steps),
        "learning_rate": str(healing.learning_rate),
        "speech": params.subset_data.speech,
        "seed": str(healing.seed),
        "teacher": params.teacher.family,
    }
