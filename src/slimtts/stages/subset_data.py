"""Stage 1: less than five per cent of the teacher's data, and the sentences that will judge."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from slimtts.data.manifest import SPLITS, Utterance, data_sha256, write_utterances
from slimtts.data.prompts import assign_prompts
from slimtts.data.sources import CodecFacts, SpeechSource, manifest_source, token_corpus_source
from slimtts.data.splits import Candidate
from slimtts.data.subset import Subset, select_subset, total_hours, vocabulary_of
from slimtts.errors import InvalidInputError
from slimtts.params import Params
from slimtts.results import SplitSummary, SubsetReport
from slimtts.stages.score_layers import open_recognizer, transcriber
from slimtts.stages.teacher_speech import Demands, keep_best, lines_to_speak, progress_folder, speak_lines
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)

BUNDLED = "bundled"
MIN_SPEECH_S = 0.4  # less holds no sentence


def subset_data(params: Params, workspace: Workspace) -> SubsetReport:
    """Chooses and writes train, selection and test with a prompt for each held-out utterance.

    Held-out splits and all prompts are recorded speech; `subset_data.speech` says whose speech train holds.

    Raises:
        InvalidInputError: the source is bad or too small; the former data stay as they were.
    """
    knobs = params.subset_data
    teacher = load_teacher(params.teacher, with_model=knobs.speech != "corpus")
    source = open_source(knobs.source, teacher, workspace.root)
    # One of the new tokens is END.
    max_duration_s = (params.decoding.max_new_tokens - 1) / teacher.codec.frame_rate_hz
    subset = select_subset(source.candidates, knobs, teacher.training_hours, MIN_SPEECH_S, max_duration_s)
    prompts = assign_prompts([*subset.selection, *subset.test], subset.train, knobs.seed)
    files = {split: _utterances(getattr(subset, split), source) for split in SPLITS}
    workspace.speaking_progress.mkdir(parents=True, exist_ok=True)  # an output for DVC, whoever speaks
    spoken: list[Utterance] = []
    dropped = Counter[str]()
    if knobs.speech != "corpus":
        spoken, dropped = speak(teacher, subset, files["train"], params, workspace.speaking_progress)
    if knobs.speech == "teacher":
        prompt_ids = set(prompts.values())
        files["recorded"] = [row for row in files["train"] if row.id in prompt_ids]
        files["train"] = spoken
    else:
        files["train"] += spoken
    with atomic_path(workspace.data) as folder:
        folder.mkdir()
        for name, rows in files.items():
            write_utterances(folder / f"{name}.jsonl", rows)
        (folder / "prompts.json").write_text(json.dumps(prompts, indent=0, sort_keys=True) + "\n")
        report = _report(subset, dropped, len(spoken), params, teacher.training_hours, data_sha256(folder))
        report.write(folder / "report.json")
    logger.info(
        "%s chose %d utterances, %.2f of the teacher's %.2f h (%.1f %%), %.0f %% of the words; "
        "the teacher spoke %d; dropped %s",
        report.strategy,
        len(subset.train),
        subset.hours,
        teacher.training_hours,
        100 * report.share,
        100 * report.word_coverage,
        report.teacher_spoken,
        report.dropped or "none",
    )
    return report


def speak(
    teacher: Teacher, subset: Subset, recorded: Sequence[Utterance], params: Params, progress: Path
) -> tuple[list[Utterance], Counter[str]]:
    """The texts of the subset and further ones, spoken by the teacher; `recorded` is the subset's own speech.

    Raises:
        InvalidInputError: too few further texts, an id without room for the teacher's version, or no usable take.
    """
    knobs = params.subset_data
    targets = [*subset.train, *further_texts(subset, knobs.extra_texts)]
    lines = lines_to_speak(targets, subset.train, {row.id: row for row in recorded}, knobs.seed)
    recognizer = open_recognizer(params.recogniser)
    folder = progress_folder(progress, lines, params, teacher, recognizer.name)
    transcribe = transcriber(teacher, recognizer)
    with tqdm(total=len(lines), desc="the teacher speaks", unit="text") as bar:
        takes = speak_lines(teacher, lines, params, transcribe, MIN_SPEECH_S, folder, lambda n: bar.update(n))
    demands = Demands(knobs.max_take_wer, MIN_SPEECH_S * teacher.codec.frame_rate_hz)
    spoken, dropped = keep_best(lines, takes, demands, teacher.codec.frame_rate_hz)
    if not spoken:
        raise InvalidInputError(
            "subset_data.speech",
            f"no usable take of {len(lines)} texts ({dict(dropped)})",
            "at least one",
            "raise max_take_wer or teacher_takes, or train on the corpus",
        )
    return spoken, dropped


def further_texts(subset: Subset, count: int) -> tuple[Candidate, ...]:
    """The first `count` rows, in seeded order, that the budget left out and whose voice has a recording to prompt with.

    Raises:
        InvalidInputError: there are fewer.
    """
    voices = {row.voice for row in subset.train}
    rows = [row for row in subset.left_out if row.voice in voices]
    if len(rows) < count:
        raise InvalidInputError(
            "subset_data.extra_texts",
            count,
            f"at most {len(rows)}: the train texts outside the budget, in voices within it",
            "lower extra_texts or give a source with more sentences",
        )
    return tuple(rows[:count])


def open_source(source: str, teacher: Teacher, root: Path) -> SpeechSource:
    """The teacher's own corpus for "bundled", else the manifest at that path (a relative one starts at `root`).

    Raises:
        InvalidInputError: the teacher came without a corpus, or the source is bad.
    """
    codec = teacher.codec
    facts = CodecFacts(codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codes, codec.encode)
    if source != BUNDLED:
        return manifest_source(root / source, facts)
    if teacher.corpus_folder is None:
        raise InvalidInputError(
            "subset_data.source",
            "bundled",
            "the path of a manifest.jsonl, for this teacher came without a corpus",
            "write a manifest and name it in params.yaml",
        )
    return token_corpus_source(teacher.corpus_folder, facts)


def _utterances(rows: tuple[Candidate, ...], source: SpeechSource) -> list[Utterance]:
    return [Utterance(row.id, row.text, row.voice, source.codes_of(row.id), row.duration_s) for row in rows]


def _report(
    subset: Subset, dropped_takes: Counter[str], teacher_spoken: int, params: Params, teacher_hours: float, sha256: str
) -> SubsetReport:
    splits: dict[str, tuple[Candidate, ...]] = {
        "train": subset.train,
        "selection": subset.selection,
        "test": subset.test,
    }
    return SubsetReport(
        strategy=params.subset_data.strategy,
        teacher_hours=teacher_hours,
        share=subset.share,
        word_coverage=subset.word_coverage,
        splits={
            name: SplitSummary(utterances=len(rows), hours=total_hours(rows), words=len(vocabulary_of(rows)))
            for name, rows in splits.items()
        },
        dropped={**subset.dropped, **dropped_takes},
        data_sha256=sha256,
        teacher_spoken=teacher_spoken,
    )
