import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from slimtts.errors import InvalidInputError
from slimtts.params import Params, load_params, parse_params

SHIPPED = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def values() -> dict[str, Any]:
    return yaml.safe_load(SHIPPED.read_text())


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(InvalidInputError) as error:
        parse_params(values, "params.yaml")
    message = str(error.value)
    assert len(message.splitlines()) == 1 and message.startswith("params.yaml: observed ") and "; next: " in message
    return message


def test_the_shipped_file_is_valid(values: dict[str, Any]) -> None:
    assert load_params(SHIPPED).model_dump(mode="json", exclude_unset=True) == values


def test_every_knob_of_the_shipped_file_says_what_it_is() -> None:
    silent = [
        line for line in SHIPPED.read_text().splitlines()
        if line.startswith("  ") and "#" not in line and not line.strip().startswith("seed:")
    ]  # fmt: skip
    assert not silent


def test_values_cannot_change_after_reading() -> None:
    with pytest.raises(ValidationError):
        load_params(SHIPPED).prune_layers.keep_layers = 3


def test_a_typo_is_an_error(values: dict[str, Any]) -> None:
    values["distill_student"]["stpes"] = values["distill_student"].pop("steps")
    message = refusal(values)
    assert "distill_student.stpes is not a known key" in message and "distill_student.steps is missing" in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("subset_data", "max_share", 1.01),
        ("subset_data", "max_share", 0),
        ("subset_data", "max_share", float("nan")),
        ("subset_data", "strategy", "best"),
        ("subset_data", "test_utterances", 0),
        ("subset_data", "seed", -1),
        ("decoding", "temperature", -0.1),
        ("decoding", "top_p", 0),
        ("decoding", "top_p", 1.01),
        ("prune_layers", "keep_layers", 0),
        ("prune_layers", "keep_layers", 5.5),
        ("prune_layers", "keep_layers", "six"),
        ("distill_student", "steps", -1),
        ("distill_student", "warmup_share", 1.0),
        ("distill_student", "learning_rate", 0),
        ("distill_student", "device", "tpu"),
        ("register_model", "max_wer_gap_upper_points", float("nan")),
        ("register_model", "max_wer_gap_upper_points", float("inf")),
        ("register_model", "min_speedup", float("-inf")),
        ("register_model", "max_no_end_rate", 1.5),
        ("register_model", "model_name", "../name"),
        ("register_model", "model_name", ""),
        ("storage", "dvc_remote", "http://bucket"),
        ("teacher", "source", None),
        ("teacher", "family", "gpt"),
    ],
)
def test_a_value_out_of_range_is_named(values: dict[str, Any], section: str, key: str, value: object) -> None:
    values[section][key] = value
    message = refusal(values)
    assert f"{section}.{key} = {value!r}" in message and f"allowed: {section}.{key}: " in message


def test_all_mistakes_are_reported_at_once(values: dict[str, Any]) -> None:
    values["prune_layers"]["keep_layers"] = 0
    values["decoding"]["top_p"] = 2
    values["unknown"] = {}
    del values["storage"]
    message = refusal(values)
    for part in ("prune_layers.keep_layers = 0", "decoding.top_p = 2", "unknown is not a known key", "storage is miss"):
        assert part in message


@pytest.mark.parametrize("section", [None, 3, "text", []])
def test_a_section_of_another_kind_is_named(values: dict[str, Any], section: object) -> None:
    values["decoding"] = section
    assert f"decoding = {section!r}" in refusal(values)


def test_reading_does_not_change_what_was_given(values: dict[str, Any]) -> None:
    former = copy.deepcopy(values)
    assert isinstance(parse_params(values, "x"), Params)
    assert values == former


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "no such file"),
        (b"a: [1, 2\nb: {", "valid YAML"),
        (b"a: \xff\xfe", "valid YAML"),
        (b"\x00", "valid YAML"),
        (b"", "teacher is missing"),
        (b"- just\n- a list\n", "teacher is missing"),
        (b"!!python/object/apply:os.system ['true']", "valid YAML"),
    ],
)
def test_a_file_that_is_no_params_is_one_line(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError) as error:
        load_params(path)
    assert what in str(error.value) and str(path) in str(error.value) and len(str(error.value).splitlines()) == 1
