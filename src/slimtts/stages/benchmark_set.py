"""The sentences that judge, each with a prompt: the run's own test split, or a benchmark from outside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimtts.data.audio import resample
from slimtts.data.benchmark_files import BenchmarkRow, Sound, read_benchmark, rows_sha256
from slimtts.data.code_cache import cache_folder, codec_fingerprint, encode_recordings
from slimtts.data.manifest import Utterance
from slimtts.data.speech_source import CodecFacts, FileRecording
from slimtts.errors import InvalidInputError
from slimtts.params import Params
from slimtts.shared_work import make_items
from slimtts.stages.voices import SpeakingTask, speaking_tasks
from slimtts.teachers.base import Prompt, Teacher
from slimtts.workspace import Workspace

OWN = "nano"  # the test split that subset_data chose


@dataclass(frozen=True)
class BenchmarkSet:
    """What is said after which prompts; `sha256` names it, `rows_there` is how many its file holds.

    Prompts that came as audio are in `recordings`, by id; a system's voice is compared with these.
    """

    tasks: list[SpeakingTask]
    sha256: str
    rows_there: int
    recordings: Mapping[str, FileRecording]

    def prompt_waves(self, teacher: Teacher) -> list[np.ndarray]:
        """float32 [N] of each task's prompt at the codec's rate: as recorded, else through the codec."""
        waves = []
        for task in self.tasks:
            recording = self.recordings.get(task.utterance.id)
            if recording is None:
                wave = teacher.audio(task.prompt.codes)
            else:
                wave = resample(*recording.read(), teacher.codec.sample_rate_hz)
            waves.append(wave.numpy())
        return waves


def hash_tasks(tasks: Sequence[SpeakingTask]) -> str:
    """Names the test set: texts, prompts, order."""
    rows = [(t.utterance.id, t.utterance.text, t.prompt.text, t.prompt.codes) for t in tasks]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def benchmark_rows(params: Params, root: Path, num_codes: int) -> list[BenchmarkRow]:
    """All rows of `evaluate_student.benchmark_source`, a relative path of which starts at `root`; none for the run's
    own test split.

    Raises:
        InvalidInputError: a source without a benchmark or the other way round, or a row or a recording of it is bad.
    """
    knobs = params.evaluate_student
    if (knobs.benchmark == OWN) != (not knobs.benchmark_source):
        raise InvalidInputError(
            "evaluate_student.benchmark_source",
            f"'{knobs.benchmark_source}' for benchmark {knobs.benchmark}",
            f'"" for {OWN}, the path of its list for every other',
            "correct params.yaml",
        )
    return [] if knobs.benchmark == OWN else read_benchmark(knobs.benchmark, root / knobs.benchmark_source, num_codes)


def open_benchmark(params: Params, workspace: Workspace, teacher: Teacher) -> BenchmarkSet:
    """The first `evaluate_student.utterances` sentences of `evaluate_student.benchmark`.

    Sound is encoded by the teacher's codec, once.

    Raises:
        InvalidInputError: as `benchmark_rows`.
    """
    knobs = params.evaluate_student
    there = benchmark_rows(params, workspace.root, teacher.layout.num_codes)
    if not there:
        tasks = speaking_tasks(workspace, "test", knobs.utterances)
        return BenchmarkSet(tasks, hash_tasks(tasks), len(tasks), {})
    rows = there[: knobs.utterances]
    sha256 = rows_sha256(rows)
    codes = encoded_sounds(rows, sha256, params, teacher, workspace.root / "progress" / "benchmark_codes")
    tasks = [task_of(row, codes, teacher.codec.frame_rate_hz) for row in rows]
    recordings = {row.id: row.prompt for row in rows if isinstance(row.prompt, FileRecording)}
    return BenchmarkSet(tasks, sha256, len(there), recordings)


def task_of(row: BenchmarkRow, codes: Mapping[str, Sequence[int]], frame_rate_hz: float) -> SpeakingTask:
    """A row as the stage speaks it; an utterance without an original has no codes."""

    def codes_of(kind: str, sound: Sound | None) -> tuple[int, ...]:
        return tuple(codes[f"{kind}/{row.id}"]) if isinstance(sound, FileRecording) else sound or ()

    original = codes_of("original", row.original)
    utterance = Utterance(row.id, row.text, row.voice, original, len(original) / frame_rate_hz)
    return SpeakingTask(utterance, Prompt(row.prompt_text, codes_of("prompt", row.prompt), row.voice))


def encoded_sounds(
    rows: Sequence[BenchmarkRow], sha256: str, params: Params, teacher: Teacher, folder: Path
) -> dict[str, list[int]]:
    """Codes of `prompt/ID` and `original/ID`; made by one process, kept in `folder`, found again by codec and set."""
    sounds = {f"prompt/{row.id}": row.prompt for row in rows} | {f"original/{row.id}": row.original for row in rows}
    recordings = {name: sound for name, sound in sounds.items() if isinstance(sound, FileRecording)}
    if not recordings:
        return {}
    codec, named = teacher.codec, params.teacher
    mark = codec_fingerprint(codec, " ".join((named.family, named.source, named.revision, named.codec)))
    kept = f"{hashlib.sha256((mark + sha256).encode()).hexdigest()[:16]}.json"
    facts = CodecFacts(codec.sample_rate_hz, codec.frame_rate_hz, codec.num_codes, codec.encode)

    def encode(out: Path) -> None:
        shards = cache_folder(folder / "shards", mark)
        out.write_text(json.dumps(encode_recordings(recordings, facts, shards, drop_bad_audio=False).codes))

    make_items(folder, {kept: encode})
    codes: dict[str, list[int]] = json.loads((folder / kept).read_text())
    return codes
