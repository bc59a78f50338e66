import pytest
import yaml

from slimtts.errors import InvalidInputError
from slimtts.params import load_params
from tasks.workspace import CHECKOUT, compose_params, dvc_config, prepare_workspace


def test_root_params_then_profile_then_overrides():
    root = load_params(CHECKOUT / "params.yaml")
    params = compose_params("demo", ["distill_student.steps=7", "register_model.promote=false"])
    assert params.distill_student.steps == 7
    assert params.register_model.promote is False
    demo = yaml.safe_load((CHECKOUT / "flows/profiles/demo.yaml").read_text())
    assert params.evaluate_student.utterances == demo["evaluate_student"]["utterances"]
    assert params.decoding == root.decoding
    assert compose_params("full", []) == root


@pytest.mark.parametrize(
    ("profile", "override", "told"),
    [
        ("nowhere", "distill_student.steps=7", "demo, full"),
        ("demo", "steps=7", "section.key=value"),
        ("demo", "distill_student.steps", "section.key=value"),
        ("demo", "distill_student.steps=[1", "YAML value"),
        ("demo", "distill_student.steps=many", "distill_student.steps = 'many'"),
        ("demo", "distill_student.stepz=7", "distill_student.stepz is not a known key"),
        ("demo", "distil.steps=7", "distil is not a known key"),
    ],
)
def test_bad_parameters_are_one_line(profile, override, told):
    with pytest.raises(InvalidInputError) as caught:
        compose_params(profile, [override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_params_end_the_command_with_code_2_before_anything_is_made(capsys, tmp_path):
    from flows.compress_model import main

    assert main(["--runs", str(tmp_path), "--set", "prune_layers.keep_layers=0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a b"])
def test_names_that_leave_the_runs_folder_are_refused(name, tmp_path):
    with pytest.raises(InvalidInputError, match="--name"):
        prepare_workspace(name, "demo", [], tmp_path)


def test_preparing_again_touches_only_what_changed(toy_checkout, tmp_path):
    workspace = prepare_workspace("a", "demo", [], tmp_path, toy_checkout)
    files = ["dvc.yaml", "params.yaml", ".dvc/config", ".dvcignore"]
    before = {name: (workspace / name).stat().st_ino for name in files}
    prepare_workspace("a", "demo", [], tmp_path, toy_checkout)
    assert {name: (workspace / name).stat().st_ino for name in files} == before
    prepare_workspace("a", "demo", ["prune_layers.keep_layers=5"], tmp_path, toy_checkout)
    after = {name: (workspace / name).stat().st_ino for name in files}
    assert [name for name in files if after[name] != before[name]] == ["params.yaml"]
    assert load_params(workspace / "params.yaml").prune_layers.keep_layers == 5


def test_remote_settings_hold_an_address_and_never_keys(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    overrides = ["storage.dvc_remote=s3://bucket/runs", "storage.s3_endpoint=http://127.0.0.1:9"]
    text = dvc_config(compose_params("demo", overrides))
    assert "url = s3://bucket/runs\nendpointurl = http://127.0.0.1:9\nverify = True" in text
    assert "hush" not in text
    assert "remote" not in dvc_config(compose_params("demo", []))
