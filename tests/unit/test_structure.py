"""Things that must agree with each other, and borders that the import linter cannot see."""

import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

from slimtts.params import Params
from slimtts.workspace import STAGES

ROOT = Path(__file__).resolve().parents[2]
FLOW_FILES = sorted(path for path in (ROOT / "flows").glob("*.py") if path.stem != "__init__")
SHARED_SECTIONS = {"teacher", "decoding", "recogniser", "storage"}


def _run(code):
    paths = [str(ROOT), str(ROOT / "src")]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths}\n{code}"],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip


def test_stages_have_one_name_in_four_places():
    from slimtts.commands.catalogue import build_parser
    from tasks.stages import STAGE_TASKS

    assert tuple(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]) == STAGES
    assert tuple(task.fn.__name__ for task in STAGE_TASKS) == STAGES
    assert set(Params.model_fields) - SHARED_SECTIONS == set(STAGES)
    assert set(yaml.safe_load((ROOT / "params.yaml").read_text())) - SHARED_SECTIONS == set(STAGES)
    for stage in STAGES:
        assert build_parser().parse_args([stage]).command == stage


def test_stage_commands_are_the_command_lines_own():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name: stage["cmd"] for name, stage in stages.items()} == {name: f"slimtts {name}" for name in STAGES}


def test_every_source_that_a_stage_depends_on_exists():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    named = {dep for stage in stages.values() for dep in stage["deps"] if dep.startswith("src/")}
    assert [dep for dep in sorted(named) if not (ROOT / dep).exists()] == []


@pytest.mark.parametrize("path", FLOW_FILES, ids=lambda path: path.stem)
def test_no_flow_hides_a_package(path):
    """Prefect leaves flows/ first on sys.path, so a flow named like a package would be imported instead of it."""
    others = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "flows")]
    assert path.stem not in sys.stdlib_module_names
    assert PathFinder.find_spec(path.stem, others) is None


def test_flows_and_tasks_load_no_model_library():
    modules = [f"flows.{path.stem}" for path in FLOW_FILES]
    modules += [f"tasks.{path.stem}" for path in (ROOT / "tasks").glob("*.py") if path.stem != "speech_pyfunc"]
    done = _run(
        f"import {', '.join(modules)}\nprint([m for m in ('torch', 'transformers', 'mlflow') if m in sys.modules])"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_package_loads_no_orchestrator_and_help_no_model_library():
    done = _run(
        "from slimtts.cli import main\n"
        "try:\n main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'prefect', 'mlflow', 'dvc') if m in sys.modules])"
    )
    assert done.stdout.strip().endswith("[]"), done.stderr


def test_flows_load_by_entrypoint():
    entrypoints = [f"flows/{path.name}:{path.stem}" for path in FLOW_FILES if f"def {path.stem}(" in path.read_text()]
    assert len(entrypoints) >= 2
    code = "from prefect.flows import load_flow_from_entrypoint as load\n" + "\n".join(
        f"assert load({entrypoint!r}, use_placeholder_flow=False).fn.__name__ == {entrypoint.split(':')[1]!r}"
        for entrypoint in entrypoints
    )
    done = _run(code)
    assert done.returncode == 0, done.stderr


def test_wheel_holds_only_slimtts():
    packages = find_packages(str(ROOT / "src"))
    assert "slimtts" in packages
    assert {name.split(".")[0] for name in packages} == {"slimtts"}


def test_locked_versions_satisfy_the_project_and_name_no_index():
    text = (ROOT / "requirements.txt").read_text()
    lines = [line for line in text.splitlines() if line.strip()]
    assert all("==" in line for line in lines)
    assert "://" not in text
    locked = dict(line.split(" ;")[0].split("==") for line in lines)
    for name in ("torch", "torchaudio", "transformers", "prefect", "mlflow", "dvc"):
        assert f'"{name}=={locked[name]}"' in (ROOT / "pyproject.toml").read_text()
