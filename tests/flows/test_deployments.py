"""infra/prefect.yaml and the Kubernetes pool, against a real server and Prefect's own reading of them."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import yaml

from tasks.workspace import CHECKOUT

PREFECT_FILE = CHECKOUT / "infra" / "prefect.yaml"
POOL_FILE = CHECKOUT / "infra" / "kubernetes" / "gpu-pool.json"
SECRETS = {"PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


@pytest.fixture(scope="module")
def configured():
    return {deployment["name"]: deployment for deployment in yaml.safe_load(PREFECT_FILE.read_text())["deployments"]}


@pytest.fixture(scope="module")
def deployed(prefect_server, tmp_path_factory):
    """What the server has after `prefect deploy --all` from the root, by name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        for pool in ("cpu", "gpu"):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file"]
        done = subprocess.run(
            [*command, "infra/prefect.yaml"], cwd=CHECKOUT, env={**os.environ, "PREFECT_API_URL": prefect_server},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        found = client.read_deployments(limit=50)
        return {deployment.name: deployment for deployment in found}


def test_every_deployment_arrives_with_its_pool_and_finds_the_code(configured, deployed):
    assert configured.keys() <= deployed.keys()
    for name, wanted in configured.items():
        assert deployed[name].work_pool_name == wanted["work_pool"]["name"]
        assert deployed[name].job_variables == {
            "env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json"}
        }
        [step] = deployed[name].pull_steps
        assert step == {"prefect.deployments.steps.set_working_directory": {"directory": str(CHECKOUT)}}
        assert deployed[name].entrypoint == wanted["entrypoint"]


def test_the_night_has_a_time_zone_and_one_run(deployed):
    nightly = deployed["nightly-compression"]
    [schedule] = nightly.schedules
    assert (schedule.schedule.cron, schedule.schedule.timezone, schedule.active) == (
        "30 1 * * *",
        "Europe/Berlin",
        True,
    )
    assert nightly.global_concurrency_limit.limit == 1
    assert nightly.parameters["revision"] == "HEAD", "edits of the checkout must not reach a run of the night"


def test_parameters_of_the_file_pass_the_forms_that_people_see(configured, deployed):
    from jsonschema import validate

    for name, wanted in configured.items():
        schema = deployed[name].parameter_openapi_schema
        given = wanted.get("parameters", {})
        required = [key for key in schema.get("required", []) if key in given]
        validate(given, {**schema, "required": required})
        for key, form in schema["properties"].items():
            assert form.get("description"), f"{name}.{key} says nothing of itself"


def test_forms_offer_choices_and_limits(deployed):
    nightly = deployed["nightly-compression"].parameter_openapi_schema["properties"]
    assert nightly["profile"]["enum"] == ["demo", "full"]
    assert nightly["keep_layers"]["anyOf"][0]["minimum"] == 1
    depths = deployed["depth-sweep"].parameter_openapi_schema["properties"]["depths"]
    assert (depths["minItems"], depths["items"]["minimum"]) == (1, 1)
    minutes = deployed["watch-teachers"].parameter_openapi_schema["properties"]["quiet_minutes"]
    assert (minutes["minimum"], minutes["maximum"]) == (0, 1440)


def test_server_refuses_what_the_form_forbids(deployed):
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        for parameters in ({"name": "../up"}, {"name": "a", "keep_layers": 0}, {"name": "a", "profile": "nowhere"}):
            with pytest.raises(PrefectHTTPStatusError, match="409"):
                client.create_flow_run_from_deployment(deployed["compress-model"].id, parameters=parameters)


def test_an_upload_can_say_so(deployed):
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        [automation] = client.read_automations_by_name("slimtts: an upload starts watch-teachers")
    assert automation.trigger.expect == {"slimtts.teacher.uploaded"}
    assert automation.actions[0].deployment_id == deployed["watch-teachers"].id


def test_flow_files_load_and_hide_no_package(configured):
    from prefect.flows import load_flow_from_entrypoint

    for deployment in configured.values():
        load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    for path in (CHECKOUT / "flows").glob("[!_]*.py"):
        hidden = importlib.util.find_spec(path.stem)
        assert hidden is None or hidden.origin == str(path)


def test_a_job_in_kubernetes_has_a_gpu_the_shared_runs_and_no_secret_in_its_text(prefect_server, monkeypatch):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.workers.base import BaseJobConfiguration

    class JobConfiguration(BaseJobConfiguration):
        namespace: str
        job_manifest: dict

    template = json.loads(POOL_FILE.read_text())
    with get_client(sync_client=True) as client:
        pool = client.create_work_pool(WorkPoolCreate(name="k8s", type="kubernetes", base_job_template=template))
        assert pool.base_job_template == template
    given = {"image": "registry.example/slimtts@sha256:0", "env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}}
    job = asyncio.run(JobConfiguration.from_template_and_values(template, given))
    assert job.env == {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_API_AUTH_STRING": None,
        "PREFECT_API_KEY": None,
    }
    assert "{{" not in json.dumps(job.job_manifest).replace("{{ command }}", "").replace("{{ name }}", "")
    pod = job.job_manifest["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["volumes"][0] == {"name": "runs", "persistentVolumeClaim": {"claimName": "slimtts-runs"}}
    assert container["volumeMounts"][0] == {"name": "runs", "mountPath": "/opt/slimtts/runs"}
    taken = {entry["name"]: entry for entry in container["env"]}
    assert taken.keys() >= SECRETS
    for name in SECRETS:
        assert taken[name]["valueFrom"]["secretKeyRef"]["name"] == "slimtts"
    assert all("value" not in entry for entry in container["env"])
