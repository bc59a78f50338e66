import os
import shutil
from pathlib import Path

import pytest
import yaml

import flows  # noqa: F401 - its settings must stand before Prefect is imported
from slimtts.workspace import STAGES
from tasks.workspace import CHECKOUT, prepare_workspace

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.flows)


@pytest.fixture(scope="session")
def toy_checkout(tmp_path_factory):
    """The real params and profiles, and the real dvc.yaml with toy commands and no dependencies on sources."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(CHECKOUT / "flows" / "profiles", root / "flows" / "profiles")
    shutil.copy(CHECKOUT / "params.yaml", root)
    (root / "src").mkdir()
    shutil.copy(HERE / "toy_stage.py", root / "src")
    stages = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        stage["cmd"] = f"python src/toy_stage.py {name}"
        stage["deps"] = [dep for dep in stage["deps"] if not dep.startswith("src/")]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    return root


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The stages that toy runs have started since the last call."""
    log = tmp_path / "toy.log"
    monkeypatch.setenv("TOY_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT / "src"))

    def take():
        lines = log.read_text().split() if log.exists() else []
        log.write_text("")
        return [line for line in lines if line in STAGES]

    return take


@pytest.fixture
def toy_workspace(toy_checkout, tmp_path):
    return prepare_workspace("toy", "demo", [], tmp_path / "runs", toy_checkout)


@pytest.fixture(scope="session")
def empty_mlflow_db(tmp_path_factory):
    """A migrated database: made once, copied for each test, because the migrations take seconds."""
    from tasks.tracking import mlflow_client

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def runs_root(empty_mlflow_db, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "runs"
    root.mkdir()
    shutil.copy(empty_mlflow_db, root / "mlflow.db")
    return root


@pytest.fixture(scope="session")
def prefect_server():
    """Address of a server for the whole session."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A real run on the bundled teacher, up to prune_layers; copy it before you change it."""
    from .small_run import small_run

    return small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture
def subprocess_environment(prefect_server):
    path = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "src")])
    return {**os.environ, "PREFECT_API_URL": prefect_server, "PYTHONPATH": path}


@pytest.fixture
def stack_client(stack, monkeypatch):
    """This process as a client of the stack's Prefect, MLflow and S3; its environment, for other processes."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    environment = stack.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with temporary_settings(
        {
            PREFECT_API_URL: environment["PREFECT_API_URL"],
            PREFECT_API_AUTH_STRING: environment["PREFECT_API_AUTH_STRING"],
        }
    ):
        yield environment
