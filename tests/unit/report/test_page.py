import argparse
import json
import re
import subprocess
import sys

import pytest
import soundfile

from slimtts.commands import report as command
from slimtts.errors import InvalidInputError
from slimtts.report.content import as_json, read_content
from slimtts.report.page import FOLDER_POLICY, write_folder, write_single_file
from slimtts.results import EvaluationReport, Release
from slimtts.testing.finished_run import HOSTILE, SENTENCES, write_finished_run
from tasks.workspace import CHECKOUT


@pytest.fixture
def finished(tmp_path):
    return write_finished_run(tmp_path / "toy", CHECKOUT / "params.yaml")


def data_block(page):
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.S).group(1))


def test_the_folder_is_complete_and_names_nothing_outside_of_itself(finished, tmp_path):
    page = write_folder(read_content(finished), tmp_path / "out").read_text()
    paths = json.loads((tmp_path / "out" / "audio_paths.json").read_text())
    assert list(paths) == [sentence[0] for sentence in SENTENCES]
    assert "pruned" not in paths["u3"] and len(paths["u0"]) == 5
    for path in (path for cells in paths.values() for path in cells.values()):
        soundfile.info(tmp_path / "out" / path)
    content = data_block(page)
    for sentence in content["sentences"]:
        for sound in filter(None, [sentence["prompt"], *(cell["sound"] for cell in sentence["cells"].values())]):
            assert (tmp_path / "out" / sound["audio"]).is_file() and (tmp_path / "out" / sound["picture"]).is_file()
    files = [path for path in (tmp_path / "out").iterdir() if path.suffix in (".html", ".js", ".css")]
    assert len(files) == 6
    assert not re.search(r"https?://|//[a-z]", "".join(re.sub(r"//.*", "", f.read_text()) for f in files))
    assert FOLDER_POLICY.replace("'", "&#x27;") in page
    assert "unsafe" not in page


def test_text_cannot_become_markup(finished, tmp_path):
    page = write_folder(read_content(finished), tmp_path / "out").read_text()
    assert HOSTILE not in page and "<b>bold" not in page and "toy <asr>" not in page
    assert data_block(page)["sentences"][2]["text"] == HOSTILE
    assert as_json("</script><!--&") == '"\\u003c/script\\u003e\\u003c!--\\u0026"'


def test_marks_that_the_family_does_not_speak_are_no_errors(finished):
    params = finished / "params.yaml"
    params.write_text(params.read_text().replace("family: nano", "family: orpheus"))
    kept = finished / "evaluation" / "kept.json"
    kept.write_text(kept.read_text().replace("nora opened the market", "nora <laugh> opened the market"))
    _, second, *_ = read_content(finished).sentences
    assert second.text == "nora <laugh> opened the market"
    assert (second.cells["teacher"].wer, second.cells["student"].wer) == (0, 0.25)


def test_numbers_words_and_gaps_of_every_cell(finished):
    content = read_content(finished)
    assert [column.name for column in content.columns] == ["original", "teacher", "pruned", "student", "control"]
    first, second, _, fourth, *_ = content.sentences
    assert first.cells["pruned"].ended is False and first.cells["original"].similarity is None
    assert first.cells["original"].wer == 0 and first.cells["student"].wer == 0
    assert second.cells["student"].wer == 0.25
    assert fourth.cells["pruned"].sound is None
    assert content.blind_ids(("student", "teacher")) == ["u0", "u1", "u2", "u3"], "not the student's worst"
    assert content.blind_ids(("student", "pruned")) == ["u0", "u1", "u2"], "not where one is missing"


def test_recordings_of_the_corpus_have_a_column_where_they_were_kept(finished):
    folder = finished / "evaluation" / "audio" / "reference"
    folder.mkdir()
    (folder / "u1.wav").write_bytes((finished / "evaluation/audio/original/u1.wav").read_bytes())
    content = read_content(finished)
    assert content.columns[0].name == "reference"
    assert [bool(sentence.cells["reference"].sound) for sentence in content.sentences] == [False, True] + 4 * [False]


def test_the_top_tells_the_result_in_words(finished, tmp_path):
    page = write_folder(read_content(finished), tmp_path / "out").read_text()
    assert "The student has 6 of 12 layers and 50 % of the parameters" in page
    assert "makes 0.5 points more errors than its teacher (95 % interval +0.5 to +0.5 points, 100 sentences)" in page
    assert 'class="verdict accept"' in page and "at most 3 &lt; is allowed" in page
    assert "2.00\N{MULTIPLICATION SIGN}" in page


def test_a_run_without_a_verdict_or_with_numbers_that_are_none_has_a_page(finished, tmp_path):
    (finished / "release" / "release.json").unlink()
    path = finished / "evaluation" / "evaluation.json"
    values = json.loads(path.read_text())
    for system in values["systems"].values():
        system["mos"] = dict.fromkeys(("value", "low", "high"), "NaN")
        system["speed"]["lm_rtf"] = 0.0
    path.write_text(json.dumps(values | {"weights_sha256": {}}))
    page = write_folder(read_content(finished), tmp_path / "out").read_text()
    assert "Not judged yet" in page and "not measured" in page
    assert data_block(page)["blind"]["pairs"] == [], "votes could not be keyed"


def test_one_file_holds_everything_and_lets_only_its_own_script_run(finished, tmp_path):
    page = write_single_file(read_content(finished), tmp_path / "one.html").read_text()
    content = data_block(page)
    assert content["sentences"][0]["cells"]["student"]["sound"]["audio"].startswith("data:audio/mpeg;base64,")
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("sha256-") == 2


def test_the_same_run_makes_the_same_page(finished, tmp_path):
    pages = [write_single_file(read_content(finished), tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_a_folder_with_other_things_is_never_replaced(finished, tmp_path):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    with pytest.raises(InvalidInputError, match="holds other things"):
        write_folder(read_content(finished), precious)
    assert (precious / "thesis.txt").read_text() == "all of it"
    out = tmp_path / "out"
    out.mkdir()
    write_folder(read_content(finished), out)
    (out / "stale").touch()
    write_folder(read_content(finished), out)
    assert not (out / "stale").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("evaluation/utterances.jsonl", '{"system": "student"}\n', "utterances.jsonl line 1: observed id: Field"),
        ("evaluation/kept.json", "{}", "kept.json: observed sentences: Field required"),
        ("evaluation/audio/student/u0.wav", "RIFF", "audio .*u0.wav: observed"),
        ("pruned/plan.json", "", "plan.json: observed"),
    ],
)
def test_damaged_results_are_named_in_one_line(finished, tmp_path, name, text, message):
    (finished / name).write_text(text)
    with pytest.raises(InvalidInputError, match=message) as error:
        write_folder(read_content(finished), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="observed no evaluation"):
        read_content(tmp_path)


def test_the_command_writes_both_pages(finished, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(["--run", str(finished), "--one-file", str(tmp_path / "one.html"), "--json"]))
    pages = json.loads(capsys.readouterr().out)["pages"]
    assert pages == [str(finished / "report" / "index.html"), str(tmp_path / "one.html")]
    command.run(parser.parse_args(["--run", str(finished)]))
    assert "index.html: 6 sentences, 5 systems and recordings" in capsys.readouterr().out


def test_the_results_are_those_of_the_run(finished):
    facts = read_content(finished).facts
    assert facts.evaluation == EvaluationReport.read(finished / "evaluation" / "evaluation.json")
    assert facts.release == Release.read(finished / "release" / "release.json")


def test_flows_make_pages_without_loading_torch():
    code = "import sys, slimtts.report.page, slimtts.report.content; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"
