"""The blind test: what is asked, remembered and exported is what `slimtts report --votes` reads back."""

import argparse
import json

import pytest

from slimtts.commands import report as command
from slimtts.errors import InvalidInputError
from slimtts.report.votes import blind_order, read_ballots, run_key, scramble

PAIR = ("student", "teacher")


def start(page, listener="anna"):
    page.click("#open-blind")
    page.fill("#listener", listener)
    page.click("#start")


def asked(content, listener="anna"):
    return blind_order(content.blind_ids(PAIR), run_key(content.facts.evaluation), listener, PAIR)


def vote(page, choice, a, b):
    page.click(f'[data-field="choice"][data-value="{choice}"]')
    page.click(f'[data-field="score_a"][data-value="{a}"]')
    page.click(f'[data-field="score_b"][data-value="{b}"]')
    page.click("#next")


def exported(page, button, path):
    with page.expect_download() as download:
        page.click(button)
    download.value.save_as(path)
    return path, download.value.suggested_filename


@pytest.mark.parametrize("text", ["", "a", "größe|1", "zwölf 𝄞 Boxkämpfer" * 20])
def test_page_and_reader_scramble_alike(page, text):
    assert page.evaluate("text => scramble(text)", text) == scramble(text)


def test_all_votes_are_exported_and_read_back(page, content, tmp_path, capsys):
    start(page)
    for place, (name, _, _) in enumerate(asked(content)):
        text = next(sentence.text for sentence in content.sentences if sentence.id == name)
        assert page.inner_text("#blind blockquote") == text
        assert page.inner_text("#step") == f"Sentence {place + 1} of 4"
        assert "student" not in page.inner_text("#blind") and "teacher" not in page.inner_text("#blind")
        assert page.is_disabled("#next"), "a vote needs a preference and both opinions"
        vote(page, ("a", "b", "none", "a")[place], 1 + place, 5 - place)
    path, name = exported(page, "#export", tmp_path / "votes.json")
    assert name == "votes-toy-anna.json"
    (ballot,) = read_ballots([path], content)
    assert [(v.id, v.a, v.b) for v in ballot.votes] == asked(content)
    assert [(v.choice, v.score_a, v.score_b) for v in ballot.votes] == [
        ("a", 1, 5), ("b", 2, 4), ("none", 3, 3), ("a", 4, 2),
    ]  # fmt: skip
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    run, out = content.workspace.root, tmp_path / "out"
    command.run(parser.parse_args(["--run", str(run), "--out", str(out), "--votes", str(path)]))
    assert "4 votes of 1 listener" in capsys.readouterr().out
    assert "What listeners said, blind" in (out / "index.html").read_text()
    values = json.loads(path.read_text())
    values["votes"][0]["choice"] = "b"
    path.write_text(json.dumps(values))
    with pytest.raises(InvalidInputError, match="a checksum that does not fit"):
        command.run(parser.parse_args(["--run", str(run), "--out", str(out), "--votes", str(path)]))


def test_votes_outlive_the_page_and_can_be_corrected(page, content, tmp_path):
    start(page)
    vote(page, "a", 4, 2)
    vote(page, "b", 3, 5)
    page.reload()
    assert page.locator("#blind").is_visible(), "#blind opens the test"
    page.fill("#listener", "anna")
    page.click("#start")
    assert page.inner_text("#step") == "Sentence 3 of 4"
    page.click("#before")
    assert page.get_attribute('[data-field="score_b"][data-value="5"]', "aria-pressed") == "true"
    page.click('[data-field="score_b"][data-value="4"]')
    page.click("#next")
    path, _ = exported(page, "#export-now", tmp_path / "votes.json")
    (ballot,) = read_ballots([path], content)
    assert [(v.choice, v.score_b) for v in ballot.votes] == [("a", 2), ("b", 4)]
    page.reload()
    page.fill("#listener", "bert")
    page.click("#start")
    assert page.inner_text("#step") == "Sentence 1 of 4", "another listener begins anew"


def test_the_keyboard_plays_rates_and_votes(page, content):
    start(page)
    page.keyboard.press("b")
    page.wait_for_function("() => blind.clips.b.playing && blind.clips.b.audio.currentTime > 0")
    page.keyboard.press("2")
    page.keyboard.press("a")
    page.wait_for_function("() => blind.clips.a.playing && !blind.clips.b.playing")
    page.keyboard.press("5")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.inner_text("#step") == "Sentence 2 of 4"
    assert page.evaluate("() => [blind.session.votes[0]].map(v => [v.choice, v.score_a, v.score_b])") == [["a", 5, 2]]
    _, a, _ = asked(content)[0]
    assert page.evaluate("() => blind.session.votes[0].a") == a


def test_the_way_back_leads_to_the_comparison(page):
    start(page)
    page.click("text=Back to the comparison")
    assert page.locator("#compare").is_visible() and not page.locator("#blind").is_visible()
    assert "#blind" not in page.url
