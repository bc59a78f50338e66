import math
import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimtts.data.prompts import assign_prompts
from slimtts.data.splits import Candidate, draw_splits
from slimtts.data.subset import WANTED_OCCURRENCES, Subset, select_subset, vocabulary_of
from slimtts.data.texts import text_key, words_of
from slimtts.errors import InvalidInputError
from slimtts.params import SubsetDataParams

STRATEGIES = ("random", "balanced", "coverage")


def params(strategy: str = "random", share: float = 0.04, selection: int = 2, test: int = 3, seed: int = 1):
    return SubsetDataParams(
        source="bundled",
        strategy=strategy,
        max_share=share,
        selection_utterances=selection,
        test_utterances=test,
        speech="corpus",
        teacher_takes=1,
        teacher_temperature=0.8,
        max_take_wer=0.0,
        extra_texts=0,
        text_list="",
        on_bad_audio="fail",
        seed=seed,
    )


def choose(rows: list[Candidate], settings_: SubsetDataParams, budget_s: float = 100.0) -> Subset:
    """The subset within `budget_s` seconds, whatever the share."""
    return select_subset(rows, settings_, budget_s / 3600 / settings_.max_share, 0.4, 5.0)


def corpus(size: int = 300, seed: int = 0, voices: str = "abc") -> list[Candidate]:
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(60)]
    weights = [1 / (1 + i) for i in range(60)]
    return [
        Candidate(
            f"u{i}",
            " ".join(rng.choices(words, weights, k=rng.randint(2, 6))),
            rng.choice(voices),
            rng.randint(10, 100) / 25,
        )
        for i in range(size)
    ]


# Few words and many cases of them: the same sentence comes often, in different spellings.
candidates = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["one", "two", "three", "four", "five", "six"]), min_size=1, max_size=3),
        st.sampled_from([str.lower, str.upper, lambda text: text + "!"]),
        st.sampled_from("ab"),
        st.floats(0.1, 6.0),
    ),
    min_size=1,
    max_size=60,
).map(
    lambda rows: [
        Candidate(f"u{i}", spell(" ".join(words)), voice, duration)
        for i, (words, spell, voice, duration) in enumerate(rows)
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    rows=candidates,
    splits=st.none() | st.lists(st.sampled_from(["train", "selection", "test"]), min_size=60),
    strategy=st.sampled_from(STRATEGIES),
    budget_s=st.floats(1.0, 60.0),
    seed=st.integers(0, 3),
)
def test_splits_are_disjoint_and_within_budget(rows, splits, strategy, budget_s, seed) -> None:
    if splits is not None:
        rows = [Candidate(r.id, r.text, r.voice, r.duration_s, s) for r, s in zip(rows, splits, strict=False)]
    try:
        subset = choose(rows, params(strategy, seed=seed), budget_s)
    except InvalidInputError as error:
        assert "usable sentences" in str(error) or "budget too small" in str(error)
        return
    assert math.fsum(row.duration_s for row in subset.train) <= budget_s
    assert subset.share <= 0.04
    parts = {"train": subset.train, "selection": subset.selection, "test": subset.test}
    assert (len(subset.selection), len(subset.test)) == (2, 3)
    ids = [row.id for part in parts.values() for row in part]
    assert len(ids) == len(set(ids))
    texts = {name: {text_key(row.text) for row in part} for name, part in parts.items()}
    assert not texts["train"] & texts["selection"] and not texts["train"] & texts["test"]
    assert not texts["selection"] & texts["test"]
    assert len(texts["selection"]) == 2 and len(texts["test"]) == 3
    assert all(row.split in (None, name) for name, part in parts.items() for row in part)
    if splits is not None:
        taught = {text_key(row.text) for row in rows if row.split == "train" and 0.4 <= row.duration_s <= 5.0}
        assert not taught & (texts["selection"] | texts["test"])
    prompts = assign_prompts([*subset.selection, *subset.test], subset.train, seed)
    voice_of = {row.id: row.voice for row in subset.train}
    assert all(voice_of[prompts[row.id]] == row.voice for row in (*subset.selection, *subset.test))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_seed_decides_and_the_order_of_rows_does_not(strategy: str) -> None:
    rows = corpus()
    shuffled = random.Random(5).sample(rows, len(rows))
    assert choose(rows, params(strategy)) == choose(shuffled, params(strategy))
    assert choose(rows, params(strategy)).train != choose(rows, params(strategy, seed=2)).train
    assert choose(rows, params(strategy)).test != choose(rows, params(strategy, seed=2)).test


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_budget_is_used(strategy: str) -> None:
    subset = choose(corpus(), params(strategy), 100.0)
    assert 99.0 < 3600 * subset.hours <= 100.0
    assert subset.share == pytest.approx(0.04, rel=0.01)


def test_balanced_gives_each_voice_equal_time() -> None:
    rows = corpus(600, voices="aaaaaaab")
    spent: Counter[str] = Counter()
    for row in choose(rows, params("balanced"), 150.0).train:
        spent[row.voice] += row.duration_s
    assert abs(spent["a"] - spent["b"]) < 5.0
    unequal: Counter[str] = Counter()
    for row in choose(rows, params("random"), 150.0).train:
        unequal[row.voice] += row.duration_s
    assert unequal["a"] > 3 * unequal["b"]


def test_a_voice_that_runs_out_leaves_its_share_to_the_others() -> None:
    rows = [row for row in corpus(600) if row.voice != "c"] + [Candidate("rare", "word1 rare", "c", 2.0)]
    assert 3600 * choose(rows, params("balanced"), 150.0).hours > 145.0


def test_coverage_hears_rare_words_first() -> None:
    rows = corpus(600)
    covered = {strategy: choose(rows, params(strategy), 60.0).word_coverage for strategy in STRATEGIES}
    assert covered["coverage"] > max(covered["random"], covered["balanced"])
    subset = choose(rows, params("coverage"), 400.0)
    assert subset.word_coverage == 1.0
    heard = Counter(word for row in subset.train for word in set(words_of(row.text)))
    held = {text_key(row.text) for row in (*subset.selection, *subset.test)}
    there = Counter(
        word
        for row in rows
        if text_key(row.text) not in held and row.duration_s <= 5
        for word in set(words_of(row.text))
    )
    assert all(heard[word] >= min(WANTED_OCCURRENCES, there[word]) for word in there)


def test_word_coverage_by_hand() -> None:
    rows = [Candidate("t", "held out", "a", 1.0, "test"), Candidate("s", "kept back", "a", 1.0, "selection")]
    rows += [Candidate(f"u{i}", f"common word{i}", "a", 2.0, "train") for i in range(4)]
    subset = choose(rows, params(selection=1, test=1), 4.5)
    assert len(subset.train) == 2 and subset.word_coverage == 3 / 5
    assert vocabulary_of(subset.test) == {"held", "out"}


def test_dropped_rows_are_counted_by_reason() -> None:
    rows = [Candidate(f"u{i}", f"sentence {i}", "a", 1.5, "train") for i in range(5)]
    rows += [Candidate(f"t{i}", f"test {i}", "a", 1.0, "test") for i in range(3)]
    rows += [Candidate(f"s{i}", f"select {i}", "a", 1.0, "selection") for i in range(2)]
    bad = [
        Candidate("short", "too short", "a", 0.3, "train"),
        Candidate("long", "too long", "a", 5.1, "test"),
        Candidate("known", "SENTENCE 1!", "a", 1.0, "test"),
        Candidate("stranger", "who is this", "z", 1.0, "test"),
        Candidate("again", "Test 1", "a", 1.0, "test"),
        Candidate("both", "test 2.", "a", 1.0, "selection"),
    ]
    subset = choose(rows + bad, params())
    assert subset.dropped == {
        "selection_text_also_in_test": 1,
        "test_text_also_in_train": 1,
        "test_text_repeated": 1,
        "test_voice_not_in_train": 1,
        "too_long": 1,
        "too_short": 1,
    }


def test_more_test_sentences_keep_the_former_ones() -> None:
    rows = corpus()
    few = draw_splits(rows, 2, 10, seed=1)
    many = draw_splits(rows, 2, 20, seed=1)
    assert few.test == many.test[:10]


@pytest.mark.parametrize(
    ("rows", "settings_", "budget_s", "what"),
    [
        (corpus(4), params(selection=1, test=30), 100.0, "subset_data.test_utterances"),
        (corpus(40), params(selection=500, test=1), 100.0, "subset_data.selection_utterances"),
        (corpus(), params(), 0.5, "budget too small"),
        (corpus() * 2, params(), 100.0, "2 rows; allowed: unique ids"),
        ([*corpus(), Candidate("x", "other words", "a", 1.0, "test")], params(), 100.0, "no split although"),
        ([Candidate("x", "other words", "a", 1.0, "dev")], params(), 100.0, "split 'dev'"),
        ([], params(), 100.0, "0 usable sentences"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_one_line(one_line, rows, settings_, budget_s: float, what: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        choose(rows, settings_, budget_s)
    assert what in one_line(error.value)


def test_sentences_that_are_too_long_for_the_decoding_are_named(one_line) -> None:
    rows = [Candidate(f"u{i}", f"text {i}", "a", 9.0) for i in range(50)]
    with pytest.raises(InvalidInputError) as error:
        choose([*corpus(4), *rows], params(selection=1, test=30), 100.0)
    assert "too_long 50); allowed: at least 30" in one_line(error.value)
    assert str(error.value).endswith("or raise decoding.max_new_tokens for longer ones")


@pytest.mark.parametrize("hours", [0.0, -1.0, math.nan, math.inf])
def test_a_teacher_without_hours_has_no_share(one_line, hours: float) -> None:
    with pytest.raises(InvalidInputError) as error:
        select_subset(corpus(), params(), hours, 0.4, 5.0)
    assert "training hours" in one_line(error.value)


def test_prompts_prefer_a_length_that_carries_a_voice() -> None:
    train = [Candidate(f"u{i}", f"text {i}", "a", i / 10, None) for i in range(4, 50)]
    train += [Candidate("b-short", "text", "b", 0.5), Candidate("b-long", "other", "b", 4.0)]
    held_out = [Candidate(f"t{i}", f"test {i}", "a", 1.0) for i in range(100)] + [Candidate("tb", "test", "b", 1.0)]
    prompts = assign_prompts(held_out, train, seed=1)
    lengths = {float(prompts[row.id][1:]) / 10 for row in held_out if row.voice == "a"}
    assert min(lengths) >= 1.2 and max(lengths) <= 2.5 and len(lengths) > 8
    assert prompts["tb"] == "b-short"
    assert prompts == assign_prompts(held_out[::-1], train[::-1], seed=1)
    assert prompts != assign_prompts(held_out, train, seed=2)


def test_a_voice_without_training_utterance_cannot_be_prompted(one_line) -> None:
    with pytest.raises(InvalidInputError) as error:
        assign_prompts([Candidate("t", "test", "z", 1.0)], [Candidate("u", "text", "a", 1.0)], seed=1)
    assert "'t'" in one_line(error.value) and "'z'" in str(error.value)


def test_forty_thousand_sentences_take_seconds() -> None:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(5000)]
    weights = [1 / (1 + i) for i in range(5000)]
    drawn = rng.choices(words, weights, k=40_000 * 8)
    rows = [
        Candidate(f"u{i}", " ".join(drawn[8 * i : 8 * i + 8]), f"v{i % 20}", 2.0 + i % 7 / 10) for i in range(40_000)
    ]
    start = time.process_time()
    subset = choose(rows, params("coverage", selection=128, test=500), 20_000.0)
    assert time.process_time() - start < 5
    assert len(subset.train) > 7000
