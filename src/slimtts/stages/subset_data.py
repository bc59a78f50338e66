"""Stage 1: less than five per cent of the teacher's data, and the sentences that will judge."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from slimtts.data.code_cache import EncodedRecordings, cache_folder, codec_fingerprint, encode_recordings
from slimtts.data.llasa_memmap import TokenRows
from slimtts.data.manifest import SPLITS, Utterance, data_sha256, write_utterances
from slimtts.data.prompts import assign_prompts
from slimtts.data.sources import ALLOWED, open_path, token_corpus_source
from slimtts.data.speech_source import CodecFacts, Recording, SpeechSource
from slimtts.data.splits import Candidate
from slimtts.data.subset import Subset, select_subset, total_hours, vocabulary_of
from slimtts.data.text_list import read_text_list
from slimtts.errors import InvalidInputError
from slimtts.evaluation.word_meter import WordMeter, open_recognizer
from slimtts.params import Params
from slimtts.progress import doing, progress_bar
from slimtts.quantization.placement import place_for_speech
from slimtts.results import SplitSummary, SubsetReport
from slimtts.stages.teacher_speech import Demands, keep_best, lines_to_speak, misread, progress_folder, speak_lines
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)

BUNDLED = "bundled"
EXAMPLES = 3  # of dropped texts in the log
MIN_SPEECH_S = 0.4  # less holds no sentence


def subset_data(params: Params, workspace: Workspace) -> SubsetReport:
    """Chooses and writes train, selection and test with a prompt for each held-out utterance.

    Held-out splits and all prompts are recorded speech; `subset_data.speech` says whose speech train holds.

    Raises:
        InvalidInputError: the source is bad or too small; the former data stay as they were.
    """
    knobs = params.subset_data
    teacher = load_teacher(params.teacher, with_model=knobs.speech != "corpus")
    with doing(f"rows of {knobs.source} are read"):
        source = open_source(params, teacher, workspace.root)
    subset, codes, dropped = choose(source, teacher, params, workspace.encoding_progress)
    prompts = assign_prompts([*subset.selection, *subset.test], subset.train, knobs.seed)
    files = {split: _utterances(getattr(subset, split), codes) for split in SPLITS}
    for progress in (workspace.encoding_progress, workspace.speaking_progress):
        progress.mkdir(parents=True, exist_ok=True)  # outputs for DVC, whoever speaks
    spoken: list[Utterance] = []
    if knobs.speech != "corpus":
        spoken, dropped_takes = speak(teacher, subset, files["train"], params, workspace)
        dropped += dropped_takes
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


def choose(
    source: SpeechSource, teacher: Teacher, params: Params, progress: Path
) -> tuple[Subset, dict[str, tuple[int, ...]], Counter[str]]:
    """The subset, the codes of its rows by id, and the source's rows that cannot be used, by reason.

    A chosen recording that turns out bad when it is encoded is not there for the next choice.

    Raises:
        InvalidInputError: the source is too small, or a recording is bad and `subset_data.on_bad_audio` says fail.
    """
    unusable = unreadable_texts(source, teacher)
    while True:
        subset = first_choice(source, teacher, params, unusable)
        ids = [row.id for split in SPLITS for row in getattr(subset, split)]
        encoded = encode_chosen(
            {i: source.recordings[i] for i in ids if i in source.recordings}, teacher, params, progress
        )
        if not encoded.unusable:
            codes = {i: encoded.codes[i] if i in encoded.codes else source.codes_of(i) for i in ids}
            return subset, codes, source.dropped + Counter(unusable.values())
        unusable |= encoded.unusable


def unreadable_texts(source: SpeechSource, teacher: Teacher) -> dict[str, str]:
    """Ids of rows whose text this teacher cannot read, with the reason."""
    return {row.id: "text_unreadable" for row in source.candidates if teacher.family.unreadable(row.text)}


def first_choice(source: SpeechSource, teacher: Teacher, params: Params, unusable: Collection[str] = ()) -> Subset:
    """The subset as far as texts and durations tell, without the `unusable` ids.

    Raises:
        InvalidInputError: too few sentences, or a budget too small.
    """
    max_duration_s = (params.decoding.max_new_tokens - 1) / teacher.codec.frame_rate_hz  # one new token is END
    candidates = [row for row in source.candidates if row.id not in unusable]
    return select_subset(candidates, params.subset_data, teacher.training_hours, MIN_SPEECH_S, max_duration_s)


def encode_chosen(
    recordings: Mapping[str, Recording], teacher: Teacher, params: Params, progress: Path
) -> EncodedRecordings:
    """Codes of the recordings; those made before stay in `progress`.

    Raises:
        BadAudioError: a recording is bad and `subset_data.on_bad_audio` says fail.
    """
    if not recordings:
        return EncodedRecordings()
    named = params.teacher
    name = " ".join((named.family, named.source, named.revision, named.codec))
    folder = cache_folder(progress, codec_fingerprint(teacher.codec, name))
    with progress_bar(total=len(recordings), desc="recordings are encoded", unit="recording") as bar:
        return encode_recordings(
            recordings, _facts(teacher), folder, params.subset_data.on_bad_audio == "drop", lambda n: bar.update(n)
        )


def speak(
    teacher: Teacher, subset: Subset, recorded: Sequence[Utterance], params: Params, workspace: Workspace
) -> tuple[list[Utterance], Counter[str]]:
    """The texts of the subset and further ones, spoken by the teacher; `recorded` is the subset's own speech.

    Raises:
        InvalidInputError: a bad list of texts, an id without room for the teacher's version, or no usable take.
    """
    knobs = params.subset_data
    targets, unlisted = texts_of_the_teacher(subset, params, workspace.root)
    lines = lines_to_speak(targets, subset.train, {row.id: row for row in recorded}, knobs.seed)
    words = WordMeter(params, open_recognizer(params.recogniser))
    folder = progress_folder(workspace.speaking_progress, lines, params, teacher, words.name)
    transcribe = words.transcriber(teacher.codec.sample_rate_hz)
    place_for_speech(teacher.model)
    with progress_bar(total=len(lines), desc="the teacher speaks", unit="text") as bar:
        takes = speak_lines(teacher, lines, params, transcribe, MIN_SPEECH_S, folder, lambda n: bar.update(n))
    demands = Demands(knobs.max_take_wer, MIN_SPEECH_S * teacher.codec.frame_rate_hz)
    spoken, dropped = keep_best(lines, takes, demands, teacher.codec.frame_rate_hz)
    logger.info("%d of %d texts are kept as the teacher spoke them; dropped %s", len(spoken), len(lines), dict(dropped))
    for text, heard in misread(lines, takes, demands, most=EXAMPLES):
        logger.info("dropped for word errors: %r was heard as %r", text, heard)
    if not spoken:
        raise InvalidInputError(
            "subset_data.speech",
            f"no usable take of {len(lines)} texts ({dict(dropped)})",
            "at least one",
            "raise max_take_wer or teacher_takes, or train on the corpus",
        )
    return spoken, dropped + unlisted


def texts_of_the_teacher(subset: Subset, params: Params, root: Path) -> tuple[list[Candidate], Counter[str]]:
    """What the teacher is to speak, and lines of the text list that it is not to, by reason.

    Raises:
        InvalidInputError: a bad list of texts, or no text at all.
    """
    knobs = params.subset_data
    listed, unlisted = listed_texts(subset, params, root)
    same = [] if knobs.speech == "further" else subset.train
    targets = [*same, *further_texts(subset, knobs.extra_texts), *listed]
    if not targets:
        raise InvalidInputError(
            "subset_data.speech",
            f"{knobs.speech} with no text beside the recordings",
            "further texts outside the budget (extra_texts), or a text_list",
            "raise subset_data.extra_texts, or set subset_data.speech to corpus",
        )
    return targets, unlisted


def listed_texts(subset: Subset, params: Params, root: Path) -> tuple[list[Candidate], Counter[str]]:
    """Rows of `subset_data.text_list`, a relative path of which starts at `root`, and those left out, by reason.

    Raises:
        InvalidInputError: the file or a line is bad, or names a voice that is not there.
    """
    knobs = params.subset_data
    if not knobs.text_list:
        return [], Counter()
    spoken_anyway = [*subset.train, *further_texts(subset, knobs.extra_texts)]
    voices, held_out = {row.voice for row in subset.train}, [*subset.selection, *subset.test]
    return read_text_list(root / knobs.text_list, voices, spoken_anyway, held_out, knobs.seed)


def further_texts(subset: Subset, most: int) -> tuple[Candidate, ...]:
    """Rows, in seeded order, that the budget left out and whose voice has a recording to prompt with."""
    voices = {row.voice for row in subset.train}
    rows = [row for row in subset.left_out if row.voice in voices]
    return tuple(rows[:most])


def open_source(params: Params, teacher: Teacher, root: Path) -> SpeechSource:
    """The teacher's own corpus for "bundled", else what is at that path (a relative one starts at `root`).

    Raises:
        InvalidInputError: the teacher came without a corpus, or the source is bad.
    """
    knobs = params.subset_data
    if knobs.source != BUNDLED:
        layout = teacher.layout
        tokens = TokenRows(
            lambda ids: str(teacher.tokenizer.decode(ids, clean_up_tokenization_spaces=False)),
            layout.first_code_id,
            layout.num_codes,
            layout.end_id,
        )
        return open_path(root / knobs.source, _facts(teacher), tokens, knobs.on_bad_audio == "drop")
    if teacher.corpus_folder is None:
        raise InvalidInputError(
            "subset_data.source",
            "bundled",
            f"for this teacher, which came without a corpus, the path of {ALLOWED}",
            "name your data in params.yaml",
        )
    return token_corpus_source(teacher.corpus_folder, _facts(teacher))


def _facts(teacher: Teacher) -> CodecFacts:
    codec = teacher.codec
    return CodecFacts(codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codes, codec.encode)


def _utterances(rows: tuple[Candidate, ...], codes: Mapping[str, tuple[int, ...]]) -> list[Utterance]:
    return [Utterance(row.id, row.text, row.voice, codes[row.id], row.duration_s) for row in rows]


def _report(
    subset: Subset, dropped: Counter[str], teacher_spoken: int, params: Params, teacher_hours: float, sha256: str
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
        dropped={**subset.dropped, **dropped},
        data_sha256=sha256,
        teacher_spoken=teacher_spoken,
    )
