import copy
import os
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


def shipped_with(line: str, instead: str) -> str:
    text = SHIPPED.read_text()
    assert line in text
    return text.replace(line, instead)


@pytest.mark.parametrize("quoted", [False, True])
def test_words_are_words(tmp_path: Path, quoted: bool) -> None:
    """`no` is Norwegian; DVC reads the same file as YAML 1.2."""
    path = tmp_path / "params.yaml"
    text = shipped_with("language: en", "language: 'no'" if quoted else "language: no")
    path.write_text(text.replace("model: bundled", "model: large-v3"))  # which knows Norwegian
    assert load_params(path).judged_language == "no"


@pytest.mark.parametrize(
    ("word", "value"), [("yes", True), ("no", False), ("on", True), ("off", False), ("true", True)]
)
def test_truth_values_stay_as_they_were(tmp_path: Path, word: str, value: bool) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(shipped_with("control: true", f"control: {word}"))
    assert load_params(path).distill_student.control is value


@pytest.mark.parametrize("name", ["12:30", "2024-01-01", "2024-13-45", "010", "1_000"])
def test_a_name_is_not_read_as_a_number_or_a_date(tmp_path: Path, name: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(shipped_with('text_list: ""', f"text_list: {name}"))
    assert load_params(path).subset_data.text_list == name


def test_numbers_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(shipped_with("learning_rate: 2.0e-3 ", "learning_rate: 1e-3 "))
    assert load_params(path).distill_student.learning_rate == 0.001


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
TWICE = SHIPPED.read_text().replace("keep_layers: 6", "keep_layers: 6\n  keep_layers: 3")
HOSTILE = {
    "aliases that multiply": (BOMB, "more than 20000 values"),
    "a value that holds itself": ("teacher: &t {source: *t}\n", "holds itself"),
    "depth": ("a: " + "[" * 5000 + "]" * 5000, "RecursionError"),
    "a bad date by tag": ("a: !!timestamp 2024-13-45\n", "valid YAML"),
    "a bad number by tag": ("a: !!int many\n", "valid YAML"),
    "a key twice": (TWICE, "key 'keep_layers' again in line"),
    "a section twice": (SHIPPED.read_text() + "teacher: {}\n", "key 'teacher' again in line"),
    "two documents": ("a: 1\n---\nb: 2\n", "valid YAML"),
    "a long value": (SHIPPED.read_text().replace("family: nano", f"family: {'x' * 100_000}"), "teacher.family = 'xxx"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_one_short_line(tmp_path: Path, case: str) -> None:
    content, what = HOSTILE[case]
    path = tmp_path / "params.yaml"
    path.write_text(content)
    with pytest.raises(InvalidInputError) as error:
        load_params(path)
    message = str(error.value)
    assert what in message and str(path) in message and len(message.splitlines()) == 1
    assert len(message) < 3000


@pytest.mark.parametrize("kind", ["fifo", "folder", "long name", "too large"])
def test_what_is_no_ordinary_file_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x" * 300 if kind == "long name" else "params.yaml")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "too large":
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a hole: no disk is used
    with pytest.raises(InvalidInputError) as error:
        load_params(path)
    allowed = {"fifo": "no regular file", "folder": "a folder", "long name": "too long", "too large": "bytes"}
    assert allowed[kind] in str(error.value)


def test_the_english_normaliser_is_for_english(values: dict[str, Any]) -> None:
    values["recogniser"]["normalizer"] = "whisper_en"
    assert parse_params(values, "params.yaml").recogniser.normalizer == "whisper_en"
    values["teacher"]["language"] = values["evaluate_student"]["language"] = "de"
    values["recogniser"]["model"] = "large-v3"
    with pytest.raises(InvalidInputError, match=r"recogniser\.normalizer: observed whisper_en for language de"):
        parse_params(values, "params.yaml")


def changed(values: dict[str, Any], **sections: dict[str, Any]) -> dict[str, Any]:
    return {name: knobs | sections.get(name, {}) for name, knobs in values.items()}


def test_one_language_is_that_of_every_stage(values: dict[str, Any]) -> None:
    ears = {"model": "small"}
    german = parse_params(changed(values, teacher={"language": "de"}, recogniser=ears), "params.yaml")
    assert (german.teacher.language, german.judged_language) == ("de", "de")
    both = parse_params(
        changed(values, recogniser=ears, evaluate_student={"language": "zh", "benchmark": "manifest"}), "params.yaml"
    )
    assert (both.teacher.language, both.judged_language) == ("en", "zh")
    assert both.for_evaluation().teacher.language == "zh"


def test_older_params_state_their_language_in_the_evaluation(values: dict[str, Any]) -> None:
    del values["teacher"]["language"]
    for knob in ("max_reference_wer", "max_teacher_wer", "min_voice_contrast"):
        del values["register_model"][knob]
    older = parse_params(changed(values, recogniser={"model": "small"}, evaluate_student={"language": "fr"}), "p")
    assert (older.teacher.language, older.judged_language) == ("fr", "fr")
    gate = older.register_model
    assert (gate.max_reference_wer, gate.max_teacher_wer, gate.min_voice_contrast) == (0.1, 0.2, 0.05)
    del values["evaluate_student"]["language"]
    assert parse_params(values, "p").judged_language == "en"


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"evaluate_student": {"language": "zh"}}, "evaluate_student.language: observed zh for benchmark nano"),
        (
            {"teacher": {"language": "de"}},
            "recogniser.model: observed bundled, which knows English alone, for language de",
        ),
        (
            {"teacher": {"language": "de"}, "recogniser": {"model": "small.en"}},
            "recogniser.model: observed small.en, which knows English alone, for language de",
        ),
        (
            {"recogniser": {"normalizer": "seed_tts_eval_zh"}},
            "recogniser.normalizer: observed seed_tts_eval_zh for language en",
        ),
    ],
)
def test_judges_of_another_language_are_refused(values: dict[str, Any], sections: Any, line: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        parse_params(changed(values, **sections), "params.yaml")
    assert str(error.value).startswith(line) and "; next: " in str(error.value)
