import json

import pytest

from slimtts.errors import InvalidInputError
from slimtts.report.content import read_content
from slimtts.report.page import write_folder
from slimtts.report.votes import Ballot, Vote, blind_order, checksum, read_ballots, run_key, scramble, tally
from slimtts.testing.finished_run import write_finished_run
from tasks.workspace import CHECKOUT

PAIR = ("student", "teacher")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return read_content(write_finished_run(tmp_path_factory.mktemp("votes") / "toy", CHECKOUT / "params.yaml"))


def ballot(content, listener="anna", preferred="student", pair=PAIR, count=None, scores=(4, 3)):
    """Votes that always prefer the same system, "none" for none; `scores` are those of the pair."""
    report = content.facts.evaluation
    key, votes = run_key(report), []
    for name, a, b in blind_order(content.blind_ids(pair), key, listener, pair)[:count]:
        choice = "a" if a == preferred else "b" if b == preferred else "none"
        of = dict(zip(pair, scores, strict=True))
        votes.append(Vote(id=name, a=a, b=b, choice=choice, score_a=of[a], score_b=of[b]))
    values = {
        "format": "slimtts-ballot-1", "test_set_sha256": report.test_set_sha256,
        "weights_sha256": report.weights_sha256, "listener": listener, "pair": pair, "votes": votes, "checksum": 0,
    }  # fmt: skip
    made = Ballot(**values)
    return made.model_copy(update={"checksum": checksum(key, made)})


def written(tmp_path, *ballots):
    paths = [tmp_path / f"votes-{place}.json" for place in range(len(ballots))]
    for path, made in zip(paths, ballots, strict=True):
        path.write_text(made.model_dump_json())
    return paths


def test_ballots_are_read_back_and_counted(content, tmp_path):
    made = [
        ballot(content), ballot(content, "bert"), ballot(content, "carl", "teacher", scores=(2, 5)),
        ballot(content, "dora", "none", count=2, scores=(4, 4)),
    ]  # fmt: skip
    counted = tally(read_ballots(written(tmp_path, *made), content), 500, 1)
    assert (counted.votes, counted.for_first, counted.undecided, counted.for_second) == (14, 8, 2, 4)
    assert (counted.won, counted.lost) == (4, 0), "two of three prefer the student in every sentence"
    assert counted.p_value == pytest.approx(2 / 2**4)
    assert (counted.preferred.value, counted.preferred.high) == (1.0, 1.0)
    assert counted.preferred.low == pytest.approx(0.025**0.25), "Clopper-Pearson, all of four"
    assert counted.mos["student"].low <= counted.mos["student"].value <= counted.mos["student"].high
    assert counted.mos_gap.value == pytest.approx(counted.mos["student"].value - counted.mos["teacher"].value)
    assert "14 votes of 4 listeners: student preferred in 8, teacher in 4, neither in 2." in counted.in_words()
    json.dumps(counted.as_json(), allow_nan=False)


def test_no_preference_at_all_is_no_evidence(content, tmp_path):
    counted = tally(read_ballots(written(tmp_path, ballot(content, preferred="none")), content), 100, 1)
    assert counted.preferred is None and counted.p_value == 1.0
    assert "No sentence has a preference." in counted.in_words()


def test_the_page_shows_the_votes(content, tmp_path):
    counted = tally(read_ballots(written(tmp_path, ballot(content)), content), 100, 1)
    page = write_folder(content, tmp_path / "out", counted).read_text()
    assert "What listeners said, blind" in page and "4 votes of 1 listener: student preferred in 4" in page


def changed(made, **values):
    return made.model_copy(update=values)


def first_vote(made, **values):
    return changed(made, votes=[changed(made.votes[0], **values), *made.votes[1:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: changed(b, test_set_sha256="0" * 64), "observed another run's test_set_sha256"),
        (lambda b: changed(b, weights_sha256={"teacher": "x"}), "observed another run's weights_sha256"),
        (lambda b: changed(b, pair=("student", "nobody")), "observed pair .*nobody"),
        (lambda b: changed(b, pair=("student", "student")), "observed pair"),
        (lambda b: changed(b, votes=[]), "observed no votes"),
        (lambda b: changed(b, votes=b.votes[::-1]), "other sentences, order or sides"),
        (lambda b: changed(b, listener="bert"), "other sentences, order or sides|checksum"),
        (lambda b: first_vote(b, a=b.votes[0].b, b=b.votes[0].a), "other sentences, order or sides"),
        (lambda b: first_vote(b, id="u4"), "other sentences, order or sides"),
        (lambda b: first_vote(b, choice="none"), "a checksum that does not fit"),
        (lambda b: first_vote(b, score_a=1), "a checksum that does not fit"),
        (lambda b: changed(b, votes=b.votes[:-1]), "a checksum that does not fit"),
    ],
)
def test_foreign_and_changed_ballots_are_refused(content, tmp_path, change, message):
    with pytest.raises(InvalidInputError, match=message) as error:
        read_ballots(written(tmp_path, change(ballot(content))), content)
    assert "\n" not in str(error.value) and "votes-0.json" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "observed content: Invalid JSON"),
        ("[]", "observed content: Input should be an object"),
        ('{"format": "slimtts-ballot-9"}', "observed format: Input should be 'slimtts-ballot-1'"),
        (" " * ((1 << 20) + 1), "bytes"),
    ],
)
def test_what_is_no_ballot_is_refused(content, tmp_path, text, message):
    path = tmp_path / "votes.json"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        read_ballots([path], content)
    with pytest.raises(InvalidInputError, match="no such file"):
        read_ballots([tmp_path / "nowhere.json"], content)


@pytest.mark.parametrize("score", [0, 6, 4.0, True, "4"])
def test_an_opinion_is_a_whole_number_of_one_to_five(content, tmp_path, score):
    values = ballot(content).model_dump(mode="json")
    values["votes"][0]["score_a"] = score
    path = tmp_path / "votes.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InvalidInputError, match=r"votes\.0\.score_a"):
        read_ballots([path], content)


def test_a_listener_counts_once_and_pairs_are_not_mixed(content, tmp_path):
    with pytest.raises(InvalidInputError, match="listener 'anna' again"):
        read_ballots(written(tmp_path, ballot(content), ballot(content)), content)
    other = ballot(content, "bert", pair=("student", "control"))
    with pytest.raises(InvalidInputError, match="student against control, others student against teacher"):
        read_ballots(written(tmp_path, ballot(content), other), content)


def test_order_and_sides_depend_on_the_listener_and_both_sides_occur():
    ids = [f"u{i}" for i in range(200)]
    anna, bert = (blind_order(ids, "run", listener, PAIR) for listener in ("anna", "bert"))
    assert anna == blind_order(ids[::-1], "run", "anna", PAIR) != bert
    assert sorted(name for name, _, _ in anna) == sorted(ids)
    assert 70 < sum(a == "student" for _, a, _ in anna) < 130


def test_the_scrambling_is_fixed_because_pages_that_were_sent_out_use_it():
    assert [scramble(text) for text in ("", "a", "größe|1")] == [0xAB3E7C0B, 0x1A80B1B3, 0x1A19116C]
