"""Sentences and attempts beside the test set, with numbers of their own: hard sentences, and the best of N attempts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from slimtts.data.hard_sentences import ENGLISH, NANO
from slimtts.data.manifest import Utterance
from slimtts.errors import InvalidInputError
from slimtts.evaluation.statistics import bootstrap_corpus_wer, bootstrap_mean
from slimtts.evaluation.systems import SpokenItem, mean_or_missing
from slimtts.params import DecodingParams, EvaluateStudentParams, Params
from slimtts.results import GroupResult
from slimtts.stages.benchmark_set import hash_tasks
from slimtts.stages.voices import SpeakingTask
from slimtts.teachers.nano import NanoFamily

HARD = "hard"
# Measured 2026-11-21 by benchmarks/hard_floor.py: hard sentences that flite says correctly 59.0 %, ordinary ones 0.0 %.
BUNDLED_EARS = (
    "The bundled recogniser hears only its own grammar and gets 59 % of correctly spoken hard sentences wrong: "
    "these rows measure it, not the systems."
)
CHOSEN_BY_ITS_JUDGE = "The recogniser that judges chose the attempts: no system's WER."


@dataclass(frozen=True)
class SentenceGroup:
    """What is said, in how many attempts, each with its decoding; task i has the prompt of test sentence `prompts[i]`.

    `parts` names rows of the group that have numbers of their own too.
    """

    name: str
    tasks: list[SpeakingTask]
    prompts: list[int]
    takes: list[DecodingParams]
    parts: Mapping[str, range] = field(default_factory=dict)
    caveat: str = ""

    @property
    def sha256(self) -> str:
        """Names texts, prompts and their order."""
        return hash_tasks(self.tasks)


def sentence_groups(params: Params, tasks: Sequence[SpeakingTask]) -> list[SentenceGroup]:
    """The groups that the params ask for; `tasks` are the test sentences, whose prompts the hard ones borrow.

    Raises:
        InvalidInputError: hard sentences of a language that has none here.
    """
    knobs = params.evaluate_student
    check_groups(params)
    groups = []
    if knobs.hard_sentences:
        groups.append(_hard_group(params, tasks))
    if knobs.best_of > 1:
        groups.append(
            SentenceGroup(
                best_of_name(knobs),
                list(tasks),
                list(range(len(tasks))),
                take_decodings(params),
                caveat=CHOSEN_BY_ITS_JUDGE,
            )
        )
    return groups


def check_groups(params: Params) -> None:
    """Raises InvalidInputError for hard sentences of a language that has none here."""
    if params.evaluate_student.hard_sentences and params.judged_language != "en":
        raise InvalidInputError(
            "evaluate_student.hard_sentences", f"true for language {params.judged_language}", "English has such a set",
            "say false; seed-tts-eval's hardcase.lst is one for zh",
        )  # fmt: skip


def best_of_name(knobs: EvaluateStudentParams) -> str:
    """Says that the recogniser that judges also chose."""
    return f"best_of_{knobs.best_of}_by_wer"


def take_decodings(params: Params) -> list[DecodingParams]:
    """Sampled, every attempt with its own seed."""
    knobs, decoding = params.evaluate_student, params.decoding
    return [
        decoding.model_copy(update={"temperature": knobs.best_of_temperature, "seed": decoding.seed + take})
        for take in range(knobs.best_of)
    ]


def _hard_group(params: Params, tasks: Sequence[SpeakingTask]) -> SentenceGroup:
    sentences = NANO if params.teacher.family == NanoFamily.name else ENGLISH
    caveat = BUNDLED_EARS if params.recogniser.model == "bundled" else ""
    hard: list[SpeakingTask] = []
    parts = {}
    for kind, texts in sentences.items():
        parts[kind] = range(len(hard), len(hard) + len(texts))
        for number, text in enumerate(texts):
            prompt = tasks[len(hard) % len(tasks)].prompt
            hard.append(SpeakingTask(Utterance(f"{HARD}-{kind}-{number}", text, prompt.voice, (), 0.0), prompt))
    return SentenceGroup(HARD, hard, [i % len(tasks) for i in range(len(hard))], [params.decoding], parts, caveat)


def best_take(takes: Iterable[Sequence[SpokenItem]]) -> list[SpokenItem]:
    """Of each sentence the attempt with the fewest word errors; of equals one that ended, then the earlier."""
    return [min(attempts, key=lambda item: (item.errors.wer, not item.ended)) for attempts in zip(*takes, strict=True)]


def group_results(
    groups: Sequence[SentenceGroup],
    heard: Mapping[str, Mapping[str, Sequence[SpokenItem]]],
    samples: int,
    seed: int,
) -> list[GroupResult]:
    """Numbers of each group and its parts, of every system; `heard` is system -> group -> items."""
    results = []
    for group in groups:
        parts = {group.name: range(len(group.tasks))} | {
            f"{group.name}/{part}": rows for part, rows in group.parts.items()
        }
        for name, rows in parts.items():
            for system, by_group in heard.items():
                items = [by_group[group.name][i] for i in rows]
                errors = [item.errors for item in items]
                results.append(
                    GroupResult(
                        group=name,
                        system=system,
                        utterances=len(items),
                        takes=len(group.takes),
                        temperature=group.takes[0].temperature,
                        test_set_sha256=group.sha256,
                        wer_corpus=bootstrap_corpus_wer(errors, samples, seed),
                        wer_mean=bootstrap_mean([e.wer for e in errors], samples, seed),
                        no_end_rate=sum(not item.ended for item in items) / len(items),
                        failures=sum(item.seconds == 0 for item in items),
                        similarity=mean_or_missing([item.similarity for item in items], samples, seed),
                        caveat=group.caveat,
                    )
                )
    return results
