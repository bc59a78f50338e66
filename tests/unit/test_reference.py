"""The reference is what the code says."""

from pathlib import Path

from infra.reference import allowed_of, main, reference, remarks_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current(capsys):
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_every_knob_has_a_line_and_a_meaning():
    import yaml

    text = (ROOT / "params.yaml").read_text()
    knobs = {(section, knob) for section, values in yaml.safe_load(text).items() for knob in values}
    assert set(remarks_of(text)) == knobs
    page = reference(text)
    for _, knob in knobs:
        assert f"| `{knob}` | `" in page


def test_what_is_allowed_reads_as_words():
    assert allowed_of({"type": "number", "exclusiveMinimum": 0, "maximum": 1}) == "number above 0 to 1"
    assert allowed_of({"type": "integer", "minimum": 1}) == "integer 1 or more"
    assert allowed_of({"enum": ["a", "b"]}) == "`a`, `b`"
    assert allowed_of({"anyOf": [{"type": "number"}, {"type": "null"}]}) == "number or null"
