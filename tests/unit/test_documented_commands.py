"""Every command in the documentation is understood by its program, and run by a test that is named here."""

import argparse
import ast
import re
import runpy
import shlex
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from slimtts.commands.catalogue import COMMANDS, build_parser
from slimtts.workspace import STAGES
from tasks.workspace import compose_params

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    page for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("infra/**/*.md")] if page.is_file()
)

# Which test runs it. A pattern is of the command without `.venv/bin/`, variables and comment.
RUN_BY = {
    "make install": "tests/unit/test_makefile.py::test_every_target_is_what_the_pages_say",
    "make test": "tests/unit/test_makefile.py::test_every_target_is_what_the_pages_say",
    "make demo*": "tests/pipeline/test_compress.py::test_the_pipeline",
    "make ui": "tests/flows/test_make_ui.py::test_both_pages_answer_and_ctrl_c_leaves_nothing",
    "make stack*": "tests/stack/test_services.py::test_every_service_is_healthy",
    "make deploy": "tests/flows/test_deployments.py::test_every_deployment_arrives_with_its_pool_and_finds_the_code",
    "source *": "tests/unit/test_makefile.py::test_every_target_is_what_the_pages_say",
    "slimtts compress*": "tests/pipeline/test_compress.py::test_the_pipeline",
    "slimtts plan*": "tests/unit/test_planning.py::test_the_command_measures_and_prints",
    "slimtts report*--votes*": "tests/browser/test_blind.py::test_all_votes_are_exported_and_read_back",
    "slimtts report*": "tests/unit/report/test_page.py::test_the_command_writes_both_pages",
    "slimtts compare*": "tests/flows/test_comparison.py::test_folders_are_compared_by_the_command_without_mlflow",
    "slimtts quantize*": "tests/unit/quantization/test_command.py::test_it_tells_sizes_to_people_and_to_programs",
    "slimtts doctor*": "tests/unit/doctor/test_doctor.py::test_a_whole_installation_is_ready_and_says_so_to_programs",
    "slimtts say*": "tests/unit/test_cli.py::test_a_result_is_json_for_programs",
    "slimtts serve*": "tests/flows/test_serving.py::test_the_wav_is_streamed_and_is_what_the_model_says",
    "slimtts export*": "tests/unit/test_cli.py::test_export_wraps_cosyvoice_only_and_overwrites_nothing",
    "slimtts completion*": "tests/unit/test_cli.py::test_a_shell_can_complete_commands_and_options",
    "slimtts promote*": "tests/flows/test_promotion.py::test_deciding_again_by_a_changed_gate",
    "slimtts rollback*": "tests/flows/test_promotion.py::"
    "test_roll_back_returns_the_former_version_and_a_repeated_run_does_not_undo_it",
    "slimtts history*": "tests/flows/test_versions.py::test_history_lineage_and_their_json_on_the_command_line",
    "slimtts lineage*": "tests/flows/test_versions.py::test_history_lineage_and_their_json_on_the_command_line",
    "slimtts restore*": "tests/flows/test_versions.py::test_a_version_becomes_its_workspace_again",
    "python -m flows.compress_model*": "tests/pipeline/test_compress.py::test_the_pipeline",
    "python -m infra.stack*": "tests/stack/test_services.py::test_env_is_for_shells_and_not_for_terminals",
    "eval *infra.stack env*": "tests/stack/test_services.py::test_env_is_for_shells_and_not_for_terminals",
    "eval *slimtts completion*": "tests/unit/test_cli.py::test_a_shell_can_complete_commands_and_options",
    "python -m benchmarks.distributed_training*": "tests/pipeline/test_benchmarks.py::"
    "test_two_processes_are_timed_against_one",
    "python -m benchmarks.*": "tests/pipeline/test_benchmarks.py::test_a_benchmark_prints_its_table",
    "python -m pytest*": "tests/unit/test_documented_commands.py::test_tests_that_pages_name_are_there",
    "prefect deployment run*": "tests/flows/test_recovery.py::*",
    "infra/multinode/join.sh*": "tests/unit/distill/test_multinode.py::"
    "test_a_machine_joins_again_until_the_training_is_done",
    "dask *": "tests/flows/test_fan_out.py::test_scores_of_two_processes_are_those_of_one_although_a_worker_is_killed",
    "export SLIMTTS_NODES*": "tests/unit/distill/test_multinode.py::test_both_sides_start_torchrun_alike",
    "curl *": "tests/flows/test_serving.py::test_the_wav_is_streamed_and_is_what_the_model_says",
    "mlflow models serve*": "tests/flows/test_serving.py::test_mlflow_models_serve_speaks",
}


def commands_of(page):
    """Each line of the page's bash blocks, continued lines joined, comments left out."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield shlex.join(words)


def words_of(command):
    """Without variables in front of it and without the folder of the environment."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return [word.replace(".venv/bin/", "") for word in words]


def plain(command):
    """As the patterns see it."""
    return " ".join(words_of(command))


DOCUMENTED = sorted({(page.relative_to(ROOT).as_posix(), one) for page in PAGES for one in commands_of(page)})


class Understood(Exception):
    """The program's own parser took the arguments."""


@pytest.fixture
def understanding(monkeypatch):
    """Programs stop when they have understood their arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, arguments=None, namespace=None):
        raise Understood(parse(self, arguments, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.mark.parametrize(("page", "command"), DOCUMENTED)
def test_a_command_is_understood(page, command, understanding, monkeypatch):
    words = [word.replace("COMMIT", "1" * 40) for word in words_of(command)]
    if words[0] == "slimtts":
        with pytest.raises(Understood) as taken:
            build_parser(words[1]).parse_args(words[1:])
        compose_params("demo", getattr(taken.value.args[0], "overrides", []))
    elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("flows", "infra", "tasks", "benchmarks"):
        monkeypatch.setattr(sys, "argv", words[2:])
        monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
        with pytest.raises(Understood):
            runpy.run_module(words[2], run_name="__main__")
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0].startswith("infra/"):
        assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize(("page", "command"), DOCUMENTED)
def test_a_command_is_run_by_a_test(page, command):
    found = [test for pattern, test in RUN_BY.items() if fnmatch(plain(command), pattern)]
    assert found, f"{page}: name the test that runs: {command}"


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_the_named_test_is_there(test):
    file, _, name = test.partition("::")
    functions = [node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if hasattr(node, "name")]
    assert any(fnmatch(function, name) and function.startswith("test_") for function in functions)


def test_every_command_of_the_program_is_named():
    unnamed = {name for name in COMMANDS if not any(fnmatch(f"slimtts {name}", pattern) for pattern in RUN_BY)}
    assert unnamed <= set(STAGES), "stages are run by tests/pipeline"


def test_tests_that_pages_name_are_there():
    for _, command in DOCUMENTED:
        words = words_of(command)
        if words[:3] == ["python", "-m", "pytest"]:
            assert all((ROOT / word).exists() for word in words[3:] if word.startswith("tests/"))


def test_the_family_of_the_tutorial_works():
    from slimtts.teachers.base import Prompt
    from slimtts.testing.tokenizers import byte_tokenizer

    page = (ROOT / "docs/tutorials/add-a-family.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {}
    exec(code, names)  # noqa: S102 - our own page
    family = names["ParrotFamily"]()
    specials = ["[say]", "[go]", "[end]"]
    tokens = {token: 300 + i for i, token in enumerate([*specials, *(f"<c{code}>" for code in range(1024))])}
    tokenizer = byte_tokenizer(tokens, tokens, eos_token="[end]")

    class Codec:
        num_codes = 1024

    layout = family.layout(tokenizer, Codec)
    prompt = Prompt("hi", (0, 1023), "anna")
    ids = family.prompt_ids(tokenizer, layout, "you", prompt)
    assert tokenizer.decode(ids) == "[say]hi you[go]<c0><c1023>"
    assert tokenizer.decode(family.textless_prompt_ids(tokenizer, layout, prompt)) == "[say][go]<c0><c1023>"
