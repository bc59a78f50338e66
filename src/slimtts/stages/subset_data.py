"""Stage 1: less than five per cent of the teacher's data, and the sentences that will judge."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from slimtts.data.manifest import SPLITS, Utterance, data_sha256, write_utterances
from slimtts.data.prompts import assign_prompts
from slimtts.data.sources import CodecFacts, SpeechSource, manifest_source, token_corpus_source
from slimtts.data.splits import Candidate
from slimtts.data.subset import Subset, select_subset, total_hours, vocabulary_of
from slimtts.errors import InvalidInputError
from slimtts.params import Params
from slimtts.results import SplitSummary, SubsetReport
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)

BUNDLED = "bundled"
MIN_SPEECH_S = 0.4  # less holds no sentence


def subset_data(params: Params, workspace: Workspace) -> SubsetReport:
    """Chooses and writes train, selection and test with a prompt for each held-out utterance.

    Raises:
        InvalidInputError: the source is bad or too small; the former data stay as they were.
    """
    teacher = load_teacher(params.teacher, with_model=False)
    source = open_source(params.subset_data.source, teacher, workspace.root)
    # One of the new tokens is END.
    max_duration_s = (params.decoding.max_new_tokens - 1) / teacher.codec.frame_rate_hz
    subset = select_subset(source.candidates, params.subset_data, teacher.training_hours, MIN_SPEECH_S, max_duration_s)
    prompts = assign_prompts([*subset.selection, *subset.test], subset.train, params.subset_data.seed)
    with atomic_path(workspace.data) as folder:
        folder.mkdir()
        for split in SPLITS:
            write_utterances(folder / f"{split}.jsonl", _utterances(getattr(subset, split), source))
        (folder / "prompts.json").write_text(json.dumps(prompts, indent=0, sort_keys=True) + "\n")
        report = _report(subset, params.subset_data.strategy, teacher.training_hours, data_sha256(folder))
        report.write(folder / "report.json")
    logger.info(
        "%s chose %d utterances, %.2f of the teacher's %.2f h (%.1f %%), %.0f %% of the words; dropped %s",
        report.strategy,
        len(subset.train),
        subset.hours,
        teacher.training_hours,
        100 * report.share,
        100 * report.word_coverage,
        report.dropped or "none",
    )
    return report


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


def _report(subset: Subset, strategy: str, teacher_hours: float, sha256: str) -> SubsetReport:
    splits: dict[str, tuple[Candidate, ...]] = {
        "train": subset.train,
        "selection": subset.selection,
        "test": subset.test,
    }
    return SubsetReport(
        strategy=strategy,
        teacher_hours=teacher_hours,
        share=subset.share,
        word_coverage=subset.word_coverage,
        splits={
            name: SplitSummary(utterances=len(rows), hours=total_hours(rows), words=len(vocabulary_of(rows)))
            for name, rows in splits.items()
        },
        dropped=subset.dropped,
        data_sha256=sha256,
    )
