import pytest

from slimtts.evaluation.systems import SpokenItem
from slimtts.evaluation.word_errors import WordErrors
from slimtts.stages.kept_audio import choose_kept


def items(*errors):
    return [
        SpokenItem(f"u{place}", "a b", "", WordErrors(2 - wrong, wrong, 0, 0), True, 1.0, 0.5 + 0.01 * place, None)
        for place, wrong in enumerate(errors)
    ]


def test_two_thirds_are_drawn_before_anybody_looks_at_errors_and_the_others_are_the_worst():
    kept = choose_kept(items(0, 1, 0, 2, 0, 1, 0, 1, 2, 0), 6)
    assert [place for place, chosen in kept.items() if chosen == "random"] == [0, 1, 2, 3]
    assert [place for place, chosen in kept.items() if chosen == "worst"] == [5, 8], "the lower similarity of equals"


@pytest.mark.parametrize(("sentences", "count", "random", "worst"), [(3, 24, 3, 0), (20, 24, 16, 4), (9, 1, 1, 0)])
def test_there_are_never_more_than_asked_for_nor_than_there_are(sentences, count, random, worst):
    chosen = list(choose_kept(items(*[0] * sentences), count).values())
    assert (chosen.count("random"), chosen.count("worst")) == (random, worst)
