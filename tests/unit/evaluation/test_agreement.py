"""Agreement with the teacher by position: exact where it can be computed by hand, and independent of batching."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import slimtts.evaluation.agreement as agreement
from slimtts.decoding.generation import spoken_head
from slimtts.decoding.teacher_forcing import collate, forced_sequence, hidden_states
from slimtts.errors import InvalidInputError
from slimtts.evaluation.agreement import (
    PositionAgreement,
    measure_agreement,
    position_agreement,
    summarize_agreement,
    target_states,
)
from slimtts.teachers.base import Prompt
from slimtts.testing.tiny import tiny_teacher, tiny_utterances

SPOKEN = [(u, Prompt("tiger", (1, 2, 3), u.voice)) for u in tiny_utterances(6)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return tiny_teacher(tmp_path_factory.mktemp("stranger"), seed=1)


def agreement_of(teacher, system, spoken=SPOKEN):
    return position_agreement(target_states(teacher, spoken), target_states(system, spoken))


def test_a_model_agrees_with_itself_at_every_code_and_at_end(teacher):
    for (utterance, _), found in zip(SPOKEN, agreement_of(teacher, teacher), strict=True):
        assert len(found.same) == len(utterance.codes) + 1
        assert (found.same == 1).all()
        np.testing.assert_allclose(found.kl_nats, 0, atol=1e-6)


@torch.inference_mode()
def test_numbers_are_those_of_each_utterance_alone_with_dense_logits(teacher, stranger, monkeypatch):
    monkeypatch.setattr(agreement, "ROWS_AT_ONCE", 3)  # rows that do not divide evenly
    found = agreement_of(teacher, stranger)
    for (utterance, prompt), one in zip(SPOKEN, found, strict=True):
        logits = []
        for system in (teacher, stranger):
            batch = collate([forced_sequence(system, utterance, prompt)], system.layout.pad_id)
            hidden = hidden_states(system.model, batch)[batch.is_target]
            logits.append(F.linear(hidden, spoken_head(system.model, system.layout)))
        p, q = (F.log_softmax(rows, dim=-1) for rows in logits)
        np.testing.assert_array_equal(one.same, (p.argmax(-1) == q.argmax(-1)).float().numpy())
        np.testing.assert_allclose(one.kl_nats, (p.exp() * (p - q)).sum(-1).numpy(), rtol=1e-4, atol=1e-5)
    assert max(one.kl_nats.max() for one in found) > 0.01, "two random models differ"


def test_order_of_utterances_changes_nothing(teacher, stranger):
    there, back = agreement_of(teacher, stranger), agreement_of(teacher, stranger, SPOKEN[::-1])
    for a, b in zip(there, back[::-1], strict=True):
        np.testing.assert_allclose(a.kl_nats, b.kl_nats, rtol=1e-4, atol=1e-5)


def test_bins_cover_every_position_once_and_count_who_got_there():
    short, long = PositionAgreement(np.ones(2), np.zeros(2)), PositionAgreement(np.zeros(40), np.full(40, 3.0))
    summary = summarize_agreement([short, long], samples=50, seed=1)
    assert [b.first for b in summary.bins] == list(range(0, 40, 3))
    assert [b.last for b in summary.bins] == [*range(2, 39, 3), 39]
    assert [b.utterances for b in summary.bins] == [2, *[1] * 13]
    assert (summary.bins[0].top1.value, summary.bins[1].top1.value) == (0.5, 0.0)
    assert (summary.top1.value, summary.kl_nats.value) == (0.5, 1.5)


def test_folders_are_compared_with_the_teachers_own(teacher, stranger):
    report = measure_agreement(teacher, {"same": teacher.folder, "other": stranger.folder}, SPOKEN, 50, 1)
    assert report.utterances == len(SPOKEN)
    assert report.systems["same"].top1.value == 1.0
    assert report.systems["other"].top1.value < 1.0


def test_no_utterances_are_refused():
    with pytest.raises(InvalidInputError):
        summarize_agreement([], samples=10, seed=1)
