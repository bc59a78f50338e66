"""Stage evaluate_student: teacher, pruned, student and control on the same texts, prompts and seeds."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from slimtts.decoding.generation import Generated, generate
from slimtts.evaluation.naturalness import MosPredictor
from slimtts.evaluation.recognition import Recognizer
from slimtts.evaluation.similarity import SpeakerSimilarity
from slimtts.evaluation.speed import SpeedJob, measure_speed
from slimtts.evaluation.systems import SpokenItem, SystemOutput, as_arrays, compare, summarize
from slimtts.evaluation.table import evaluation_table
from slimtts.evaluation.word_errors import corpus_wer, count_word_errors
from slimtts.params import Params
from slimtts.results import EvaluationReport, PairedGap, SystemResult
from slimtts.stages.score_layers import open_recognizer
from slimtts.stages.voices import SpeakingTask, speaking_tasks
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.loading import load_beside, load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)

WAVS_A_SYSTEM = 12


@dataclass(frozen=True)
class Judges:
    """The models that listen, and the voices they compare with."""

    recognizer: Recognizer
    similarity: SpeakerSimilarity
    mos: MosPredictor
    prompt_voices: np.ndarray


def system_folders(workspace: Workspace, teacher: Teacher) -> dict[str, Path]:
    """Where each compared system's checkpoint is; the control only when it was trained."""
    folders = {
        "teacher": teacher.folder,
        "pruned": workspace.pruned / "model",
        "student": workspace.student / "student",
        "control": workspace.student / "control",
    }
    return {name: folder for name, folder in folders.items() if folder.is_dir()}


def hash_tasks(tasks: Sequence[SpeakingTask]) -> str:
    """Names the test set: texts, prompts, order."""
    rows = [(t.utterance.id, t.utterance.text, t.prompt.text, t.prompt.codes) for t in tasks]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def describe_machine(threads: int) -> str:
    """Processor or GPU and threads, for the numbers that depend on them."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":")[1].strip()
        for line in (cpuinfo.read_text() if cpuinfo.is_file() else "").splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {threads} threads"


def listen(
    tasks: Sequence[SpeakingTask],
    spoken: Sequence[Generated],
    waves: Sequence[torch.Tensor],
    judges: Judges,
    params: Params,
    rate_hz: int,
) -> list[SpokenItem]:
    """What the judges heard."""
    audio = as_arrays(waves)
    transcripts = judges.recognizer.transcribe(audio, rate_hz)
    similarity = np.sum(judges.similarity.embed(audio, rate_hz) * judges.prompt_voices, axis=1)
    rated = judges.mos.predict(audio[: params.evaluate_student.mos_utterances], rate_hz)
    items = []
    for i, (task, made) in enumerate(zip(tasks, spoken, strict=True)):
        errors = count_word_errors(task.utterance.text, transcripts[i], params.recogniser.normalizer)
        items.append(
            SpokenItem(
                task.utterance.id,
                task.utterance.text,
                transcripts[i],
                errors,
                made.ended,
                len(audio[i]) / rate_hz,
                float(similarity[i]),
                rated[i] if i < len(rated) else None,
            )
        )
    return items


def write_wavs(folder: Path, tasks: Sequence[SpeakingTask], waves: Sequence[torch.Tensor], rate_hz: int) -> None:
    """The first utterances, named by their ids."""
    folder.mkdir(parents=True)
    for task, wave in list(zip(tasks, waves, strict=True))[:WAVS_A_SYSTEM]:
        soundfile.write(folder / f"{task.utterance.id}.wav", wave.numpy(), rate_hz, subtype="PCM_16")


def evaluate_student(params: Params, workspace: Workspace) -> EvaluationReport:
    """Writes evaluation.json, table.md, utterances.jsonl and audio/ below `workspace.evaluation`."""
    knobs, threads = params.evaluate_student, torch.get_num_threads()
    teacher = load_teacher(params.teacher, with_model=False)
    rate_hz = teacher.codec.sample_rate_hz
    tasks = speaking_tasks(workspace, "test", knobs.utterances)
    originals = [teacher.audio(t.utterance.codes) for t in tasks]
    similarity = SpeakerSimilarity()
    judges = Judges(
        open_recognizer(params.recogniser),
        similarity,
        MosPredictor(),
        similarity.embed(as_arrays([teacher.audio(t.prompt.codes) for t in tasks]), rate_hz),
    )
    heard = judges.recognizer.transcribe(as_arrays(originals), rate_hz)
    reference_wer = corpus_wer(
        [
            count_word_errors(t.utterance.text, h, params.recogniser.normalizer)
            for t, h in zip(tasks, heard, strict=True)
        ]
    )
    outputs: dict[str, SystemOutput] = {}
    with atomic_path(workspace.evaluation) as out:
        out.mkdir()
        write_wavs(out / "audio" / "original", tasks, originals, rate_hz)
        folders = system_folders(workspace, teacher)
        for name, folder in tqdm(folders.items(), desc="evaluating", unit="system"):
            system = load_beside(teacher, folder)
            model = system.model
            ids = [system.prompt_ids(t.utterance.text, t.prompt) for t in tasks]
            spoken = generate(model, system.layout, ids, params.decoding)
            waves = [teacher.audio(s.codes) for s in spoken]
            items = listen(tasks, spoken, waves, judges, params, rate_hz)
            write_wavs(out / "audio" / name, tasks, waves, rate_hz)
            timed = tasks[: knobs.speed_utterances]
            texts, prompts = [t.utterance.text for t in timed], [t.prompt for t in timed]
            speed = measure_speed(SpeedJob(params.teacher, folder, texts, prompts, params.decoding, threads))
            outputs[name] = SystemOutput(name, model.config.num_hidden_layers, model.num_parameters(), items, speed)
        report = EvaluationReport(
            asr=judges.recognizer.name,
            normalizer=params.recogniser.normalizer,
            test_set_sha256=hash_tasks(tasks),
            utterances=len(tasks),
            reference_wer=reference_wer,
            systems={
                name: summarize(o, judges.mos.name, knobs.bootstrap_samples, knobs.seed) for name, o in outputs.items()
            },
            gaps=all_gaps(outputs, knobs.bootstrap_samples, knobs.seed),
            machine=describe_machine(threads),
        )
        report.write(out / "evaluation.json")
        (out / "table.md").write_text(evaluation_table(report))
        rows = [{"system": name} | asdict(item) for name, o in outputs.items() for item in o.items]
        (out / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logger.info(decision_line(report.systems, reference_wer))
    return report


def all_gaps(outputs: dict[str, SystemOutput], samples: int, seed: int) -> list[PairedGap]:
    """Every system against the teacher, and the student against the control."""
    pairs = [(name, "teacher") for name in outputs if name != "teacher"]
    if "control" in outputs:
        pairs.append(("student", "control"))
    return [compare(outputs[a], outputs[b], samples, seed) for a, b in pairs]


def decision_line(systems: dict[str, SystemResult], reference_wer: float) -> str:
    """WER of every system in one line."""
    shown = ", ".join(f"{name} {100 * s.wer_corpus.value:.1f} %" for name, s in systems.items())
    return f"WER: {shown}; originals through the codec {100 * reference_wer:.1f} %"
