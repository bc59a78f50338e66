"""compose.yaml cannot be started where no Docker is; its promises can be read, and its database script can be run."""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg2
import pytest
import yaml

from infra.stack import postgres
from infra.stack.credentials import make_credentials
from infra.stack.layout import HOST, Layout, free_ports

INFRA = Path(__file__).parents[2] / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
LASTING = {name: service for name, service in SERVICES.items() if service["restart"] != "no"}
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|API_KEY|ACCESS_KEY|_USER$|USERNAME")
REQUIRED = re.compile(r"\$\{([A-Z0-9_]+):\?[^}]+\}")
OPEN_VALUES = {"POSTGRES_USER": "postgres"}  # a name, not a secret


def test_the_stack_is_complete():
    assert set(LASTING) == {"postgres", "s3", "mlflow", "prefect", "worker-cpu", "worker-gpu", "speech"}


@pytest.mark.parametrize("name", LASTING)
def test_every_service_has_a_health_check_and_comes_back(name):
    service = LASTING[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "retries", "start_period"} <= set(service["healthcheck"])
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_come_from_outside_and_are_required(name):
    for variable, value in SERVICES[name].get("environment", {}).items():
        if SECRET.search(variable) and variable not in OPEN_VALUES:
            assert REQUIRED.fullmatch(value), f"{name}: {variable}"
    text = yaml.safe_dump(SERVICES[name].get("command", []))
    assert not SECRET.search(text), "a secret on a command line is seen by everyone on the machine"
    assert "://" not in text or "@" not in text


def test_database_addresses_hold_no_password():
    addresses = [value for service in SERVICES.values() for value in service.get("environment", {}).values()
                 if str(value).startswith("postgresql")]  # fmt: skip
    assert len(addresses) == 2
    assert all(re.fullmatch(r"postgresql\+\w+://\w+@postgres:5432/\w+", address) for address in addresses)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_on_loopback_unless_told_otherwise(name):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("${BIND_ADDRESS:-127.0.0.1}:")


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_few_rights(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name == "s3-volume":  # it only gives a new volume to another user, without a network
        assert (service["cap_add"], service["network_mode"]) == (["CHOWN"], "none")
    else:
        assert service["user"].split(":")[0] not in ("0", "root")
        assert "cap_add" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name):
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert tag not in ("", "latest")
    assert image == "slimtts" or re.search(r"\d", tag)


def test_services_wait_for_the_health_of_what_they_need():
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            lasting = needed in LASTING
            assert how["condition"] == ("service_healthy" if lasting else "service_completed_successfully"), name


def test_the_speech_service_can_read_models_and_no_more():
    environment = SERVICES["speech"]["environment"]
    assert set(environment) == {
        "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "SLIMTTS_API_KEY",
    }  # fmt: skip
    given = {REQUIRED.fullmatch(value)[1] for value in environment.values() if REQUIRED.fullmatch(value)}
    assert given == {"MLFLOW_READER_USERNAME", "MLFLOW_READER_PASSWORD", "SLIMTTS_API_KEY"}
    rooted = {"S3_SECRET_ACCESS_KEY", "MLFLOW_ADMIN_PASSWORD", "POSTGRES_PASSWORD", "PREFECT_AUTH_STRING"}
    assert not rooted & set(re.findall(r"\$\{([A-Z0-9_]+)", yaml.safe_dump(SERVICES["speech"])))


def test_only_its_servers_reach_postgres():
    assert COMPOSE["networks"]["databases"] == {"internal": True}
    assert {name for name, service in SERVICES.items() if "databases" in service.get("networks", [])} == {
        "postgres", "mlflow", "prefect",
    }  # fmt: skip


def test_state_lies_in_named_volumes():
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert mounted - set(COMPOSE["volumes"]) == {"./postgres-databases.sh"}
    assert set(COMPOSE["volumes"]) <= mounted


def test_the_gpu_worker_is_asked_for_and_reserves_the_devices():
    worker = SERVICES["worker-gpu"]
    assert worker["profiles"] == ["gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_the_example_names_every_variable_and_no_value():
    lines = [line for line in (INFRA / ".env.example").read_text().splitlines() if "=" in line]
    assert all(re.fullmatch(r"#?[A-Z0-9_]+=", line) for line in lines)
    named = {line.strip("#=") for line in lines}
    required = {line.strip("=") for line in lines if not line.startswith("#")}
    text = re.sub(r"#.*", "", (INFRA / "compose.yaml").read_text())
    assert named == set(re.findall(r"\$\{([A-Z0-9_]+)", text))
    assert required == set(REQUIRED.findall(text))


def test_the_image_has_both_targets_and_no_root():
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    assert [line.split(" AS ")[1] for line in lines if line.startswith("FROM")] == ["base", "cpu", "gpu"]
    assert "USER 10001" in lines
    copied = [line.split()[1].removesuffix("/") for line in lines if line.startswith("COPY")]
    copied += [name for line in lines if line.startswith("COPY pyproject") for name in line.split()[2:-1]]
    admitted = [line[1:] for line in (INFRA / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert sorted(copied) == sorted(admitted)
    assert all((INFRA.parent / name).exists() for name in copied)


def test_the_database_script_makes_closed_databases():
    folder = Path(tempfile.mkdtemp(prefix="slimtts-stack-", dir="/var/tmp"))
    layout = Layout(folder, free_ports())
    folder.chmod(0o711)
    credentials = make_credentials(layout.secrets)
    programs = postgres.programs_folder(layout)
    postgres.prepare_cluster(layout, credentials, programs)
    log = (folder / "postgres.log").open("w")
    server = subprocess.Popen(
        postgres.server_command(layout, programs), cwd="/", stderr=log, env={"LC_ALL": "C"},
        **postgres.as_user(postgres.run_as()),
    )  # fmt: skip
    try:
        while not postgres.answers(layout, credentials):
            assert server.poll() is None
        passwords = {"MLFLOW_DB_PASSWORD": "it's \\one", "PREFECT_DB_PASSWORD": 'the "other"'}
        environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PGHOST": HOST,
            "PGPORT": str(layout.ports.postgres), "PGPASSWORD": credentials.postgres_admin,
            "POSTGRES_USER": postgres.ADMIN, **passwords,
        }  # fmt: skip
        script = INFRA / "postgres-databases.sh"
        subprocess.run([script], env=environment, check=True)
        for name, other in (("mlflow", "prefect"), ("prefect", "mlflow")):
            password = passwords[f"{name.upper()}_DB_PASSWORD"]
            postgres.connect(layout, name, password, name).close()
            with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
                postgres.connect(layout, name, password, other)
        again = subprocess.run([script], env=environment, capture_output=True, text=True)
        assert "already exists" in again.stderr
        assert again.returncode != 0
        log.flush()
        assert not [password for password in passwords.values() if password in (folder / "postgres.log").read_text()]
    finally:
        server.kill()
        server.wait()
        log.close()
        shutil.rmtree(folder)
