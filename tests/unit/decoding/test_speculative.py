"""Speculative decoding: the target's own speech under the exact rule, whatever the draft; END, caches, counters."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from slimtts.decoding import ras
from slimtts.decoding.generation import generate_batch, sample
from slimtts.decoding.speculative import SpeculativeDecoder, speak_with_draft, speculative_decoder
from slimtts.decoding.speculative_distributions import distributions, drawn
from slimtts.decoding.speculative_lanes import LeanLane, PlainLane, make_lane
from slimtts.decoding.speculative_rules import Exact, Tolerant
from slimtts.errors import InvalidInputError
from slimtts.params import DecodingParams
from slimtts.pruning.surgery import remove_layers
from slimtts.teachers.base import Prompt, SpeechTokenLayout

GREEDY = DecodingParams(temperature=0.0, top_p=1.0, max_new_tokens=16, batch_rows=4, seed=1)
SAMPLED = GREEDY.model_copy(update={"temperature": 0.9, "top_p": 0.9, "top_k": 12})
WAYS = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "repetition aware": GREEDY.model_copy(update={"temperature": 1.0, "top_p": 0.8, "repetition_aware": True}),
    "penalty": GREEDY.model_copy(update={"temperature": 0.7, "repetition_penalty": 1.3}),
}
TEXTS = ["anna.", "the green tiger.", "seven apple castle green tiger.", "tiger.", "green apple."]
# The chi-square distribution of 14 degrees of freedom is above this once in a thousand times.
CRITICAL_14 = 36.12


@pytest.fixture(scope="module")
def draft(teacher):
    return replace(teacher, model=remove_layers(teacher.model, [0, 3]))


@pytest.fixture(scope="module")
def near(teacher):
    """A draft that mostly agrees."""
    model = remove_layers(teacher.model, range(teacher.num_layers))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return replace(teacher, model=model)


def prompts(teacher):
    return [teacher.prompt_ids(text, Prompt("anna.", (1, 2, 3)[:k])) for k, text in enumerate(TEXTS)]


class FreshLane(PlainLane):
    """Computes everything anew at every pass: nothing that was dropped can leave a trace."""

    def logits(self, place, width):
        hidden = self.model.model(input_ids=self.ids[None, : place.stop], use_cache=False).last_hidden_state
        return torch.nn.functional.linear(hidden[0, place], self.head, self.bias).float()


def decoder(target, draft, rule=None, length=3, lane=make_lane):
    return SpeculativeDecoder(lane(target.model, target.layout), lane(draft.model, draft.layout), rule, length)


def led_by_the_device(speaker, *utterance):
    """Runs a round as a graph would: places are known to the device alone, and attention has a bound."""
    list(speaker.rounds(*utterance))
    rounds = speaker._rounds
    rounds._graphs = SimpleNamespace(run=rounds._round)
    return speaker


@pytest.mark.parametrize("length", [0, 1, 3, 8, 40])
@pytest.mark.parametrize("lane", [make_lane, PlainLane])
def test_greedy_equals_plain_greedy_token_for_token(teacher, draft, length, lane):
    plain = [generate_batch(teacher.model, teacher.layout, [ids], GREEDY)[0] for ids in prompts(teacher)[:3]]
    speaker = decoder(teacher, draft, None, length, lane)
    assert [speaker.generate(ids, GREEDY) for ids in prompts(teacher)[:3]] == plain


def test_greedy_with_a_penalty_equals_plain_greedy(teacher, draft):
    decoding = GREEDY.model_copy(update={"repetition_penalty": 1.4})
    plain = [generate_batch(teacher.model, teacher.layout, [ids], decoding)[0] for ids in prompts(teacher)]
    speaker = decoder(teacher, draft)
    assert [speaker.generate(ids, decoding) for ids in prompts(teacher)] == plain
    assert plain != [generate_batch(teacher.model, teacher.layout, [ids], GREEDY)[0] for ids in prompts(teacher)]


def test_known_models_get_the_fast_lane(teacher):
    assert isinstance(make_lane(teacher.model, teacher.layout), LeanLane)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lane", [make_lane, PlainLane])
def test_dropped_proposals_leave_no_trace(teacher, near, way, lane):
    reused, fresh = decoder(teacher, near, lane=lane), decoder(teacher, near, lane=FreshLane)
    for seed, ids in enumerate(prompts(teacher)[:3]):
        assert list(reused.rounds(ids, WAYS[way], seed)) == list(fresh.rounds(ids, WAYS[way], seed))
    assert reused.counts == fresh.counts
    assert 0 < reused.counts.acceptance < 1  # blocks were taken whole and in part


@pytest.mark.parametrize("way", WAYS)
def test_a_round_that_only_the_device_leads_says_the_same(teacher, near, way):
    ids = prompts(teacher)[2]
    by_device, by_host = led_by_the_device(decoder(teacher, near), ids, WAYS[way]), decoder(teacher, near)
    for seed in range(3):
        assert list(by_device.rounds(ids, WAYS[way], seed)) == list(by_host.rounds(ids, WAYS[way], seed))


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_no_more_codes_than_allowed(teacher, draft, most):
    decoding = GREEDY.model_copy(update={"max_new_tokens": most})
    for ids in prompts(teacher):
        plain = generate_batch(teacher.model, teacher.layout, [ids], decoding)[0]
        assert decoder(teacher, draft).generate(ids, decoding) == plain


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_drafts_for_itself_is_never_refused(teacher, way):
    speculative = decoder(teacher, teacher)
    for seed, ids in enumerate(prompts(teacher)):
        speculative.generate(ids, WAYS[way], seed)
    assert speculative.counts.acceptance > 0.99  # a block and single steps may differ by rounding
    assert speculative.counts.codes_per_target_pass > 2


@pytest.mark.parametrize("way", WAYS)
def test_speech_is_seeded_and_streamed_as_it_is_generated(teacher, draft, way):
    ids = prompts(teacher)[2]
    whole = decoder(teacher, draft).generate(ids, WAYS[way], 7)
    assert tuple(decoder(teacher, draft).stream(ids, WAYS[way], 7)) == whole.codes
    if way != "greedy":
        assert any(decoder(teacher, draft).generate(ids, WAYS[way], seed) != whole for seed in range(4))


@pytest.mark.parametrize("way", WAYS)
def test_distributions_are_those_that_the_plain_decoder_draws_from(way):
    decoding, codes = WAYS[way], 9
    logits = 2 * torch.randn(3, codes, generator=torch.Generator().manual_seed(3))
    said = torch.tensor([4, 4, 7, 1])  # the last place follows all four
    places = [said[:end] for end in (2, 3, 4)]
    recent = torch.stack([torch.cat([torch.full((ras.WINDOW - len(before),), -1), before]) for before in places])
    met = torch.zeros(3, codes, dtype=torch.bool)
    for row, before in enumerate(places):
        met[row, [2, *before.tolist()]] = True  # 2 stands in the prompt
    p, _ = distributions(logits, decoding, recent, met)
    even = (torch.arange(20_000) + 0.5) / 20_000
    for place, before in enumerate(places):
        row = logits[place].clone()
        if decoding.repetition_penalty > 1:
            for code in {2, *before.tolist()}:
                row[code] *= decoding.repetition_penalty if row[code] < 0 else 1 / decoding.repetition_penalty
        rows = row.expand(len(even), -1)
        chosen = sample(rows, decoding.temperature, decoding.top_p, even, decoding.top_k)
        if decoding.repetition_aware:
            again = sample(rows, decoding.temperature, 1.0, even[torch.randperm(len(even))])
            chosen = torch.where(torch.isin(chosen, before), again, chosen)
        share = torch.bincount(chosen, minlength=codes) / len(even)
        torch.testing.assert_close(p[place], share, atol=0.02 if decoding.repetition_aware else 2e-4, rtol=0)


def random_table(seed):
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))


def test_a_draw_follows_the_weights_and_never_takes_one_without():
    weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 0.0]).expand(3000, -1)
    chosen = drawn(weights, torch.arange(3000) / 3000)
    assert torch.bincount(chosen, minlength=5).tolist() == pytest.approx([0, 2000, 0, 1000, 0], abs=1)
    assert drawn(weights[:2], torch.tensor([0.0, 1.0])).tolist() == [1, 3]


class Chain(torch.nn.Module):
    """A language model whose next token depends on the last one alone: its sequences' probabilities are known.

    `table` holds the logits of code 0, code 1 and END after the ids START, code 0, code 1, END.
    """

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(torch.as_tensor(table, dtype=torch.float32))
        self.head = torch.nn.Linear(3, 4, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(4)[:, 1:])
        self.model, self.config = self._hidden, None

    def _hidden(self, input_ids, past_key_values, use_cache):
        return type("Out", (), {"last_hidden_state": self.table[input_ids]})

    def get_output_embeddings(self):
        return self.head


class NoCache:
    def __init__(self, config=None):
        pass

    def get_seq_length(self):
        return 0

    def crop(self, tokens):
        pass


CHAIN_LAYOUT = SpeechTokenLayout(first_code_id=1, num_codes=2, end_id=3, pad_id=0)


def all_probabilities(chain, length):
    """Of every sequence of a chain, END (2) included, up to `length` tokens."""
    p = torch.softmax(chain.table.detach().double(), -1)
    whole, open_ones = {}, {(): 1.0}
    for _ in range(length):
        longer = {(*s, c): w * float(p[s[-1] + 1 if s else 0, c]) for s, w in open_ones.items() for c in range(3)}
        whole |= {s: w for s, w in longer.items() if s[-1] == 2}
        open_ones = {s: w for s, w in longer.items() if s[-1] != 2}
    return whole | open_ones


def chi_square(rule, length, monkeypatch, runs=1200):
    """Of what was spoken against what the target alone would speak; the degrees of freedom."""
    monkeypatch.setattr("slimtts.decoding.speculative_lanes.DynamicCache", NoCache)
    target, other = Chain(random_table(0)), Chain(random_table(1))
    decoding = GREEDY.model_copy(update={"temperature": 1.0, "max_new_tokens": 3})
    speaker = SpeculativeDecoder(PlainLane(target, CHAIN_LAYOUT), PlainLane(other, CHAIN_LAYOUT), rule, length)
    heard = Counter()
    for seed in range(runs):
        spoken = speaker.generate([0], decoding, seed)
        heard[(*spoken.codes, 2) if spoken.ended else spoken.codes] += 1
    expected = {s: w * runs for s, w in all_probabilities(target, 3).items()}
    assert set(heard) <= set(expected)
    return sum((heard[s] - e) ** 2 / e for s, e in expected.items()), len(expected) - 1


@pytest.mark.parametrize("length", [1, 3])
def test_sampled_speech_is_distributed_as_the_targets_own(length, monkeypatch):
    distance, freedom = chi_square(Exact(), length, monkeypatch)
    assert (freedom, distance < CRITICAL_14) == (14, True), distance


def test_a_tolerance_makes_it_differ_and_the_test_above_sees_it(monkeypatch):
    distance, freedom = chi_square(Tolerant(0.4), 3, monkeypatch)
    assert (freedom, distance > 2 * CRITICAL_14) == (14, True), distance


# Logits after START, 0, 1 that make "0 1 END" of the target; other drafts end too early or never.
SAYS_01, ENDS_AT_ONCE, NEVER_ENDS = ([0, 1, 2], [2, 2, 2], [0, 1, 0])


def always(codes):
    return Chain([*torch.nn.functional.one_hot(torch.tensor(codes), 3).tolist(), [1, 0, 0]])


@pytest.mark.parametrize(
    ("draft_says", "proposed", "taken"),
    [(SAYS_01, [1, 1, 1], [1, 1, 1]), (ENDS_AT_ONCE, [3], [1]), (NEVER_ENDS, [1, 1, 1, 1], [1, 1, 0, 0])],
)
def test_end_inside_a_block(draft_says, proposed, taken, monkeypatch):
    monkeypatch.setattr("slimtts.decoding.speculative_lanes.DynamicCache", NoCache)
    lanes = [PlainLane(always(codes), CHAIN_LAYOUT) for codes in (SAYS_01, draft_says)]
    speaker = SpeculativeDecoder(*lanes, draft_length=4)
    spoken = speaker.generate([0], GREEDY)
    assert (spoken.codes, spoken.ended) == ((0, 1), True)
    assert (speaker.counts.proposed, speaker.counts.taken, speaker.counts.codes) == (proposed, taken, 3)


@pytest.mark.parametrize("rule", ["exact", "ssd:0.4", "pcg:0.2", "top-k:4"])
@pytest.mark.parametrize("way", ["greedy", "sampled"])
def test_counters_agree_with_what_was_said_and_computed(teacher, near, rule, way, monkeypatch):
    passes = Counter()
    inner = LeanLane.logits
    monkeypatch.setattr(LeanLane, "logits", lambda lane, *a: (passes.update([id(lane)]), inner(lane, *a))[1])
    speaker = speculative_decoder(teacher, near, rule, 3)
    rounds = [r for seed, ids in enumerate(prompts(teacher)) for r in speaker.rounds(ids, WAYS[way], seed)]
    said, counts = sum(map(len, rounds)), speaker.counts
    assert (counts.rounds, counts.codes) == (len(rounds), said)
    assert (passes[id(speaker.target)], passes[id(speaker.draft)]) == (len(rounds), 3 * len(rounds))
    assert counts.codes_per_target_pass == said / len(rounds)
    # A round says one code more than it takes, but for the last one of an utterance.
    assert 0 <= counts.rounds + sum(counts.taken) - said <= len(TEXTS)
    assert sum(counts.proposed) <= passes[id(speaker.draft)]
    assert all(taken <= proposed for taken, proposed in zip(counts.taken, counts.proposed, strict=True))
    assert counts.taken == sorted(counts.taken, reverse=True)
    assert counts.acceptance == sum(counts.taken) / sum(counts.proposed)


@pytest.mark.parametrize("rule", ["ssd:1", "top-k:1000"])
def test_a_rule_that_takes_everything_says_what_the_draft_says(teacher, draft, rule):
    speaker = speculative_decoder(teacher, draft, rule, GREEDY.max_new_tokens)
    for ids in prompts(teacher):
        alone = generate_batch(draft.model, draft.layout, [ids], GREEDY)[0].codes
        said = speaker.generate(ids, GREEDY).codes
        assert said == alone


def test_a_draft_may_number_its_tokens_differently(teacher, draft):
    shift = -5
    moved = remove_layers(draft.model, range(draft.num_layers))
    size = moved.get_input_embeddings().num_embeddings
    with torch.no_grad():
        for weight in (moved.get_input_embeddings().weight, moved.get_output_embeddings().weight):
            weight.copy_(weight.roll(shift, 0))
    there = draft.layout
    layout = replace(there, first_code_id=there.first_code_id + shift, end_id=there.end_id + shift)
    speaker = SpeculativeDecoder(make_lane(teacher.model, teacher.layout), make_lane(moved, layout))
    same = decoder(teacher, draft)
    for ids in prompts(teacher):
        shifted = [(token + shift) % size for token in ids]
        assert speaker.generate(ids, SAMPLED, draft_prompt=shifted) == same.generate(ids, SAMPLED)
    assert speaker.counts == same.counts


def test_a_text_is_spoken_by_two_models(teacher, draft):
    prompt = Prompt("anna.", (1, 2))
    spoken, counts = speak_with_draft(teacher, draft, "green tiger.", prompt, GREEDY, "exact", 2)
    ids = teacher.prompt_ids("green tiger.", prompt)
    assert spoken == generate_batch(teacher.model, teacher.layout, [ids], GREEDY)[0]
    assert counts.codes == len(spoken.codes) + spoken.ended


def test_refusals(teacher, draft):
    other = replace(draft.layout, num_codes=draft.layout.num_codes - 1)
    with pytest.raises(InvalidInputError, match=r"15 codes.*student of this teacher"):
        SpeculativeDecoder(make_lane(teacher.model, teacher.layout), make_lane(draft.model, other))
    with pytest.raises(InvalidInputError, match="draft length"):
        speculative_decoder(teacher, draft, draft_length=-1)
    with pytest.raises(InvalidInputError, match="ssd:BETA"):
        speculative_decoder(teacher, draft, "nearly")
