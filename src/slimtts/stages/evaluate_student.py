"""Stage evaluate_student: teacher, pruned, student and control on the same texts, prompts and seeds."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from slimtts.decoding.generation import Generated, generate
from slimtts.evaluation.agreement import measure_agreement
from slimtts.evaluation.naturalness import MosPredictor
from slimtts.evaluation.protocols import deviations
from slimtts.evaluation.similarity import SpeakerSimilarity, VoiceEncoder, WavLmSimilarity
from slimtts.evaluation.speed import SpeedJob, measure_speed
from slimtts.evaluation.systems import (
    SpokenItem,
    SystemOutput,
    as_arrays,
    compare,
    other_voice_similarity,
    other_voices,
    summarize,
)
from slimtts.evaluation.table import evaluation_table
from slimtts.evaluation.word_errors import corpus_wer
from slimtts.evaluation.word_meter import WordCounter, WordMeter, name_of_recognizer, open_recognizer
from slimtts.params import Params
from slimtts.progress import doing, progress_bar
from slimtts.quantization.memory import weight_bytes
from slimtts.quantization.placement import place_for_speech
from slimtts.results import EvaluationReport, PairedGap, SubsetReport
from slimtts.shared_work import make_items, progress_of
from slimtts.stages.benchmark_set import BenchmarkSet, open_benchmark
from slimtts.stages.heard import Heard, one_set_of_judges
from slimtts.stages.kept_audio import keep_audio
from slimtts.stages.sentence_groups import SentenceGroup, best_take, group_results, sentence_groups
from slimtts.stages.student_variants import variant_folders
from slimtts.stages.voices import SpeakingTask
from slimtts.storage import atomic_path
from slimtts.teachers.base import Teacher
from slimtts.teachers.checkpoint import hash_weights
from slimtts.teachers.loading import load_beside, load_teacher
from slimtts.workspace import Workspace

logger = logging.getLogger(__name__)

CODE = (
    "evaluation",
    "decoding",
    "quantization",
    "data/hard_sentences.py",
    "stages/benchmark_set.py",
    "stages/evaluate_student.py",
    "stages/heard.py",
    "stages/sentence_groups.py",
)  # what other code has heard is heard again


@dataclass(frozen=True)
class Judges:
    """The models that listen, and the voices they compare with."""

    words: WordMeter
    similarity: VoiceEncoder
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


def open_voice_encoder(source: str) -> VoiceEncoder:
    """As `evaluate_student.similarity` names it: "bundled", or a WavLM."""
    return SpeakerSimilarity() if source == "bundled" else WavLmSimilarity.load(source)


def listen(
    tasks: Sequence[SpeakingTask],
    spoken: Sequence[Generated],
    waves: Sequence[torch.Tensor],
    judges: Judges,
    rate_hz: int,
    mos_utterances: int,
) -> list[SpokenItem]:
    """What the judges heard; the first `mos_utterances` are rated."""
    audio = as_arrays(waves)
    with doing(f"{len(audio)} sentences are transcribed"):
        transcripts = judges.words.transcribe(audio, rate_hz)
    with doing(f"voices of {len(audio)} sentences are compared with their prompts"):
        voices = judges.similarity.embed(audio, rate_hz)
    similarity = np.sum(voices * judges.prompt_voices, axis=1)
    others = other_voices([task.prompt.voice for task in tasks])
    with doing(f"naturalness of {mos_utterances} sentences is rated"):
        rated = judges.mos.predict(audio[:mos_utterances], rate_hz)
    items = []
    for i, (task, made) in enumerate(zip(tasks, spoken, strict=True)):
        other = others[i]
        items.append(
            SpokenItem(
                task.utterance.id,
                task.utterance.text,
                transcripts[i],
                judges.words.count(task.utterance.text, transcripts[i]),
                made.ended,
                len(audio[i]) / rate_hz,
                float(similarity[i]),
                rated[i] if i < len(rated) else None,
                None if other is None else float(voices[i] @ judges.prompt_voices[other]),
            )
        )
    return items


class Hearing:
    """What is to be said, and the judges, who are called when something is to be heard."""

    def __init__(self, params: Params, workspace: Workspace, teacher: Teacher, benchmark: BenchmarkSet) -> None:
        self.params, self.teacher, self.benchmark, self.tasks = params, teacher, benchmark, benchmark.tasks
        self.groups = sentence_groups(params, self.tasks)
        self.rate_hz = teacher.codec.sample_rate_hz
        self.progress = hearing_progress(params, workspace, benchmark, self.groups)

    @cached_property
    def judges(self) -> Judges:
        """Loaded once."""
        words = WordMeter(self.params, open_recognizer(self.params.recogniser))
        similarity = open_voice_encoder(self.params.evaluate_student.similarity)
        voices = similarity.embed(self.benchmark.prompt_waves(self.teacher), self.rate_hz)
        return Judges(words, similarity, MosPredictor(), voices)

    def hear_originals(self, out: Path) -> None:
        """transcripts.json of the corpus' own codes."""
        with doing(f"{len(self.tasks)} original recordings are transcribed"):
            waves = [self.teacher.audio(t.utterance.codes) for t in self.tasks]
            heard = self.judges.words.transcribe(as_arrays(waves), self.rate_hz)
        out.mkdir()
        (out / "transcripts.json").write_text(json.dumps(heard))

    def hear_system(self, folder: Path, out: Path) -> None:
        """heard.json and codes.json, by id, of the checkpoint in `folder`."""
        system = load_beside(self.teacher, folder)
        weight_mb = weight_bytes(system.model) / 2**20
        place_for_speech(system.model)
        ids = [system.prompt_ids(t.utterance.text, t.prompt) for t in self.tasks]
        with doing(f"{out.name.rpartition('-')[0] or out.name} speaks {len(ids)} sentences"):
            spoken = generate(system.model, system.layout, ids, self.params.decoding)
            waves = [self.teacher.audio(s.codes) for s in spoken]
        rated = self.params.evaluate_student.mos_utterances
        items = listen(self.tasks, spoken, waves, self.judges, self.rate_hz, rated)
        model, judges = system.model, self.judges
        names = (judges.words.name, judges.mos.name, judges.similarity.name)
        heard = Heard(
            model.config.num_hidden_layers,
            model.num_parameters(),
            weight_mb,
            system.weights_sha256,
            *names,
            items,
            self.hear_groups(system),
        )
        out.mkdir()
        (out / "heard.json").write_text(json.dumps(asdict(heard)))
        codes = {t.utterance.id: s.codes for t, s in zip(self.tasks, spoken, strict=True)}
        (out / "codes.json").write_text(json.dumps(codes))

    def hear_groups(self, system: Teacher) -> dict[str, list[SpokenItem]]:
        """The sentences beside the test set, by group: of several attempts the best."""
        heard = {}
        for group in self.groups:
            judges = replace(self.judges, prompt_voices=self.judges.prompt_voices[group.prompts])
            ids = [system.prompt_ids(t.utterance.text, t.prompt) for t in group.tasks]
            takes = []
            for decoding in group.takes:
                with doing(f"{len(ids)} sentences of {group.name} are spoken"):
                    spoken = generate(system.model, system.layout, ids, decoding)
                    waves = [self.teacher.audio(s.codes) for s in spoken]
                takes.append(listen(group.tasks, spoken, waves, judges, self.rate_hz, 0))
            heard[group.name] = best_take(takes)
        return heard


def hearing_progress(
    params: Params, workspace: Workspace, benchmark: BenchmarkSet, groups: Sequence[SentenceGroup]
) -> Path:
    """Where what these judges heard is kept between attempts, and the variants that were made for them."""
    data = SubsetReport.read(workspace.data / "report.json").data_sha256
    knobs = params.evaluate_student
    marks = (
        params.teacher, params.decoding, params.recogniser, knobs.mos_utterances, knobs.language, knobs.similarity,
        benchmark.sha256, [(group.name, group.sha256, group.takes) for group in groups], data,
        torch.cuda.is_available(), name_of_recognizer(params.recogniser),
    )  # fmt: skip
    return progress_of(workspace.evaluation_progress, CODE, *marks)


def judged_folders(params: Params, workspace: Workspace, hearing: Hearing) -> dict[str, Path]:
    """`system_folders`, and those of the student's variants, which are made when they are first asked for."""
    variants = variant_folders(params, workspace, hearing.teacher, hearing.progress)
    return system_folders(workspace, hearing.teacher) | variants


def hear_all(params: Params, workspace: Workspace, hearing: Hearing) -> dict[str, Path]:
    """The originals and every system, by name, each heard once; those that were heard before are only looked up."""
    makers, names = {"original": hearing.hear_originals}, {"original": "original"}
    for name, folder in judged_folders(params, workspace, hearing).items():
        names[name] = f"{name}-{hash_weights(folder)[:16]}"
        makers[names[name]] = partial(hearing.hear_system, folder)
    with progress_bar(total=len(makers), desc="listening to systems", unit="system") as bar:
        make_items(hearing.progress, makers, lambda _: bar.update(1))
    return {name: hearing.progress / kept for name, kept in names.items()}


def open_hearing(params: Params, workspace: Workspace) -> Hearing:
    """The teacher's codec and the sentences that judge."""
    params = params.for_evaluation()
    teacher = load_teacher(params.teacher, with_model=False)
    return Hearing(params, workspace, teacher, open_benchmark(params, workspace, teacher))


def fill_progress(params: Params, workspace: Workspace) -> None:
    """Listens beside other processes that do the same, and writes no result: the stage finds all of it done."""
    hear_all(params, workspace, open_hearing(params, workspace))


def evaluate_student(params: Params, workspace: Workspace) -> EvaluationReport:
    """Writes evaluation.json, table.md, utterances.jsonl, kept.json and audio/ below `workspace.evaluation`."""
    params = params.for_evaluation()
    knobs, threads = params.evaluate_student, torch.get_num_threads()
    hearing = open_hearing(params, workspace)
    tasks, teacher = hearing.tasks, hearing.teacher
    folders = hear_all(params, workspace, hearing)
    transcripts = json.loads((folders["original"] / "transcripts.json").read_text())
    words = WordCounter.of(params)
    reference = [
        words.count(task.utterance.text, transcript)
        for task, transcript in zip(tasks, transcripts, strict=True)
        if task.utterance.codes
    ]
    reference_wer = corpus_wer(reference) if reference else None
    timed = tasks[: knobs.speed_utterances]
    texts, prompts = [t.utterance.text for t in timed], [t.prompt for t in timed]
    heard: dict[str, Heard] = {}
    outputs: dict[str, SystemOutput] = {}
    systems = judged_folders(params, workspace, hearing)
    for name, folder in systems.items():
        heard[name] = own = Heard.read(folders[name])
        with doing(f"{name} is timed on {len(texts)} sentences"):
            speed = measure_speed(SpeedJob(params.teacher, folder, texts, prompts, params.decoding, threads))
        outputs[name] = SystemOutput(name, own.num_layers, own.parameters, own.items, speed, own.weight_mb)
    listener = one_set_of_judges(heard)
    recorded = [(t.utterance, t.prompt) for t in tasks if t.utterance.codes][: knobs.agreement_utterances]
    students = {name: folder for name, folder in systems.items() if name != "teacher"}
    report = EvaluationReport(
        asr=listener.asr,
        normalizer=words.normalizer,
        test_set_sha256=hearing.benchmark.sha256,
        utterances=len(tasks),
        reference_wer=reference_wer,
        systems={
            name: summarize(o, heard[name].mos_predictor, knobs.bootstrap_samples, knobs.seed)
            for name, o in outputs.items()
        },
        gaps=all_gaps(outputs, knobs.bootstrap_samples, knobs.seed),
        machine=describe_machine(threads),
        weights_sha256={name: own.weights_sha256 for name, own in heard.items()},
        benchmark=knobs.benchmark,
        language=knobs.language,
        metric=words.metric,
        similarity_predictor=listener.similarity_predictor,
        other_voice_similarity=other_voice_similarity(outputs["teacher"].items),
        groups=group_results(
            hearing.groups, {n: own.groups for n, own in heard.items()}, knobs.bootstrap_samples, knobs.seed
        ),
    )
    report = report.model_copy(update={"deviations": deviations(report, hearing.benchmark.rows_there)})
    with atomic_path(workspace.evaluation) as out:
        keep_audio(params, workspace.root, teacher, tasks, folders, outputs["student"].items, out)
        report.write(out / "evaluation.json")
        if recorded:
            with doing(f"agreement with the teacher on {len(recorded)} recordings is measured"):
                agreement = measure_agreement(teacher, students, recorded, knobs.bootstrap_samples, knobs.seed)
            agreement.write(out / "agreement.json")
        (out / "table.md").write_text(evaluation_table(report))
        rows = [{"system": name} | asdict(item) for name, o in outputs.items() for item in o.items]
        (out / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if hearing.groups:
            rows = [
                {"system": name, "group": group} | asdict(item)
                for name, own in heard.items()
                for group, items in own.groups.items()
                for item in items
            ]
            (out / "groups.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logger.info(decision_line(report))
    return report


def all_gaps(outputs: dict[str, SystemOutput], samples: int, seed: int) -> list[PairedGap]:
    """Every system against the teacher, the student against the control, its variants against the student."""
    pairs = [(name, "teacher") for name in outputs if name != "teacher"]
    if "control" in outputs:
        pairs.append(("student", "control"))
    pairs += [(name, "student") for name in outputs if name.startswith("student-")]
    return [compare(outputs[a], outputs[b], samples, seed) for a, b in pairs]


def decision_line(report: EvaluationReport) -> str:
    """WER, or CER, of every system in one line."""
    shown = ", ".join(f"{name} {100 * s.wer_corpus.value:.1f} %" for name, s in report.systems.items())
    if report.reference_wer is None:
        return f"{report.metric}: {shown}"
    return f"{report.metric}: {shown}; originals through the codec {100 * report.reference_wer:.1f} %"
