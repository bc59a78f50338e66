"""Which attempt counts."""

from slimtts.evaluation.systems import SpokenItem
from slimtts.evaluation.word_errors import WordErrors
from slimtts.params import load_params
from slimtts.stages.sentence_groups import best_of_name, best_take, take_decodings
from tasks.workspace import CHECKOUT


def item(name, wrong, ended=True):
    return SpokenItem(name, "a b c d", "", WordErrors(4 - wrong, wrong, 0, 0), ended, 1.0, 0.9, None)


def test_the_fewest_errors_win_then_an_end_then_the_earlier():
    first = [item("a", 2), item("b", 1, ended=False), item("c", 0), item("d", 3)]
    second = [item("a", 1), item("b", 1), item("c", 0), item("d", 4)]
    chosen = best_take([first, second])
    assert chosen[0] is second[0] and chosen[1] is second[1] and chosen[2] is first[2] and chosen[3] is first[3]


def test_attempts_differ_in_their_seed_alone():
    params = load_params(CHECKOUT / "params.yaml")
    knobs = params.evaluate_student.model_copy(update={"best_of": 3, "best_of_temperature": 0.7})
    params = params.model_copy(update={"evaluate_student": knobs})
    takes = take_decodings(params)
    assert [take.seed for take in takes] == [params.decoding.seed + i for i in range(3)]
    assert {take.temperature for take in takes} == {0.7}
    assert {take.model_copy(update={"seed": 0, "temperature": 0.0}) for take in takes} == {
        params.decoding.model_copy(update={"seed": 0, "temperature": 0.0})
    }
    assert best_of_name(knobs) == "best_of_3_by_wer"
