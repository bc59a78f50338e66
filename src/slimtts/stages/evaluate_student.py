"""Stage evaluate_student: teacher, pruned, student and control on the same texts, prompts and seeds."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
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
from slimtts.evaluation.word_errors import WordErrors, corpus_wer, count_word_errors
from slimtts.params import Params
from slimtts.results import EvaluationReport, PairedGap, SubsetReport, SystemResult
from slimtts.shared_work import make_items, progress_of
from slimtts.stages.score_layers import open_recognizer
from slimtts.stages.voices import SpeakingTask, speaking_tasks
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.checkpoint import hash_weights
from slimtts.teachers.loading import load_beside, load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)

WAVS_A_SYSTEM = 12
CODE = ("evaluation", "decoding", "stages/evaluate_student.py")  # what other code has heard is heard again


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


@dataclass(frozen=True)
class Heard:
    """What is kept of one system, beside audio/; not its speed, which is measured when nothing else runs."""

    num_layers: int
    parameters: int
    weights_sha256: str
    asr: str
    mos_predictor: str
    items: list[SpokenItem]

    @classmethod
    def read(cls, folder: Path) -> Heard:
        """As `Hearing.hear_system` left it."""
        kept = json.loads((folder / "heard.json").read_text())
        items = [SpokenItem(**row | {"errors": WordErrors(**row["errors"])}) for row in kept.pop("items")]
        return cls(**kept, items=items)


class Hearing:
    """The test split, and the judges, who are called when something is to be heard."""

    def __init__(self, params: Params, teacher: Teacher, tasks: Sequence[SpeakingTask]) -> None:
        self.params, self.teacher, self.tasks = params, teacher, tasks
        self.rate_hz = teacher.codec.sample_rate_hz

    @cached_property
    def judges(self) -> Judges:
        """Loaded once."""
        similarity = SpeakerSimilarity()
        prompts = as_arrays([self.teacher.audio(t.prompt.codes) for t in self.tasks])
        voices = similarity.embed(prompts, self.rate_hz)
        return Judges(open_recognizer(self.params.recogniser), similarity, MosPredictor(), voices)

    def hear_originals(self, out: Path) -> None:
        """transcripts.json and audio/ of the corpus' own codes."""
        waves = [self.teacher.audio(t.utterance.codes) for t in self.tasks]
        write_wavs(out / "audio", self.tasks, waves, self.rate_hz)
        heard = self.judges.recognizer.transcribe(as_arrays(waves), self.rate_hz)
        (out / "transcripts.json").write_text(json.dumps(heard))

    def hear_system(self, folder: Path, out: Path) -> None:
        """heard.json and audio/ of the checkpoint in `folder`."""
        system = load_beside(self.teacher, folder)
        ids = [system.prompt_ids(t.utterance.text, t.prompt) for t in self.tasks]
        spoken = generate(system.model, system.layout, ids, self.params.decoding)
        waves = [self.teacher.audio(s.codes) for s in spoken]
        write_wavs(out / "audio", self.tasks, waves, self.rate_hz)
        items = listen(self.tasks, spoken, waves, self.judges, self.params, self.rate_hz)
        model, names = system.model, (self.judges.recognizer.name, self.judges.mos.name)
        heard = Heard(model.config.num_hidden_layers, model.num_parameters(), system.weights_sha256, *names, items)
        (out / "heard.json").write_text(json.dumps(asdict(heard)))


def hear_all(params: Params, workspace: Workspace, hearing: Hearing) -> dict[str, Path]:
    """The originals and every system, by name, each heard once; those that were heard before are only looked up."""
    data = SubsetReport.read(workspace.data / "report.json").data_sha256
    knobs = params.evaluate_student
    marks = (params.teacher, params.decoding, params.recogniser, knobs.utterances, knobs.mos_utterances, data)
    progress = progress_of(workspace.evaluation_progress, CODE, *marks)
    makers, names = {"original": hearing.hear_originals}, {"original": "original"}
    for name, folder in system_folders(workspace, hearing.teacher).items():
        names[name] = f"{name}-{hash_weights(folder)[:16]}"
        makers[names[name]] = partial(hearing.hear_system, folder)
    with tqdm(total=len(makers), desc="listening to systems", unit="system") as bar:
        make_items(progress, makers, lambda _: bar.update(1))
    return {name: progress / kept for name, kept in names.items()}


def open_hearing(params: Params, workspace: Workspace) -> Hearing:
    """The teacher's codec and the test split."""
    teacher = load_teacher(params.teacher, with_model=False)
    return Hearing(params, teacher, speaking_tasks(workspace, "test", params.evaluate_student.utterances))


def fill_progress(params: Params, workspace: Workspace) -> None:
    """Listens beside other processes that do the same, and writes no result: the stage finds all of it done."""
    hear_all(params, workspace, open_hearing(params, workspace))


def evaluate_student(params: Params, workspace: Workspace) -> EvaluationReport:
    """Writes evaluation.json, table.md, utterances.jsonl and audio/ below `workspace.evaluation`."""
    knobs, threads, normalizer = params.evaluate_student, torch.get_num_threads(), params.recogniser.normalizer
    hearing = open_hearing(params, workspace)
    tasks, teacher = hearing.tasks, hearing.teacher
    folders = hear_all(params, workspace, hearing)
    transcripts = json.loads((folders["original"] / "transcripts.json").read_text())
    said = [(task.utterance.text, transcript) for task, transcript in zip(tasks, transcripts, strict=True)]
    reference_wer = corpus_wer([count_word_errors(text, transcript, normalizer) for text, transcript in said])
    timed = tasks[: knobs.speed_utterances]
    texts, prompts = [t.utterance.text for t in timed], [t.prompt for t in timed]
    heard: dict[str, Heard] = {}
    outputs: dict[str, SystemOutput] = {}
    for name, folder in system_folders(workspace, teacher).items():
        heard[name] = own = Heard.read(folders[name])
        speed = measure_speed(SpeedJob(params.teacher, folder, texts, prompts, params.decoding, threads))
        outputs[name] = SystemOutput(name, own.num_layers, own.parameters, own.items, speed)
    listener = heard["teacher"]
    report = EvaluationReport(
        asr=listener.asr,
        normalizer=normalizer,
        test_set_sha256=hash_tasks(tasks),
        utterances=len(tasks),
        reference_wer=reference_wer,
        systems={
            name: summarize(o, listener.mos_predictor, knobs.bootstrap_samples, knobs.seed)
            for name, o in outputs.items()
        },
        gaps=all_gaps(outputs, knobs.bootstrap_samples, knobs.seed),
        machine=describe_machine(threads),
        weights_sha256={name: own.weights_sha256 for name, own in heard.items()},
    )
    with atomic_path(workspace.evaluation) as out:
        for name, folder in folders.items():
            shutil.copytree(folder / "audio", out / "audio" / name)
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
